"""The cache of jobs and dead letters: one SQLite file, filled from topics, which may be deleted at any time.

Knows no Kafka and no HTTP. Several threads read at the same time; one at a time writes.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import structlog

from etl.models.wire import Partition

log = structlog.get_logger(__name__)

VERSION = 4  # of the tables: a file of another version is built anew
READERS = 8  # connections kept open for reading

_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE positions (topic TEXT, partition INTEGER, next INTEGER NOT NULL, PRIMARY KEY (topic, partition));
CREATE TABLE letters (
    partition INTEGER, offset INTEGER, at REAL NOT NULL, code TEXT NOT NULL, job_id TEXT,
    source TEXT, source_path TEXT, destination TEXT, destination_path TEXT, error TEXT, replays INTEGER,
    truncated INTEGER, topic TEXT, origin TEXT, settled TEXT, settled_at REAL, note TEXT,
    timestamp REAL, key BLOB, value BLOB, headers TEXT,
    PRIMARY KEY (partition, offset));
CREATE INDEX letters_newest ON letters (at, partition, offset);
CREATE INDEX letters_waiting ON letters (code, source, destination, at) WHERE settled IS NULL;
CREATE INDEX letters_settled ON letters (settled) WHERE settled IS NOT NULL;
CREATE INDEX letters_job ON letters (job_id);
CREATE INDEX letters_origin ON letters (origin);
CREATE TABLE jobs (
    topic TEXT, partition INTEGER, offset INTEGER, at REAL NOT NULL, job_id TEXT, submitted_at REAL,
    source TEXT, source_path TEXT, destination TEXT, destination_path TEXT, priority TEXT, group_id TEXT,
    replays INTEGER DEFAULT 0, state TEXT NOT NULL DEFAULT 'queued', code TEXT, error TEXT, bytes INTEGER,
    started_at REAL, finished_at REAL, worker TEXT, attempts INTEGER, result TEXT,
    not_before REAL, waits INTEGER DEFAULT 0, history TEXT, letter TEXT,
    PRIMARY KEY (topic, partition, offset));
CREATE INDEX jobs_newest ON jobs (at, topic, partition, offset);
CREATE INDEX jobs_state ON jobs (state, at DESC);
CREATE INDEX jobs_id ON jobs (job_id);
CREATE INDEX jobs_finished ON jobs (finished_at);
CREATE INDEX jobs_group ON jobs (group_id) WHERE group_id IS NOT NULL;
CREATE TABLE groups (
    topic TEXT, partition INTEGER, offset INTEGER, at REAL NOT NULL, job_id TEXT, files INTEGER,
    PRIMARY KEY (topic, partition, offset));
CREATE TABLE outages (server TEXT, began REAL, ended REAL);
CREATE INDEX outages_server ON outages (server, ended);
CREATE INDEX outages_newest ON outages (ended);
CREATE TABLE notes (topic TEXT, key TEXT, at REAL, value TEXT, PRIMARY KEY (topic, key));
CREATE TABLE audit (
    partition INTEGER, offset INTEGER, at REAL NOT NULL, actor TEXT, action TEXT, target TEXT, result TEXT, value TEXT,
    PRIMARY KEY (partition, offset));
CREATE INDEX audit_newest ON audit (at, partition, offset);
"""


class Store:
    """The cache of one cluster and topic: `identity` says which, so that a file of another one is not taken for it."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self._identity = identity
        self._lock = threading.Lock()  # guards the writing connection
        self._readers: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self._writer = self._open()

    def _open(self) -> sqlite3.Connection:
        """Open the file; build it anew if it is damaged, of another version, or of another cluster."""
        try:
            connection = self._connect()
            with contextlib.suppress(sqlite3.OperationalError):
                found = dict(connection.execute("SELECT name, value FROM meta").fetchall())
                if found == {"version": str(VERSION), "identity": self._identity}:
                    return connection
            connection.close()
        except sqlite3.DatabaseError as error:
            log.warning("cache damaged, built anew", path=str(self.path), error=str(error))
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        connection = self._connect()
        connection.executescript(_TABLES)
        rows = [("version", str(VERSION)), ("identity", self._identity)]
        connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
        connection.commit()
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, check_same_thread=False, timeout=10)
        connection.row_factory = sqlite3.Row
        # The file is a cache: what a power cut takes from it is read from the topics again.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA cache_size=-4096")
        return connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection for reading."""
        try:
            connection = self._readers.get_nowait()
        except queue.Empty:
            connection = self._connect()
            connection.execute("PRAGMA query_only=ON")
        try:
            yield connection
        finally:
            connection.rollback()
            if self._readers.qsize() < READERS:
                self._readers.put(connection)
            else:
                connection.close()

    def rows(self, sql: str, values: Iterable[Any] | Mapping[str, Any] = ()) -> list[sqlite3.Row]:
        """Return all rows of a query."""
        with self.reading() as connection:
            return connection.execute(sql, values).fetchall()  # type: ignore[arg-type]  # a mapping is as good

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Lend the writing connection for one transaction, which ends with the context."""
        with self._lock, self._writer:
            yield self._writer

    def positions(self) -> dict[Partition, int]:
        """Return the next offset of each partition that was read."""
        rows = self.rows("SELECT topic, partition, next FROM positions")
        return {Partition(row["topic"], row["partition"]): row["next"] for row in rows}

    def prune(self, keep: int) -> int:
        """Drop the oldest jobs that are over, beyond the newest `keep` jobs; return how many."""
        sql = (
            "DELETE FROM jobs WHERE state IN ('done', 'failed', 'discarded') AND at <="
            " (SELECT at FROM jobs ORDER BY at DESC LIMIT 1 OFFSET ?)"
        )
        with self.writing() as connection:
            dropped = connection.execute(sql, (keep,)).rowcount
            connection.execute("DELETE FROM groups WHERE at < (SELECT min(at) FROM jobs)")
            return dropped

    def close(self) -> None:
        """Close every connection."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._readers.get_nowait().close()
        with self._lock:
            self._writer.close()
