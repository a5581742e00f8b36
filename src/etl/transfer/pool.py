"""Sessions: one pool per server, leased in pairs, reused while proven clean.

    Pools(config_lookup, settings, clock=time.monotonic, create=create_session, on_release=None)
    .server(name) -> ServerConfig   .key(server) -> pool key   .know(servers)   .check(source, destination)
    .reserve(source, destination=None) -> Lease | None      never blocks: both sessions or none
    .soon(source, destination) -> bool   .connected(server) -> int   .litter(server, path)
    .start()  .reap()  .stats()  .close(timeout=5.0) -> bool
    Lease.open()  .source  .destination  .shared  .release(clean=…)  .abort()  .aborted

Knows settings and sessions; knows no job, no queue, no Kafka.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import structlog

from etl.errors import (
    AuthenticationFailed,
    ConnectionLost,
    EtlError,
    ServerBusy,
    ServerUnavailable,
    SettingsError,
)
from etl.transfer.base import Session, TransferFactory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from etl.config import ServerConfig, Settings, TransferSettings

    Key = tuple[object, ...]
    Create = Callable[[ServerConfig, TransferSettings], Session]

DIALS = 4  # connects to one server at once: a server that is slow to welcome gets no storm
SHRINK_SECONDS = 60.0  # how long a pool stays at what was open when its server said "too many connections"
LITTER_LIMIT = 1000  # partial files remembered per server
LITTER_BATCH = 50  # of those, removed by one fresh session before its job: bounds the delay
LITTER_TRIES = 3

log = structlog.get_logger(__name__)


def create_session(server: ServerConfig, settings: TransferSettings) -> Session:
    """Return a new, unconnected session of the server's type; a user's four-method class is wrapped."""
    from etl.transfer.staged import Staged  # noqa: PLC0415 - until both files are there

    transfer = TransferFactory.create(server, settings)
    return transfer if isinstance(transfer, Session) else Staged(transfer)


@dataclass(eq=False)
class _Held:
    """An open session and its dates, of the pools' clock."""

    session: Session
    server: ServerConfig
    opened: float
    used: float  # given back last
    proven: float  # last sign of life: a clean job or a ping


@dataclass(eq=False)
class _Pool:
    """The sessions of one server. Guarded by the lock of `Pools`."""

    key: Key
    limit: int
    names: set[str] = field(default_factory=set)
    idle: list[_Held] = field(default_factory=list)  # in the order of last use, last one last
    taken: int = 0  # places in use: leased, being dialled, pinged or closed
    connected: int = 0  # sessions that are open, idle ones included
    dialing: int = 0
    shrunk_to: int | None = None
    shrunk_until: float = 0.0
    litter: OrderedDict[str, _Litter] = field(default_factory=OrderedDict)

    def limit_at(self, now: float) -> int:
        """Return how many sessions there may be now."""
        if self.shrunk_to is not None and now < self.shrunk_until:
            return max(1, min(self.limit, self.shrunk_to))
        return self.limit

    def room(self, now: float) -> int:
        """Return how many sessions can be had now: idle ones, and those that may still be opened."""
        return self.limit_at(now) - self.taken

    def put(self, held: _Held) -> None:
        """Put a session back among the idle ones, in the order of last use."""
        place = len(self.idle)
        while place and self.idle[place - 1].used > held.used:
            place -= 1
        self.idle.insert(place, held)


@dataclass(eq=False)
class _Litter:
    server: ServerConfig
    tries: int = 0


@dataclass(eq=False)
class _Place:
    """One side of a lease: a place in a pool, with the session that will be or is in it."""

    pool: _Pool
    server: ServerConfig
    held: _Held | None = None  # the open session
    victim: _Held | None = None  # an idle session that must be closed first
    dials: bool = False  # counted in pool.dialing
    attempt: Session | None = None  # being connected

    @property
    def session(self) -> Session | None:
        """The session that somebody may be blocked in."""
        return self.attempt if self.held is None else self.held.session


