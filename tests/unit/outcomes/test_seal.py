"""The proof of deferred jobs: nothing that it covers can be changed, and no job is lost without one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.models import header
from etl.models.task import Facts, Origin, Record, Task
from etl.models.wire import Message, Partition
from etl.outcomes import messages
from etl.outcomes.evidence import Witness
from etl.outcomes.seal import PROOF, Seal
from scene import JOB, NOW, Scene, succeed

pytestmark = pytest.mark.unit

SECRET = "group-secret-4711"
HEADERS = st.lists(
    st.tuples(st.sampled_from(["etl-a", "etl-origin", "etl-published"]), st.binary(max_size=4)), max_size=3
)
CONTENT = st.one_of(st.none(), st.binary(max_size=4))


def record(topic: str, key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes], ...]) -> Record:
    return Record(topic, 1, 2, key, value, headers)


@given(CONTENT, CONTENT, HEADERS, CONTENT, CONTENT, HEADERS)
def test_a_proof_is_of_one_message_alone(
    key: bytes | None, value: bytes | None, headers: Any, key2: bytes | None, value2: bytes | None, headers2: Any
) -> None:
    """Another key, value or header of ours, one more or one less, and it is none; other topics have other ones."""
    seal = Seal(SECRET)
    signed = seal.sign("t-retry", key, value, tuple(headers))
    assert seal.proves(record("t-retry", key, value, signed))
    assert seal.proves(record("t-retry", key, value, (("of-a-producer", b"x"), *signed)))
    assert not Seal(SECRET + "2").proves(record("t-retry", key, value, signed))
    assert not seal.proves(record("u-retry", key, value, signed))
    proof = signed[-1]
    is_same = (key, value, headers) == (key2, value2, headers2)
    assert seal.proves(record("t-retry", key2, value2, (*headers2, proof))) == is_same


def deferred(scene: Scene, **of_task: Any) -> Message:
    """Return the deferral of a job that was published, and left an orphan."""
    job = {**JOB, "options": {"source_action": "delete"}}
    scene.accept(job)
    (task,) = scene.dispatcher.drop(lambda _task: True)
    for name, value in {"published": True, "facts": Facts(3, 4.0), "verified_by": "size", **of_task}.items():
        setattr(task, name, value)
    (message,) = scene.builder.deferral(task, NOW - 3600)
    return message


def run(scene: Scene, message: Message, **changed: bytes) -> Task:
    """Have a process read a deferral, of which some headers were changed, and run it."""
    headers = tuple((name, changed.get(name.removeprefix("etl-"), value)) for name, value in message.headers)
    assert message.value is not None
    scene.accept(json.loads(message.value), headers, Partition("jobs-retry", 0), NOW - 7200)
    return scene.run(succeed)


def test_what_a_member_deferred_is_believed() -> None:
    """A published job is proven to be: what is at its destination by now does not matter."""
    scene = Scene(group_secret=SECRET)
    message = deferred(scene)
    assert message.headers[-1][0] == PROOF
    task = run(scene, message)
    assert (task.published, task.unproven, task.facts) == (True, False, Facts(3, 4.0))
    assert str(task.origin) == "jobs-0-0"


def test_only_what_a_member_deferred_shows_that_a_job_was_done() -> None:
    """Whoever may write T-retry could else have jobs left out once the group's offsets are lost."""
    scene = Scene(group_secret=SECRET)
    message = deferred(scene)
    origin = dict(message.headers)[header.ORIGIN]
    ours = Record("jobs-retry", 0, 5, message.key, message.value, message.headers, NOW)
    forged = ours._replace(offset=6, headers=((header.GROUP, b"group"), (header.ORIGIN, b"jobs-0-77")))
    shown = {}
    for seal in (scene.builder.seal, None):
        found: dict[Partition, dict[int, float]] = {}
        witness = Witness(scene.topics, "group", "nowhere", seal)
        for record in (ours, forged):
            witness._note(record, found)
        shown[seal is None] = set(found[Partition("jobs", 0)])
    assert origin == b"jobs-0-0"
    assert shown == {False: {0}, True: {0, 77}}


@pytest.mark.parametrize("secret", ["", "another-secret-4712"])
def test_a_member_without_the_secret_loses_no_job(secret: str) -> None:
    """Both ways: its jobs run, and it runs those of others; a publication is only not proven."""
    ours, theirs = Scene(group_secret=SECRET), Scene(group_secret=secret)
    for writer, reader in ((ours, theirs), (theirs, ours)):
        task = run(reader, deferred(writer))
        assert (task.published, task.unproven) == (True, True)
        assert task.job.job_id == "j1"
        assert reader.reporter.done == 1


@pytest.mark.parametrize("name", ["origin", "published", "attempts"])
def test_a_forged_header_makes_a_job_no_other_one(name: str) -> None:
    """Nor does it sweep another one's partial file; the job itself runs."""
    scene = Scene(group_secret=SECRET)
    forged = {"origin": b"jobs-0-77", "published": b'{"size_bytes":3}', "attempts": b"[]"}
    message = deferred(scene, attempts=[messages.Attempt("then", "there", "x")])
    orphans = message._replace(headers=(*message.headers, (messages.ORPHANS, b"1")))
    scene.partitions.held[Partition("jobs-retry", 0)] = 0
    task = run(scene, orphans, **{name: forged[name]})
    assert task.unproven
    assert task.origin == Origin("jobs-retry", 0, 1)
    assert task.orphan_scan_since is None or task.attempts


def test_a_forged_header_puts_a_job_in_no_message_of_several() -> None:
    """Its result would show that message as done."""
    scene = Scene(group_secret=SECRET)
    message = deferred(scene)
    task = run(scene, message._replace(headers=(*message.headers, (header.BUNDLE, b"jobs-0-78"))))
    assert task.unproven
    assert task.bundle is None


def test_without_a_secret_nothing_is_signed() -> None:
    """And headers are read as ever."""
    message = deferred(Scene())
    assert PROOF not in dict(message.headers)
    assert header.ORIGIN in dict(message.headers)
