"""What must outlive a restart and is in no topic: hashes of tokens and sessions, secrets, acts not in the audit yet.

One file, for this user alone.

Deleting the file ends every session, revokes every token that was made here, and makes a new first one.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from etl.api.access.identity import ROLES, Identity, Role

IDLE_SECONDS = 1800.0  # a session that nobody used for so long has ended
LONGEST_SECONDS = 12 * 3600.0  # and any after so long
RENEW_SECONDS = 60.0  # how exactly it is known when a session was last used
FIRST = "first"  # name of the token that is made where nothing else is configured

_TABLES = """
CREATE TABLE IF NOT EXISTS tokens (
    id TEXT PRIMARY KEY, name TEXT UNIQUE, role TEXT, hash TEXT, created_at REAL, created_by TEXT, expires_at REAL);
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY, hash TEXT UNIQUE, name TEXT, role TEXT, origin TEXT, address TEXT,
    opened_at REAL, used_at REAL, ends_at REAL);
CREATE TABLE IF NOT EXISTS secrets (name TEXT PRIMARY KEY, value BLOB);
CREATE TABLE IF NOT EXISTS acts (id INTEGER PRIMARY KEY AUTOINCREMENT, line BLOB);
"""


def digest(secret: str) -> str:
    """Return the hash that is kept of a random token: 256 bits need no slow one."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


class Vault:
    """The file of tokens and sessions. Any thread may use it."""

    def __init__(self, path: Path, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._lock = threading.Lock()  # guards the connection
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        self._connection = sqlite3.connect(path, check_same_thread=False, timeout=10)
        self._connection.row_factory = sqlite3.Row
        self._connection.executescript(_TABLES)

    @contextlib.contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._connection:
            yield self._connection

    def secret(self, name: str) -> bytes:
        """Return a random secret, the same at each call and after a restart."""
        with self._using() as connection:
            connection.execute("INSERT OR IGNORE INTO secrets VALUES (?, ?)", (name, secrets.token_bytes(32)))
            return bytes(connection.execute("SELECT value FROM secrets WHERE name = ?", (name,)).fetchone()[0])

    # --- tokens -----------------------------------------------------------------------------------------------

    def make_token(self, name: str, role: Role, by: str, expires_at: float | None = None) -> tuple[str, str] | None:
        """Make a token; return its id and itself, which is shown this once; None if there is one of that name."""
        token, id_ = secrets.token_urlsafe(32), secrets.token_hex(6)
        values = (id_, name, role.word, digest(token), self._wall(), by, expires_at)
        with self._using() as connection:
            made = connection.execute("INSERT OR IGNORE INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            return (id_, token) if made.rowcount else None

    def tokens(self) -> list[dict[str, Any]]:
        """Return the tokens without their hashes."""
        with self._using() as connection:
            rows = connection.execute("SELECT id, name, role, created_at, created_by, expires_at FROM tokens")
            return [dict(row) for row in rows]

    def revoke_token(self, id_: str) -> str | None:
        """Revoke a token with the sessions that it opened; return its name, None if there is none."""
        with self._using() as connection:
            row = connection.execute("DELETE FROM tokens WHERE id = ? RETURNING name", (id_,)).fetchone()
            if row is None:
                return None
            connection.execute("DELETE FROM sessions WHERE origin = ? AND name = ?", ("token", row["name"]))
            return str(row["name"])

    def identify(self, token: str) -> Identity | None:
        """Return whose token this is."""
        wanted = digest(token)
        with self._using() as connection:
            rows = connection.execute("SELECT name, role, hash, expires_at FROM tokens").fetchall()
        found = [row for row in rows if hmac.compare_digest(row["hash"], wanted)]
        if not found or (found[0]["expires_at"] is not None and found[0]["expires_at"] <= self._wall()):
            return None
        return Identity(found[0]["name"], ROLES[found[0]["role"]], "token")

    # --- sessions ---------------------------------------------------------------------------------------------

    def open_session(self, who: Identity, address: str) -> str:
        """Open a session; return the secret of its cookie."""
        cookie, now = secrets.token_urlsafe(32), self._wall()
        values = (
            *(secrets.token_hex(6), digest(cookie), who.name, who.role.word, who.via, address),
            *(now, now, now + LONGEST_SECONDS),
        )
        with self._using() as connection:
            connection.execute("DELETE FROM sessions WHERE ends_at < ? OR used_at < ?", (now, now - IDLE_SECONDS))
            connection.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        return cookie

    def resume(self, cookie: str) -> Identity | None:
        """Return whose session a cookie is, and renew it; None if it has ended or was revoked."""
        now = self._wall()
        with self._using() as connection:
            row = connection.execute("SELECT * FROM sessions WHERE hash = ?", (digest(cookie),)).fetchone()
            if row is None or row["ends_at"] < now or row["used_at"] < now - IDLE_SECONDS:
                return None
            if now - row["used_at"] > RENEW_SECONDS:
                connection.execute("UPDATE sessions SET used_at = ? WHERE id = ?", (now, row["id"]))
        return Identity(row["name"], ROLES[row["role"]], "session", row["id"], row["origin"])

    def has_session(self, id_: str) -> bool:
        """Is this session still open? Does not renew it."""
        return any(one["id"] == id_ for one in self.sessions())

    def sessions(self) -> list[dict[str, Any]]:
        """Return the open sessions without their secrets."""
        now = self._wall()
        with self._using() as connection:
            rows = connection.execute(
                "SELECT id, name, role, origin, address, opened_at, used_at, ends_at FROM sessions"
                " WHERE ends_at >= ? AND used_at >= ? ORDER BY used_at DESC",
                (now, now - IDLE_SECONDS),
            )
            return [dict(row) for row in rows]

    def end_session(self, id_: str) -> bool:
        """End a session; False if there is none."""
        with self._using() as connection:
            return connection.execute("DELETE FROM sessions WHERE id = ?", (id_,)).rowcount > 0

    # --- acts that Kafka does not have yet ----------------------------------------------------------------------

    def last_act(self) -> str:
        """Return the hash of the last act, which the next one names."""
        with self._using() as connection:
            row = connection.execute("SELECT value FROM secrets WHERE name = 'last act'").fetchone()
            return "" if row is None else str(row["value"])

    def keep_act(self, line: bytes, hashed: str) -> None:
        """Keep an act, as the last one."""
        with self._using() as connection:
            connection.execute("INSERT INTO acts (line) VALUES (?)", (line,))
            connection.execute("INSERT OR REPLACE INTO secrets VALUES ('last act', ?)", (hashed,))

    def acts(self, most: int) -> list[tuple[int, bytes]]:
        """Return the oldest acts, with their numbers."""
        with self._using() as connection:
            rows = connection.execute("SELECT id, line FROM acts ORDER BY id LIMIT ?", (most,)).fetchall()
            return [(row["id"], bytes(row["line"])) for row in rows]

    def drop_acts(self, last: int) -> None:
        """Forget the acts up to this number."""
        with self._using() as connection:
            connection.execute("DELETE FROM acts WHERE id <= ?", (last,))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()
