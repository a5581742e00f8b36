"""What becomes of a job after an error, and how long it waits: the only place with back-off arithmetic.

    Policy(max_attempts, backoff, backoff_max, patience_seconds, jitter=…)
    Policy.of(settings) -> Policy
    policy.verdict(task, error, now_wall, breaker_wait=0.0)
        -> RetryHere | Defer | DeadLetter | Abandon; changes nothing
    policy.defer_untried(task, outage, now_wall, seconds) -> Defer | DeadLetter    of a job that is not even tried
    DeferralPacer().seconds(age, probe_in, now)      how long such jobs of one server wait at most
    tier_for(remaining) -> index | None         None: less than the shortest tier remains, wait in memory
    tier_until(now, not_before) -> tier index   in which a job waits next
    Doubling(first, longest)(count) -> seconds  the wait after so many outages in a row, ± 20 %

Pure: wall clock and randomness are handed in. Knows errors and tasks; no topic, no thread.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from etl.errors import EtlError, Fate, fate_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.config import Settings
    from etl.models.task import Task

TIERS = (10.0, 60.0, 600.0, 3600.0)  # seconds; each is its own partitions of T-retry: first in, first due
FREE_RUNS = 3  # of a job, that ended with a session of no use: then it may be the job that does it
MEMORY_SECONDS = 5.0  # shorter waits are spent in this process, longer ones in T-retry
DEFERRED_READS_PER_SECOND = 100.0  # jobs of a server in trouble that a process takes from T-retry only to put them back
TIER_SLIP = 0.5  # seconds: a wait of a whole tier is written down a moment after it was decided, and is one still
SPREAD = 0.2  # waits of an outage vary by this part: processes that saw the same one do not come back together


@dataclass(frozen=True)
class Doubling:
    """Waits that double from `first` up to `longest` seconds. `jitter` returns a number in [0, 1)."""

    first: float
    longest: float
    jitter: Callable[[], float] = random.random

    def bare(self, count: int) -> float:
        """Return the wait after `count` failures in a row (1: the first), without jitter."""
        # 2.0 ** 1024 overflows; no sensible pair of limits is 2 ** 60 apart.
        return float(min(self.longest, self.first * 2.0 ** min(max(count, 1) - 1, 60)))

    def __call__(self, count: int) -> float:
        """Return the wait after `count` outages in a row, ± SPREAD, never above `longest`."""
        return min(self.longest, self.bare(count) * (1 - SPREAD + 2 * SPREAD * self.jitter()))


@dataclass(frozen=True)
class Waiting:
    """What to record on the task before it waits."""

    spent: bool  # append an Attempt to task.attempts
    waiting_since: float | None  # wall clock
    outages: int


@dataclass(frozen=True)
class RetryHere(Waiting):
    """Try again in this process after `delay` seconds."""

    delay: float


@dataclass(frozen=True)
class Defer(Waiting):
    """Set aside in T-retry until `not_before` (wall clock)."""

    not_before: float


@dataclass(frozen=True)
class DeadLetter:
    """Dead-letter `error`, with a failed result. The attempt that ended so counts among the job's."""

    error: BaseException


@dataclass(frozen=True)
class Abandon:
    """Write nothing: whoever owns the partition repeats the job."""


Verdict = RetryHere | Defer | DeadLetter | Abandon


class DeferralPacer:
    """How long jobs wait, untried, while their server is down or busy: a whole tier each, so one record.

    About as long again as that has lasted, or as it is until the next probe, at most twice as long. And where many
    wait, a tier that is long enough: within its length it gets no more jobs than may be set back again when they come
    due, so that a million of them keep nobody busy. Of jobs that come again only the latest wait counts.
    """

    def __init__(self) -> None:
        self._began = [-math.inf] * len(TIERS)  # by tier: since when jobs are counted, its own length at most
        self._count = [0] * len(TIERS)

    def seconds(self, age: float, probe_in: float, now: float) -> float:
        """Return the wait of one more job of a server that has been down, or busy, for `age` seconds."""
        tier = tier_for(max(age, 2 * probe_in, TIERS[0])) or 0
        while tier < len(TIERS) - 1 and self._is_full(tier, now):
            tier += 1
        self._count[tier] += 1
        return TIERS[tier]

    def _is_full(self, tier: int, now: float) -> bool:
        """Has a tier got what it may within its length? Counts anew once that is over."""
        if now - self._began[tier] >= TIERS[tier]:
            self._began[tier], self._count[tier] = now, 0
        return self._count[tier] >= TIERS[tier] * DEFERRED_READS_PER_SECOND


