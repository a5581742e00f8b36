"""How many bytes per second sessions with a server may move: one bucket per direction, for all sessions of a process.

A session with a limit is wrapped in `Limited`: it pays for each block before the block is read from its source, so
that TCP makes the sender wait. A wait for the bucket is no wait for a server: no stall limit counts it.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Self, cast

from etl.errors import ConnectionLost

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.models.timetable import Timetable
    from etl.transfer.base import Parcel, Session, Stored
    from etl.transfer.resumable import Resumable

BURST_SECONDS = 0.25  # of the limit may pass at once
BLOCK_SECONDS = 0.125  # of the limit are taken at once, so that sessions take turns
BLOCK_BYTES = 128 * 1024  # at most: what a block waits for, its session keeps from the others


def minute_of_the_day() -> int:
    """Return the minutes since midnight, local time."""
    now = time.localtime()
    return now.tm_hour * 60 + now.tm_min


class Sharing:
    """Among how many processes each limit is divided."""

    processes = 1


class Bucket:
    """What may pass in one direction. Any thread; takes turns in the order of asking."""

    def __init__(
        self, bytes_per_second: Callable[[], float | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bytes_per_second = bytes_per_second
        self._clock = clock
        self._lock = threading.Lock()  # guards _paid_until
        self._paid_until = clock()  # up to when the limit is used up

    @property
    def burst_bytes(self) -> float | None:
        """How many bytes may pass at once; None: any number."""
        rate = self._bytes_per_second()
        return None if rate is None else rate * BURST_SECONDS

    @property
    def block_bytes(self) -> int | None:
        """How many bytes to take at once; None: any number."""
        rate = self._bytes_per_second()
        return None if rate is None else max(1, min(BLOCK_BYTES, int(rate * BLOCK_SECONDS)))

    def take(self, count: int) -> float:
        """Take bytes out; return in how many seconds they may pass."""
        rate = self._bytes_per_second()
        if rate is None:
            return 0.0
        with self._lock:  # critical section: whose turn is when
            now = self._clock()
            self._paid_until = max(self._paid_until, now - BURST_SECONDS) + count / rate
            return max(0.0, self._paid_until - now)

    def give_back(self, count: int) -> None:
        """Put bytes back that did not come."""
        if count and (rate := self._bytes_per_second()) is not None:
            with self._lock:
                self._paid_until -= count / rate


class Bandwidth:
    """The limit of one server, in both directions. The smallest of all its names' limits counts."""

    def __init__(self, sharing: Sharing, minute: Callable[[], int] = minute_of_the_day) -> None:
        self._sharing = sharing
        self._minute = minute
        self._timetables: set[Timetable] = set()
        self.inward, self.outward = Bucket(self.bytes_per_second), Bucket(self.bytes_per_second)

    def register(self, timetable: Timetable | None) -> None:
        """Add the limit of a name."""
        if timetable is not None:
            self._timetables = self._timetables | {timetable}  # replaced, not changed: buckets read it without a lock

    def bytes_per_second(self) -> float | None:
        """Return this process's part of the limit of this moment; None: there is no limit."""
        if not self._timetables:
            return None
        minute = self._minute()
        limits = [limit for one in self._timetables if (limit := one.bytes_per_second(minute)) is not None]
        return min(limits) / self._sharing.processes if limits else None

    def limited(self, session: Session) -> Session:
        """Return a session that keeps to the limit; the same session if there is none."""
        return cast("Session", Limited(session, self)) if self._timetables else session

    def binds(self, session: object) -> bool:
        """Does a session keep to the limit, if there is one? Not one that was opened before the limit was known."""
        return not self._timetables or isinstance(session, Limited)


