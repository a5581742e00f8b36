"""The sessions of one server: what is open, idle, taken or being dialled. Decides; does no I/O, takes no lock.

Guarded by the lock of `pool.Pools`, which owns one shelf per server. Knows nothing of leases or jobs.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.config import ServerConfig
    from etl.transfer.base import Session

    Key = tuple[object, ...]

DIALS = 4  # connects to one server at once: a server that is slow to welcome gets no storm
SHRINK_SECONDS = 60.0  # how long a server keeps what was open when it said "too many connections"
LITTER_LIMIT = 1000  # partial files remembered per server
LITTER_BATCH = 50  # of those, removed by one fresh session before its job: bounds the delay


@dataclass(frozen=True)
class Ages:
    """How long a session lives, in seconds."""

    ping_interval: float
    idle_timeout: float
    lifetime: float


@dataclass(eq=False)
class Held:
    """An open session and its dates."""

    session: Session
    server: ServerConfig
    opened: float
    used: float  # given back last
    proven: float  # last sign of life: a clean job or a ping

    def is_old(self, now: float, ages: Ages) -> bool:
        """Is it past its lifetime?"""
        return now - self.opened > ages.lifetime

    def has_expired(self, now: float, ages: Ages) -> bool:
        """Is it old, or was it idle for too long?"""
        return now - self.used > ages.idle_timeout or self.is_old(now, ages)

    def is_fresh(self, now: float, ages: Ages) -> bool:
        """Did it give a sign of life lately?"""
        return now - self.proven < ages.ping_interval


@dataclass(eq=False)
class Piece:
    """A partial file that could not be removed."""

    server: ServerConfig
    tries: int = 0


@dataclass(eq=False)
class Place:
    """One side of a lease: a place on a shelf, with the session that is in it or will be."""

    shelf: Shelf
    server: ServerConfig
    held: Held | None = None  # the open session
    victim: Held | None = None  # an idle session that must be closed first
    dials: bool = False  # counted in shelf.dialing
    attempt: Session | None = None  # being connected

    @property
    def session(self) -> Session | None:
        """The session that somebody may be blocked in."""
        return self.attempt if self.held is None else self.held.session


@dataclass(eq=False)
class Shelf:
    """The sessions of one server."""

    limit: int
    ages: Ages
    names: set[str] = field(default_factory=set)
    idle: list[Held] = field(default_factory=list)  # in the order of last use, last one last
    taken: int = 0  # places in use: leased, being dialled, pinged or closed
    connected: int = 0  # sessions that are open, idle ones included
    dialing: int = 0
    shrunk_to: int | None = None
    shrunk_until: float = 0.0
    litter: OrderedDict[str, Piece] = field(default_factory=OrderedDict)

    def know(self, server: ServerConfig) -> None:
        """Add a name of this server: the smallest limit of all names counts."""
        self.limit = max(1, min(self.limit, server.max_connections))
        self.names.add(server.hostname)

    def limit_at(self, now: float) -> int:
        """Return how many sessions there may be now."""
        if self.shrunk_to is not None and now < self.shrunk_until:
            return max(1, min(self.limit, self.shrunk_to))
        return self.limit

    def shrink(self, now: float) -> int:
        """Stay for a while with what is open now; return how many that is."""
        self.shrunk_to, self.shrunk_until = max(1, self.connected), now + SHRINK_SECONDS
        return self.limit_at(now)

    def room(self, now: float) -> int:
        """Return how many sessions can be had now: idle ones, and those that may still be opened."""
        return self.limit_at(now) - self.taken

    def pick(self, server: ServerConfig, now: float) -> Place | None:
        """Take a place: the fitting idle session used last, or a new one; None: no room, or too many connects."""
        if self.room(now) < 1:
            return None
        may_dial = self.dialing < DIALS
        place = Place(self, server)
        for held in reversed(self.idle):
            is_fresh = held.is_fresh(now, self.ages)
            # One that idled longer is pinged first, and replaced when dead: that counts as a connect.
            if (is_fresh or may_dial) and fits(held.server, server) and not held.has_expired(now, self.ages):
                self.idle.remove(held)
                place.held, place.dials = held, not is_fresh
                break
        else:
            if not may_dial:
                return None
            place.dials = True
            if self.taken + len(self.idle) >= self.limit_at(now):
                place.victim = self.idle.pop(0)
        self.taken += 1
        self.dialing += place.dials
        return place

    def unpick(self, place: Place) -> None:
        """Undo `pick`: nothing was done with the place."""
        self.taken -= 1
        self.end_dial(place)
        for held in (place.held, place.victim):
            if held is not None:
                self.put(held)

    def end_dial(self, place: Place) -> None:
        """Count the place's connect as over."""
        self.dialing -= place.dials
        place.dials = False

    def keeps(self, held: Held, now: float) -> bool:
        """May a clean session whose place ends be kept?"""
        return self.taken + len(self.idle) <= self.limit_at(now) and not held.is_old(now, self.ages)

    def put(self, held: Held) -> None:
        """Put a session among the idle ones, in the order of last use."""
        place = len(self.idle)
        while place and self.idle[place - 1].used > held.used:
            place -= 1
        self.idle.insert(place, held)

    def take_idle(self, wanted: Callable[[Held], bool]) -> Held | None:
        """Take the first idle session that is `wanted`; its place counts as taken."""
        held = next((held for held in self.idle if wanted(held)), None)
        if held is not None:
            self.idle.remove(held)
            self.taken += 1
        return held

    def add_litter(self, server: ServerConfig, path: str) -> str | None:
        """Remember a partial file; return the one forgotten for it, if any."""
        self.litter[path] = Piece(server)
        return self.litter.popitem(last=False)[0] if len(self.litter) > LITTER_LIMIT else None

    def take_litter(self, server: ServerConfig) -> OrderedDict[str, Piece]:
        """Take a batch of the partial files that a session for `server` can reach."""
        paths = [path for path, piece in self.litter.items() if same_view(piece.server, server)]
        return OrderedDict((path, self.litter.pop(path)) for path in paths[:LITTER_BATCH])


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
