"""Jobs in a row through one lane, in two stages: what is sent when, and that one file's failure is its own."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rows import ONE_MIB, Row

from etl import errors
from etl.config import ConfigLoader, ServerConfig
from etl.dispatch.dispatcher import Dispatcher
from etl.lanes.runner import Runner
from etl.sessions.lease import Lease
from etl.sessions.pools import Pools
from etl.transfer import FTPTransfer, relay
from servers.fake import FakeFTP, FakeSession, wait_for

pytestmark = pytest.mark.contract

FEATURES = ("SIZE", "MDTM", "MFMT", "EPSV")


class Scene(Row):
    """A source and a destination that do as told, one lane between them."""

    def __init__(self, source: FakeFTP, destination: FakeFTP, store_bytes: int, lanes: int) -> None:
        self.source, self.destination = source, destination
        ends = {
            name: ServerConfig(name, "ftp", one.host, one.port, one.username, one.password)
            for name, one in (("A", source), ("B", destination))
        }
        super().__init__(ends["A"], ends["B"], store_bytes, lanes)

    @property
    def published(self) -> dict[str, bytes]:
        return {path: content for path, content in self.destination.files.items() if path != "/out/x"}


@pytest.fixture
def scene(fake) -> Iterator[Callable[..., Scene]]:
    scenes: list[Scene] = []

    def make(
        sizes: list[int],
        source: dict[str, Any] | None = None,
        destination: dict[str, Any] | None = None,
        store_bytes: int = ONE_MIB,
        lanes: int = 1,
    ) -> Scene:
        files = {f"/{number}": bytes([number + 1]) * size for number, size in enumerate(sizes)}
        one = fake(files=files, answers=source)
        other = fake(files={"/out/x": b""}, answers=destination, features=FEATURES)
        scenes.append(Scene(one, other, store_bytes, lanes))
        return scenes[-1]

    yield make
    for one in scenes:
        one.close()


def expected(*sizes: int) -> dict[str, bytes]:
    return {f"/out/{number}": bytes([number + 1]) * size for number, size in enumerate(sizes)}


def test_a_destination_that_never_gets_ready_fails_its_job(scene) -> None:
    """It leaves as soon as a data connection is wanted: an error each time, not a job that runs for ever."""

    def leave(its: FakeSession, _argument: str) -> None:
        its.drop()

    row = scene([1000], destination={"EPSV": leave, "PASV": leave})
    row.offer(0)
    row.run()
    assert [type(error) for error in row.told.errors[0]] == [errors.SessionFault]
    assert row.published == {}


def test_a_destination_that_does_not_get_ready_fails_one_job(scene) -> None:
    """The one that follows was fetched meanwhile; it did nothing wrong, and spends no attempt."""
    fetched, left = threading.Event(), threading.Event()

    def retr(its: FakeSession, path: str) -> str:
        if path == "/1":
            fetched.set()
        return its.retr(path)

    def leave(its: FakeSession, argument: str) -> str | None:
        if left.is_set() or "PWD" in its.write:  # the login's own
            return its.epsv(argument)
        left.set()
        assert fetched.wait(5)
        time.sleep(0.2)  # it is handed over
        its.drop()
        return None

    row = scene([1000, 2000], source={"RETR": retr}, destination={"EPSV": leave})
    row.offer(0, 1)
    row.run()
    assert list(row.told.errors) == [0]
    assert row.published == {"/out/1": expected(1000, 2000)["/out/1"]}


def test_sessions_are_given_back_only_when_nobody_uses_them(scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The destination is being got ready for a file that turns out to be missing: that is waited for."""

    def slow(its: FakeSession, argument: str) -> str:
        time.sleep(0.3)
        return its.epsv(argument)

    due: list[int] = []
    checkin = Pools.checkin

    def looked_at(pools: Pools, lease: Any, slots: Any) -> None:
        due.extend(len(slot.pooled.session.link.control._due) for slot, _ in slots if slot.pooled is not None)
        checkin(pools, lease, slots)

    monkeypatch.setattr(Pools, "checkin", looked_at)
    row = scene([], destination={"EPSV": slow})
    row.offer(0)
    row.run()
    assert [type(error) for error in row.told.errors[0]] == [errors.FileMissing]
    assert due
    assert not any(due)


