"""The sessions of one server: open, idle, taken or connecting. Decides; does no I/O, takes no lock.

Guarded by the lock of `pools.Pools`, which owns one pool per server. Knows nothing of leases or jobs.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from etl.errors import AuthenticationFailed, ServerBusy
from etl.retry.backoff import Doubling
from etl.transfer.bandwidth import Bandwidth, Sharing

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.models.server import ServerConfig
    from etl.transfer.base import Session

    Key = tuple[object, ...]

CONNECTS_AT_ONCE = 4  # to one server: one that is slow to welcome gets no storm; the first connect goes alone
DEATH_SECONDS = 5.0  # after a session died, a refused connect is taken for a server that restarts, not for a full one
SHRINK_SECONDS = 60.0  # after a refusal, how long a pool stays at the sessions that were open then
REGROW_SECONDS = 10.0  # after that, for each session more
WARM_SECONDS = 60.0  # after a failed connect, before the next one ahead of need
LONGEST_LOGIN_WAIT = 3600.0
ORPHAN_LIMIT = 1000  # partial files remembered per server
ORPHAN_BATCH = 50  # of those, removed by one new session before its job: bounds the delay
LIFETIME_SPREAD = 0.05  # a lifetime varies by this part, so that sessions opened together end one by one


class Reason(Enum):
    """Why no session of a server can be had now."""

    FULL = "full"  # every slot is taken
    CONNECTING = "connecting"  # connects in progress have to end first, or there were too many in the last minute
    RESTING = "resting"  # a login was refused a short while ago
    CLOSING = "closing"  # nothing is lent any more


class Refusal(NamedTuple):
    """The answer to a request for sessions that cannot be had now: whose, and why."""

    server: ServerConfig
    reason: Reason


@dataclass(frozen=True)
class Ages:
    """How long a session lives, and how long nobody logs in after a refused login, in seconds."""

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
    used: float  # when it was given back last
    proven: float  # when it gave a sign of life last: a job without an error, or a ping

    def is_old(self, now: float) -> bool:
        """Is it past its lifetime?"""
        return now > self.expires

    def has_expired(self, now: float, ages: Ages) -> bool:
        """Is it old, or was it idle for too long?"""
        return now - self.used > ages.idle_timeout or self.is_old(now)

    def is_fresh(self, now: float, ages: Ages) -> bool:
        """Did it give a sign of life so recently that it need not be pinged before use?"""
        return now - self.proven < ages.ping_interval


@dataclass(eq=False)
class Orphan:
    """A partial file that could not be removed."""

    server: ServerConfig
    tries: int = 0


@dataclass(eq=False)
class Slot:
    """One side of a lease: a slot of a pool, with its session once that is open."""

    pool: Pool
    server: ServerConfig
    pooled: PooledSession | None = None  # the open session
    evicts: PooledSession | None = None  # an idle session that must be closed first
    is_connecting: bool = False  # counted in pool.connecting
    is_new: bool = False  # it takes one of the connects allowed per minute
    attempt: Session | None = None  # a session that is connecting
    is_touched: bool = False  # its session was used, or began to connect

    @property
    def session(self) -> Session | None:
        """The session that a thread may be blocked in."""
        return self.attempt if self.pooled is None else self.pooled.session


@dataclass(eq=False)
class Pool:
    """The sessions of one server."""

    limit: int
    ages: Ages
    bandwidth: Bandwidth = field(default_factory=lambda: Bandwidth(Sharing()))
    names: set[str] = field(default_factory=set)
    idle: list[PooledSession] = field(default_factory=list)  # in the order of last use, last one last
    taken: int = 0  # slots in use: their sessions are leased, or are connecting, pinged or closed
    connected: int = 0  # sessions that are open, idle ones included
    connecting: int = 0
    per_minute: float = math.inf  # connects allowed, on average
    connect_tokens: float = math.inf  # connects allowed now, as of `tokens_at`
    tokens_at: float = 0.0
    refused_logins: int = 0  # in a row
    connects: int = 0  # that succeeded, since the start
    logins_refused: int = 0  # since the start
    no_login_before: float = 0.0
    no_warming_before: float = 0.0
    warm: ServerConfig | None = None  # the name whose sessions are opened ahead of need, if any
    round_trip: float | None = None  # seconds, as measured last
    shrunk_to: int | None = None
    shrunk_until: float = 0.0
    refused_at: float = -math.inf  # when a refusal that gave no reason made the pool smaller
    died_at: float = -math.inf  # when a session turned out to be dead
    orphans: OrderedDict[str, Orphan] = field(default_factory=OrderedDict)

    def __repr__(self) -> str:
        return (
            f"<Pool {'/'.join(sorted(self.names))} limit={self.limit} shrunk_to={self.shrunk_to} open={self.connected} "
            f"idle={len(self.idle)} taken={self.taken} connecting={self.connecting} orphans={len(self.orphans)}>"
        )

    def stats(self, now: float) -> dict[str, int]:
        """Return its counts."""
        return {
            "limit": self.limit,
            "limit_now": self.limit_at(now),
            "open": self.connected,
            "idle": len(self.idle),
            "taken": self.taken,
            "connecting": self.connecting,
            "connects_left": int(self.connects_left(now)),
            "orphans": len(self.orphans),
            "connects": self.connects,
            "logins_refused": self.logins_refused,
        }

    def register(self, server: ServerConfig) -> None:
        """Add a name of this server: the smallest limit of all its names counts."""
        self.limit = max(1, min(self.limit, server.max_connections))
        self.per_minute = min(self.per_minute, server.connects_per_minute)
        self.connect_tokens = min(self.connect_tokens, self._burst)
        self.bandwidth.register(server.bandwidth)
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
        """Note that a connect failed; return whether that is why the pool is smaller from now on.

        "Too many connections", or any refusal while other sessions are open, is back-pressure: for a while the pool has
        no more sessions than are open now. After each refused login nobody tries for longer, as accounts get locked.
        """
        rest = 0.0
        if isinstance(error, AuthenticationFailed):
            self.refused_logins += 1
            self.logins_refused += 1
            rest = Doubling(self.ages.login_backoff, LONGEST_LOGIN_WAIT)(self.refused_logins)
        self.no_login_before = max(self.no_login_before, now + rest)
        self.no_warming_before = max(self.no_warming_before, now + max(rest, WARM_SECONDS))
        if not isinstance(error, ServerBusy):
            self.doubt_idle()
            if not self.connected or now - self.died_at < DEATH_SECONDS:
                return False
            self.refused_at = now
        is_news = now >= self.shrunk_until
        self.shrunk_to, self.shrunk_until = max(1, self.connected), now + max(rest, SHRINK_SECONDS)
        return is_news

    def died(self, now: float) -> None:
        """Note that a session turned out to be dead: so may be those that idle, and a refusal is no limit then.

        Nor was one just before: a server that ends refuses connections first.
        """
        self.died_at = now
        if now - self.refused_at < DEATH_SECONDS:
            self.shrunk_to, self.shrunk_until = None, 0.0
        self.doubt_idle()

    def doubt_idle(self) -> None:
        """Have the idle sessions pinged before they are used: they may be as dead as the server."""
        for pooled in self.idle:
            pooled.proven = -math.inf

    def welcomed(self) -> None:
        """Note that a connect succeeded."""
        self.connected += 1
        self.connects += 1
        self.refused_logins = 0

    @property
    def _burst(self) -> float:
        return max(2.0, min(self.per_minute, max(CONNECTS_AT_ONCE, self.limit)))

    def _may_connect(self, now: float, own: int = 0) -> bool:
        """May one more connect begin? `own`: the connects of the same lease, which run one after the other."""
        return self.connecting < (CONNECTS_AT_ONCE if self.connected else 1 + own) and self.connects_left(now) >= 1

    def _may_open(self, now: float, own: int = 0) -> bool:
        """May one more connect begin, and is no refused login to be waited for?"""
        return now >= self.no_login_before and self._may_connect(now, own)

    def take_connect(self, now: float) -> bool:
        """Count a connect by somebody who has a slot already; False: it is not allowed now."""
        may = now >= self.no_login_before and self.connects_left(now) >= 1
        self.connect_tokens -= may
        return may

    def connects_left(self, now: float) -> float:
        """Return how many connects the limit per minute allows now."""
        self.connect_tokens = min(
            self._burst, self.connect_tokens + max(0.0, now - self.tokens_at) * self.per_minute / 60
        )
        self.tokens_at = now
        return self.connect_tokens

    def room(self, now: float) -> int:
        """Return how many slots are free: for idle sessions, and for new ones."""
        return self.limit_at(now) - self.taken

    def refusal(self, now: float) -> Reason | None:
        """Return why no session can be had now; None: one can."""
        if self.room(now) < 1:
            return Reason.FULL
        if self._may_open(now) or any(pooled.is_fresh(now, self.ages) for pooled in self.idle):
            return None
        return self._why_closed(now)

    def _why_closed(self, now: float) -> Reason:
        return Reason.RESTING if now < self.no_login_before else Reason.CONNECTING

    def checkout(self, server: ServerConfig, now: float, beside: Slot | None = None) -> Slot | Reason:
        """Take a slot: the fitting idle session used last, or a new one; else return why there is none.

        `beside`: the other slot of the same lease, when both are here.
        """
        if self.room(now) < 1:
            return Reason.FULL
        own = 0 if beside is None else beside.is_connecting
        may_open = self._may_open(now, own)
        for pooled in reversed(self.idle):
            is_fresh = pooled.is_fresh(now, self.ages)
            # One that was idle for longer is pinged first and replaced if it is dead, so it counts as a connect.
            if (is_fresh or may_open) and fits(pooled.server, server) and not self.has_expired(pooled, now):
                self.idle.remove(pooled)
                return self._take(Slot(self, server, pooled, is_connecting=not is_fresh))
        return self._checkout_new(server, now) if may_open else self._why_closed(now)

    def checkout_warm(self, now: float) -> Slot | None:
        """Take a slot for a session to open ahead of need; None: it is not needed, or not allowed now."""
        wanted = 0 if self.warm is None else min(self.warm.prewarm, self.limit_at(now))
        if self.warm is None or self.connected + self.connecting >= wanted or self.taken + len(self.idle) >= wanted:
            return None
        return self._checkout_new(self.warm, now) if now >= self.no_warming_before and self._may_connect(now) else None

    def _checkout_new(self, server: ServerConfig, now: float) -> Slot:
        self.connect_tokens -= 1
        evicts = self.idle.pop(0) if self.taken + len(self.idle) >= self.limit_at(now) else None
        return self._take(Slot(self, server, evicts=evicts, is_connecting=True, is_new=True))

    def _take(self, slot: Slot) -> Slot:
        self.taken += 1
        if slot.is_connecting:
            self.connecting += 1
        return slot

    def undo_checkout(self, slot: Slot) -> None:
        """Undo `checkout` of a slot that was not used."""
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
        """Is a session past its lifetime, or was it idle for too long? Those opened ahead of need may be idle."""
        if self.warm is not None and self.connected <= self.warm.prewarm:
            return self._is_past_use(pooled, now)
        return pooled.has_expired(now, self.ages) or self._is_past_use(pooled, now)

    def _is_past_use(self, pooled: PooledSession, now: float) -> bool:
        """Is it too old, or without a bandwidth limit that another name of its server has brought since?"""
        return pooled.is_old(now) or not self.bandwidth.binds(pooled.session)

    def keeps(self, pooled: PooledSession, now: float) -> bool:
        """May a reusable session be kept when its lease ends?"""
        return self.taken + len(self.idle) <= self.limit_at(now) and not self._is_past_use(pooled, now)

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
        """Take the first idle session that is `wanted`, and its slot."""
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
        """Take a batch of the partial files that a session under this name can reach."""
        paths = [path for path, orphan in self.orphans.items() if same_view(orphan.server, server)]
        return OrderedDict((path, self.orphans.pop(path)) for path in paths[:ORPHAN_BATCH])


def same_view(one: ServerConfig, other: ServerConfig) -> bool:
    """Do two names of a server mean the same file by the same path?"""
    return (one.base_path, one.encoding, one.partial_pattern) == (
        other.base_path,
        other.encoding,
        other.partial_pattern,
    )


def can_share(source: ServerConfig, destination: ServerConfig) -> bool:
    """Can one session be both sides of a job at once?"""
    return fits(source, destination) and same_view(source, destination)


def fits(one: ServerConfig, other: ServerConfig) -> bool:
    """Can a session of one name serve the other? Not with another password or other options."""
    return one is other or (one.password, one.passive, one.options) == (other.password, other.passive, other.options)
