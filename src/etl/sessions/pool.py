"""The sessions of one server: what is open, idle, taken or being dialled. Decides; does no I/O, takes no lock.

Guarded by the lock of `pool.Pools`, which owns one pool per server. Knows nothing of leases or jobs.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from etl.errors import AuthenticationFailed, ServerBusy
from etl.retry.backoff import Doubling

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.models.server import ServerConfig
    from etl.transfer.base import Session

    Key = tuple[object, ...]

CONNECTS_AT_ONCE = (
    4  # connects to one server at once: a server that is slow to welcome gets no storm; the first one goes alone
)
SHRINK_SECONDS = 60.0  # how long a server keeps what was open when it refused more
REGROW_SECONDS = 10.0  # and then, for each session more
WARM_SECONDS = 60.0  # between a connect that failed and the next one ahead of need
LONGEST_LOGIN_WAIT = 3600.0
ORPHAN_LIMIT = 1000  # partial files remembered per server
LIFETIME_SPREAD = 0.05  # by which part of it a session lives less or more: those opened together end one by one
ORPHAN_BATCH = 50  # of those, removed by one fresh session before its job: bounds the delay


@dataclass(frozen=True)
class Ages:
    """How long a session lives, and how long nobody logs in after a refused login; in seconds."""

    ping_interval: float
    idle_timeout: float
    lifetime: float
    login_backoff: float

    def expiry(self, now: float, jitter: float) -> float:
        """Return when a session that is opened now will be past its lifetime; `jitter`: 0 to 1."""
        return now + self.lifetime * (1 + LIFETIME_SPREAD * (2 * jitter - 1))


@dataclass(eq=False)
class PooledSession:
    """An open session and its dates."""

    session: Session
    server: ServerConfig
    expires: float  # when it is past its lifetime
    used: float  # given back last
    proven: float  # last sign of life: a job without an error, or a ping

    def is_old(self, now: float) -> bool:
        """Is it past its lifetime?"""
        return now > self.expires

    def has_expired(self, now: float, ages: Ages) -> bool:
        """Is it old, or was it idle for too long?"""
        return now - self.used > ages.idle_timeout or self.is_old(now)

    def is_fresh(self, now: float, ages: Ages) -> bool:
        """Did it give a sign of life lately?"""
        return now - self.proven < ages.ping_interval


@dataclass(eq=False)
class Orphan:
    """A partial file that could not be removed."""

    server: ServerConfig
    tries: int = 0


@dataclass(eq=False)
class Slot:
    """One side of a lease: a slot of a pool, with the session that is in it or will be."""

    pool: Pool
    server: ServerConfig
    pooled: PooledSession | None = None  # the open session
    evicts: PooledSession | None = None  # an idle session that must be closed first
    is_connecting: bool = False  # counted in pool.connecting
    is_new: bool = False  # a connect, of which there may be so many a minute
    attempt: Session | None = None  # being connected
    is_touched: bool = False  # its session was used, or is being opened

    @property
    def session(self) -> Session | None:
        """The session that somebody may be blocked in."""
        return self.attempt if self.pooled is None else self.pooled.session


@dataclass(eq=False)
class Pool:
    """The sessions of one server."""

    limit: int
    ages: Ages
    names: set[str] = field(default_factory=set)
    idle: list[PooledSession] = field(default_factory=list)  # in the order of last use, last one last
    taken: int = 0  # slots in use: leased, being dialled, pinged or closed
    connected: int = 0  # sessions that are open, idle ones included
    connecting: int = 0
    per_minute: float = math.inf  # new sessions, on average
    connect_tokens: float = math.inf  # of those that may be opened at once, as of `tokens_at`
    tokens_at: float = 0.0
    connect_began_at: float = 0.0  # when a connect began last
    refused_logins: int = 0  # in a row
    no_login_before: float = 0.0
    no_warming_before: float = 0.0
    warm: ServerConfig | None = None  # whose sessions are opened ahead, if any
    round_trip: float | None = None  # seconds; as a session told last
    shrunk_to: int | None = None
    shrunk_until: float = 0.0
    orphans: OrderedDict[str, Orphan] = field(default_factory=OrderedDict)

    def register(self, server: ServerConfig) -> None:
        """Add a name of this server: the smallest limit of all names counts."""
        self.limit = max(1, min(self.limit, server.max_connections))
        self.per_minute = min(self.per_minute, server.connects_per_minute)
        self.connect_tokens = min(self.connect_tokens, self._burst)
        if server.prewarm > (self.warm.prewarm if self.warm else 0):
            self.warm = server
        self.names.add(server.hostname)

    def limit_at(self, now: float) -> int:
        """Return how many sessions there may be now."""
        if self.shrunk_to is None:
            return self.limit
        more = 0 if now < self.shrunk_until else 1 + int((now - self.shrunk_until) / REGROW_SECONDS)
        return max(1, min(self.limit, self.shrunk_to + more))

    def refused(self, error: Exception, now: float) -> bool:
        """Note that a connect failed; return whether the pool shrank.

        "Too many connections", and any refusal while other sessions are open, is back-pressure: for a while there are
        no more than are open now. After a refused login nobody tries for longer and longer: accounts get locked.
        """
        rest = 0.0
        if isinstance(error, AuthenticationFailed):
            self.refused_logins += 1
            rest = Doubling(self.ages.login_backoff, LONGEST_LOGIN_WAIT)(self.refused_logins)
        self.no_login_before = max(self.no_login_before, now + rest)
        self.no_warming_before = max(self.no_warming_before, now + max(rest, WARM_SECONDS))
        if not isinstance(error, ServerBusy):
            for pooled in self.idle:
                pooled.proven = -math.inf  # pinged before it is used: it may be as dead as the server
        if not (self.connected or isinstance(error, ServerBusy)):
            return False
        self.shrunk_to, self.shrunk_until = max(1, self.connected), now + max(rest, SHRINK_SECONDS)
        return True

    def welcomed(self) -> None:
        """Note that a connect succeeded."""
        self.connected += 1
        self.refused_logins = 0

    @property
    def _burst(self) -> float:
        return max(2.0, min(self.per_minute, max(CONNECTS_AT_ONCE, self.limit)))

    def _may_connect(self, now: float, own: int = 0) -> bool:
        """May one more connect begin? `own`: those of the same lease, which come one after the other."""
        return self.connecting < (CONNECTS_AT_ONCE if self.connected else 1 + own) and self.connects_left(now) >= 1

    def _may_open(self, now: float, own: int = 0) -> bool:
        """May one more session be opened: a connect, and no refused login to wait after?"""
        return now >= self.no_login_before and self._may_connect(now, own)

    def take_connect(self, now: float) -> bool:
        """Count one connect more, of whoever has a slot already; False: not now."""
        may = now >= self.no_login_before and self.connects_left(now) >= 1
        self.connect_tokens -= may
        return may

    def connects_left(self, now: float) -> float:
        """Return how many connects may begin by their number per minute."""
        self.connect_tokens = min(
            self._burst, self.connect_tokens + max(0.0, now - self.tokens_at) * self.per_minute / 60
        )
        self.tokens_at = now
        return self.connect_tokens

    def room(self, now: float) -> int:
        """Return how many sessions can be had now: idle ones, and those that may still be opened."""
        return self.limit_at(now) - self.taken

    def connecting_for(self, now: float) -> float | None:
        """Return for how many seconds connects in progress have blocked a checkout although slots are free.

        None: one can be had, or there is no room. Counted from the connect that began last.
        """
        if self.room(now) < 1 or self._may_open(now) or any(pooled.is_fresh(now, self.ages) for pooled in self.idle):
            return None
        return now - self.connect_began_at

    def checkout(self, server: ServerConfig, now: float, beside: Slot | None = None) -> Slot | None:
        """Take a slot: the fitting idle session used last, or a new one; None: no room, or too many connects.

        `beside`: the other slot of the same lease, when both are here.
        """
        if self.room(now) < 1:
            return None
        own = 0 if beside is None else beside.is_connecting
        may_open = self._may_open(now, own)
        for pooled in reversed(self.idle):
            is_fresh = pooled.is_fresh(now, self.ages)
            # One that idled longer is pinged first, and replaced when dead: that counts as a connect, and a login.
            if (is_fresh or may_open) and fits(pooled.server, server) and not self.has_expired(pooled, now):
                self.idle.remove(pooled)
                return self._take(Slot(self, server, pooled, is_connecting=not is_fresh), now)
        return self._checkout_new(server, now) if may_open else None

    def checkout_warm(self, now: float) -> Slot | None:
        """Take a slot for a session that is to be opened ahead of need; None: there is no need, or no chance."""
        wanted = 0 if self.warm is None else min(self.warm.prewarm, self.limit_at(now))
        if self.warm is None or self.connected + self.connecting >= wanted or self.taken + len(self.idle) >= wanted:
            return None
        return self._checkout_new(self.warm, now) if now >= self.no_warming_before and self._may_connect(now) else None

    def _checkout_new(self, server: ServerConfig, now: float) -> Slot:
        self.connect_tokens -= 1
        evicts = self.idle.pop(0) if self.taken + len(self.idle) >= self.limit_at(now) else None
        return self._take(Slot(self, server, evicts=evicts, is_connecting=True, is_new=True), now)

    def _take(self, slot: Slot, now: float) -> Slot:
        self.taken += 1
        if slot.is_connecting:
            self.connecting += 1
            self.connect_began_at = now
        return slot

    def undo_checkout(self, slot: Slot) -> None:
        """Undo `checkout`: nothing was done with the slot."""
        self.taken -= 1
        self.connect_tokens += slot.is_new
        self.end_connect(slot)
        for pooled in (slot.pooled, slot.evicts):
            if pooled is not None:
                self.put_idle(pooled)

    def end_connect(self, slot: Slot) -> None:
        """Count the slot's connect as over."""
        self.connecting -= slot.is_connecting
        slot.is_connecting = False

    def has_expired(self, pooled: PooledSession, now: float) -> bool:
        """Is a session past its lifetime, or was it idle for too long? Those opened ahead of need may idle."""
        if self.warm is not None and self.connected <= self.warm.prewarm:
            return pooled.is_old(now)
        return pooled.has_expired(now, self.ages)

    def keeps(self, pooled: PooledSession, now: float) -> bool:
        """May a reusable session whose slot ends be kept?"""
        return self.taken + len(self.idle) <= self.limit_at(now) and not pooled.is_old(now)

    def put_idle(self, pooled: PooledSession) -> None:
        """Put a session among the idle ones, in the order of last use."""
        index = len(self.idle)
        while index and self.idle[index - 1].used > pooled.used:
            index -= 1
        self.idle.insert(index, pooled)

    def needs_care(self, now: float) -> bool:
        """Is there an idle session to close or to ping, or may one be missing?"""
        return self.warm is not None or any(
            self.has_expired(pooled, now) or not pooled.is_fresh(now, self.ages) for pooled in self.idle
        )

    def take_idle(self, wanted: Callable[[PooledSession], bool]) -> PooledSession | None:
        """Take the first idle session that is `wanted`; its slot counts as taken."""
        pooled = next((pooled for pooled in self.idle if wanted(pooled)), None)
        if pooled is not None:
            self.idle.remove(pooled)
            self.taken += 1
        return pooled

    def add_orphan(self, server: ServerConfig, path: str) -> str | None:
        """Remember a partial file; return the one forgotten for it, if any."""
        self.orphans[path] = Orphan(server)
        return self.orphans.popitem(last=False)[0] if len(self.orphans) > ORPHAN_LIMIT else None

    def take_orphans(self, server: ServerConfig) -> OrderedDict[str, Orphan]:
        """Take a batch of the partial files that a session for `server` can reach."""
        paths = [path for path, orphan in self.orphans.items() if same_view(orphan.server, server)]
        return OrderedDict((path, self.orphans.pop(path)) for path in paths[:ORPHAN_BATCH])


def same_view(one: ServerConfig, other: ServerConfig) -> bool:
    """Do two names of a server mean the same file by the same path?"""
    return (one.base_path, one.encoding, one.partial_pattern) == (
        other.base_path,
        other.encoding,
        other.partial_pattern,
    )


def fits(one: ServerConfig, other: ServerConfig) -> bool:
    """Would a session of one name do for the other, once it adopted it? Not with another password or other options."""
    return one is other or (one.password, one.passive, one.options) == (other.password, other.passive, other.options)