class Lease:
    """One or two sessions for one job. `open` and `release` belong to the lane, `abort` to any thread."""

    def __init__(self, pools: Pools, source: _Place, destination: _Place | None, *, shared: bool = False) -> None:
        self._pools = pools
        self._places = [source] if destination is None else [source, destination]
        self.shared = shared  # one session serves both sides: the job goes through memory or a spool file
        self._lock = threading.Lock()  # guards _aborted and _released, and which sessions an abort would meet
        self._aborted = False
        self._released = False

    @property
    def source(self) -> Session:
        """The open session of the source."""
        return _session_of(self._places[0])

    @property
    def destination(self) -> Session:
        """The open session of the destination; the source's own when the lease is shared, or has one side only."""
        return _session_of(self._places[-1])

    @property
    def aborted(self) -> bool:
        """Was the lease aborted?"""
        with self._lock:
            return self._aborted

    def open(self) -> None:
        """Make every session ready: close what is in the way, ping what idled long, connect what is missing.

        Blocks at most the limits of connect and login, per side. On any error both sides are given back and the
        lease is over; the error's `server` names the side.
        """
        proven: list[_Place] = []
        try:
            for place in self._places:
                self._prepare(place)
                proven.append(place)
        except BaseException:
            self._give_back({id(place) for place in self._places if place in proven or place.attempt is None})
            raise

    def release(self, clean: bool | tuple[bool, bool]) -> None:
        """Give the sessions back. Clean ones (per side: source, destination) are reused, others closed at once.

        Clean means: no exception was seen, every reply was read. After an abort none is. A second call does nothing.
        """
        sides = clean if isinstance(clean, tuple) else (clean, clean)
        if self.shared:
            sides = (all(sides), all(sides))
        self._give_back({id(place) for place, is_clean in zip(self._places, sides, strict=False) if is_clean})

    def abort(self) -> None:
        """Make whatever blocks in these sessions fail at once; they will not be reused. Does nothing after release."""
        with self._lock:
            if self._released or self._aborted:
                return
            # From here on `release` treats all as unclean: none can reach another job before the abort below.
            self._aborted = True
            sessions = [place.session for place in self._places]
        for session in sessions:
            if session is not None:
                session.abort()

    def _give_back(self, clean: set[int]) -> None:
        with self._lock:
            if self._released:
                return
            self._released = True
            if self._aborted:
                clean = set()
        self._pools._return(self, [(place, id(place) in clean) for place in self._places])  # noqa: SLF001 - one mechanism in two classes

    def _prepare(self, place: _Place) -> None:
        pools = self._pools
        if place.victim is not None:
            _disconnect(place.victim.session)
            pools._closed(place)  # noqa: SLF001
        if place.held is not None and place.dials and not self._is_alive(place, place.held):
            self._discard(place)
        if place.held is None:
            self._connect(place, tidy=True)
        if place.dials:
            pools._dialled(place)  # noqa: SLF001
        self._require_not_aborted()

    def _is_alive(self, place: _Place, held: _Held) -> bool:
        self._require_not_aborted()
        try:
            held.session.ping()
        except Exception as error:  # noqa: BLE001 - whatever a ping raises: the session is dead
            log.info("idle session found dead", server=place.server.hostname, error=str(error))
            return False
        held.proven = self._pools.now()
        return True

    def _connect(self, place: _Place, *, tidy: bool) -> None:
        pools, server = self._pools, place.server
        session = pools.create(server)
        with self._lock:
            aborted = self._aborted
            if not aborted:
                place.attempt = session  # from here on `abort` reaches it
        if aborted:
            self._require_not_aborted()
        try:
            session.connect()
        except Exception as error:
            session.abort()
            _disconnect(session)
            if isinstance(error, ServerBusy):
                pools._shrink(place)  # noqa: SLF001
            raise _named(error, server) from error
        now = pools.now()
        with self._lock:
            place.attempt = None
            place.held = _Held(session, server, opened=now, used=now, proven=now)
        pools._connected(place)  # noqa: SLF001
        if tidy and not self._tidy(place, session):
            self._discard(place)  # it saw an error: never reused, not even for the job it was opened for
            self._connect(place, tidy=False)

    def _tidy(self, place: _Place, session: Session) -> bool:
        """Remove remembered partial files, best effort; False when the session saw an error."""
        pools = self._pools
        litter = pools._take_litter(place)  # noqa: SLF001
        while litter:
            path, piece = litter.popitem(last=False)
            try:
                session.remove(path)
            except Exception as error:  # noqa: BLE001 - best effort; the session goes, the path gets another chance
                log.warning("partial file not removed", server=place.server.hostname, path=path, error=str(error))
                piece.tries += 1
                if piece.tries < LITTER_TRIES:
                    litter[path] = piece
                pools._put_litter(place.pool, litter)  # noqa: SLF001
                return False
            log.info("partial file removed", server=place.server.hostname, path=path)
        return True

    def _discard(self, place: _Place) -> None:
        with self._lock:
            held, place.held = place.held, None
        if held is not None:
            held.session.abort()
            _disconnect(held.session)
            self._pools._closed(place)  # noqa: SLF001

    def _require_not_aborted(self) -> None:
        if self.aborted:
            raise ConnectionLost("the sessions were reset from outside")


