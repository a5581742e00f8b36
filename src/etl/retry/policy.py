"""What becomes of a job after an error: tried again here, deferred, dead-lettered, or abandoned.

    Policy(max_attempts, backoff, backoff_max, patience_seconds, jitter=…)
    Policy.of(settings) -> Policy
    policy.verdict(task, error, now_wall, breaker_wait=0.0) -> RetryHere | Defer | DeadLetter | Abandon
    policy.defer_untried(task, outage, now_wall, seconds) -> Defer | DeadLetter

Pure: changes nothing; wall clock and randomness are handed in. Knows errors and tasks; no topic, no thread.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from etl.errors import EtlError, Fate, fate_of
from etl.retry.backoff import Doubling
from etl.retry.tiers import rounded_down

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.config import Settings
    from etl.models.task import Task

MEMORY_SECONDS = 5.0  # shorter waits are spent in this process, longer ones in T-retry


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
            delay = rounded_down(delay)  # a whole tier: one hop, and no remainder to wait for in memory
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


def _out_of_patience(error: BaseException, seconds: float) -> DeadLetter:
    """Return the end of a job whose server did not come back: its last error, and how long it waited."""
    hours = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds:.0f} seconds"
    reason = f"waited {hours} for the server, longer than ETL_OUTAGE_PATIENCE_HOURS"
    if isinstance(error, EtlError):
        error = type(error)(f"{error} ({reason})", server=error.server)
    return DeadLetter(error)