def test_a_session_that_broke_at_the_end_of_a_row_is_not_lent_again(scene) -> None:
    """The source leaves before it has said whether the last file changed, which came whole: no file fails of that."""
    asked = itertools.count()

    def leave(its: FakeSession, argument: str) -> str | None:
        if next(asked) == 1:
            its.drop()
            return None
        return its.mdtm(argument)

    row = scene([1000, 1000], source={"MDTM": leave})
    row.offer(0)
    row.run()
    assert row.published == expected(1000)
    row.offer(1)
    row.wait()
    assert row.told.errors == {}
    assert row.published == expected(1000, 1000)
    assert row.source.sessions == 2


def test_in_a_row_nothing_waits_for_the_other_side(scene) -> None:
    """Per file two writes at each server and a third for the rename, with what is certain to come next riding along."""
    count = 6
    row: Scene

    def stor(its: FakeSession, argument: str) -> str:
        stored = sum(line.startswith("STOR") for line in its.server.commands)
        answer = its.stor(argument)
        # The next file is being fetched by now: with latency that is so by itself.
        wait_for(lambda: sum(line.startswith("RETR") for line in row.source.commands) > min(stored, count - 1))
        return answer

    row = scene([1000] * count, destination={"STOR": stor})
    row.offer(*range(count))
    row.run()
    assert row.published == expected(*[1000] * count)
    begin = row.source.writes.index(["SIZE", "MDTM", "EPSV"])
    assert row.source.writes[begin:] == [
        ["SIZE", "MDTM", "EPSV"],  # the first one: does this way to connect work?
        ["RETR"],
        *[["SIZE", "MDTM", "SIZE", "MDTM", "EPSV", "RETR"]] * (count - 1),
        ["SIZE", "MDTM"],
    ]
    begin = row.destination.writes.index(["EPSV"])
    each = [["STOR"], ["SIZE", "EPSV"], ["MFMT", "RNFR", "RNTO"]]
    assert row.destination.writes[begin:] == [["EPSV"], *each * (count - 1), ["STOR"], ["SIZE"], each[-1]]
    assert row.source.sessions == row.destination.sessions == 1


def test_a_lone_job_is_not_held_back(scene) -> None:
    """Each is done before the next one is offered."""
    row = scene([10, 20, 30])
    row.lanes.start()
    for number in range(3):
        row.offer(number)
        row.wait()
        assert number in row.told.receipts
    assert row.published == expected(10, 20, 30)
    assert row.source.sessions == row.destination.sessions == 1


@pytest.mark.parametrize("store_bytes", [0, 2500, ONE_MIB])
def test_small_files_cross_whole_and_others_as_a_stream(scene, store_bytes: int) -> None:
    """Whatever the room in the store, files arrive, and the room is given back."""
    sizes = [1000, 3 * ONE_MIB + 1, 0, 2000, ONE_MIB, ONE_MIB + 1, 1000]
    row = scene(sizes, store_bytes=store_bytes)
    row.offer(*range(len(sizes)))
    row.run()
    assert row.published == expected(*sizes)
    assert row.told.errors == {}


