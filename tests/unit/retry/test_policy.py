"""What happens to a job after an error, and how long it waits."""

import copy
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pretend
from etl import errors
from etl.config import Settings
from etl.models.task import Attempt, Task
from etl.retry.backoff import Doubling
from etl.retry.policy import Abandon, DeadLetter, Defer, Policy, RetryHere
from etl.retry.tiers import TIERS, tier_for, tier_until, wait_after

pytestmark = pytest.mark.unit

NOW = 1_800_000_000.0
LOST = errors.ConnectionLost("lost")
DOWN = errors.ServerUnavailable("refused")


def policy(jitter: float = 1.0, **limits: float) -> Policy:
    values = {"max_attempts": 5, "backoff": 1.0, "backoff_max": 300.0, "patience_seconds": 3600.0} | limits
    return Policy(jitter=lambda: jitter, **values)  # type: ignore[arg-type]


def tried(attempts: int = 0, outages: int = 0, waiting_since: float | None = None) -> Task:
    task = pretend.task()
    task.attempts += [Attempt("then", "here", "that")] * attempts
    task.outages, task.waiting_since = outages, waiting_since
    return task


def test_a_transient_failure_spends_an_attempt_and_waits_in_memory() -> None:
    assert policy().verdict(tried(), LOST, NOW) == RetryHere(spent=True, waiting_since=None, outages=0, delay=1.0)


def test_a_longer_back_off_is_deferred() -> None:
    verdict = policy().verdict(tried(attempts=3), LOST, NOW)
    assert isinstance(verdict, Defer)
    assert verdict.spent
    assert verdict.not_before == NOW + 8.0


def test_the_last_attempt_is_a_dead_letter() -> None:
    assert isinstance(policy().verdict(tried(attempts=3), LOST, NOW), Defer)
    verdict = policy().verdict(tried(attempts=4), LOST, NOW)
    assert isinstance(verdict, DeadLetter)
    assert verdict.error is LOST


def test_with_a_limit_of_one_attempt_nothing_is_retried() -> None:
    assert isinstance(policy(max_attempts=1).verdict(tried(), LOST, NOW), DeadLetter)


@given(st.integers(0, 3), st.floats(0, 1, exclude_max=True))
def test_a_back_off_has_full_jitter_within_its_limits(attempts: int, jitter: float) -> None:
    verdict = policy(jitter, backoff_max=3.0).verdict(tried(attempts), LOST, NOW)
    assert isinstance(verdict, RetryHere)
    assert math.isclose(verdict.delay, jitter * min(3.0, 2.0**attempts))


def test_a_failure_after_an_outage_ends_the_outage() -> None:
    verdict = policy().verdict(tried(outages=7, waiting_since=NOW - 50), LOST, NOW)
    assert verdict == RetryHere(spent=True, waiting_since=None, outages=0, delay=1.0)


def test_an_outage_spends_no_attempt_and_records_when_the_wait_began() -> None:
    verdict = policy(jitter=0.5).verdict(tried(attempts=4), DOWN, NOW)
    assert verdict == RetryHere(spent=False, waiting_since=NOW, outages=1, delay=1.0)


@pytest.mark.parametrize(
    ("outages", "wait"), [(0, 1), (1, 2), (2, 4), (3, 8), (4, 10), (5, 10), (6, 60), (8, 60), (60, 60), (5000, 60)]
)
def test_waits_of_an_outage_double_and_those_deferred_fill_a_tier(outages: int, wait: float) -> None:
    verdict = policy(jitter=0.5).verdict(tried(outages=outages, waiting_since=NOW - 5), DOWN, NOW)
    assert isinstance(verdict, RetryHere | Defer)
    assert (verdict.delay if isinstance(verdict, RetryHere) else verdict.not_before - NOW) == wait
    assert isinstance(verdict, Defer) == (wait > 5)
    assert verdict.waiting_since == NOW - 5


def test_waits_of_an_outage_vary_by_a_fifth() -> None:
    shortest = policy(jitter=0.0).verdict(tried(outages=1), DOWN, NOW)
    longest = policy(jitter=0.999999).verdict(tried(outages=1), DOWN, NOW)
    assert isinstance(shortest, RetryHere)
    assert isinstance(longest, RetryHere)
    assert shortest.delay == pytest.approx(1.6)
    assert longest.delay == pytest.approx(2.4, rel=1e-3)


def test_no_wait_exceeds_the_limit_unless_the_breaker_stays_open_longer() -> None:
    task = tried(outages=30, waiting_since=NOW - 5)
    bounded = policy(backoff_max=2.0).verdict(task, DOWN, NOW)
    assert isinstance(bounded, RetryHere)
    assert bounded.delay == 2.0
    verdict = policy(backoff_max=2.0).verdict(task, DOWN, NOW, breaker_wait=70.0)
    assert isinstance(verdict, Defer)
    assert verdict.not_before == NOW + 60.0


def test_a_server_that_stays_down_beyond_the_patience_is_a_dead_letter() -> None:
    assert isinstance(policy().verdict(tried(outages=9, waiting_since=NOW - 3599), DOWN, NOW), RetryHere)
    dead = policy().verdict(tried(outages=9, waiting_since=NOW - 3600), DOWN, NOW)
    assert isinstance(dead, DeadLetter)
    assert type(dead.error) is errors.ServerUnavailable
    assert str(dead.error) == "refused (waited 1.0 hours for the server, longer than ETL_OUTAGE_PATIENCE_HOURS)"


