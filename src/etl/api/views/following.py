"""Keeps a view up to date: a thread that follows topics, and says how far it has read and if the broker is there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import structlog

from etl.broker import Follower
from etl.errors import BrokerUnavailable
from etl.models.task import Record
from etl.models.wire import Partition

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.5
LOOK_SECONDS = 5.0  # between two looks at which partitions there are and where they end: is the broker there?
AGAIN_SECONDS = 2.0  # after an error
STOP_SECONDS = 15.0

Take = Callable[[Sequence[Record], Mapping[Partition, int], bool], None]
Start = Callable[[Partition, int, int], int]
Trim = Callable[[Mapping[Partition, int]], None]


class Following:
    """Follows topics in a thread of its own.

    Args:
        name: of the thread.
        bootstrap_servers: of the broker.
        topics: which topics; those that do not exist yet are waited for.
        start: told a partition, its first and its end offset; returns where to begin reading it.
        take: told records, the offsets reached with them, and whether everything that there was is read by now.
        trim: told the first offset of each partition whenever one has changed: what is before it was deleted.
        prepare: called before the topics are looked for, such as to create them; may raise BrokerUnavailable.
    """

    def __init__(
        self,
        name: str,
        bootstrap_servers: str,
        topics: Collection[str],
        start: Start,
        take: Take,
        trim: Trim = lambda _firsts: None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._topics = tuple(dict.fromkeys(topics))
        self._start = start
        self._take = take
        self._prepare = prepare
        self._trim = trim
        self._firsts: dict[Partition, int] = {}
        self._stopping = threading.Event()
        self._moved = threading.Condition()  # guards what follows
        self._positions: dict[Partition, int] = {}
        self._ends: dict[Partition, int] = {}
        self._seen: float | None = None  # when the broker last answered, monotonic
        self._caught_up = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join(STOP_SECONDS)

    @property
    def caught_up(self) -> bool:
        """Was everything read once that there was at the start?"""
        with self._moved:
            return self._caught_up

    def silence(self) -> float | None:
        """Return for how many seconds the broker has not answered; None if it never did."""
        with self._moved:
            return None if self._seen is None else time.monotonic() - self._seen

    def behind(self) -> int:
        """Return how many offsets are still to be read."""
        with self._moved:
            return sum(max(0, end - self._positions.get(p, 0)) for p, end in self._ends.items())

    def ends(self, topic: str) -> dict[int, int]:
        """Return how far each partition of a topic is read."""
        with self._moved:
            return {p.partition: at for p, at in self._positions.items() if p.topic == topic}

    def wait_until(self, ends: Mapping[Partition, int], timeout: float) -> bool:
        """Wait until everything before these offsets is taken in; False if that takes too long."""
        with self._moved:
            return self._moved.wait_for(
                lambda: all(self._positions.get(p, 0) >= end for p, end in ends.items()), timeout
            )

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._prepare()
                with Follower(self._bootstrap_servers) as follower:
                    self._follow(follower)
            except BrokerUnavailable as error:
                log.info("broker away", error=str(error))
            except Exception:
                log.exception("following failed, starting again")
            self._stopping.wait(AGAIN_SECONDS)

    def _follow(self, follower: Follower) -> None:
        followed: dict[Partition, int] = {}
        looked = -LOOK_SECONDS
        while not self._stopping.is_set():
            if time.monotonic() - looked >= LOOK_SECONDS:
                followed = self._look(follower, followed)
                looked = time.monotonic()
            if not followed:
                self._stopping.wait(POLL_SECONDS)
                continue
            records = follower.poll(POLL_SECONDS)
            positions = follower.positions()
            self._note(records, positions)

    def _look(self, follower: Follower, followed: dict[Partition, int]) -> dict[Partition, int]:
        """Find new partitions, and how far each reaches. That the broker answers is known from here alone."""
        found = follower.find(self._topics)
        bounds = follower.bounds(found) if found else {}
        if new := found - followed.keys():
            with self._moved:
                known = dict(self._positions)
            for partition in new:
                first, end = bounds[partition]
                at = known.get(partition)
                followed[partition] = self._start(partition, first, end) if at is None or at > end else max(at, first)
            follower.follow({**followed, **{p: at for p, at in known.items() if p in followed and p not in new}})
        firsts = {partition: first for partition, (first, _) in bounds.items()}
        if firsts != self._firsts:
            self._trim(firsts)
            self._firsts = firsts
        with self._moved:
            self._ends = {partition: end for partition, (_, end) in bounds.items()}
            self._seen = time.monotonic()
        return followed

    def _note(self, records: Sequence[Record], positions: Mapping[Partition, int]) -> None:
        with self._moved:
            caught_up = self._caught_up or all(positions.get(p, 0) >= end for p, end in self._ends.items())
            is_news = bool(records) or positions != self._positions or caught_up != self._caught_up
        if is_news:
            self._take(records, positions, caught_up)
        with self._moved:
            self._positions = dict(positions)
            self._caught_up = caught_up
            self._moved.notify_all()