@pytest.mark.parametrize("number", range(5))
def test_a_missing_file_fails_alone(scene, number: int) -> None:
    """Wherever in the row it is."""
    row = scene([1000] * 5)
    del row.source.files[f"/{number}"]
    row.offer(*range(5))
    row.run()
    assert {key: [type(error) for error in found] for key, found in row.told.errors.items()} == {
        number: [errors.FileMissing]
    }
    assert sorted(row.told.receipts) == sorted(set(range(5)) - {number})
    assert len(row.published) == 4


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("how", ["refused", "full", "dropped", "unrenamed"])
def test_a_file_that_cannot_be_stored_fails_alone(scene, number: int, how: str) -> None:
    """Its neighbours are published, each once; nothing of it is left."""
    answers: dict[str, Callable[[FakeSession, str], str | None]] = {
        "refused": lambda its, path: its.stor(path) if not is_bad(its, path) else "553 No.",
        "full": lambda its, path: its.stor(path) if not is_bad(its, path) else its.stor(path) and "552 Full.",
        "dropped": lambda its, path: its.stor(path) if not is_bad(its, path) else its.drop(),
    }
    partials: list[str] = []

    def is_bad(its: FakeSession, path: str) -> bool:
        if path not in partials:
            partials.append(path)
        return partials.index(path) == number

    def rnto(its: FakeSession, path: str) -> str:
        return "550 No." if path.endswith(f"/{number}") else its.rnto(path)

    row = scene([1000] * 5, destination={"RNTO": rnto} if how == "unrenamed" else {"STOR": answers[how]})
    row.offer(*range(5))
    row.run()
    assert list(row.told.errors) == [number]
    assert len(row.told.errors[number]) == 1
    assert sorted(row.told.receipts) == sorted(set(range(5)) - {number})
    wanted = expected(*[1000] * 5)
    del wanted[f"/out/{number}"]
    assert row.published == wanted


def test_a_changed_source_is_not_published(scene) -> None:
    """The answer comes with the next file's commands, and in time."""

    def retr(its: FakeSession, path: str) -> str:
        answer = its.retr(path)
        if path == "/2":
            its.server.times["/2"] = "20300101000000"
        return answer

    row = scene([1000] * 5, source={"RETR": retr})
    row.offer(*range(5))
    row.run()
    assert [type(error) for error in row.told.errors[2]] == [errors.SourceChanged]
    assert sorted(row.published) == ["/out/0", "/out/1", "/out/3", "/out/4"]


def test_a_failed_final_reply_of_the_source_is_not_published(scene) -> None:
    """426 after the last byte: the file is delivered by then, and removed."""
    row = scene([1000] * 5, source={"RETR": lambda its, path: its.retr(path) if path != "/2" else cut(its, path)})

    def cut(its: FakeSession, path: str) -> str:
        its.retr(path)
        return "426 Broken."

    row.offer(*range(5))
    row.run()
    assert list(row.told.errors) == [2]
    assert sorted(row.published) == ["/out/0", "/out/1", "/out/3", "/out/4"]


def test_a_lost_partition_is_asked_for_before_each_rename(scene) -> None:
    """What is not ours any more is not renamed, however far it came."""
    row = scene([1000] * 5)
    row.offer(*range(5))
    for task in list(row.dispatcher._backlog.entries):
        if task.origin.offset == 3:
            asked = iter([True, True, False])
            task.owned = lambda asked=asked: next(asked, False)
    row.run()
    assert [type(error) for error in row.told.errors[3]] == [errors.OwnershipLost]
    assert sorted(row.published) == ["/out/0", "/out/1", "/out/2", "/out/4"]


@pytest.mark.parametrize("stage", ["fetch", "deliver"])
def test_an_abort_ends_its_own_job_and_no_other(scene, stage: str) -> None:
    """A neighbour whose session was reset along with it runs again, without having failed."""
    reached, release = threading.Event(), threading.Event()

    def hang(its: FakeSession, path: str) -> str | None:
        verb = "retr" if stage == "fetch" else "stor"
        if not reached.is_set() and (stage == "deliver" or path == "/2"):
            reached.set()
            release.wait(10)
            return None
        return getattr(its, verb)(path)

    answers = {"RETR" if stage == "fetch" else "STOR": hang}
    row = scene([1000] * 5, **{"source" if stage == "fetch" else "destination": answers})
    row.offer(*range(5))
    row.lanes.start()
    assert reached.wait(10)
    wanted = 2 if stage == "fetch" else 0
    time.sleep(0.05)  # the neighbour gets as far as it can
    lost = errors.OwnershipLost("revoked")
    assert row.lanes.abort(lambda task: task.origin.offset == wanted, lost) == 1
    release.set()
    row.wait()
    assert row.told.errors == {wanted: [lost]}
    assert sorted(row.told.receipts) == sorted(set(range(5)) - {wanted})