@pytest.mark.parametrize("kind", [errors.ServerUnavailable, errors.ServerBusy, errors.AuthenticationFailed])
def test_the_dead_letter_at_the_end_of_the_patience_names_the_outage_and_the_wait(
    kind: type[errors.EtlError],
) -> None:
    """Even of a job that never ran, as other jobs had met the outage."""
    outage = kind("it said no", server="B")
    dead = policy().defer_untried(tried(waiting_since=NOW - 7200), outage, NOW, 600.0)
    assert isinstance(dead, DeadLetter)
    assert type(dead.error) is kind
    assert dead.error.server == "B"
    assert str(dead.error).startswith("it said no (waited 2.0 hours")
    verdict = policy(patience_seconds=60.0).defer_untried(tried(waiting_since=NOW - 90), outage, NOW, 1)
    assert "90 seconds" in str(verdict)


def test_a_job_deferred_untried_spends_no_attempt_and_its_patience_begins() -> None:
    assert policy().defer_untried(tried(attempts=2, outages=3), DOWN, NOW, 600.0) == Defer(
        spent=False,
        waiting_since=NOW,
        outages=3,
        not_before=NOW + 600.0,
    )
    again = policy().defer_untried(tried(waiting_since=NOW - 3000), DOWN, NOW, 3600.0)
    assert isinstance(again, Defer)
    assert again.waiting_since == NOW - 3000
    assert again.not_before == NOW + 600.0  # the last look is at the end of the patience, not beyond


def test_a_probe_that_was_deferred_before_waits_here() -> None:
    """It leaves no record of each try."""
    task = tried(outages=9, waiting_since=NOW - 60)
    task.recallable = True
    assert isinstance(policy().verdict(task, DOWN, NOW, 100.0), RetryHere)
    assert isinstance(policy().verdict(task, DOWN, NOW, 0.0), Defer)
    task.recallable = False
    assert isinstance(policy().verdict(task, DOWN, NOW, 100.0), Defer)


@pytest.mark.parametrize("met", [0.0, 0.5, 9.9, 30.0, 59.9, 61.0, 599.0, 3000.0])
def test_a_job_is_written_five_times_in_the_first_hour_of_an_outage_at_most_then_each_hour(met: float) -> None:
    """Even if it makes way whenever its time comes."""
    times = [met]
    while times[-1] < 20 * 3600:
        times.append(times[-1] + wait_after(times[-1]))
    assert sum(time < 3600 for time in times) <= 5
    for hour in range(1, 20):
        assert sum(3600 * hour <= time < 3600 * (hour + 1) for time in times) <= 1


def test_the_last_run_is_at_the_end_of_the_patience_and_not_later() -> None:
    verdict = policy().verdict(tried(outages=9, waiting_since=NOW - 3590), DOWN, NOW)
    assert isinstance(verdict, Defer)
    assert verdict.not_before == NOW + 10


@pytest.mark.parametrize("error", [errors.FileMissing("gone"), ValueError("a bug"), KeyError()])
def test_a_permanent_error_is_a_dead_letter_at_once(error: BaseException) -> None:
    assert isinstance(policy().verdict(tried(), error, NOW), DeadLetter)


def test_a_job_whose_partition_is_lost_is_abandoned() -> None:
    assert policy().verdict(tried(), errors.OwnershipLost("revoked"), NOW) == Abandon()


@pytest.mark.parametrize("error", [LOST, DOWN, errors.FileMissing("gone"), errors.OwnershipLost("revoked")])
def test_a_verdict_changes_nothing(error: BaseException) -> None:
    task = tried(attempts=2, outages=1, waiting_since=5.0)
    before = copy.copy(vars(task)) | {"attempts": list(task.attempts)}
    policy().verdict(task, error, NOW)
    assert vars(task) == before


def test_the_limits_come_from_the_settings() -> None:
    made = Policy.of(Settings(retry_max_attempts=7, outage_patience_hours=0.5))
    assert (made.max_attempts, made.backoff, made.backoff_max, made.patience_seconds) == (7, 1.0, 300.0, 1800.0)


@given(st.integers(-5, 10_000), st.floats(0.001, 1e6), st.floats(0.001, 1e6))
def test_a_doubling_never_overflows_or_exceeds_its_limit(count: int, first: float, longest: float) -> None:
    assert 0 < Doubling(first, longest)(count) <= longest


@pytest.mark.parametrize(
    ("remaining", "tier"),
    [(-5, None), (0, None), (9.9, None), (10, 0), (59, 0), (60, 1), (599, 1), (600, 2), (3600, 3), (1e9, 3)],
)
def test_the_tier_is_the_longest_that_does_not_exceed_the_rest_of_the_wait(remaining: float, tier: int | None) -> None:
    assert tier_for(remaining) == tier


@given(st.floats(0, 1_000_000))
def test_hops_through_the_tiers_end_when_the_job_is_due_and_never_later(seconds: float) -> None:
    now, not_before, hops = NOW, NOW + seconds, 0
    while tier_for(not_before - now) is not None:
        now, hops = min(not_before, now + TIERS[tier_until(now, not_before)]), hops + 1
    assert 0 <= not_before - now < TIERS[0] + 1e-3
    assert hops <= seconds / TIERS[-1] + 6 + 10 + 6


@pytest.mark.parametrize("tier", range(len(TIERS)))
def test_a_wait_of_a_whole_tier_is_one_hop_although_it_is_recorded_later(tier: int) -> None:
    not_before = NOW + TIERS[tier]
    assert tier_until(NOW + 0.3, not_before) == tier


def test_a_deferral_shorter_than_every_tier_is_due_at_its_time() -> None:
    assert tier_until(NOW, NOW + 7) == 0