@dataclass(frozen=True)
class Policy:
    """The limits, in seconds; `jitter` returns a number in [0, 1)."""

    max_attempts: int
    backoff: float
    backoff_max: float
    patience_seconds: float
    jitter: Callable[[], float] = random.random

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Take the limits from the settings."""
        return cls(
            max_attempts=settings.retry_max_attempts,
            backoff=settings.retry_backoff_seconds,
            backoff_max=settings.retry_backoff_max_seconds,
            patience_seconds=settings.outage_patience_hours * 3600.0,
        )

    def verdict(self, task: Task, error: BaseException, now: float, breaker_wait: float = 0.0) -> Verdict:
        """Decide. `now` is wall clock; `breaker_wait` how long the server's breaker stays open at least.

        Anything that is no `EtlError` is a bug: dead, so one poisonous file stops no line.
        """
        fate = fate_of(error)
        if fate is Fate.ABANDON:
            return Abandon()
        if fate is Fate.DEAD:
            return DeadLetter(error)
        if fate is Fate.OUTAGE:
            return self._after_outage(task, error, now, breaker_wait)
        return self._after_failure(task, error, now)

    def _after_failure(self, task: Task, error: BaseException, now: float) -> Verdict:
        if isinstance(error, EtlError) and not error.spends_attempt and task.free_runs < FREE_RUNS:
            return self._wait(0.0, now, spent=False, since=None, outages=0)
        spent = len(task.attempts) + 1
        if spent >= self.max_attempts:
            return DeadLetter(error)
        delay = self.jitter() * Doubling(self.backoff, self.backoff_max).bare(spent)
        return self._wait(delay, now, spent=True, since=None, outages=0)

    def _after_outage(self, task: Task, error: BaseException, now: float, breaker_wait: float) -> Verdict:
        since = now if task.waiting_since is None else task.waiting_since
        patience_left = since + self.patience_seconds - now
        if patience_left <= 0:
            return _out_of_patience(error, now - since)
        outages = task.outages + 1
        delay = max(Doubling(self.backoff, self.backoff_max, self.jitter)(outages), breaker_wait)
        if delay > MEMORY_SECONDS:
            delay = _rounded_down(delay)  # a whole tier: one hop, and no remainder to wait for in memory
        delay = min(delay, patience_left)  # the last attempt is at the end of the patience, not a tier beyond
        return self._wait(delay, now, spent=False, since=since, outages=outages)

    def defer_untried(self, task: Task, outage: BaseException, now: float, seconds: float) -> Defer | DeadLetter:
        """Decide about a job that is not tried: its server has been met with `outage`. `now` is wall clock."""
        since = now if task.waiting_since is None else task.waiting_since
        patience_left = since + self.patience_seconds - now
        if patience_left <= 0:
            return _out_of_patience(outage, now - since)
        return Defer(False, since, task.outages, now + min(seconds, patience_left))

    def _wait(self, delay: float, now: float, *, spent: bool, since: float | None, outages: int) -> RetryHere | Defer:
        if delay <= MEMORY_SECONDS:
            return RetryHere(spent, since, outages, delay)
        return Defer(spent, since, outages, now + delay)


def tier_for(remaining: float) -> int | None:
    """Return the longest tier that is not longer than `remaining` seconds; None: wait in memory."""
    return bisect_right(TIERS, remaining) - 1 if remaining >= TIERS[0] else None


def tier_until(now: float, not_before: float) -> int:
    """Return the tier in which a job waits next.

    A record in tier i is due TIERS[i] after its append, or at its `not_before` if that is sooner.
    """
    return tier_for(not_before - now + TIER_SLIP) or 0


def _rounded_down(delay: float) -> float:
    tier = tier_for(delay)
    return delay if tier is None else TIERS[tier]


def _out_of_patience(error: BaseException, seconds: float) -> DeadLetter:
    """Return the end of a job whose server did not come back: its last error, and how long it waited."""
    hours = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds:.0f} seconds"
    reason = f"waited {hours} for the server, longer than ETL_OUTAGE_PATIENCE_HOURS"
    if isinstance(error, EtlError):
        error = type(error)(f"{error} ({reason})", server=error.server)
    return DeadLetter(error)
