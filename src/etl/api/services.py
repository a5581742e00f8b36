"""All that handlers use: views, access, and what acts. Built once, started and stopped as one."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from etl import broker
from etl.api.access.guard import Guard
from etl.api.access.vault import Vault
from etl.api.acts.checking import Checks
from etl.api.acts.engine import Engine
from etl.api.acts.marks import Marks
from etl.api.acts.orders import Orders
from etl.api.acts.submitting import Submitter
from etl.api.audit import Audit
from etl.api.paging import Cursors
from etl.api.presence import Presence
from etl.api.problems import Problem
from etl.api.requests import Counted
from etl.api.views import outages
from etl.api.views.following import Following
from etl.api.views.live import Live
from etl.api.views.rows import Rows
from etl.api.views.search import Search
from etl.api.views.store import Store
from etl.errors import SettingsError
from etl.models import document
from etl.status.publisher import Publisher
from etl.topics.companions import SystemTopics, ensure_system
from etl.topics.names import Topics

if TYPE_CHECKING:
    from etl.config import ConfigLoader
    from etl.models.task import Record
    from etl.models.wire import Partition

log = structlog.get_logger(__name__)

STALE_SECONDS = 20.0  # without an answer of the broker
JOBS_READ = 200_000  # records of T that are read at most when the cache is built: the newest


@dataclass
class Services:
    """What one API process is made of."""

    config: ConfigLoader
    topics: Topics
    system: SystemTopics
    store: Store
    search: Search
    live: Live
    vault: Vault
    guard: Guard
    cursors: Cursors
    audit: Audit
    marks: Marks
    engine: Engine
    orders: Orders
    checks: Checks
    submitter: Submitter
    status: Following  # of what processes say and are told
    history: Following  # of jobs and what became of them
    presence: Presence
    publisher: Publisher | None  # None without ETL_STATUS
    requests: Counted = dataclasses.field(default_factory=Counted)

    @classmethod
    def build(cls, config: ConfigLoader) -> Services:
        """Open the files; connect to nothing yet. Raises SettingsError."""
        settings = config.settings
        topics, system = Topics.of(settings.topic, settings), SystemTopics.of(settings)
        identity = f"{settings.bootstrap_servers} {topics} {system}"
        folder = data_folder(settings.api_data_dir, identity)
        vault = Vault(folder / "access.db")
        guard = Guard.of(settings, vault)
        store = Store(folder / "cache.db", identity)
        live = Live()
        rows = Rows(topics, system)

        def start(partition: Partition, first: int, end: int) -> int:
            known = store.positions().get(partition)
            if known is not None and first <= known <= end:
                return known
            if partition.topic == topics.source:
                return max(first, end - JOBS_READ // settings.num_partitions)
            return first

        def start_status(partition: Partition, first: int, end: int) -> int:
            return first if partition.topic == system.status else start(partition, first, end)

        def take(records: Sequence[Record], positions: Mapping[Partition, int], _caught_up: bool) -> None:
            with store.writing() as connection:
                rows.write(connection, records)
                connection.executemany(
                    "INSERT OR REPLACE INTO positions VALUES (?, ?, ?)", [(*p, at) for p, at in positions.items()]
                )

        def take_status(records: Sequence[Record], positions: Mapping[Partition, int], caught_up: bool) -> None:
            said = live.take([record for record in records if record.topic == system.status], caught_up=caught_up)
            outages.note(store, said)
            others = [record for record in records if record.topic != system.status]
            take(others, {p: at for p, at in positions.items() if p.topic != system.status}, caught_up)

        def trim(firsts: Mapping[Partition, int]) -> None:
            gone = [(p.partition, first) for p, first in firsts.items() if p.topic == topics.dlq and first > 0]
            with store.writing() as connection:
                connection.executemany("DELETE FROM letters WHERE partition = ? AND offset < ?", gone)

        def prepare() -> None:
            try:
                ensure_system(system, broker.Admin(settings.bootstrap_servers))
            except broker.NotAllowed as error:  # then somebody else creates them
                log.warning("topics of the API cannot be created", error=str(error))

        companions = (topics.source, topics.results, topics.failed, topics.retry, topics.dlq)
        address, search = settings.bootstrap_servers, Search(store)
        status = Following("status", address, dataclasses.astuple(system), start_status, take_status, prepare=prepare)
        history = Following("history", address, companions, start, take, trim)
        marks = Marks(address, system.marks, search, status)
        presence = Presence(settings.instance_id, topics.source, lambda: status.caught_up and history.caught_up)
        return cls(
            config=config,
            topics=topics,
            system=system,
            store=store,
            search=search,
            live=live,
            vault=vault,
            guard=guard,
            cursors=Cursors(vault.secret("cursors")),
            audit=Audit(address, system.audit, f"api/{settings.instance_id}", vault),
            marks=marks,
            orders=Orders(address, system.control, search, status),
            checks=Checks(config),
            engine=Engine(address, topics, marks, search, history, store),
            submitter=Submitter(address, topics.source, marks),
            status=status,
            history=history,
            presence=presence,
            publisher=Publisher(address, system.status, presence, prepare) if settings.status else None,
        )

    def start(self) -> None:
        """Begin to follow the topics."""
        self.status.start()
        self.history.start()
        self.audit.start()
        self.engine.start()
        if self.publisher is not None:
            self.publisher.start()

    def stop(self) -> None:
        """Stop following, and close the files."""
        self.presence.is_stopping = True
        if self.publisher is not None:
            self.publisher.stop()
        self.engine.stop()
        self.submitter.close()
        self.checks.close()
        stops = [threading.Thread(target=part.stop) for part in (self.status, self.history, self.audit)]
        for stop in stops:
            stop.start()
        for stop in stops:
            stop.join()
        self.store.close()
        self.vault.close()

    @property
    def stale(self) -> bool:
        """Has the broker not answered for a while, so that the views may be old?"""
        silences = [part.silence() for part in (self.status, self.history)]
        return any(silence is None or silence > STALE_SECONDS for silence in silences)

    @property
    def ready(self) -> bool:
        """Is all of the topics in the views, and the broker there?"""
        return self.status.caught_up and self.history.caught_up and not self.stale

    def require_broker(self) -> None:
        """Raise Problem if the broker is known to be away: nothing may be written then."""
        if self.stale:
            raise Problem("broker-away", "nothing is written until Kafka answers again")

    def envelope(self) -> dict[str, Any]:
        """Return when a view was true, and whether it may be old."""
        stale = self.stale
        silence = max((part.silence() or 0.0) for part in (self.status, self.history))
        at = datetime.now(UTC).timestamp() - (silence if stale else 0.0)
        return {"as_of": document.iso(datetime.fromtimestamp(at, UTC)), "stale": stale}


def data_folder(setting: str, identity: str) -> Path:
    """Return the folder of the API's files, made if need be. Raises SettingsError if others may use it.

    Who may write there decides who is let in.
    """
    name = hashlib.sha256(identity.encode()).hexdigest()[:12]
    folder = Path(setting) if setting else Path(tempfile.gettempdir()) / f"etl-api-{os.getuid()}-{name}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise SettingsError(f"ETL_API_DATA_DIR: {folder} cannot be made: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise SettingsError(
            f"ETL_API_DATA_DIR: {folder} must be a folder of this user's that nobody else may read or write (mode 0700)"
        )
    return folder
