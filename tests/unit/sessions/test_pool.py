"""The pools: pairs in one step, reuse of clean sessions only, limits, the reaper and the end."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import structlog

import pretend
from etl import errors
from etl.models.timetable import Timetable
from etl.sessions.lease import Lease
from etl.sessions.pool import ORPHAN_LIMIT, Reason, Refusal
from etl.sessions.pools import Pools, create_session
from etl.transfer.bandwidth import Limited
from pretend import Clock, PretendSession, World

pytestmark = pytest.mark.unit


@contextmanager
def pools_of(
    world: World, clock: Clock | None = None, jitter: Callable[[], float] = lambda: 0.5, **settings: float
) -> Iterator[Pools]:
    pools = Pools(world.config, pretend.settings(**settings), clock or Clock(), world.create, jitter)
    try:
        yield pools
    finally:
        assert pools.close(timeout=5.0)


def lease(pools: Pools, source: str = "A", destination: str | None = "B") -> Lease:
    taken = pools.reserve(pools.server(source), None if destination is None else pools.server(destination))
    assert isinstance(taken, Lease)
    taken.open()
    return taken


def refused(pools: Pools, source: str = "A", destination: str | None = "B") -> bool:
    taken = pools.reserve(pools.server(source), None if destination is None else pools.server(destination))
    if isinstance(taken, Lease):
        taken.release(reusable=True)
    return isinstance(taken, Refusal)


def test_a_lease_has_one_session_per_side() -> None:
    with pools_of(World(A=1, B=1)) as pools:
        taken = lease(pools)
        assert (taken.source.server.hostname, taken.destination.server.hostname) == ("A", "B")
        assert not taken.shared
        taken.release(reusable=True)


def test_a_clean_session_is_reused_and_the_last_used_comes_first() -> None:
    world, clock = World(A=3), Clock()
    with pools_of(world, clock) as pools:
        first, second = lease(pools, "A", None), lease(pools, "A", None)
        sessions = first.source, second.source
        second.release(reusable=True)
        clock.pass_(1)
        first.release(reusable=True)
        again = lease(pools, "A", None)
        assert again.source is sessions[0]
        assert lease(pools, "A", None).source is sessions[1]
        assert world["A"].connects == 2


def test_a_session_that_saw_an_error_never_returns_to_the_pool() -> None:
    world = World(A=1, B=1)
    with pools_of(world) as pools:
        taken = lease(pools)
        source, destination = taken.source, taken.destination
        taken.release(reusable=(True, False))
        again = lease(pools)
        assert again.source is source
        assert again.destination is not destination
        assert isinstance(destination, PretendSession)
        assert not destination.is_open
        assert destination.aborted.is_set()  # no farewell to a session in an unknown state
        again.release(reusable=True)


def test_a_full_pool_refuses_and_takes_nothing_of_the_other_side() -> None:
    with pools_of(World(A=1, B=2)) as pools:
        taken = lease(pools)
        assert refused(pools)
        assert pools.stats()["B"]["taken"] == 1
        taken.release(reusable=True)
        assert not refused(pools)


def test_a_release_counts_once() -> None:
    with pools_of(World(A=2, B=2)) as pools:
        taken = lease(pools)
        taken.release(reusable=True)
        taken.release(reusable=False)
        counted = {"limit": 2, "limit_now": 2, "open": 1, "idle": 1, "taken": 0, "connecting": 0, "orphans": 0}
        assert pools.stats()["A"] == counted | {"connects": 1, "connects_left": 3, "logins_refused": 0}


def test_names_of_one_server_share_its_pool_and_the_smallest_limit() -> None:
    world = World(A=8)
    world.configs["ALIAS"] = pretend.server("ALIAS", host="a", max_connections=1)
    with pools_of(world) as pools:
        pools.register(world.configs.values())
        taken = lease(pools, "A", None)
        assert refused(pools, "ALIAS", None)
        session = taken.source
        taken.release(reusable=True)
        again = lease(pools, "ALIAS", None)
        assert again.source is session
        assert again.source.server.hostname == "ALIAS"  # the session adopted the other name
        again.release(reusable=True)


def test_names_with_another_password_take_no_foreign_session_but_its_place() -> None:
    world = World(A=1)
    world.configs["OTHER"] = pretend.server("OTHER", host="a", password="x", max_connections=1)
    with pools_of(world) as pools:
        lease(pools, "A", None).release(reusable=True)
        taken = lease(pools, "OTHER", None)
        assert world["A"].connects == 2
        assert world["A"].peak == 1
        taken.release(reusable=True)


def test_local_base_paths_are_servers_of_their_own() -> None:
    one = pretend.server("ONE", host="", base_path="/one")
    other = pretend.server("OTHER", host="", base_path="/other")
    assert Pools.key(one) != Pools.key(other)


def test_one_session_serves_both_sides_where_there_is_room_for_one() -> None:
    world = World(A=1)
    with pools_of(world) as pools:
        taken = lease(pools, "A", "A")
        assert taken.shared
        assert taken.source is taken.destination
        assert refused(pools, "A", "A")
        taken.release(reusable=True)
        assert pools.stats()["A"]["idle"] == 1


def test_a_limit_that_another_name_brings_later_binds_every_session() -> None:
    """Those that were opened before it was known are replaced: idle ones, and one that is given back."""
    world = World(A=3)
    world.configs["ALIAS"] = pretend.server("ALIAS", host="a", max_connections=3, bandwidth=Timetable.parse("1M"))
    with pools_of(world) as pools:
        kept, given_back = lease(pools, "A", None), lease(pools, "A", None)
        kept.release(reusable=True)
        limited = lease(pools, "ALIAS", None)
        given_back.release(reusable=True)
        again = lease(pools, "A", None)
        assert [type(one.source) for one in (limited, again)] == [Limited] * 2


def test_two_sessions_serve_the_sides_of_one_server_where_there_is_room() -> None:
    with pools_of(World(A=2)) as pools:
        taken = lease(pools, "A", "A")
        assert not taken.shared
        assert taken.source is not taken.destination
        taken.release(reusable=True)


def test_a_pair_that_could_never_have_its_sessions_is_a_wrong_setting() -> None:
    world = World(A=1)
    world.configs["SUB"] = pretend.server("SUB", host="a", base_path="/sub", max_connections=1)
    with pools_of(world) as pools:
        with pytest.raises(errors.SettingsError, match="MAX_CONNECTIONS"):
            pools.check(world.config("A"), world.config("SUB"))
        pools.check(world.config("A"), world.config("A"))
        assert refused(pools, "A", "SUB")


def test_at_most_four_connects_to_a_server_are_under_way() -> None:
    with pools_of(World(A=8, B=8)) as pools:
        lease(pools, "A", None).release(reusable=True)
        kept = lease(pools, "A", None)
        waiting = [pools.reserve(pools.server("A")) for _ in range(5)]
        assert [isinstance(taken, Lease) for taken in waiting] == [True] * 4 + [False]
        assert waiting[4] == (pools.server("A"), Reason.CONNECTING)
        assert pools.refusal(pools.server("A")) is Reason.CONNECTING
        assert not refused(pools, "B", None)
        assert isinstance(waiting[0], Lease)
        waiting[0].open()
        assert not refused(pools, "A", None)
        for taken in [kept, *waiting]:
            if isinstance(taken, Lease):
                taken.release(reusable=True)


def test_the_first_connect_to_a_server_goes_alone() -> None:
    """A wrong password is tried once, and a server that gives no welcome holds one lane, not four."""
    with pools_of(World(A=8)) as pools:
        first = pools.reserve(pools.server("A"))
        assert isinstance(first, Lease)
        assert refused(pools, "A", None)
        first.open()
        assert not refused(pools, "A", None)
        first.release(reusable=False)
        first = pools.reserve(pools.server("A"))
        assert isinstance(first, Lease)
        assert refused(pools, "A", None)
        first.release(reusable=True)


def test_new_sessions_are_limited_per_minute_and_reused_ones_are_not() -> None:
    """A server that breaks every session is not stormed; one that keeps them never meets the limit."""
    world, clock = World(A=2), Clock()
    world.configs["A"] = pretend.server("A", max_connections=2, connects_per_minute=30)
    with pools_of(world, clock) as pools:
        for _ in range(4):
            lease(pools, "A", None).release(reusable=False)
        assert refused(pools, "A", None)
        clock.pass_(1.9)
        assert refused(pools, "A", None)
        clock.pass_(0.1)
        for _ in range(100):
            lease(pools, "A", None).release(reusable=True)
        assert world["A"].connects == 5
        lease(pools, "A", None).release(reusable=False)
        clock.pass_(60.0)
        for _ in range(4):  # what was not used is not saved up
            lease(pools, "A", None).release(reusable=False)
        assert refused(pools, "A", None)


def test_a_refused_login_lets_nobody_try_for_longer_and_longer() -> None:
    world, clock = World(A=8), Clock()
    world["A"].refusal = errors.AuthenticationFailed("530")
    with pools_of(world, clock, login_backoff_seconds=60.0) as pools:
        rests = []
        for _ in range(9):
            taken = pools.reserve(pools.server("A"))
            assert isinstance(taken, Lease)
            with pytest.raises(errors.AuthenticationFailed):
                taken.open()
            rests.append(pools.login_backoff_left(pools.server("A")))
            clock.pass_(rests[-1] + 0.001)
        assert all(0.8 * 60 * 2**n <= rest <= 1.2 * 60 * 2**n for n, rest in enumerate(rests[:5]))
        assert max(rests) <= 3600.001  # of a clock that counts in floats
        world["A"].refusal = None
        lease(pools, "A", None).release(reusable=False)
        assert pools.login_backoff_left(pools.server("A")) == 0.0


def test_a_refused_login_leaves_the_open_sessions_at_work() -> None:
    """The password was changed: nobody logs in for a while, though the pool had room."""
    world, clock = World(A=8), Clock()
    with pools_of(world, clock, login_backoff_seconds=100.0) as pools:
        kept = lease(pools, "A", None)
        world["A"].refusal = errors.AuthenticationFailed("530")
        taken = pools.reserve(pools.server("A"))
        assert isinstance(taken, Lease)
        with pytest.raises(errors.AuthenticationFailed):
            taken.open()
        clock.pass_(79)
        assert refused(pools, "A", None)
        kept.release(reusable=True)
        lease(pools, "A", None).release(reusable=True)
        lease(pools, "A", None).release(reusable=False)
        assert refused(pools, "A", None), "the place is free, and still nobody logs in"
        clock.pass_(50)
        world["A"].refusal = None
        assert world["A"].connects == 1
        lease(pools, "A", None).release(reusable=True)


def test_after_a_refused_connect_idle_sessions_prove_themselves_first() -> None:
    """The server died: no job meets the dead session that it left behind."""
    world = World(A=8)
    with pools_of(world) as pools:
        kept, idle = lease(pools, "A", None), lease(pools, "A", None)
        unlucky = pools.reserve(pools.server("A"))
        assert isinstance(unlucky, Lease)
        idle.release(reusable=True)
        world["A"].refusal = errors.ServerUnavailable("refused")
        with pytest.raises(errors.ServerUnavailable):
            unlucky.open()
        world["A"].deaf = True
        again = pools.reserve(pools.server("A"))
        assert isinstance(again, Lease)
        with pytest.raises(errors.ServerUnavailable):
            again.open()
        assert world["A"].sessions[1].pings == 1
        kept.release(reusable=False)


def test_after_one_session_died_its_siblings_prove_themselves_first() -> None:
    """A server restarts between jobs: the next ones do not meet its dead sessions one after the other."""
    world = World(A=8)
    with pools_of(world) as pools:
        taken = [lease(pools, "A", None) for _ in range(3)]
        for one in taken:
            one.release(reusable=True)
        pools.died(pools.server("A"))
        lease(pools, "A", None).release(reusable=True)
        assert sum(session.pings for session in world["A"].sessions) == 1


def test_a_restart_is_not_taken_for_a_limit() -> None:
    """Its refusals lower nothing and are no warnings; a limit that is lowered is told once."""
    world, clock = World(A=8), Clock()
    with pools_of(world, clock) as pools, structlog.testing.capture_logs() as said:
        kept = lease(pools, "A", None)
        pools.died(pools.server("A"))
        for _ in range(4):
            pools.refused(pools.server("A"), errors.ServerUnavailable("refused"))
        assert pools.stats()["A"]["limit_now"] == 8
        assert said == []
        clock.pass_(6.0)
        for _ in range(4):
            pools.refused(pools.server("A"), errors.ServerBusy("421 too many"))
        assert pools.stats()["A"]["limit_now"] == 1
        assert [line["log_level"] for line in said] == ["warning"]
        kept.release(reusable=False)


def test_a_refusal_just_before_the_first_death_is_no_limit_either() -> None:
    """A server that ends refuses connections before it ends its sessions; the breaker alone tells of it."""
    world, clock = World(A=8), Clock()
    with pools_of(world, clock) as pools, structlog.testing.capture_logs() as said:
        kept = [lease(pools, "A", None) for _ in range(2)]
        for _ in range(3):
            pools.refused(pools.server("A"), errors.ServerUnavailable("refused"))
        assert pools.stats()["A"]["limit_now"] == 2
        clock.pass_(0.06)
        pools.died(pools.server("A"))
        assert pools.stats()["A"]["limit_now"] == 8
        assert "warning" not in [line["log_level"] for line in said]
        clock.pass_(6.0)
        pools.refused(pools.server("A"), errors.ServerBusy("421 too many"))
        clock.pass_(6.0)
        pools.died(pools.server("A"))
        assert pools.stats()["A"]["limit_now"] == 2
        for one in kept:
            one.release(reusable=False)


def test_a_session_that_a_ping_finds_dead_is_a_death_too() -> None:
    """The connect in its place is refused while sessions seem to be open: they are as dead."""
    world, clock = World(A=8), Clock()
    with pools_of(world, clock) as pools:
        kept, idle = lease(pools, "A", None), lease(pools, "A", None)
        idle.release(reusable=True)
        clock.pass_(30)
        world["A"].deaf, world["A"].refusal = True, errors.ServerUnavailable("refused")
        with pytest.raises(errors.ServerUnavailable):
            lease(pools, "A", None)
        assert pools.stats()["A"]["open"] == 1
        assert pools.stats()["A"]["limit_now"] == 8
        kept.release(reusable=False)


def test_a_session_that_is_over_reaches_no_other_job() -> None:
    """Its own went well; the lease says so, and the session is closed though it is given back as reusable."""
    world = World(A=2)
    with pools_of(world) as pools:
        taken = lease(pools, "A", None)
        assert not taken.is_over
        world["A"].sessions[0].is_over = True
        assert taken.is_over
        taken.release(reusable=True)
        assert (pools.stats()["A"]["idle"], pools.stats()["A"]["open"]) == (0, 0)


def test_while_nobody_may_log_in_an_idle_session_is_lent_only_once_it_proved_itself() -> None:
    """One found dead by the lane would be replaced at once: another login of a locked account."""
    world = World(A=8)
    with pools_of(world, login_backoff_seconds=100.0) as pools:
        idle = lease(pools, "A", None), lease(pools, "A", None)
        unlucky = pools.reserve(pools.server("A"))
        assert isinstance(unlucky, Lease)
        for taken in idle:
            taken.release(reusable=True)
        world["A"].refusal = errors.AuthenticationFailed("530")
        with pytest.raises(errors.AuthenticationFailed):
            unlucky.open()
        assert refused(pools, "A", None)
        pools.reap()
        lease(pools, "A", None).release(reusable=True)
        assert world["A"].open == 2
    assert world["A"].connects == 2


def test_a_failed_connect_gives_both_sides_back_and_names_the_server() -> None:
    world = World(A=1, B=1)
    world["B"].refusal = errors.ServerUnavailable("refused")
    with pools_of(world) as pools:
        taken = pools.reserve(pools.server("A"), pools.server("B"))
        assert isinstance(taken, Lease)
        with pytest.raises(errors.ServerUnavailable) as caught:
            taken.open()
        assert caught.value.server == "B"
        assert pools.stats()["A"]["idle"] == 1
        assert pools.stats()["B"]["taken"] == pools.stats()["B"]["connecting"] == 0
        world["B"].refusal = None
        lease(pools).release(reusable=True)
        assert world["A"].connects == 1


@pytest.mark.parametrize(
    ("raised", "becomes"),
    [
        (ConnectionRefusedError("no"), errors.ServerUnavailable),
        (TimeoutError("slow"), errors.ServerUnavailable),
        (PermissionError("login"), errors.AuthenticationFailed),
        (errors.AuthenticationFailed("login"), errors.AuthenticationFailed),
        (ValueError("a bug"), ValueError),
    ],
)
def test_what_a_users_class_raises_on_connect_becomes_one_of_our_errors(
    raised: Exception, becomes: type[Exception]
) -> None:
    world = World(A=1)
    world["A"].refusal = raised
    with pools_of(world) as pools:
        taken = pools.reserve(pools.server("A"))
        assert isinstance(taken, Lease)
        with pytest.raises(becomes):
            taken.open()


@pytest.mark.parametrize("error", [errors.ServerBusy("421 too many"), errors.ServerUnavailable("refused")])
def test_a_refusal_shrinks_the_pool_to_what_is_open_for_a_minute_then_it_grows_back(error: Exception) -> None:
    world, clock = World(A=8), Clock()
    with pools_of(world, clock) as pools:
        kept = [lease(pools, "A", None), lease(pools, "A", None)]
        world["A"].refusal = error
        unlucky = pools.reserve(pools.server("A"))
        assert isinstance(unlucky, Lease)
        with pytest.raises(type(error)):
            unlucky.open()
        assert refused(pools, "A", None)
        kept.pop().release(reusable=True)
        assert not refused(pools, "A", None)
        clock.pass_(59)
        assert pools.stats()["A"]["limit_now"] == 2
        for limit in (3, 4, 5, 6, 7, 8, 8):
            clock.pass_(9.9 if limit > 3 else 2)
            clock.pass_(0.1)
            assert pools.stats()["A"]["limit_now"] == limit
        kept.pop().release(reusable=True)


def test_a_pool_never_shrinks_below_one() -> None:
    world = World(A=8)
    world["A"].refusal = errors.ServerBusy("421 too many")
    with pools_of(world) as pools:
        taken = pools.reserve(pools.server("A"))
        assert isinstance(taken, Lease)
        with pytest.raises(errors.ServerBusy):
            taken.open()
        assert pools.stats()["A"]["limit_now"] == 1
        assert not refused(pools, "A", None)


def test_a_session_that_idled_is_pinged_before_it_is_used() -> None:
    world, clock = World(A=1), Clock()
    with pools_of(world, clock, ping_interval_seconds=20.0, idle_timeout_seconds=60.0) as pools:
        lease(pools, "A", None).release(reusable=True)
        session = world["A"].sessions[0]
        clock.pass_(19)
        lease(pools, "A", None).release(reusable=True)
        assert session.pings == 0
        clock.pass_(20)
        taken = lease(pools, "A", None)
        assert taken.source is session
        assert session.pings == 1
        taken.release(reusable=True)


def test_a_session_found_dead_is_replaced_for_the_same_job() -> None:
    world, clock = World(A=1), Clock()
    with pools_of(world, clock) as pools:
        lease(pools, "A", None).release(reusable=True)
        clock.pass_(30)
        world["A"].deaf = True
        taken = lease(pools, "A", None)
        assert taken.source is world["A"].sessions[1]
        assert world["A"].peak == 1
        taken.release(reusable=True)


def test_a_session_that_takes_the_place_of_a_dead_one_is_a_connect_of_its_minute() -> None:
    world, clock = World(A=1), Clock()
    world.configs["A"] = pretend.server("A", max_connections=1, connects_per_minute=1)
    with pools_of(world, clock) as pools:
        lease(pools, "A", None).release(reusable=True)
        clock.pass_(30)
        world["A"].deaf = True
        lease(pools, "A", None).release(reusable=False)
        assert world["A"].connects == 2
        assert refused(pools, "A", None)


def test_a_session_that_was_not_reached_is_neither_proven_nor_closed() -> None:
    """The other side failed before its turn came, or the job did before it asked for any."""
    world, clock = World(A=1, B=1), Clock()
    with pools_of(world, clock, ping_interval_seconds=20.0) as pools:
        lease(pools).release(reusable=True)
        session = world["B"].sessions[0]
        clock.pass_(19)
        taken = pools.reserve(pools.server("A"), pools.server("B"))
        assert isinstance(taken, Lease)
        taken.release(reusable=False)
        world["A"].deaf = True
        world["A"].refusal = errors.ServerUnavailable("A: away", server="A")
        clock.pass_(2)
        with pytest.raises(errors.ServerUnavailable):
            lease(pools)
        assert session.pings == 0
        lease(pools, "B", None).release(reusable=True)
        assert session.pings == 1
        assert world["B"].connects == 1


def test_a_connect_that_never_began_is_none_of_its_minute() -> None:
    """The source failed each time before the destination's turn came, or the job did."""
    world, clock = World(A=1, B=2), Clock()
    world.configs["B"] = pretend.server("B", max_connections=2, connects_per_minute=1)
    world["A"].refusal = errors.ServerUnavailable("A: away", server="A")
    with pools_of(world, clock) as pools:
        for _ in range(3):
            with pytest.raises(errors.ServerUnavailable):
                lease(pools)
            taken = pools.reserve(pools.server("B"))
            assert isinstance(taken, Lease)
            taken.release(reusable=True)
        assert pools.stats()["B"]["connects_left"] == 2
        world["B"].refusal = errors.ServerUnavailable("B: away", server="B")
        with pytest.raises(errors.ServerUnavailable):
            lease(pools, "B", None)
        assert pools.stats()["B"]["connects_left"] == 1, "one that failed counts"