class Limited:
    """A session with a limit; whatever moves no bytes of files is passed on, also the answer to what it can do."""

    def __init__(self, session: Session, bandwidth: Bandwidth) -> None:
        self._session = session
        self._bandwidth = bandwidth
        self._cut = threading.Event()
        session.reads_ahead = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    @property  # type: ignore[misc]  # so that `isinstance` says of it what it says of the session
    def __class__(self) -> type:
        return type(self._session)

    def __enter__(self) -> Self:
        self._session.connect()
        return self

    def __exit__(self, *_error: object) -> None:
        self._session.disconnect()

    def abort(self) -> None:
        """Pass on, and end the wait for the bucket."""
        self._cut.set()
        self._session.abort()

    def read(self, *arguments: Any, **named: Any) -> Parcel:
        """Open a file whose bytes are paid for before they come; those that came with the answer are paid for now."""
        return self._metered(self._session.read(*arguments, **named))

    def read_on(self, *arguments: Any, **named: Any) -> Parcel | None:
        """Open a file in the middle, likewise."""
        parcel = cast("Resumable", self._session).read_on(*arguments, **named)
        return None if parcel is None else self._metered(parcel)

    def confirm(self, parcel: Parcel) -> Any:
        """Pass on."""
        return self._session.confirm(_bare(parcel))

    def unchanged(self, parcel: Parcel) -> Any:
        """Pass on."""
        return self._session.unchanged(_bare(parcel))

    def begin(self, *arguments: Any, **named: Any) -> bool:
        """Begin nothing ahead while there is a limit: `write` pays first."""
        return self._bandwidth.outward.burst_bytes is None and bool(self._session.begin(*arguments, **named))

    def write(self, partial: str, parcel: Parcel, *arguments: Any, **named: Any) -> Stored:
        """Write a file, each of whose blocks is paid for before it is taken from the source."""
        return self._session.write(partial, self._paid(parcel), *arguments, **named)

    def write_on(self, partial: str, parcel: Parcel, *arguments: Any, **named: Any) -> Stored:
        """Write a file from the middle on, likewise."""
        return cast("Resumable", self._session).write_on(partial, self._paid(parcel), *arguments, **named)

    def _metered(self, parcel: Parcel) -> Parcel:
        if parcel.held is not None:
            self.pay(self._bandwidth.inward, len(parcel.held))
        return cast("Parcel", _Metered(parcel, self, self._bandwidth.inward))

    def _paid(self, parcel: Parcel) -> Parcel:
        """Return a parcel to be written: paid for, or one that will be, block by block."""
        burst = self._bandwidth.outward.burst_bytes
        if burst is None:
            return parcel
        if parcel.held is None or len(parcel.held) > burst:
            return cast("Parcel", _Metered(parcel, self, self._bandwidth.outward, streams=True))
        self.pay(self._bandwidth.outward, len(parcel.held))
        return parcel

    def pay(self, bucket: Bucket, count: int) -> None:
        """Take bytes out of a bucket and wait until they may pass. Raises ConnectionLost after `abort`."""
        wait = bucket.take(count)
        if wait and self._cut.wait(wait):
            name = self._session.server.hostname
            raise ConnectionLost(f"{name}: the session was aborted", server=name)


class _Metered:
    """A parcel whose bytes are paid for. `streams`: it is in memory, which is hidden, as that is too much at once."""

    def __init__(self, parcel: Parcel, session: Limited, bucket: Bucket, *, streams: bool = False) -> None:
        self.parcel = parcel
        self._session = session
        self._bucket = bucket
        self._streams = streams
        self._is_paid = parcel.held is not None and not streams

    def __getattr__(self, name: str) -> Any:
        return getattr(self.parcel, name)

    @property
    def held(self) -> memoryview | None:
        """The whole file, once it is in memory."""
        return None if self._streams else self.parcel.held

    def load(self, limit_bytes: int) -> bool:
        """Take the file into memory, unless it is too large to come at once."""
        size_bytes, burst = self.parcel.facts.size_bytes, self._bucket.burst_bytes
        if burst is not None and not self._is_paid:
            if self._streams or size_bytes is None or size_bytes > min(burst, limit_bytes):
                return False
            self._session.pay(self._bucket, size_bytes)
        self._is_paid = self.parcel.load(limit_bytes)
        return self._is_paid

    def readinto(self, buffer: memoryview) -> int:
        """Pay for a block, then read it."""
        if self._is_paid or not buffer:
            return self.parcel.readinto(buffer)
        block = self._bucket.block_bytes
        if block is None:
            return self.parcel.readinto(buffer)
        buffer = buffer[:block]
        self._session.pay(self._bucket, len(buffer))
        count = self.parcel.readinto(buffer)
        self._bucket.give_back(len(buffer) - count)
        return count


def _bare(parcel: Parcel) -> Parcel:
    return parcel.parcel if isinstance(parcel, _Metered) else parcel