def test_a_large_file_holds_up_no_small_one_while_other_lanes_are_free(scene) -> None:
    """The job that follows in its row is asked for when it has arrived, not before."""
    small = {f"/out/{number}" for number in (1, 2, 3)}

    def store(its: FakeSession, argument: str) -> str:
        answer = its.stor(argument)
        if len(its.server.files[argument]) > ONE_MIB:
            wait_for(lambda: small <= its.server.files.keys(), 10)
        return answer

    row = scene([3 * ONE_MIB, *[1000] * 3], destination={"STOR": store}, lanes=2)
    row.offer(*range(4))
    row.run()
    assert row.published == expected(3 * ONE_MIB, *[1000] * 3)
    assert row.told.errors == {}


@pytest.mark.parametrize("store_bytes", [0, ONE_MIB])
def test_large_files_follow_each_other_in_a_row(scene, store_bytes: int) -> None:
    """With the same sessions, and the next data connection opened ahead."""
    row = scene([2 * ONE_MIB, 1000, 2 * ONE_MIB, 3 * ONE_MIB], store_bytes=store_bytes)
    row.offer(*range(4))
    row.run()
    assert row.published == expected(2 * ONE_MIB, 1000, 2 * ONE_MIB, 3 * ONE_MIB)
    assert row.source.sessions == row.destination.sessions == 1
    assert sum(write == ["RNTO", "EPSV"] or "EPSV" in write[1:] for write in row.destination.writes) >= 2


def test_jobs_that_look_first_are_run_by_themselves(scene) -> None:
    """`overwrite` other than replace asks the destination before the file is fetched."""
    row = scene([1000] * 6)
    row.offer(0, 1)
    row.offer(2, 3, overwrite="skip")
    row.offer(4, 5)
    row.run()
    assert row.published == expected(*[1000] * 6)
    assert row.told.errors == {}


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Runner, "can_pipeline"),
        (Runner, "open"),
        (Dispatcher, "another"),
        (relay, "fetch"),
        (relay, "deliver"),
        (FTPTransfer, "unchanged"),
    ],
)
def test_a_bug_in_a_stage_is_reported_and_the_lane_goes_on(
    scene, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    """The job it met is reported, none is left running, no memory is lost, and what the lane takes next is done."""
    row = scene([1000] * 6)
    proper, calls = getattr(owner, name), itertools.count()

    def buggy(*arguments: Any) -> Any:
        if next(calls) == 1:
            raise ZeroDivisionError("a bug")
        return proper(*arguments)

    monkeypatch.setattr(owner, name, buggy)
    row.offer(*range(6))
    row.run(bugs=int(name == "open"))
    failed = len(row.bugs) + sum(len(found) for found in row.told.errors.values())
    assert failed == (name not in {"another", "can_pipeline"}), "who cannot say what is next, or how, fails no job"
    assert len(row.told.receipts) == 6 - failed


def test_jobs_that_look_for_a_predecessors_files_list_their_folder_once(scene) -> None:
    """After that they go through two stages like all others: a takeover does not halve the rate of a thousand jobs."""
    row = scene([1000] * 6)
    row.offer(*range(6), orphan_scan_since=0.0)
    row.run()
    assert row.published == expected(*[1000] * 6)
    assert sum(command.startswith("NLST") for command in row.destination.commands) == 1


def test_sessions_are_opened_ahead_of_need(fake) -> None:
    """They are logged in before the first job, and serve it."""
    server = fake()
    config = ServerConfig("A", "ftp", server.host, server.port, server.username, server.password, prewarm=2)
    pools = Pools({"A": config}.__getitem__, ConfigLoader(environ={}).settings)
    pools.register([config])
    pools.start()
    try:
        wait_for(lambda: pools.stats()["A"]["idle"] == 2)
        lease = pools.reserve(config)
        assert isinstance(lease, Lease)
        lease.open()
        lease.source.ping()
        lease.release(reusable=True)
        assert server.sessions == 2
    finally:
        assert pools.close()