@pytest.mark.parametrize("by_the_reaper", [True, False])
def test_a_session_that_cannot_be_pinged_for_want_of_a_thread_counts_as_dead(
    monkeypatch: pytest.MonkeyPatch, by_the_reaper: bool
) -> None:
    """Nothing would limit the ping. Its place is free, and the job gets another session."""
    world, clock = World(A=1), Clock()
    with pools_of(world, clock) as pools:
        lease(pools, "A", None).release(reusable=True)
        clock.pass_(30)
        monkeypatch.setattr(threading.Timer, "start", _no_thread)
        if by_the_reaper:
            pools.reap()
            assert pools.stats()["A"]["taken"] == pools.stats()["A"]["open"] == world["A"].open == 0
        lease(pools, "A", None).release(reusable=True)
        assert (world["A"].connects, world["A"].peak, world["A"].sessions[0].pings) == (2, 1, 0)


def _no_thread(_: object) -> None:
    raise RuntimeError("can't start new thread")


def test_a_ping_that_is_answered_as_it_is_cut_proves_nothing() -> None:
    world, clock = World(A=1), Clock()
    with pools_of(world, clock, ping_timeout_seconds=0.05) as pools:
        taken = lease(pools, "A", None)
        session = world["A"].sessions[0]
        session.ping = session.aborted.wait  # type: ignore[assignment,method-assign]
        taken.release(reusable=True)
        clock.pass_(30)
        again = lease(pools, "A", None)
        assert again.source is not session
        again.release(reusable=True)


