"""The lanes: every job taken is finished, whatever happens in it; any thread can end one."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager

import pytest
import structlog

import pretend
from etl import errors
from etl.lanes.lanes import Lanes
from etl.lanes.run import Run
from etl.models.task import Task
from etl.sessions.lease import Lease
from etl.sessions.pools import Pools
from pretend import Clock, World

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[MutableMapping[str, object]]]:
    """The events logged in a test; tracebacks are not drawn, which is what takes the time."""
    with structlog.testing.capture_logs() as captured:
        yield captured  # type: ignore[misc]  # Any as object


class Work:
    """Tasks in a row, each with a lease of its own; what the dispatcher is to the lanes."""

    def __init__(self, *tasks: Task) -> None:
        self.world = World(A=8, B=8)
        self.pools = Pools(self.world.config, pretend.settings(), create=self.world.create)
        self.tasks = deque(tasks)
        self.finished: list[Task] = []
        self.delayed: list[tuple[Task, float]] = []
        self.changed = threading.Condition()

    def take(self, timeout: float) -> tuple[Task, Lease] | None:
        with self.changed:
            if not self.tasks:
                self.changed.wait(min(timeout, 0.005))
                return None
            lease = self.pools.reserve(self.pools.server("A"), self.pools.server("B"))
            assert isinstance(lease, Lease)
            return self.tasks.popleft(), lease

    def finish(self, task: Task, again_in: float | None = None) -> None:
        with self.changed:
            if again_in is not None:
                self.delayed.append((task, again_in))
            self.finished.append(task)
            self.changed.notify_all()

    def wait(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.finished) >= count, 5)


@contextmanager
def lanes_of(
    work: Work,
    run: Callable[[Run], None],
    count: int = 1,
    on_bug: Callable[[Task, BaseException], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    transfer_timeout: float = 0.0,
) -> Iterator[Lanes]:
    lanes = Lanes(work, run, count, buffer_bytes=4096, transfer_timeout=transfer_timeout, clock=clock, on_bug=on_bug)
    lanes.start()
    try:
        yield lanes
    finally:
        assert lanes.stop(5)
        assert work.pools.close()
        assert work.world["A"].open == work.world["B"].open == 0


def hold(run: Run) -> None:
    """Open the sessions and block in them until they are reset, as a transfer does."""
    run.lease.open()
    session = run.lease.source
    assert isinstance(session, pretend.PretendSession)
    session.aborted.wait(5)
    run.lease.release(reusable=False)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_lane_takes_runs_and_finishes() -> None:
    tasks = [pretend.task(number) for number in range(5)]
    work, ran, names = Work(*tasks), [], set()

    def run(run: Run) -> None:
        run.lease.open()
        names.add(threading.current_thread().name)
        ran.append(run.task)
        run.lease.release(reusable=True)

    with lanes_of(work, run) as lanes:
        work.wait(5)
        until(lambda: not lanes.runs())
    assert ran == work.finished == tasks
    assert names == {"lane-00"}
    assert work.world["A"].connects == 1


@pytest.mark.parametrize("bug", [ValueError("a bug"), SystemExit(3)])
def test_a_bug_ends_neither_the_lane_nor_costs_its_sessions_place(bug: BaseException) -> None:
    tasks = [pretend.task(0), pretend.task(1)]
    work, bugs = Work(*tasks), []

    def run(run: Run) -> None:
        run.lease.open()
        raise bug

    with lanes_of(work, run, on_bug=lambda task, error: bugs.append((task, error))):
        work.wait(2)
        until(lambda: work.world["A"].open == 0)
    assert bugs == [(tasks[0], bug), (tasks[1], bug)]
    assert work.pools.stats()["A"]["taken"] == 0


def test_a_bug_in_the_report_of_a_bug_is_survived() -> None:
    work = Work(pretend.task(0), pretend.task(1))

    def run(_flight: Run) -> None:
        raise ValueError

    def report(_task: Task, _error: BaseException) -> None:
        raise RuntimeError

    with lanes_of(work, run, on_bug=report):
        work.wait(2)


def test_a_bug_in_taking_does_not_cost_a_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etl.lanes.lanes.TAKE_SECONDS", 0.001)
    work = Work(pretend.task(0))
    take, broken = work.take, iter([True])

    def take_after_a_bug(timeout: float) -> tuple[Task, Lease] | None:
        if next(broken, False):
            raise RuntimeError("a bug in the dispatcher")
        return take(timeout)

    monkeypatch.setattr(work, "take", take_after_a_bug)
    with lanes_of(work, lambda _flight: None):
        work.wait(1)


def test_the_buffer_is_made_when_asked_for_and_reused() -> None:
    work, buffers = Work(*[pretend.task(number) for number in range(3)]), []

    def run(run: Run) -> None:
        buffers.append(run.buffer)

    with lanes_of(work, run):
        work.wait(3)
    assert {id(buffer) for buffer in buffers} == {id(buffers[0])}
    assert len(buffers[0]) == 4096


def test_abort_ends_the_running_jobs_it_is_asked_for_and_says_why() -> None:
    ours, theirs = pretend.task(0), pretend.task(1)
    work, causes = Work(ours, theirs), {}
    lost = errors.OwnershipLost("revoked")

    def run(run: Run) -> None:
        hold(run)
        causes[run.task] = run.cause(ConnectionError("reset"))

    with lanes_of(work, run, count=2) as lanes:
        until(lambda: work.world["B"].open == 2)
        assert lanes.abort(lambda task: task is theirs, lost) == 1
        assert lanes.abort(lambda task: task is theirs, errors.OwnershipLost("again")) in (0, 1)
        work.wait(1)
        assert causes == {theirs: lost}
        assert [run.task for run in lanes.runs()] == [ours]
        lanes.abort(lambda _task: True, lost)
        work.wait(2)


def test_the_first_reason_of_an_abort_stays() -> None:
    work = Work()
    lease = work.pools.reserve(work.pools.server("A"))
    assert isinstance(lease, Lease)
    run = Run(pretend.task(), lease, 0.0, None, lambda: memoryview(b""))
    first = errors.TransferTimeout("too long")
    assert run.aborted is None
    assert run.cause(KeyError()).__class__ is KeyError
    assert run.abort(first)
    assert not run.abort(errors.OwnershipLost("revoked"))
    assert run.aborted is run.cause(KeyError()) is first
    lease.release(reusable=False)
    assert work.pools.close()


@pytest.mark.parametrize(
    ("own", "general", "limit"), [(5.0, 0.0, 5.0), (None, 7.0, 7.0), (5.0, 7.0, 5.0), (9.0, 7.0, 7.0)]
)
def test_a_transfer_over_its_time_is_ended_with_a_timeout(own: float | None, general: float, limit: float) -> None:
    clock = Clock()
    work, causes = Work(pretend.task(timeout=own)), []

    def run(run: Run) -> None:
        hold(run)
        causes.append(run.cause(ConnectionError("reset")))

    with lanes_of(work, run, clock=clock, transfer_timeout=general) as lanes:
        until(lambda: work.world["B"].open == 1)
        assert lanes.tick(clock() + limit - 0.01) == 0
        assert lanes.tick(clock() + limit) == 1
        work.wait(1)
    assert isinstance(causes[0], errors.TransferTimeout)
    setting = "options.timeout_seconds" if limit == own else "ETL_TRANSFER_TIMEOUT_SECONDS"
    assert str(causes[0]).startswith("A to B: ")
    assert str(causes[0]).endswith(f"({setting})")


def test_without_a_limit_a_transfer_may_take_forever() -> None:
    work = Work(pretend.task())
    with lanes_of(work, hold) as lanes:
        until(lambda: work.world["B"].open == 1)
        assert lanes.runs()[0].deadline is None
        assert lanes.tick(1e12) == 0
        lanes.abort(lambda _task: True, errors.OwnershipLost("the end"))


def test_drain_waits_for_what_runs_and_starts_nothing_more() -> None:
    tasks = [pretend.task(0), pretend.task(1)]
    work = Work(tasks[0])
    gate = threading.Event()

    def run(_flight: Run) -> None:
        assert gate.wait(5)

    with lanes_of(work, run) as lanes:
        until(lanes.runs)
        assert not lanes.drain(time.monotonic() + 0.01)
        work.tasks.append(tasks[1])
        gate.set()
        assert lanes.drain(time.monotonic() + 5)
    assert work.finished == [tasks[0]]
    assert list(work.tasks) == [tasks[1]]


def test_a_job_taken_in_the_instant_of_the_stop_goes_back() -> None:
    task = pretend.task()
    work, taking, gate = Work(task), threading.Event(), threading.Event()
    take = work.take

    def slow_take(timeout: float) -> tuple[Task, Lease] | None:
        taken = take(timeout)
        taking.set()
        gate.wait(5)
        return taken

    work.take = slow_take  # type: ignore[method-assign]  # the instant, made long
    with lanes_of(work, lambda _flight: pytest.fail("was run")) as lanes:
        assert taking.wait(5)
        assert lanes.drain(time.monotonic())
        gate.set()
        work.wait(1)
    assert work.delayed == [(task, 0.0)]
    assert work.pools.stats()["A"]["taken"] == 0


def test_lanes_that_never_started_can_be_stopped() -> None:
    assert Lanes(Work(), lambda _flight: None, 2, buffer_bytes=1).stop(1)


def test_lanes_show_their_runs() -> None:
    work = Work(pretend.task(7))
    with lanes_of(work, hold) as lanes:
        until(lanes.runs)
        assert repr(lanes).startswith("<Lanes running threads=1 [<Run ")
        assert "<Lease A to B " in repr(lanes)
        lanes.abort(lambda _task: True, errors.OwnershipLost("taken away"))
        work.wait(1)
