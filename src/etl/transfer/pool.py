"""Sessions: one pool per server, leased in pairs, or alone to be opened; reused while proven clean.

    Pools(config_lookup, settings, clock=time.monotonic, create=create_session, jitter=random.random)
    .on_release                                   called, without a lock, whenever a session or a connect became free
    .server(name) -> ServerConfig   .key(server) -> pool key   .know(servers)   .check(source, destination)
    .reserve(source, destination=None) -> Lease | None      never blocks: both sessions or none
    .room(server) -> int   .held_up(server) -> seconds | None   .connected(server) -> int   .rest(server) -> seconds
    .litter(server, path)   .tidy(server, path) -> bool   .round_trip(server) -> seconds | None
    .start()  .reap()  .stats()  .close(timeout=5.0) -> bool
    Lease (lease.py): .open()  .source  .destination  .servers  .is_pair  .shared  .release(clean)  .abort()  .aborted

Knows settings and sessions; knows no job, no queue, no Kafka.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from typing import TYPE_CHECKING

import structlog

from etl.errors import Fate, SettingsError, fate_of
from etl.transfer.base import Session, TransferFactory
from etl.transfer.lease import Lease, disconnect, is_alive, named
from etl.transfer.shelf import Ages, Shelf, fits, same_view
from etl.transfer.staged import Staged

if TYPE_CHECKING:
    from collections import OrderedDict
    from collections.abc import Callable, Iterable

    from etl.config import ServerConfig, Settings, TransferSettings
    from etl.transfer.shelf import Held, Key, Piece, Place

    Create = Callable[[ServerConfig, TransferSettings], Session]

log = structlog.get_logger(__name__)


def create_session(server: ServerConfig, settings: TransferSettings) -> Session:
    """Return a new, unconnected session of the server's type; a user's four-method class is wrapped."""
    transfer = TransferFactory.create(server, settings)
    return transfer if isinstance(transfer, Session) else Staged(transfer, settings.spool_limit_bytes)


class Pools:
    """All pools of this process."""

    def __init__(
        self,
        config_lookup: Callable[[str], ServerConfig],
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        create: Create = create_session,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.server = config_lookup
        self.now = clock
        self.on_release: Callable[[], None] | None = None
        self._create = create
        self._jitter = jitter
        self._limits = settings.transfer
        self._ages = Ages(
            settings.ping_interval_seconds,
            settings.idle_timeout_seconds,
            settings.session_lifetime_seconds,
            settings.login_backoff_seconds,
        )
        self.ping_limit = settings.ping_timeout_seconds
        # Guards _shelves and all that is in them, _leases, _closing, _tending. Held only to decide, never during I/O.
        self._lock = threading.Lock()
        self._shelves: dict[Key, Shelf] = {}
        self._leases: set[Lease] = set()
        self._closing = False
        self._tending: dict[Key, threading.Thread] = {}  # looks after the idle sessions of that shelf just now
        self._end = threading.Event()
        self._reaper = threading.Thread(target=self._reap_on, name="reaper", daemon=True)

    # --- deciding ---

    @staticmethod
    def key(server: ServerConfig) -> Key:
        """Return what names of one server have in common. Without a host each base path is a server of its own."""
        return server.address if server.host else (*server.address, server.base_path)

    def know(self, servers: Iterable[ServerConfig]) -> None:
        """Tell of servers before their first job, so that a pool's limit is the smallest of its names' at once."""
        with self._lock:
            for server in servers:
                self._shelf(server)

    def check(self, source: ServerConfig, destination: ServerConfig) -> None:
        """Raise SettingsError for a pair that could never get its sessions."""
        with self._lock:
            shelf = self._shelf(source)
            is_alone = shelf is self._shelf(destination) and shelf.limit < 2
        if is_alone and not _can_share(source, destination):
            raise SettingsError(
                f"{source.hostname} and {destination.hostname} are one server with different settings: "
                f"a job between them needs MAX_CONNECTIONS of at least 2",
                server=source.hostname,
            )

    def reserve(self, source: ServerConfig, destination: ServerConfig | None = None) -> Lease | None:
        """Take places for both sides in one step, or none: nobody ever waits holding one. Never blocks.

        Of the idle sessions the one used last. Where both sides are one pool with room for a single session, that
        one serves both (`Lease.shared`). None also while too many connects to one of the servers are under way.
        """
        now = self.now()
        with self._lock:
            if self._closing:
                return None
            shelf = self._shelf(source)
            other = None if destination is None else self._shelf(destination)
            shared = other is shelf and shelf.room(now) == 1
            if shared and destination is not None and not _can_share(source, destination):
                return None
            first = shelf.pick(source, now)
            if first is None:
                return None
            second = None
            if other is not None and destination is not None and not shared:
                second = other.pick(destination, now, first if other is shelf else None)
                if second is None:
                    shelf.unpick(first)
                    return None
            lease = Lease(self, first, second, shared=shared)
            self._leases.add(lease)
            return lease

    def room(self, server: ServerConfig) -> int:
        """Return how many sessions of a server could be had now, were there no limit on connects under way."""
        now = self.now()
        with self._lock:
            return 0 if self._closing else max(0, self._shelf(server).room(now))

    def held_up(self, server: ServerConfig) -> float | None:
        """Return since how many seconds no session can be had, though there is room: connects must end or wait first.

        None: one can be had, or there is no room.
        """
        now = self.now()
        with self._lock:
            return self._shelf(server).held_up(now)

    def connected(self, server: ServerConfig) -> int:
        """Return how many sessions with a server are open."""
        with self._lock:
            return self._shelf(server).connected

    def rest(self, server: ServerConfig) -> float:
        """Return for how many seconds nobody should log in to a server, since it refused a login."""
        now = self.now()
        with self._lock:
            return max(0.0, self._shelf(server).no_login_before - now)

    def litter(self, server: ServerConfig, path: str) -> None:
        """Remember a partial file that could not be removed; the next fresh session with its server does it."""
        with self._lock:
            forgotten = self._shelf(server).add_litter(server, path)
        if forgotten is not None:
            log.warning("partial file forgotten", server=server.hostname, path=forgotten)

    def tidy(self, server: ServerConfig, path: str) -> bool:
        """Remove a partial file now, through a session of its own; else remember it, and return False.

        For a lane whose own session broke and is closed: the place of that one is still the lane's.
        """
        with self._lock:
            may_connect = not self._closing and self._shelf(server).take_connect(self.now())
        if may_connect:
            try:
                with self.create(server) as session:
                    session.remove(path)
            except Exception as error:  # noqa: BLE001 - the failure that matters is the transfer's
                log.info("partial file left for later", server=server.hostname, path=path, error=str(error))
                self.refused(server, named(error, server))
            else:
                return True
        self.litter(server, path)
        return False

    def round_trip(self, server: ServerConfig) -> float | None:
        """Return the seconds of a round trip to a server, as one of its sessions told last; None: not known."""
        with self._lock:
            return self._shelf(server).round_trip

    def stats(self) -> dict[str, dict[str, int]]:
        """Return the numbers of each pool, under its names."""
        now = self.now()
        with self._lock:
            return {
                "/".join(sorted(shelf.names)): {
                    "limit": shelf.limit,
                    "limit_now": shelf.limit_at(now),
                    "open": shelf.connected,
                    "idle": len(shelf.idle),
                    "taken": shelf.taken,
                    "dialing": shelf.dialing,
                    "connects_left": int(shelf.connects_left(now)),
                    "litter": len(shelf.litter),
                }
                for shelf in self._shelves.values()
            }

    def _shelf(self, server: ServerConfig) -> Shelf:
        key = self.key(server)
        shelf = self._shelves.get(key)
        if shelf is None:
            shelf = self._shelves[key] = Shelf(server.max_connections, self._ages)
        shelf.know(server)
        return shelf

    # --- what a lease reports ---

    def create(self, server: ServerConfig) -> Session:
        """Return a new, unconnected session."""
        return self._create(server, self._limits)

    def expiry(self) -> float:
        """Return when a session that is opened now will be past its lifetime."""
        return self._ages.expiry(self.now(), self._jitter())

    def opened(self, place: Place) -> None:
        """Count a session that connected."""
        with self._lock:
            place.shelf.welcomed()

    def closed(self, place: Place) -> None:
        """Count the victim as closed."""
        with self._lock:
            place.shelf.connected -= 1

    def discarded(self, place: Place) -> None:
        """Count a session as closed that another takes the place of: one connect more."""
        with self._lock:
            place.shelf.connected -= 1
            place.shelf.dials_left -= 1

    def dialled(self, place: Place) -> None:
        """Count a connect as over: another may begin."""
        with self._lock:
            place.shelf.end_dial(place)
        self._tell()

    def refused(self, server: ServerConfig, error: Exception) -> None:
        """Note a connect that failed."""
        if fate_of(error) is not Fate.OUTAGE:
            return
        now = self.now()
        with self._lock:
            shelf = self._shelf(server)
            has_shrunk, limit = shelf.refused(error, now), shelf.limit_at(now)
        if has_shrunk:
            log.warning("pool shrunk: no more sessions", server=server.hostname, limit=limit, error=str(error))

    def take_litter(self, place: Place) -> OrderedDict[str, Piece]:
        """Hand out partial files to remove."""
        with self._lock:
            return place.shelf.take_litter(place.server)

    def put_litter(self, place: Place, litter: OrderedDict[str, Piece]) -> None:
        """Take back those that were not removed."""
        with self._lock:
            for path, piece in litter.items():
                place.shelf.litter.setdefault(path, piece)

    def give_back(self, lease: Lease, places: list[tuple[Place, bool]]) -> None:
        """End a lease: keep the clean sessions, close the others; a place is free once its session is closed."""
        now = self.now()
        doomed: list[tuple[Shelf, Held, bool]] = []
        trips = [place.held.session.round_trip_seconds() if clean and place.held else None for place, clean in places]
        with self._lock:  # critical section: decide what is kept
            self._leases.discard(lease)
            for (place, clean), seconds in zip(places, trips, strict=True):
                shelf = place.shelf
                shelf.round_trip = shelf.round_trip if seconds is None else seconds
                shelf.end_dial(place)
                shelf.dials_left += place.is_new and not place.is_touched
                if place.victim is not None and not self._closing:  # its turn never came
                    shelf.put(place.victim)
                elif place.victim is not None:
                    shelf.taken += 1
                    doomed.append((shelf, place.victim, True))
                if place.held is None:
                    shelf.taken -= 1
                elif clean and not self._closing and shelf.keeps(place.held, now):
                    if place.is_touched:
                        place.held.used = place.held.proven = now
                    shelf.taken -= 1
                    shelf.put(place.held)
                else:
                    doomed.append((shelf, place.held, clean))
        for shelf, held, clean in doomed:
            if not clean:
                held.session.abort()  # no farewell on a session in an unknown state: it could block
            self._close(shelf, held)
        self._tell()

    def _close(self, shelf: Shelf, held: Held) -> None:
        disconnect(held)
        with self._lock:
            shelf.connected -= 1
            shelf.taken -= 1

    def _tell(self) -> None:
        if self.on_release is not None:
            self.on_release()

    # --- the reaper ---

    def start(self) -> None:
        """Start the thread that looks after idle sessions."""
        self._reaper.start()

    def reap(self) -> None:
        """Look after the idle sessions of every server once, and wait until that is done."""
        for thread in self._tend_all():
            thread.join()

    def _tend_all(self) -> list[threading.Thread]:
        """Have each shelf looked after by a thread of its own, unless one does: a silent server delays no other."""
        now = self.now()
        with self._lock:
            if self._closing:
                return []
            threads = {
                key: threading.Thread(target=self._tend, args=(key, shelf), name=f"tender-{number}", daemon=True)
                for number, (key, shelf) in enumerate(self._shelves.items())
                if key not in self._tending and shelf.needs_care(now)
            }
            for key, thread in threads.items():  # under the lock: `close` joins only what was started
                thread.start()
                self._tending[key] = thread
        return list(threads.values())

    def _tend(self, key: Key, shelf: Shelf) -> None:
        try:
            self._care_for(shelf)
        except Exception:  # a bug must not end the looking after
            log.exception("reaper failed")
        finally:
            with self._lock:
                del self._tending[key]

    def _care_for(self, shelf: Shelf) -> None:
        """Close idle sessions that expired, ping those due (one dead: close all due), open what is wanted ahead."""
        started = self.now()
        while (held := self._take_idle(shelf, lambda held: shelf.has_expired(held, started))) is not None:
            self._close(shelf, held)
            self._tell()
        is_dead = False
        while (held := self._take_idle(shelf, lambda held: not held.is_fresh(started, self._ages))) is not None:
            is_dead = is_dead or not is_alive(held, self.now, self.ping_limit)
            if is_dead:
                held.session.abort()
            self._put_back(shelf, held, clean=not is_dead)
        while (lease := self._reserve_warm(shelf)) is not None:
            try:
                lease.open()
            except Exception as error:  # noqa: BLE001 - whoever needs a session will find out, and report it
                log.info("session not opened ahead of need", servers=sorted(shelf.names), error=str(error))
            lease.release(clean=True)

    def _reserve_warm(self, shelf: Shelf) -> Lease | None:
        now = self.now()
        with self._lock:
            place = None if self._closing else shelf.pick_warm(now)
            if place is None:
                return None
            lease = Lease(self, place, None)
            self._leases.add(lease)
            return lease

    def _take_idle(self, shelf: Shelf, wanted: Callable[[Held], bool]) -> Held | None:
        with self._lock:
            return None if self._closing else shelf.take_idle(wanted)

    def _put_back(self, shelf: Shelf, held: Held, *, clean: bool) -> None:
        with self._lock:
            kept = clean and not self._closing
            if kept:
                shelf.taken -= 1
                shelf.put(held)
        if not kept:
            self._close(shelf, held)
        self._tell()

    def _reap_on(self) -> None:
        pause = max(0.05, min(self._ages.ping_interval, self._ages.idle_timeout) / 4)
        while not self._end.is_set():
            try:
                self._tend_all()
            except Exception:  # no thread to be had just now, or a bug: the next look may do better
                log.exception("reaper failed")
            self._end.wait(pause)

    # --- the end ---

    def close(self, timeout: float = 5.0) -> bool:
        """Lend nothing more, reset what is lent, close what is idle. Return whether all was done in `timeout` seconds.

        Idle sessions get half of the time for a polite farewell, then they are reset. A lent one is closed by the
        lane that holds it.
        """
        end = time.monotonic() + timeout
        self._end.set()
        with self._lock:
            self._closing = True
            tending = list(self._tending.values())
            leases = list(self._leases)
            idle = [(shelf, held) for shelf in self._shelves.values() for held in shelf.idle]
            for shelf, _ in idle:
                shelf.taken += 1
            for shelf in self._shelves.values():
                shelf.idle.clear()
        for lease in leases:
            lease.abort()
        farewells: queue.SimpleQueue[tuple[Shelf, Held]] = queue.SimpleQueue()
        for item in idle:
            farewells.put(item)
        threads = [
            threading.Thread(target=self._say_farewell, args=(farewells,), name=f"closer-{number}", daemon=True)
            for number in range(min(8, len(idle)))
        ]
        for thread in threads:
            thread.start()
        if not _join(threads, end - timeout / 2):
            for _, held in idle:
                held.session.abort()
        threads += tending
        if self._reaper.ident is not None:
            threads.append(self._reaper)
        return _join(threads, end)

    def _say_farewell(self, sessions: queue.SimpleQueue[tuple[Shelf, Held]]) -> None:
        while True:
            try:
                shelf, held = sessions.get_nowait()
            except queue.Empty:
                return
            self._close(shelf, held)


def _can_share(source: ServerConfig, destination: ServerConfig) -> bool:
    """Can one session be both sides of a job at once?"""
    return fits(source, destination) and same_view(source, destination)


def _join(threads: list[threading.Thread], end: float) -> bool:
    """Wait for threads until `end` of the monotonic clock. Return whether all ended."""
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)