class Pools:
    """All pools of this process."""

    def __init__(
        self,
        config_lookup: Callable[[str], ServerConfig],
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        create: Create = create_session,
        on_release: Callable[[], None] | None = None,
    ) -> None:
        self.server = config_lookup
        self.now = clock
        self.on_release = on_release  # called without a lock whenever a session or a dial became free
        self._settings = settings
        self._create = create
        self._limits = settings.transfer
        # Guards _pools and everything in them, _leases and _closing. Held only to decide, never during I/O.
        self._lock = threading.Lock()
        self._pools: dict[Key, _Pool] = {}
        self._leases: set[Lease] = set()
        self._closing = False
        self._end = threading.Event()
        self._reaper = threading.Thread(target=self._reap_on, name="reaper", daemon=True)

    # --- deciding --------------------------------------------------------------------------------------------

    @staticmethod
    def key(server: ServerConfig) -> Key:
        """Return what names of one server have in common. Without a host there is none: each base path is its own."""
        return server.address if server.host else (*server.address, server.base_path)

    def know(self, servers: Iterable[ServerConfig]) -> None:
        """Tell of servers before their first job, so that a pool's limit is the smallest of its names' at once."""
        with self._lock:
            for server in servers:
                self._pool(server)

    def check(self, source: ServerConfig, destination: ServerConfig) -> None:
        """Raise SettingsError for a pair that could never get its sessions."""
        with self._lock:
            pool = self._pool(source)
            impossible = pool is self._pool(destination) and pool.limit < 2 and not _alike(source, destination)
        if impossible:
            raise SettingsError(
                f"{source.hostname} and {destination.hostname} are one server with different settings: "
                f"a job between them needs {source.hostname}_MAX_CONNECTIONS of at least 2",
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
            pool = self._pool(source)
            other = None if destination is None else self._pool(destination)
            shared = other is pool and pool.room(now) == 1
            if shared and destination is not None and not _alike(source, destination):
                return None
            first = self._pick(pool, source, now)
            if first is None:
                return None
            second = None
            if other is not None and destination is not None and not shared:
                second = self._pick(other, destination, now)
                if second is None:
                    self._unpick(first)
                    return None
            lease = Lease(self, first, second, shared=shared)
            self._leases.add(lease)
            return lease

    def soon(self, source: ServerConfig, destination: ServerConfig) -> bool:
        """Is there room for both sides, so that a refusal only means that connects are under way?"""
        now = self.now()
        with self._lock:
            return not self._closing and all(self._pool(side).room(now) > 0 for side in (source, destination))

    def connected(self, server: ServerConfig) -> int:
        """Return how many sessions with a server are open."""
        with self._lock:
            return self._pool(server).connected

    def stats(self) -> dict[str, dict[str, object]]:
        """Return the numbers of each pool, under its names."""
        now = self.now()
        with self._lock:
            return {
                "/".join(sorted(pool.names)): {
                    "limit": pool.limit,
                    "limit_now": pool.limit_at(now),
                    "open": pool.connected,
                    "idle": len(pool.idle),
                    "taken": pool.taken,
                    "dialing": pool.dialing,
                    "litter": len(pool.litter),
                }
                for pool in self._pools.values()
            }

    def litter(self, server: ServerConfig, path: str) -> None:
        """Remember a partial file that could not be removed; the next fresh session with its server does it."""
        with self._lock:
            pool = self._pool(server)
            pool.litter[path] = _Litter(server)
            dropped = pool.litter.popitem(last=False)[0] if len(pool.litter) > LITTER_LIMIT else None
        if dropped is not None:
            log.warning("partial file forgotten", server=server.hostname, path=dropped)

    def _pool(self, server: ServerConfig) -> _Pool:
        key = self.key(server)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = _Pool(key, server.max_connections)
        pool.limit = max(1, min(pool.limit, server.max_connections))
        pool.names.add(server.hostname)
        return pool

    def _pick(self, pool: _Pool, server: ServerConfig, now: float) -> _Place | None:
        if pool.room(now) < 1:
            return None
        may_dial = pool.dialing < DIALS
        place = _Place(pool, server)
        for held in reversed(pool.idle):
            is_fresh = now - held.proven < self._settings.ping_interval_seconds
            # One that idled longer is pinged first, and replaced when dead: that counts as a connect.
            if (is_fresh or may_dial) and _alike(held.server, server) and not self._has_expired(held, now):
                pool.idle.remove(held)
                place.held, place.dials = held, not is_fresh
                break
        else:
            if not may_dial:
                return None
            place.dials = True
            if pool.taken + len(pool.idle) >= pool.limit_at(now):
                place.victim = pool.idle.pop(0)
        pool.taken += 1
        pool.dialing += place.dials
        return place

    def _unpick(self, place: _Place) -> None:
        pool = place.pool
        pool.taken -= 1
        pool.dialing -= place.dials
        for held in (place.held, place.victim):
            if held is not None:
                pool.put(held)

    def _has_expired(self, held: _Held, now: float) -> bool:
        return now - held.used > self._settings.idle_timeout_seconds or self._is_old(held, now)

    def _is_old(self, held: _Held, now: float) -> bool:
        return now - held.opened > self._settings.session_lifetime_seconds

    # --- what a lease reports --------------------------------------------------------------------------------

    def create(self, server: ServerConfig) -> Session:
        """Return a new, unconnected session."""
        return self._create(server, self._limits)

    def _connected(self, place: _Place) -> None:
        with self._lock:
            place.pool.connected += 1

    def _closed(self, place: _Place) -> None:
        with self._lock:
            place.pool.connected -= 1
            place.victim = None

    def _dialled(self, place: _Place) -> None:
        with self._lock:
            place.pool.dialing -= 1
            place.dials = False
        self._tell()

    def _shrink(self, place: _Place) -> None:
        now = self.now()
        with self._lock:
            pool = place.pool
            pool.shrunk_to, pool.shrunk_until = max(1, pool.connected), now + SHRINK_SECONDS
            shrunk_to = pool.shrunk_to
        log.warning("pool shrunk: too many connections", server=place.server.hostname, limit=shrunk_to)

    def _take_litter(self, place: _Place) -> OrderedDict[str, _Litter]:
        with self._lock:
            pool = place.pool
            paths = [path for path, piece in pool.litter.items() if _alike(piece.server, place.server)]
            return OrderedDict((path, pool.litter.pop(path)) for path in paths[:LITTER_BATCH])

    def _put_litter(self, pool: _Pool, litter: OrderedDict[str, _Litter]) -> None:
        with self._lock:
            for path, piece in litter.items():
                pool.litter.setdefault(path, piece)

    def _return(self, lease: Lease, places: list[tuple[_Place, bool]]) -> None:
        now = self.now()
        doomed: list[tuple[_Place, _Held, bool]] = []
        with self._lock:  # decide what is kept; a place whose session must be closed stays taken until it is
            self._leases.discard(lease)
            for place, clean in places:
                pool = place.pool
                pool.dialing -= place.dials
                place.dials = False
                if place.victim is not None:  # was never reached
                    pool.put(place.victim)
                    place.victim = None
                if place.held is None:
                    pool.taken -= 1
                    continue
                too_many = pool.taken + len(pool.idle) > pool.limit_at(now)
                if clean and not (self._closing or too_many or self._is_old(place.held, now)):
                    place.held.used = place.held.proven = now
                    pool.taken -= 1
                    pool.put(place.held)
                else:
                    doomed.append((place, place.held, clean))
        for place, held, clean in doomed:
            if not clean:
                held.session.abort()  # no farewell on a session in an unknown state: it could block
            _disconnect(held.session)
            with self._lock:
                place.pool.connected -= 1
                place.pool.taken -= 1
        self._tell()

    def _tell(self) -> None:
        if self.on_release is not None:
            self.on_release()

    # --- the reaper ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread that looks after idle sessions."""
        self._reaper.start()

    def reap(self) -> None:
        """Close idle sessions that expired, ping those that are due; of a server that fails a ping, close all those due."""
        with self._lock:
            pools = list(self._pools.values())
        for pool in pools:
            while (held := self._take_expired(pool)) is not None:
                _disconnect(held.session)
                self._put_back(pool, None)
            is_dead = False
            started = self.now()
            while not self._end.is_set() and (held := self._take_due(pool, started)) is not None:
                is_dead = is_dead or not self._ping(held)
                if is_dead:
                    held.session.abort()
                    _disconnect(held.session)
                self._put_back(pool, None if is_dead else held)

    def _take_expired(self, pool: _Pool) -> _Held | None:
        now = self.now()
        with self._lock:
            return self._take_idle(pool, lambda held: self._has_expired(held, now))

    def _take_due(self, pool: _Pool, now: float) -> _Held | None:
        with self._lock:
            return self._take_idle(pool, lambda held: now - held.proven >= self._settings.ping_interval_seconds)

    def _take_idle(self, pool: _Pool, wanted: Callable[[_Held], bool]) -> _Held | None:
        held = next((held for held in pool.idle if wanted(held)), None)
        if held is not None:
            pool.idle.remove(held)
            pool.taken += 1
        return held

    def _ping(self, held: _Held) -> bool:
        try:
            held.session.ping()
        except Exception as error:  # noqa: BLE001 - whatever a ping raises: the session is dead
            log.info("idle session found dead", server=held.server.hostname, error=str(error))
            return False
        held.proven = self.now()
        return True

    def _put_back(self, pool: _Pool, held: _Held | None) -> None:
        with self._lock:
            pool.taken -= 1
            if held is None:
                pool.connected -= 1
            else:
                pool.put(held)
        self._tell()

    def _reap_on(self) -> None:
        pause = max(0.05, min(self._settings.ping_interval_seconds, self._settings.idle_timeout_seconds) / 4)
        while not self._end.wait(pause):
            try:
                self.reap()
            except Exception:  # a bug must not end the looking after
                log.exception("reaper failed")

    # --- the end ---------------------------------------------------------------------------------------------

    def close(self, timeout: float = 5.0) -> bool:
        """Lend nothing more, reset what is lent, close what is idle. Returns whether all was done in `timeout` seconds.

        Idle sessions get half of the time for a polite farewell, then they are reset.
        """
        end = time.monotonic() + timeout
        self._end.set()
        farewells: queue.SimpleQueue[_Held] = queue.SimpleQueue()
        with self._lock:
            self._closing = True
            leases = list(self._leases)
            idle = [held for pool in self._pools.values() for held in pool.idle]
            for pool in self._pools.values():
                pool.connected -= len(pool.idle)
                pool.idle.clear()
        for lease in leases:
            lease.abort()
        for held in idle:
            farewells.put(held)
        closers = [
            threading.Thread(target=_say_farewell, args=(farewells,), name=f"closer-{number}", daemon=True)
            for number in range(min(8, len(idle)))
        ]
        for closer in closers:
            closer.start()
        _join(closers, end - timeout / 2)
        if any(closer.is_alive() for closer in closers):
            for held in idle:
                held.session.abort()
        if self._reaper.ident is not None:
            closers.append(self._reaper)
        _join(closers, end)
        return not any(closer.is_alive() for closer in closers)


def _alike(one: ServerConfig, other: ServerConfig) -> bool:
    """Would a session for one name do for the other? Same password, base path, encoding, and so on."""
    return one is other or replace(one, hostname="", max_connections=1) == replace(
        other, hostname="", max_connections=1
    )


def _session_of(place: _Place) -> Session:
    if place.held is None:
        raise RuntimeError(f"the lease on {place.server.hostname} is not open")
    return place.held.session


def _named(error: Exception, server: ServerConfig) -> Exception:
    """Return a connect's error as one of ours, with the server's name."""
    if isinstance(error, EtlError):
        error.server = error.server or server.hostname
        return error
    if isinstance(error, PermissionError):
        return AuthenticationFailed(f"{server.hostname}: {error}", server=server.hostname)
    if isinstance(error, OSError):
        return ServerUnavailable(f"{server.hostname}: {error}", server=server.hostname)
    return error


def _disconnect(session: Session) -> None:
    try:
        session.disconnect()
    except Exception:  # by contract it never raises; a user's own class may
        log.exception("session could not be closed", server=session.server.hostname)


def _say_farewell(sessions: queue.SimpleQueue[_Held]) -> None:
    while True:
        try:
            held = sessions.get_nowait()
        except queue.Empty:
            return
        _disconnect(held.session)


def _join(threads: list[threading.Thread], end: float) -> None:
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
