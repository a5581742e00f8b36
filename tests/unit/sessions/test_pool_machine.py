"""The pools under any order of events: never over a limit, both sides or none, and no unclean session comes back."""

from __future__ import annotations

import os

import pytest
import structlog
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import pretend
from etl import errors
from etl.sessions.lease import Lease
from etl.sessions.pool import CONNECTS_AT_ONCE, Refusal
from etl.sessions.pools import Pools
from pretend import Clock, PretendSession, World

LONG = os.environ.get("TEST_LONG", "") not in {"", "0"}  # more examples
pytestmark = [pytest.mark.unit, *([pytest.mark.long] if LONG else [])]

LIMITS = {"A": 1, "B": 2, "C": 6}
NAMES = ["A", "B", "C", "ALIAS", "STRANGER"]  # the last two are B: another base path; another password

names = st.sampled_from(NAMES)
verdicts = st.one_of(st.booleans(), st.tuples(st.booleans(), st.booleans()))


class PoolMachine(RuleBasedStateMachine):
    """Lanes without threads: each lease is reserved, opened and ended in steps that others come between."""

    def __init__(self) -> None:
        super().__init__()
        self.logs = structlog.testing.capture_logs()
        self.logs.__enter__()
        self.clock = Clock()
        self.world = World(**LIMITS)
        self.world.configs["ALIAS"] = pretend.server("ALIAS", host="b", base_path="/x", max_connections=2)
        self.world.configs["STRANGER"] = pretend.server("STRANGER", host="b", password="y", max_connections=2)
        self.pools = Pools(
            self.world.config, pretend.settings(ping_interval_seconds=20.0), self.clock, self.world.create
        )
        self.reserved: list[tuple[Lease, tuple[str, ...]]] = []
        self.opened: list[tuple[Lease, tuple[str, ...]]] = []
        self.spoilt: set[PretendSession] = set()

    @initialize()
    def register(self) -> None:
        self.pools.register(self.world.configs.values())

    @rule(source=names, destination=st.none() | names)
    def reserve(self, source: str, destination: str | None) -> None:
        before = self.pools.stats()
        sides = (source,) if destination is None else (source, destination)
        lease = self.pools.reserve(*(self.pools.server(name) for name in sides))
        if isinstance(lease, Refusal):
            assert self.pools.stats() == before, "a refusal kept something"
            for name in set(sides):
                pool = self.pool(name)
                if pool["limit_now"] - pool["taken"] < len(sides) or pool["connecting"] + len(sides) > CONNECTS_AT_ONCE:
                    break
                if not pool["open"] and pool["connecting"]:
                    break  # the first connect goes alone
                if pool["connects_left"] < len(sides):
                    break
            else:
                raise AssertionError("refused although there was room")
            return
        self.reserved.append((lease, sides))

    @rule(source=names, destination=st.none() | names)
    def lease(self, source: str, destination: str | None) -> None:
        self.reserve(source, destination)
        if self.reserved:
            self.open_one(*self.reserved.pop(), None)

    @precondition(lambda self: self.reserved)
    @rule(data=st.data(), refusal=st.sampled_from([None, None, None, "busy", "down", "bug"]))
    def open(self, data: st.DataObject, refusal: str | None) -> None:
        self.open_one(*self.pick(data, self.reserved), refusal)

    def open_one(self, lease: Lease, sides: tuple[str, ...], refusal: str | None) -> None:
        raised = {
            "busy": errors.ServerBusy("421"),
            "down": ConnectionRefusedError("no"),
            "bug": ValueError("a bug"),
        }.get(refusal or "")
        self.set_refusal(raised)
        try:
            lease.open()
        except Exception:
            if raised is None and not lease.aborted:
                raise
            return
        finally:
            self.set_refusal(None)
        self.opened.append((lease, sides))
        for session, name in zip((lease.source, lease.destination), (sides[0], sides[-1]), strict=True):
            assert isinstance(session, PretendSession)
            assert session.is_open
            assert session not in self.spoilt, "an unclean session came back"
            assert lease.shared or session.server.hostname == name
        assert lease.shared == (len(sides) == 2 and lease.source is lease.destination)
        others = [other for other, _ in self.opened if other is not lease]
        for other in others:
            assert {id(other.source), id(other.destination)}.isdisjoint({id(lease.source), id(lease.destination)})

    @precondition(lambda self: self.opened)
    @rule(data=st.data(), clean=verdicts)
    def release(self, data: st.DataObject, clean: bool | tuple[bool, bool]) -> None:
        lease, sides = self.pick(data, self.opened)
        both = clean if isinstance(clean, tuple) else (clean, clean)
        for session, is_clean in zip((lease.source, lease.destination)[: len(sides)], both, strict=False):
            if not is_clean:
                self.spoil(session)
        lease.release(clean)

    @precondition(lambda self: self.reserved)
    @rule(data=st.data())
    def release_unopened(self, data: st.DataObject) -> None:
        self.pick(data, self.reserved)[0].release(reusable=True)

    @precondition(lambda self: self.reserved or self.opened)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        everybody = self.reserved + self.opened
        number = data.draw(st.integers(0, len(everybody) - 1))
        lease, _ = everybody[number]
        lease.abort()
        if number >= len(self.reserved):
            self.spoil(lease.source)
            self.spoil(lease.destination)

    @rule(seconds=st.sampled_from([0.1, 0.2, 0.3, 15.0, 25.0, 61.0, 3601.0]))
    def wait(self, seconds: float) -> None:
        self.clock.pass_(seconds)

    @rule(deaf=st.booleans())
    def reap(self, deaf: bool) -> None:
        for name in LIMITS:
            self.world[name].deaf = deaf
        self.pools.reap()
        for name in LIMITS:
            self.world[name].deaf = False

    @rule(name=names, number=st.integers(0, 3), stubborn=st.booleans())
    def remember_orphan(self, name: str, number: int, stubborn: bool) -> None:
        path = f"/{number}"
        (self.world[name].stubborn.add if stubborn else self.world[name].stubborn.discard)(path)
        self.pools.remember_orphan(self.pools.server(name), path)

    @invariant()
    def no_server_ever_has_too_many_connections(self) -> None:
        for name, limit in LIMITS.items():
            assert self.world[name].peak <= limit

    @invariant()
    def the_counts_are_right(self) -> None:
        for name in LIMITS:
            pool = self.pool(name)
            assert pool["open"] == self.world[name].open
            places = sum(
                1
                for lease, sides in self.reserved + self.opened
                for side in (sides[:1] if lease.shared else sides)
                if Pools.key(self.pools.server(side)) == Pools.key(self.pools.server(name))
            )
            assert pool["taken"] == places
            assert 0 <= pool["connecting"] <= CONNECTS_AT_ONCE
            assert pool["connecting"] <= sum(len(sides) for _, sides in self.reserved)

    def teardown(self) -> None:
        for lease, _ in self.reserved + self.opened:
            lease.release(reusable=True)
        assert self.pools.close()
        assert all(self.world[name].open == 0 for name in LIMITS)
        assert all(pool["taken"] == pool["idle"] == pool["open"] == 0 for pool in self.pools.stats().values())
        self.logs.__exit__(None, None, None)

    def pool(self, name: str) -> dict[str, int]:
        return next(pool for names, pool in self.pools.stats().items() if name in names.split("/"))

    def pick(self, data: st.DataObject, leases: list[tuple[Lease, tuple[str, ...]]]) -> tuple[Lease, tuple[str, ...]]:
        return leases.pop(data.draw(st.integers(0, len(leases) - 1)))

    def set_refusal(self, error: BaseException | None) -> None:
        for name in LIMITS:
            self.world[name].refusal = error

    def spoil(self, session: object) -> None:
        assert isinstance(session, PretendSession)
        self.spoilt.add(session)


TestPools = PoolMachine.TestCase
TestPools.settings = settings(max_examples=400 if LONG else 50, stateful_step_count=40, deadline=None)
