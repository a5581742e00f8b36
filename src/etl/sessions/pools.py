"""Sessions: one pool per server, leased in pairs, or alone to be opened; reused while proven reusable.

    Pools(config_lookup, settings, clock=time.monotonic, create=create_session, jitter=random.random)
    .on_release                                   called, without a lock, whenever a session or a connect became free
    .server(name) -> ServerConfig   .key(server) -> pool key   .register(servers)   .check(source, destination)
    .reserve(source, destination=None) -> Lease | Refusal   never blocks: both sessions or none
    .refusal(server) -> Reason | None   .connected(server) -> int   .login_backoff_left(server) -> seconds
    .remember_orphan(server, path)   .remove_orphan(server, path) -> bool   .round_trip(server) -> seconds | None
    .died(server)  .bandwidth(server) -> float | None  .sharing  .start()  .reap()  .stats()  .close(timeout=5) -> bool
    Lease (lease.py): .open()  .source  .destination  .servers  .is_pair  .shared .release(reusable) .abort() .aborted

Knows settings and sessions; knows no job, no queue, no Kafka.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from typing import TYPE_CHECKING

import structlog

from etl.errors import Fate, ServerBusy, SettingsError, UnknownServer, fate_of
from etl.sessions.lease import Lease, as_our_error, disconnect
from etl.sessions.maintenance import Maintenance
from etl.sessions.pool import Ages, Pool, Reason, Refusal, can_share
from etl.transfer.bandwidth import Bandwidth, Sharing
from etl.transfer.base import Session, TransferFactory
from etl.transfer.staged import Staged

if TYPE_CHECKING:
    from collections import OrderedDict
    from collections.abc import Callable, Iterable

    from etl.config import Settings
    from etl.models.server import ServerConfig, TransferSettings
    from etl.sessions.pool import Key, Orphan, PooledSession, Slot

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
        self.sharing = Sharing()
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
        # Guards _by_key and everything in the pools, _leases and _closing. Held only to decide, never during I/O; the
        # dispatcher may hold its own lock meanwhile, and nothing here calls the dispatcher with this one held.
        self._lock = threading.Lock()
        self._by_key: dict[Key, Pool] = {}
        self._leases: set[Lease] = set()
        self._closing = False
        pause = max(0.05, min(self._ages.ping_interval, self._ages.idle_timeout) / 4)
        self._maintenance = Maintenance(self, pause)

    def __repr__(self) -> str:
        with self._lock:
            state = "closing" if self._closing else "open"
            return f"<Pools {state} leases={len(self._leases)} {list(self._by_key.values())}>"

    # --- deciding ---

    @staticmethod
    def key(server: ServerConfig) -> Key:
        """Return what the names of one server have in common. Without a host each base path is a server."""
        return server.address if server.host else (*server.address, server.base_path)

    def register(self, servers: Iterable[ServerConfig]) -> None:
        """Make servers known before their first job, so that a pool has the smallest limit of its names at once."""
        with self._lock:
            for server in servers:
                self._pool(server)

    def check(self, source: ServerConfig, destination: ServerConfig) -> None:
        """Raise SettingsError for a pair that could never get its sessions."""
        with self._lock:
            pool = self._pool(source)
            is_alone = pool is self._pool(destination) and pool.limit < 2
        if is_alone and not can_share(source, destination):
            raise SettingsError(
                f"{source.hostname} and {destination.hostname} are one server with different settings: "
                f"a job between them needs MAX_CONNECTIONS of at least 2",
                server=source.hostname,
            )

    def reserve(self, source: ServerConfig, destination: ServerConfig | None = None) -> Lease | Refusal:
        """Take slots for both sides in one step, or none: nobody ever waits holding one. Never blocks.

        An idle session is preferred, the one used last first. If both sides are one pool with room for one session,
        that session serves both (`Lease.shared`).
        """
        now = self.now()
        with self._lock:  # critical section: take both slots, or leave everything as it was
            if self._closing:
                return Refusal(source, Reason.CLOSING)
            pool = self._pool(source)
            other = None if destination is None else self._pool(destination)
            shared = other is pool and pool.room(now) == 1
            if shared and destination is not None and not can_share(source, destination):
                return Refusal(destination, Reason.FULL)
            first = pool.checkout(source, now)
            if isinstance(first, Reason):
                return Refusal(source, first)
            second: Slot | None = None
            if other is not None and destination is not None and not shared:
                taken = other.checkout(destination, now, first if other is pool else None)
                if isinstance(taken, Reason):
                    pool.undo_checkout(first)
                    return Refusal(destination, taken)
                second = taken
            lease = Lease(self, first, second, shared=shared)
            self._leases.add(lease)
            return lease

    def refusal(self, server: ServerConfig) -> Reason | None:
        """Return why `reserve` would refuse a session of a server now; None: it would not. Takes nothing."""
        now = self.now()
        with self._lock:
            return Reason.CLOSING if self._closing else self._pool(server).refusal(now)

    def connected(self, server: ServerConfig) -> int:
        """Return how many sessions with a server are open."""
        with self._lock:
            return self._pool(server).connected

    def login_backoff_left(self, server: ServerConfig) -> float:
        """Return for how many seconds nobody should log in to a server, because it refused a login."""
        now = self.now()
        with self._lock:
            return max(0.0, self._pool(server).no_login_before - now)

    def try_now(self, name: str) -> None:
        """Forget that a server refused logins: an operator wants it tried at once."""
        with contextlib.suppress(UnknownServer):
            config = self.server(name)
            with self._lock:
                self._pool(config).no_login_before = 0.0

    def remember_orphan(self, server: ServerConfig, path: str) -> None:
        """Remember a partial file that could not be removed; the next new session with its server removes it."""
        with self._lock:
            forgotten = self._pool(server).add_orphan(server, path)
        if forgotten is not None:
            log.warning("partial file left behind: too many to remember", server=server.hostname, path=forgotten)

    def remove_orphan(self, server: ServerConfig, path: str) -> bool:
        """Remove a partial file now, through a new session; if that fails, remember it and return False.

        For a lane whose own session broke and is closed: the new one uses the slot of that lease.
        """
        with self._lock:  # critical section: decide whether one more connect is allowed
            may_connect = not self._closing and self._pool(server).take_connect(self.now())
        if may_connect:
            try:
                with self.create(server) as session:
                    session.remove(path)
            except Exception as error:  # noqa: BLE001 - the transfer has failed already, for its own reason
                log.info("partial file not removed yet", server=server.hostname, path=path, error=str(error))
                self.refused(server, as_our_error(error, server))
            else:
                return True
        self.remember_orphan(server, path)
        return False

    def round_trip(self, server: ServerConfig) -> float | None:
        """Return the seconds of a round trip to a server as measured last, or None if never."""
        with self._lock:
            return self._pool(server).round_trip

    def bandwidth(self, server: ServerConfig) -> float | None:
        """Return how many bytes per second this process may move now, in each direction; None: any number."""
        with self._lock:
            return self._pool(server).bandwidth.bytes_per_second()

    def stats(self) -> dict[str, dict[str, int]]:
        """Return the counts of each pool, by its names."""
        now = self.now()
        with self._lock:
            return {"/".join(sorted(pool.names)): pool.stats(now) for pool in self._by_key.values()}

    def _pool(self, server: ServerConfig) -> Pool:
        key = self.key(server)
        pool = self._by_key.get(key)
        if pool is None:
            pool = self._by_key[key] = Pool(server.max_connections, self._ages, Bandwidth(self.sharing))
        pool.register(server)
        return pool

    # --- what a lease reports ---

    def create(self, server: ServerConfig) -> Session:
        """Return a new, unconnected session, which keeps to the server's bandwidth limit."""
        with self._lock:
            bandwidth = self._pool(server).bandwidth
        return bandwidth.limited(self._create(server, self._limits))

    def expiry(self) -> float:
        """Return when a session that is opened now will be past its lifetime."""
        return self._ages.expiry(self.now(), self._jitter())

    def opened(self, slot: Slot) -> None:
        """Count a session that connected."""
        with self._lock:
            slot.pool.welcomed()

    def closed(self, slot: Slot) -> None:
        """Count an evicted session as closed."""
        with self._lock:
            slot.pool.connected -= 1

    def discarded(self, slot: Slot) -> None:
        """Count a session as closed, which turned out to be dead, and whose slot a new one takes: one more connect."""
        with self._lock:
            slot.pool.died(self.now())
            slot.pool.connected -= 1
            slot.pool.connect_tokens -= 1

    def connect_ended(self, slot: Slot) -> None:
        """Count a connect as over: another may begin."""
        with self._lock:
            slot.pool.end_connect(slot)
        self._notify()

    def died(self, server: ServerConfig) -> None:
        """Note that a session, which was used, turned out to be dead."""
        with self._lock:
            self._pool(server).died(self.now())

    def refused(self, server: ServerConfig, error: Exception) -> None:
        """Note a connect that failed."""
        if fate_of(error) is not Fate.OUTAGE:
            return
        with self._lock:  # critical section: decide whether the server wants fewer sessions
            pool, now = self._pool(server), self.now()
            has_shrunk, limit = pool.refused(error, now), pool.limit_at(now)
        if has_shrunk:
            tell = log.warning if isinstance(error, ServerBusy) else log.info  # without a reason it may be a restart
            tell("pool limit lowered", server=server.hostname, limit=limit, error=str(error))

    def take_orphans(self, slot: Slot) -> OrderedDict[str, Orphan]:
        """Return partial files for this session to remove, and forget them."""
        with self._lock:
            return slot.pool.take_orphans(slot.server)

    def put_back_orphans(self, slot: Slot, orphans: OrderedDict[str, Orphan]) -> None:
        """Remember again those that were not removed."""
        with self._lock:
            for path, orphan in orphans.items():
                slot.pool.orphans.setdefault(path, orphan)

    def checkin(self, lease: Lease, slots: list[tuple[Slot, bool]]) -> None:
        """End a lease: keep its reusable sessions, close the others. A slot is free once its session is closed."""
        now = self.now()
        doomed: list[tuple[Pool, PooledSession, bool]] = []
        trips = [
            slot.pooled.session.round_trip_seconds() if reusable and slot.pooled else None for slot, reusable in slots
        ]
        with self._lock:  # critical section: decide which sessions are kept
            self._leases.discard(lease)
            for (slot, reusable), seconds in zip(slots, trips, strict=True):
                pool = slot.pool
                pool.round_trip = pool.round_trip if seconds is None else seconds
                pool.end_connect(slot)
                pool.connect_tokens += slot.is_new and not slot.is_touched
                if slot.evicts is not None and not self._closing:  # the lease ended before it was closed
                    pool.put_idle(slot.evicts)
                elif slot.evicts is not None:
                    pool.taken += 1
                    doomed.append((pool, slot.evicts, True))
                if slot.pooled is None:
                    pool.taken -= 1
                elif reusable and not self._closing and pool.keeps(slot.pooled, now):
                    if slot.is_touched:
                        slot.pooled.used = slot.pooled.proven = now
                    pool.taken -= 1
                    pool.put_idle(slot.pooled)
                else:
                    doomed.append((pool, slot.pooled, reusable))
        for pool, pooled, reusable in doomed:
            if not reusable:
                pooled.session.abort()  # no polite end for a session in an unknown state: it could block
            self._close(pool, pooled)
        self._notify()

    def _close(self, pool: Pool, pooled: PooledSession) -> None:
        disconnect(pooled)
        with self._lock:
            pool.connected -= 1
            pool.taken -= 1

    def _notify(self) -> None:
        """Say that a session or a connect is free. Called without the lock."""
        if self.on_release is not None:
            self.on_release()

    # --- what maintenance asks ---

    def start(self) -> None:
        """Start the thread that maintains idle sessions."""
        self._maintenance.start()

    def reap(self) -> None:
        """Maintain the idle sessions of every server once, and wait until that is done."""
        self._maintenance.run_once()

    def needing_care(self) -> list[tuple[Key, Pool]]:
        """Return the pools with an idle session to close or ping, or with one to open ahead; none once closing."""
        now = self.now()
        with self._lock:
            return [] if self._closing else [(key, pool) for key, pool in self._by_key.items() if pool.needs_care(now)]

    def take_idle(self, pool: Pool, wanted: Callable[[PooledSession], bool]) -> PooledSession | None:
        """Take an idle session out of its pool for maintenance; None: there is no such session."""
        with self._lock:
            return None if self._closing else pool.take_idle(wanted)

    def take_expired(self, pool: Pool, now: float) -> PooledSession | None:
        """Take an idle session that is too old, or has idled for too long, out of its pool."""
        return self.take_idle(pool, lambda pooled: pool.has_expired(pooled, now))

    def take_stale(self, pool: Pool, now: float) -> PooledSession | None:
        """Take an idle session out of its pool that has to be pinged."""
        return self.take_idle(pool, lambda pooled: not pooled.is_fresh(now, self._ages))

    def put_back(self, pool: Pool, pooled: PooledSession, *, reusable: bool) -> None:
        """Put a session back that was taken for maintenance, or close it if it is not reusable."""
        with self._lock:  # critical section: decide whether it is kept
            kept = reusable and not self._closing
            if kept:
                pool.taken -= 1
                pool.put_idle(pooled)
        if kept:
            self._notify()
        else:
            self.close_taken(pool, pooled)

    def close_taken(self, pool: Pool, pooled: PooledSession) -> None:
        """Close a session that was taken, and free its slot."""
        self._close(pool, pooled)
        self._notify()

    def reserve_warm(self, pool: Pool) -> Lease | None:
        """Return a lease of a session to open ahead of need; None: enough are open."""
        now = self.now()
        with self._lock:
            slot = None if self._closing else pool.checkout_warm(now)
            if slot is None:
                return None
            lease = Lease(self, slot, None)
            self._leases.add(lease)
            return lease

    def close(self, timeout: float = 5.0) -> bool:
        """Lend nothing more, reset what is lent, close what is idle. Return whether all ended within `timeout` seconds.

        Idle sessions have half of the time to end politely, then they are reset. A lent one is closed by the lane that
        holds it.
        """
        end = time.monotonic() + timeout
        with self._lock:  # critical section: from here on nothing is lent or put back
            self._closing = True
            leases = list(self._leases)
            idle = [(pool, pooled) for pool in self._by_key.values() for pooled in pool.idle]
            for pool, _ in idle:
                pool.taken += 1
            for pool in self._by_key.values():
                pool.idle.clear()
        for lease in leases:
            lease.abort()
        return self._maintenance.close(idle, end, timeout / 2)