def test_a_session_past_its_lifetime_is_not_kept() -> None:
    world, clock = World(A=1), Clock()
    with pools_of(world, clock, session_lifetime_seconds=100.0) as pools:
        taken = lease(pools, "A", None)
        clock.pass_(101)
        taken.release(reusable=True)
        assert world["A"].open == 0
        assert not world["A"].sessions[0].aborted.is_set()  # a polite farewell


def test_a_session_may_live_for_less_than_the_setting_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was agreed with its server ends it: jobs get another one, and notice nothing."""
    world, clock = World(A=1), Clock()
    monkeypatch.setattr(pretend.PretendSession, "lifetime_seconds", lambda _: 50.0)
    with pools_of(world, clock, session_lifetime_seconds=100.0) as pools:
        first = lease(pools, "A", None)
        session = first.source
        clock.pass_(49)
        first.release(reusable=True)
        second = lease(pools, "A", None)
        assert second.source is session
        clock.pass_(2)
        second.release(reusable=True)
        assert world["A"].open == 0


def test_sessions_that_are_opened_together_do_not_end_together() -> None:
    """Each lives up to 5 % less or more than the setting says: a server gets no storm of logins once an hour."""
    world, clock = World(A=3), Clock()
    draws = iter([0.0, 0.5, 1.0])
    with pools_of(world, clock, lambda: next(draws), session_lifetime_seconds=100.0, idle_timeout_seconds=1e9) as pools:
        for taken in [lease(pools, "A", None) for _ in range(3)]:
            taken.release(reusable=True)
        for seconds, still_open in ((95, 3), (1, 2), (4, 2), (1, 1), (4, 1), (1, 0)):
            clock.pass_(seconds)
            pools.reap()
            assert world["A"].open == still_open


def test_an_expired_session_is_replaced_not_used() -> None:
    world, clock = World(A=1), Clock()
    with pools_of(world, clock, idle_timeout_seconds=60.0) as pools:
        lease(pools, "A", None).release(reusable=True)
        clock.pass_(61)
        taken = lease(pools, "A", None)
        assert taken.source is world["A"].sessions[1]
        assert world["A"].peak == 1
        taken.release(reusable=True)


def test_the_reaper_pings_idle_sessions_and_closes_expired_ones() -> None:
    world, clock = World(A=2), Clock()
    with pools_of(world, clock, ping_interval_seconds=20.0, idle_timeout_seconds=60.0) as pools:
        both = [lease(pools, "A", None), lease(pools, "A", None)]
        for taken in both:
            taken.release(reusable=True)
        clock.pass_(20)
        pools.reap()
        assert [session.pings for session in world["A"].sessions] == [1, 1]
        pools.reap()
        assert [session.pings for session in world["A"].sessions] == [1, 1]
        clock.pass_(41)
        pools.reap()
        assert world["A"].open == 0
        assert pools.stats()["A"]["open"] == 0


def test_the_reaper_closes_all_due_sessions_of_a_server_after_one_unanswered_ping() -> None:
    world, clock = World(A=3), Clock()
    with pools_of(world, clock) as pools:
        for taken in [lease(pools, "A", None) for _ in range(3)]:
            taken.release(reusable=True)
        clock.pass_(30)
        world["A"].deaf = True
        pools.reap()
        assert sum(session.pings for session in world["A"].sessions) == 1
        assert world["A"].open == pools.stats()["A"]["taken"] == 0


def test_a_ping_that_is_not_answered_has_a_limit_of_its_own_and_delays_no_other_server() -> None:
    """A server that falls silent: its session is cut, and meanwhile those of others are looked after."""
    world, clock = World(A=1, B=1), Clock()
    silent = threading.Event()

    class Silent(PretendSession):
        def ping(self) -> None:
            super().ping()
            if self.server.hostname == "A":
                silent.set()
                assert self.aborted.wait(10)  # cut from outside

    world.create = lambda config, limits: Silent(config, limits, world[config.hostname])  # type: ignore[method-assign]
    with pools_of(world, clock, ping_timeout_seconds=0.3) as pools:
        lease(pools).release(reusable=True)
        clock.pass_(30)
        reaping = threading.Thread(target=pools.reap, name="reaping")
        reaping.start()
        assert silent.wait(5)
        while not world["B"].sessions[0].pings:
            time.sleep(0.001)
        assert world["A"].open == 1
        reaping.join(10)
        assert (world["A"].open, world["B"].open) == (0, 1)
        assert pools.stats()["A"]["taken"] == 0


def test_sessions_are_opened_ahead_of_need_and_kept() -> None:
    world, clock = World(A=4, B=4), Clock()
    world.configs["A"] = pretend.server("A", max_connections=4, prewarm=3)
    with pools_of(world, clock, idle_timeout_seconds=60.0, session_lifetime_seconds=1000.0) as pools:
        pools.register(world.configs.values())
        pools.reap()
        assert (world["A"].open, world["B"].open) == (3, 0)
        taken = lease(pools)
        assert world["A"].connects == 3
        pools.reap()
        assert world["A"].open == 3
        taken.release(reusable=True)
        clock.pass_(500)
        pools.reap()
        assert world["A"].connects == 3  # they may idle; they are pinged
        assert world["B"].open == 0
        clock.pass_(501)
        pools.reap()
        assert (world["A"].connects, world["A"].open) == (6, 3)  # past their lifetime


def test_a_session_that_cannot_be_opened_ahead_is_not_tried_for_a_minute() -> None:
    """And after a refused login for as long as nobody may log in."""
    for refusal, seconds in ((errors.ServerUnavailable("refused"), 60), (errors.AuthenticationFailed("530"), 80)):
        world, clock = World(A=4), Clock()
        world.configs["A"] = pretend.server("A", prewarm=2)
        world["A"].refusal = refusal
        dials = []
        create = world.create
        world.create = lambda *both, dials=dials, create=create: dials.append(1) or create(*both)  # type: ignore[method-assign]
        with pools_of(world, clock, login_backoff_seconds=100.0) as pools:
            pools.register(world.configs.values())
            for _ in range(seconds - 1):
                pools.reap()
                clock.pass_(1)
            assert len(dials) == 1
            clock.pass_(42)
            pools.reap()
            assert len(dials) == 2


def test_an_abort_reaches_the_session_and_keeps_it_out_of_the_pool() -> None:
    world = World(A=1)
    with pools_of(world) as pools:
        taken = lease(pools, "A", None)
        taken.abort()
        taken.abort()
        assert world["A"].sessions[0].aborted.is_set()
        taken.release(reusable=True)
        assert pools.stats()["A"]["open"] == 0


def test_an_abort_after_the_release_touches_nobody() -> None:
    world = World(A=1)
    with pools_of(world) as pools:
        taken = lease(pools, "A", None)
        taken.release(reusable=True)
        taken.abort()
        assert not world["A"].sessions[0].aborted.is_set()
        assert not taken.aborted


def test_an_abort_ends_a_connect_that_blocks() -> None:
    world = World(A=1)
    world["A"].gate = threading.Event()
    with pools_of(world) as pools:
        taken = pools.reserve(pools.server("A"))
        assert isinstance(taken, Lease)
        opener = threading.Thread(target=_open_in_vain, args=(taken,), name="opener")
        opener.start()
        while not world["A"].dialing:
            time.sleep(0.001)
        taken.abort()
        opener.join(5)
        assert not opener.is_alive()
        assert pools.stats()["A"]["taken"] == 0


def _open_in_vain(taken: Lease) -> None:
    with pytest.raises(errors.EtlError):
        taken.open()


def test_a_lease_aborted_before_it_was_open_does_not_open() -> None:
    world = World(A=1)
    with pools_of(world) as pools:
        taken = pools.reserve(pools.server("A"))
        assert isinstance(taken, Lease)
        taken.abort()
        with pytest.raises(errors.ConnectionLost):
            taken.open()
        assert world["A"].connects == 0
        assert pools.stats()["A"]["taken"] == pools.stats()["A"]["connecting"] == 0


def test_the_sessions_of_a_lease_that_is_not_open_cannot_be_asked_for() -> None:
    with pools_of(World(A=1)) as pools:
        taken = pools.reserve(pools.server("A"))
        assert isinstance(taken, Lease)
        with pytest.raises(RuntimeError, match="not open"):
            _ = taken.source
        taken.release(reusable=True)


def test_a_fresh_session_removes_remembered_partial_files() -> None:
    world = World(A=1, B=1)
    with pools_of(world) as pools:
        lease(pools).release(reusable=True)
        pools.remember_orphan(world.config("B"), "/out/.etl-1.part")
        pools.remember_orphan(world.config("B"), "/out/.etl-2.part")
        lease(pools).release(reusable=(True, False))
        assert world["B"].removed == []  # a reused session has other work
        lease(pools).release(reusable=True)
        assert world["B"].removed == ["/out/.etl-1.part", "/out/.etl-2.part"]
        assert pools.stats()["B"]["orphans"] == 0


def test_a_partial_file_that_cannot_be_removed_costs_a_session_not_the_job() -> None:
    world, clock = World(A=1), Clock()
    world["A"].stubborn.add("/bad")
    with pools_of(world, clock) as pools:
        pools.remember_orphan(world.config("A"), "/bad")
        pools.remember_orphan(world.config("A"), "/good")
        for _ in range(4):
            clock.pass_(10)
            taken = lease(pools, "A", None)
            assert not taken.source.aborted.is_set()  # type: ignore[attr-defined]  # a PretendSession
            taken.release(reusable=False)
        assert world["A"].removed == ["/good"]
        assert pools.stats()["A"]["orphans"] == 0  # given up after a few tries
        assert world["A"].peak == 1


def test_a_partial_file_is_removed_at_once_by_whoever_has_a_place_but_no_session() -> None:
    world = World(A=1)
    with pools_of(world) as pools:
        assert pools.remove_orphan(world.config("A"), "/1")
        assert world["A"].removed == ["/1"]
        world["A"].stubborn.add("/2")
        assert not pools.remove_orphan(world.config("A"), "/2")
        assert pools.stats()["A"]["orphans"] == 1
        assert world["A"].open == 0


def test_removing_a_partial_file_logs_in_no_more_often_than_jobs_do() -> None:
    """A changed password meets eight broken uploads: one wrong login, not eight. So do the connects of a minute."""
    world, clock = World(A=1), Clock()
    with pools_of(world, clock) as pools:
        pools.register([world.config("A")])
        burst = pools.stats()["A"]["connects_left"]
        world["A"].refusal = errors.AuthenticationFailed("530 no")
        for number in range(8):
            assert not pools.remove_orphan(world.config("A"), f"/{number}")
        assert pools.stats()["A"]["connects_left"] == burst - 1
        assert pools.stats()["A"]["orphans"] == 8
        assert pools.login_backoff_left(world.config("A")) > 0
    world = World(A=1)
    with pools_of(world, clock) as pools:
        assert sum(pools.remove_orphan(world.config("A"), f"/{number}") for number in range(burst + 3)) == burst


def test_the_memory_of_partial_files_is_bounded() -> None:
    world = World(A=1)
    with pools_of(world) as pools:
        for number in range(ORPHAN_LIMIT + 5):
            pools.remember_orphan(world.config("A"), f"/{number}")
        assert pools.stats()["A"]["orphans"] == ORPHAN_LIMIT


def test_whoever_waits_is_told_of_every_release_and_every_finished_connect() -> None:
    world = World(A=1)
    with pools_of(world) as pools:
        told: list[int] = []
        pools.on_release = lambda: told.append(world["A"].open)
        taken = lease(pools, "A", None)
        assert told == [1]
        taken.release(reusable=False)
        assert told == [1, 0]  # after the session was closed: its place is really free


def test_close_resets_leases_closes_idle_sessions_and_ends_the_reaper() -> None:
    world = World(A=2, B=2)
    pools = Pools(world.config, pretend.settings(), time.monotonic, world.create)
    pools.start()
    taken, other = lease(pools), lease(pools)
    other.release(reusable=True)
    assert pools.close(timeout=5.0)
    assert world["A"].open == world["B"].open == 1
    assert world["A"].sessions[0].aborted.is_set()
    assert refused(pools)
    taken.release(reusable=True)
    assert world["A"].open == world["B"].open == 0


def test_close_leaves_no_session_open_that_was_to_make_room_for_another() -> None:
    world = World(A=1)
    world.configs["OTHER"] = pretend.server("OTHER", host="a", password="x", max_connections=1)
    pools = Pools(world.config, pretend.settings(), Clock(), world.create)
    lease(pools, "A", None).release(reusable=True)
    taken = pools.reserve(pools.server("OTHER"))
    assert isinstance(taken, Lease)
    assert pools.close(timeout=5.0)
    taken.release(reusable=False)
    assert world["A"].open == 0
    assert (pools.stats()["A/OTHER"]["open"], pools.stats()["A/OTHER"]["taken"]) == (0, 0)


def test_close_resets_a_session_whose_farewell_blocks() -> None:
    reset: list[bool] = []

    class Clinging(PretendSession):
        def disconnect(self) -> None:
            reset.append(self.aborted.wait(20))
            super().disconnect()

    world = World(A=1)
    pools = Pools(world.config, pretend.settings(), create=lambda config, limits: Clinging(config, limits, world["A"]))
    lease(pools, "A", None).release(reusable=True)
    assert pools.close(timeout=2.0)
    assert reset == [True]
    assert world["A"].open == 0


def test_a_session_that_cannot_even_be_closed_keeps_no_place() -> None:
    class Broken(PretendSession):
        def disconnect(self) -> None:
            super().disconnect()
            raise RuntimeError("a bug in a user's class")

    world = World(A=1)
    pools = Pools(world.config, pretend.settings(), create=lambda config, limits: Broken(config, limits, world["A"]))
    lease(pools, "A", None).release(reusable=False)
    assert not refused(pools, "A", None)
    assert pools.close()


def test_the_reaper_thread_does_its_rounds_and_survives_a_bug() -> None:
    world = World(A=1)
    rounds = threading.Semaphore(0)

    class Counted(PretendSession):
        def ping(self) -> None:
            rounds.release()

    pools = Pools(
        world.config,
        pretend.settings(ping_interval_seconds=0.001, idle_timeout_seconds=100.0),
        time.monotonic,
        lambda config, limits: Counted(config, limits, world["A"]),
    )
    lease(pools, "A", None).release(reusable=True)
    pools.on_release = _broken
    with structlog.testing.capture_logs() as logs:
        pools.start()
        assert rounds.acquire(timeout=5)
        assert rounds.acquire(timeout=5)
        pools.on_release = None
        assert pools.close()
    assert logs[0]["event"] == "reaper failed"


def _broken() -> None:
    raise RuntimeError("a bug")


def test_a_users_four_methods_are_wrapped_and_an_unknown_type_is_an_error() -> None:
    with pytest.raises(errors.UnknownType):
        create_session(pretend.server("A", type="nobody-registered-this"), pretend.settings().transfer)


@pytest.mark.parametrize("limit", [1, 2])
def test_a_to_b_and_b_to_a_and_a_to_a_at_once_never_deadlock(limit: int) -> None:
    """With one connection per server: every lane gets its pair in one step, so nobody waits holding one."""
    world = World(A=limit, B=limit).unpaced()
    pools = Pools(world.config, pretend.settings(), create=world.create)
    freed = threading.Condition()
    done: list[str] = []

    def tell() -> None:
        with freed:
            freed.notify_all()

    pools.on_release = tell

    def lane(source: str, destination: str) -> None:
        for count in range(40):
            end = time.monotonic() + 20
            while isinstance(taken := pools.reserve(pools.server(source), pools.server(destination)), Refusal):
                assert time.monotonic() < end, "starved"
                with freed:
                    freed.wait(0.01)
            taken.open()
            time.sleep(0)
            taken.release(reusable=count % 7 != 0)
        done.append(source + destination)

    pairs = [("A", "B"), ("B", "A"), ("A", "A")] * 2
    threads = [threading.Thread(target=lane, args=pair, name=f"lane-{pair}") for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(done) == sorted(source + destination for source, destination in pairs)
    assert world["A"].peak <= limit
    assert world["B"].peak <= limit
    assert pools.close()
    assert world["A"].open == world["B"].open == 0
