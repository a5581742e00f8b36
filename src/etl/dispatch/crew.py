"""How many lanes run at once: ETL_WORKERS of them, and some more in place of those that are long at one job.

A lane in a transfer of ten minutes, or at a server that has fallen silent, moves nobody else's jobs. Lanes are cheap:
up to SPARE_LANES more work for other servers meanwhile. One that knocks at a server moves no job at all: KNOCKING_LANES
do nothing else, so that silent servers take no lane of those that answer.

State without a lock, guarded by the dispatcher's; the clock is handed in. Knows no pool, no Kafka.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from etl.dispatch.backlog import Entry
    from etl.dispatch.servers import Server

SPARE_LANES, KNOCKING_LANES = 8, 16  # threads beyond ETL_WORKERS
LONG_SECONDS = 3.0  # a lane that is at one job for longer does not count among the lanes that move


class Crew:
    """The lanes at work, by the job that each took last."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._at_work: dict[Entry, float] = {}  # since when
        self._knocking: set[Entry] = set()

    def enter(self, entry: Entry, now: float, *, knocks: bool) -> None:
        """A lane took its first job. `knocks`: it only tries whether a server lets it in, that none is open with."""
        if knocks:
            self._knocking.add(entry)
        else:
            self._at_work[entry] = now

    def go_on(self, last: Entry, entry: Entry, now: float) -> None:
        """The lane of `last` took `entry`."""
        self.leave(last)
        self._at_work[entry] = now

    def leave(self, entry: Entry) -> bool:
        """The lane is free. Return whether it had both sessions; it knocked otherwise."""
        had_both = self._at_work.pop(entry, None) is not None
        if not had_both:
            self._knocking.remove(entry)
        return had_both

    def moving(self, now: float, server: Server | None = None) -> int:
        """Return how many lanes (of a server) have both sessions of a job, and are not long at it."""
        return sum(
            now - since <= LONG_SECONDS and (server is None or server in entry.queue.servers)
            for entry, since in self._at_work.items()
        )

    def holding(self, server: Server) -> int:
        """Return how many lanes hold a session of a server, and one of its partner."""
        return sum(server in entry.queue.servers for entry in self._at_work)

    def has_room(self, now: float, *, newcomer: bool, knocks: bool) -> bool:
        """May one more lane go to work? `newcomer`: for servers that hold none; one lane more is kept for those."""
        if knocks:
            return len(self._knocking) < KNOCKING_LANES
        return len(self._at_work) < self._workers + SPARE_LANES and self.moving(now) < self._workers + newcomer

    def is_over(self, now: float) -> bool:
        """Are there too many at work, since those that were long at one job go on?"""
        most = self._workers + 1
        return len(self._at_work) > most and self.moving(now) > most
