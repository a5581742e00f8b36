"""What becomes of a job after an error: tried again here, deferred, dead-lettered, or abandoned.

    Policy(max_attempts, backoff, backoff_max, patience_seconds, jitter=…)
    Policy.of(settings) -> Policy
    policy.verdict(task, error, now_wall, breaker_wait=0.0) -> RetryHere | Defer | DeadLetter | Abandon
    policy.defer_untried(task, outage, now_wall, seconds) -> Defer | DeadLetter

Pure: changes nothing; the caller supplies the wall clock and the randomness. Knows errors and tasks; no topic, no
thread.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from etl.errors import EtlError, Fate, fate_of
from etl.retry.backoff import Doubling
from etl.retry.tiers import round_down

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.config import Settings
    from etl.models.task import Task

FREE_RUNS = 3  # of a job, that ended with a session of no use: then it may be the job that does it
LONGEST_MEMORY_WAIT_SECONDS = 5.0  # longer waits are spent in T-retry, not in this process, but for those of probes


@dataclass(frozen=True)
class Waiting:
    """What the task must record before it waits."""

    spent: bool  # whether the run counts as an attempt
    waiting_since: float | None  # wall clock: when the job met the outage; None if it does not wait for one to end
    outages: int  # consecutive ones


@dataclass(frozen=True)
class RetryHere(Waiting):
    """Try again in this process after `delay` seconds."""

    delay: float


@dataclass(frozen=True)
class Defer(Waiting):
    """Write the job to T-retry, to run at `not_before` (wall clock) or later."""

    not_before: float


@dataclass(frozen=True)
class DeadLetter:
    """Write a dead letter with `error`, and a failed result. The run counts as an attempt."""

    error: BaseException


@dataclass(frozen=True)
class Abandon:
    """Write nothing: whoever owns the partition repeats the job."""


Verdict = RetryHere | Defer | DeadLetter | Abandon


@dataclass(frozen=True)
class Policy:
    """The limits of retries. `jitter` returns a number in [0, 1)."""

    max_attempts: int
    backoff: float  # seconds, after the first failure
    backoff_max: float  # seconds
    patience_seconds: float  # how long a job waits for the end of an outage
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
        """Decide what happens to a job after `error`. Changes nothing.

        `now`: wall clock. `breaker_wait`: for how many seconds at least the server's breaker stays open.

        Any error but an `EtlError` is a bug: the job is dead-lettered, so that it cannot hold up others.
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
        delay = self.jitter() * Doubling(self.backoff, self.backoff_max).without_jitter(spent)
        return self._wait(delay, now, spent=True, since=None, outages=0)

    def _after_outage(self, task: Task, error: BaseException, now: float, breaker_wait: float) -> Verdict:
        since = now if task.waiting_since is None else task.waiting_since
        patience_left = since + self.patience_seconds - now
        if patience_left <= 0:
            return _end_patience(error, now - since)
        outages = task.outages + 1
        delay = max(Doubling(self.backoff, self.backoff_max, self.jitter)(outages), breaker_wait)
        if delay > LONGEST_MEMORY_WAIT_SECONDS:
            delay = round_down(delay)  # to a whole tier, so that one deferral is enough
        delay = min(delay, patience_left)  # the last run takes place when the patience ends, not a tier later
        # A probe that was deferred before stays: written again after each try, it would leave a record for each.
        here = task.recallable and breaker_wait > 0
        return self._wait(delay, now, spent=False, since=since, outages=outages, here=here)

    def defer_untried(self, task: Task, outage: BaseException, now: float, seconds: float) -> Defer | DeadLetter:
        """Decide what happens to a job that does not run, as another one met `outage` at its server. Changes nothing.

        `now`: wall clock. `seconds`: how long to defer it, unless its patience ends before.
        """
        since = now if task.waiting_since is None else task.waiting_since
        patience_left = since + self.patience_seconds - now
        if patience_left <= 0:
            return _end_patience(outage, now - since)
        return Defer(False, since, task.outages, now + min(seconds, patience_left))

    def _wait(
        self, delay: float, now: float, *, spent: bool, since: float | None, outages: int, here: bool = False
    ) -> RetryHere | Defer:
        if here or delay <= LONGEST_MEMORY_WAIT_SECONDS:
            return RetryHere(spent, since, outages, delay)
        return Defer(spent, since, outages, now + delay)


def _end_patience(error: BaseException, seconds: float) -> DeadLetter:
    """Return the dead letter of a job whose server stayed down: the last error, and how long the job waited."""
    hours = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds:.0f} seconds"
    reason = f"waited {hours} for the server, longer than ETL_OUTAGE_PATIENCE_HOURS"
    if isinstance(error, EtlError):
        error = type(error)(f"{error} ({reason})", server=error.server)
    return DeadLetter(error)
