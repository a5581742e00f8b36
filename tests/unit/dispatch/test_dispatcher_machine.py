"""The dispatcher under any order of events: no job lost, none run twice, order by destination, fair to servers."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import pretend
from etl import errors
from etl.dispatch.backlog import PairQueue
from etl.dispatch.dispatcher import Dispatcher
from etl.dispatch.scheduling import LONG_SECONDS
from etl.models.task import Task
from etl.sessions.lease import Lease
from etl.sessions.pools import Pools
from pretend import Clock, World

LONG = os.environ.get("TEST_LONG", "") not in {"", "0"}  # more examples
pytestmark = [pytest.mark.unit, *([pytest.mark.long] if LONG else [])]

SERVERS = ["A", "B", "C", "D"]
servers = st.sampled_from(SERVERS)


class DispatcherMachine(RuleBasedStateMachine):
    """Lanes without threads, and a list of what is unfinished as the model."""

    limit = 16  # sessions per server: more than there are lanes
    workers = 6
    first_lanes = 6

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        world = World(**dict.fromkeys(SERVERS, self.limit))
        values = pretend.settings(
            workers=self.workers, window_records=16, idle_timeout_seconds=1e9, ping_interval_seconds=1e9
        )
        self.pools = Pools(world.config, values, self.clock, world.create)
        self.dispatcher = Dispatcher(self.pools, values, self.clock, lambda: 0.5, self.first_lanes)
        self.count = 0
        self.lines: dict[tuple[str, str], list[Task]] = {}  # unfinished, per destination, in the order of arrival
        self.due: dict[Task, float] = {}
        self.running: dict[Task, Lease] = {}
        self.began: dict[Task, float] = {}  # when each was taken last
        self.rows: dict[Lease, tuple[Task | None, float]] = {}  # who took it last, and since when somebody has it
        self.went_on: set[Lease] = set()  # that had a second job: then a lane that only connected counts, too
        self.dropped: set[Task] = set()  # while they ran
        self.over: set[Task] = set()

    # --- events

    @rule(
        source=servers,
        destination=servers,
        path=st.sampled_from(["/x", "/y", "/z", None]),
        priority=st.sampled_from(["high", "normal", "low"]),
        delay=st.sampled_from([0.0, 0.0, 0.0, 3.0]),
        copies=st.integers(1, 4),
    )
    def offer(self, source: str, destination: str, path: str | None, priority: str, delay: float, copies: int) -> None:
        for _ in range(copies):
            task = pretend.task(self.count, source, destination, path, priority=priority)
            self.count += 1
            self.dispatcher.offer(task, delay)
            self.line(task).append(task)
            self.due[task] = self.clock() + delay

    @rule(count=st.integers(1, 4))
    def take(self, count: int) -> None:
        for _ in range(count):
            if self.lanes() < self.workers:
                self.take_one()

    def take_one(self) -> bool:
        closed = {name for name in SERVERS if self.breaker_wait(name) > 0}
        levels = {task: self.level(task) for task in self.comparable()}
        taken = self.dispatcher.take(0.0)
        if taken is None:
            if self.limit >= self.workers and not self.ever_failed:
                assert not any(map(self.may_grow, self.ready())), "a job could run and was not released"
            return False
        task, lease = taken
        self.check(task, closed)
        if self.limit >= self.workers and not self.ever_failed:
            self.check_least_loaded(task, lease, levels)
        lease.open()
        self.running[task] = lease
        self.began[task] = self.clock()
        self.rows[lease] = task, self.clock()
        return True

    def check(self, task: Task, closed: set[str]) -> None:
        assert task not in self.running, "runs twice"
        assert task not in self.over, "came back after its end"
        assert self.line(task)[0] is task, "overtook an earlier job of its destination"
        assert self.due[task] <= self.clock()
        assert not touched(task) & closed, "released while the breaker is open"

    @rule(data=st.data())
    def another(self, data: st.DataObject) -> None:
        """A lane goes on with its sessions."""
        if not self.running:
            return
        last = data.draw(st.sampled_from(sorted(self.running, key=lambda task: task.origin.offset)))
        lease = self.running[last]
        holder, since = self.rows[lease]
        closed = {name for name in SERVERS if self.breaker_wait(name) > 0}
        same = [task for task in self.ready() if pair(task) == pair(last)]
        others = [task for task in self.ready() if pair(task) != pair(last)]
        task = self.dispatcher.another(last)
        if task is None:
            if holder is last and same and not others and not self.ever_failed and self.clock() - since < 30:
                assert self.lanes() > self.workers, "a row ended though nobody else had work"
            return
        assert holder is last, "a lane took a job that it had no part in any more"
        self.check(task, closed)
        assert pair(task) == pair(last)
        assert self.clock() - since <= 30, "a row without an end"
        self.went_on.add(lease)
        self.running[task] = lease
        self.began[task] = self.clock()
        self.rows[lease] = task, since

    def check_least_loaded(self, task: Task, lease: Lease, levels: dict[Task, list[int]]) -> None:
        """Max-min fairness: no lane for a pair while one whose busier server has fewer could run."""
        if lease.is_pair and task in levels:
            assert levels[task] == min(levels.values()), "a lane went to a server that has more than another"

    @rule(data=st.data(), later=st.sampled_from([None, None, 0.0, 2.0]))
    def end(self, data: st.DataObject, later: float | None) -> None:
        if not self.running:
            return
        task = data.draw(st.sampled_from(sorted(self.running, key=lambda task: task.origin.offset)))
        self.finish(task, later)

    def finish(self, task: Task, later: float | None = None) -> None:
        lease = self.running.pop(task)
        if lease not in self.running.values():
            del self.rows[lease]
            lease.release(reusable=True)
        elif self.rows[lease][0] is task:  # its lane takes no more, while it ends what it took before
            self.rows[lease] = None, self.rows[lease][1]
        self.dispatcher.finish(task, later)
        if later is None or task in self.dropped:
            self.gone(task)
        else:
            self.due[task] = self.clock() + later

    @rule(name=servers)
    def fail(self, name: str) -> None:
        self.ever_failed = True
        config = self.pools.server(name)
        for pool in self.pools._by_key.values():  # its idle sessions break; those at work stay
            while name in pool.names and (held := self.pools.take_idle(pool, lambda _: True)) is not None:
                self.pools._close(pool, held)
        waited = self.breaker_wait(name)
        told = self.dispatcher.failed(name, errors.ServerUnavailable("refused"))
        assert told == self.breaker_wait(name)
        if self.pools.connected(config):
            assert self.breaker_wait(name) == waited, "an outage, though a session is open"
        else:
            assert self.breaker_wait(name) > 0

    @rule(name=servers)
    def work(self, name: str) -> None:
        self.dispatcher.worked(name)

    @rule(seconds=st.sampled_from([0.01, 0.5, 2.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.clock.pass_(seconds)

    @rule()
    def overflow(self) -> None:
        for task, delay, _ in self.dispatcher.overflow():
            assert task not in self.running
            assert 10.0 <= delay <= 3600.0
            self.gone(task)

    @rule(modulus=st.integers(2, 5))
    def drop(self, modulus: int) -> None:
        def is_taken_away(task: Task) -> bool:
            return task.origin.offset % modulus == 0

        expected = {task for line in self.lines.values() for task in line if is_taken_away(task)}
        dropped = self.dispatcher.drop(is_taken_away)
        assert set(dropped) == expected - set(self.running)
        assert len(dropped) == len(set(dropped))
        self.dropped |= expected & set(self.running)
        for task in dropped:
            self.gone(task)

    # --- claims

    @invariant()
    def the_window_is_counted(self) -> None:
        count = sum(len(line) for line in self.lines.values())
        assert self.dispatcher.unfinished == (count, 100 * count)
        assert self.dispatcher.full == (count >= 16)

    @invariant()
    def nothing_is_kept_of_what_is_over(self) -> None:
        d = self.dispatcher
        assert sum(len(line) for line in d._backlog.destinations.values()) == len(d._backlog.entries)
        assert sum(len(queue.waiting) for queue in d._queues.values()) == len(d._backlog.entries) - len(self.running)
        assert all(queue.ready for queue in d._backlog.ready.values())
        assert all(server.lanes == self.busy()[name] for name, server in self.by_name().items())

    def teardown(self) -> None:
        for _ in range(self.count + 1):
            for task in list(self.running):
                self.finish(task)
            for name in SERVERS:
                self.dispatcher.worked(name)
            self.clock.pass_(5.0)
            while self.lanes() < self.workers and self.take_one():
                pass
        assert not self.running
        assert len(self.over) == self.count, "a job was lost"
        assert self.dispatcher.unfinished == (0, 0)
        self.dispatcher.stop()
        assert self.pools.close()

    # --- the model

    ever_failed = False

    def line(self, task: Task) -> list[Task]:
        return self.lines.setdefault((task.job.destination.hostname, task.job.destination.path), [])

    def gone(self, task: Task) -> None:
        self.line(task).remove(task)
        assert task not in self.over
        self.over.add(task)

    def ready(self) -> list[Task]:
        firsts = [line[0] for line in self.lines.values() if line]
        return [task for task in firsts if task not in self.running and self.due[task] <= self.clock()]

    def busy(self) -> dict[str, int]:
        """Return how many lanes hold a session of each server; one that connects holds none of its partner."""
        at_work = [held(task, lease) for lease, (task, _) in self.rows.items() if task in self.running]
        return {name: sum(name in names for names in at_work) for name in SERVERS}

    def comparable(self) -> list[Task]:
        """Return the ready jobs whose pairs may have a lane more, need no connect first, and do not starve."""
        names = {name for name in SERVERS if self.pools.connected(self.pools.server(name))}
        return [
            task
            for task in self.ready()
            if touched(task) <= names and self.may_grow(task) and not self.queue(task).is_starving(self.clock())
        ]

    def level(self, task: Task) -> list[int]:
        """Return the load of the busier server of a job, then that of the other: of long lanes at most half count."""
        rows = [(lease, last) for lease, (last, _) in self.rows.items() if last in self.running]
        lanes = [last for lease, last in rows if lease.is_pair or lease in self.went_on]
        active = [last for last in lanes if self.clock() - self.began[last] <= LONG_SECONDS]
        counts = [Counter(name for last in some for name in touched(last)) for some in (active, lanes)]
        loads = (max(counts[0][name], min(counts[1][name], self.workers // 2)) for name in pair(task))
        return sorted(loads, reverse=True)

    def lanes(self) -> int:
        return sum(task in self.running for task, _ in self.rows.values())

    def may_grow(self, task: Task) -> bool:
        return self.queue(task).concurrency.admits(self.clock())

    def queue(self, task: Task) -> PairQueue:
        return self.dispatcher._queues[tuple(Pools.key(self.pools.server(name)) for name in pair(task))]

    def breaker_wait(self, name: str) -> float:
        reports = self.dispatcher.servers()
        return reports[name].next_probe_seconds if name in reports else 0.0

    def by_name(self) -> dict[str, object]:
        known = self.dispatcher._servers
        keys = {name: Pools.key(self.pools.server(name)) for name in SERVERS}
        return {name: known[key] for name, key in keys.items() if key in known}


class ClimbingMachine(DispatcherMachine):
    """The same with queues that begin with one lane."""

    first_lanes = 1


class NarrowMachine(DispatcherMachine):
    """The same with one session per server."""

    limit = 1


def pair(task: Task) -> tuple[str, str]:
    return task.job.source.hostname, task.job.destination.hostname


def touched(task: Task) -> set[str]:
    return {task.job.source.hostname, task.job.destination.hostname}


def held(task: Task, lease: Lease) -> set[str]:
    return touched(task) if lease.is_pair else set(lease.servers)


TestDispatcher = DispatcherMachine.TestCase
TestDispatcher.settings = settings(max_examples=400 if LONG else 50, stateful_step_count=40, deadline=None)
TestClimbingDispatcher = ClimbingMachine.TestCase
TestClimbingDispatcher.settings = settings(max_examples=250 if LONG else 30, stateful_step_count=40, deadline=None)
TestNarrowDispatcher = NarrowMachine.TestCase
TestNarrowDispatcher.settings = settings(max_examples=250 if LONG else 30, stateful_step_count=40, deadline=None)
