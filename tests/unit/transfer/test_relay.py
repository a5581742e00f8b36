"""The relay's checklist, with two small sessions of files in memory: which verbs, in which order, and what is left."""

from __future__ import annotations

import dataclasses
import time
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
import xxhash

import pretend
from etl import errors
from etl.config import ServerConfig, TransferSettings
from etl.models.message import Endpoint, FileTransferJob
from etl.models.task import SCAN_ANEW, Facts, Origin, Record, Task
from etl.transfer import partials, receipts, relay
from etl.transfer.base import Parcel, Promise, Published, Session, Settled, Stored

pytestmark = pytest.mark.unit

TOKEN = "cafe0001"
ORIGIN = Origin("jobs", 2, 77)


@dataclasses.dataclass
class File:
    content: bytes
    mtime: float | None = 1000.0


class MemoryParcel:
    """A file being read."""

    held = None

    def __init__(self, session: Memory, path: str, facts: Facts, content: bytes) -> None:
        self.session, self.path, self.facts, self.rest = session, path, facts, content
        self.closed: bool | None = None

    def load(self, limit_bytes: int) -> bool:
        return False

    def readinto(self, buffer: memoryview) -> int:
        count = min(len(buffer), len(self.rest))
        buffer[:count], self.rest = self.rest[:count], self.rest[count:]
        return count

    def close(self, *, complete: bool) -> None:
        if self.closed is None:
            self.closed = complete
            self.session.say(f"close {'complete' if complete else 'abort'}")


class Memory(Session):
    """A server's files in a dictionary. `said` holds the verbs of both sides in their order; hooks bend answers."""

    def __init__(self, name: str, said: list[str]) -> None:
        super().__init__(pretend.server(name))
        self.said = said
        self.files: dict[str, File] = {}
        self.hooks: dict[str, Callable[[], Any]] = {}

    def say(self, what: str) -> Any:
        self.said.append(f"{self.server.hostname} {what}")
        hook = self.hooks.get(what.split(maxsplit=1)[0])
        return hook() if hook else None

    def connect(self) -> None: ...

    def disconnect(self) -> None: ...

    def abort(self) -> None: ...

    def ping(self) -> None: ...

    def download(self, remote_path: str, local_path: str) -> None: ...

    def upload(self, local_path: str, remote_path: str) -> None: ...

    def _facts(self, path: str) -> Facts | None:
        file = self.files.get(path)
        return file and Facts(len(file.content), file.mtime)

    def look(self, path: str) -> Facts | None:
        self.say(f"look {path}")
        return self._facts(path)

    def read(self, path: str) -> Parcel:
        told = self.say(f"read {path}")
        facts = told or self._facts(path)
        if facts is None:
            raise errors.FileMissing(f"{path} is not there", server=self.server.hostname)
        return MemoryParcel(self, path, facts, self.files[path].content)

    def unchanged(self, parcel: Parcel) -> Promise[bool]:
        self.say(f"unchanged {parcel.path}")
        return Settled(self._facts(parcel.path) == parcel.facts)

    def dispose(self, path: str, move_to: str | None = None) -> Promise[None]:
        self.say(f"dispose {path}" + (f" to {move_to}" if move_to else ""))
        file = self.files.pop(path)
        if move_to:
            self.files[move_to] = file
        return Settled(None)

    def write(self, partial: str, parcel: Parcel, buffer: memoryview) -> Stored:
        content = b""
        while count := parcel.readinto(buffer):
            content += buffer[:count]
        self.files[partial] = File(content, None)
        told = self.say(f"write {partial}")
        return told or Stored(partial, len(content), len(content))

    def publish(self, stored: Stored, final: str, mtime: float | None) -> Promise[Published]:
        told = self.say(f"publish {final}")
        self.files[final] = dataclasses.replace(self.files.pop(stored.partial), mtime=mtime)
        return Settled(told or Published(stamped=mtime is not None))

    def remove(self, path: str) -> bool:
        self.say(f"remove {path}")
        return self.files.pop(path, None) is not None

    def sync(self, path: str) -> None:
        self.say(f"sync {path}")

    def names(self, folder: str, prefix: str = "") -> list[str]:
        self.say(f"names {folder}")
        return [path.rpartition("/")[2] for path in self.files if path.startswith(f"{folder}/{prefix}")]


class Scene:
    """A source with `/in/a`, a destination, a task between them."""

    def __init__(self, **options: Any) -> None:
        self.said: list[str] = []
        self.source, self.destination = Memory("A", self.said), Memory("B", self.said)
        self.source.files["/in/a"] = File(b"new content")
        self.owned = True
        job = {
            "job_id": "j",
            "source": {"hostname": "A", "path": "/in/a"},
            "destination": {"hostname": "B", "path": "/out/a"},
            "options": options,
        }
        self.task = Task(
            Record("jobs", 2, 77, None, b"{}"), ORIGIN, FileTransferJob.from_dict(job), owned=lambda: self.owned
        )
        self.orphans = partials.OrphanIndex()
        self.partial = partials.partial_path(self.task, self.destination.server, TOKEN)

    def run(self, *, shared: bool = False, memory: int = 1 << 20, spool: int = 1 << 20) -> receipts.Receipt:
        limits = relay.Limits(memoryview(bytearray(4)), memory, spool)
        return relay.run(
            self.task, self.source, self.source if shared else self.destination, TOKEN, limits, self.orphans
        )

    @property
    def at_destination(self) -> dict[str, bytes]:
        return {path: file.content for path, file in self.destination.files.items()}


def test_the_checklist_in_its_order() -> None:
    """Read, write beside, final reply, unchanged, publish; the time stamp goes along."""
    scene = Scene()
    receipt = scene.run()
    assert scene.said == [
        "A read /in/a",
        f"B write {scene.partial}",
        "A close complete",
        "A unchanged /in/a",
        "B publish /out/a",
    ]
    checksum = f"xxh3-128:{xxhash.xxh3_128_hexdigest(b'new content')}"
    assert receipt == receipts.Receipt(11, receipts.SIZE, facts=Facts(11, 1000.0), checksum=checksum)
    assert scene.destination.files == {"/out/a": File(b"new content", 1000.0)}
    assert not scene.task.leaves_partial


def test_without_preserve_mtime_the_stamp_is_the_servers_own() -> None:
    """The option is obeyed."""
    scene = Scene(preserve_mtime=False)
    scene.run()
    assert scene.destination.files["/out/a"].mtime is None


def test_a_partial_name_is_hidden_short_and_of_one_holder() -> None:
    """Two runs never share one; no part of the original name is in it."""
    scene = Scene()
    assert scene.partial.startswith("/out/.etl-")
    assert scene.partial.endswith(f"-{TOKEN}.part")
    assert partials.partial_path(scene.task, scene.destination.server, "cafe0002") != scene.partial
    other = Task(scene.task.record, Origin("jobs", 2, 78), scene.task.job)
    assert partials.partial_path(other, scene.destination.server, TOKEN) != scene.partial
    visible = dataclasses.replace(scene.destination.server, partial_pattern="x{id}y")
    assert partials.partial_path(scene.task, visible, TOKEN).startswith("/out/x")


@pytest.mark.parametrize("options", [{}, {"overwrite": "newer"}])
def test_a_lost_partition_publishes_nothing_and_leaves_nothing(options: dict[str, Any]) -> None:
    """The last question before the rename is whether the job is still ours."""
    scene = Scene(**options)
    scene.destination.files["/out/a"] = File(b"old", 1.0)
    scene.owned = False
    with pytest.raises(errors.OwnershipLost):
        scene.run()
    assert scene.at_destination == {"/out/a": b"old"}
    assert not any("publish" in said for said in scene.said)
    assert not scene.task.leaves_partial


def test_ownership_is_asked_last() -> None:
    """Whatever takes time comes before; nothing but the rename after."""
    scene = Scene(overwrite="newer")
    scene.task.owned = lambda: not scene.said.append("owned?")  # type: ignore[func-returns-value]
    scene.run()
    assert scene.said[-2:] == ["owned?", "B publish /out/a"]


def test_a_changed_source_is_not_published() -> None:
    """It changed while it was read: what was read may be half old, half new."""
    scene = Scene()

    def change() -> None:
        scene.source.files["/in/a"] = File(b"another one", 2000.0)

    scene.destination.hooks["write"] = change
    with pytest.raises(errors.SourceChanged):
        scene.run()
    assert scene.at_destination == {}


def test_sizes_that_differ_are_not_published() -> None:
    """Fewer bytes came than the source said, or fewer were stored than were sent."""
    short = Scene()
    short.source.hooks["read"] = lambda: Facts(12, 1000.0)
    with pytest.raises(errors.SourceChanged):  # it is 11 bytes long now: that is why
        short.run()
    short.source.unchanged = lambda parcel: Settled(value=True)  # type: ignore[method-assign]  # it tells 12 all along
    with pytest.raises(errors.SizeMismatch, match="11 of 12 bytes came"):
        short.run()
    assert short.at_destination == {}

    stored = Scene()
    stored.destination.hooks["write"] = lambda: Stored(stored.partial, 11, 10)
    with pytest.raises(errors.SizeMismatch, match="10 of 11 bytes were stored"):
        stored.run()
    assert stored.at_destination == {}


def test_verify_says_what_is_compared() -> None:
    """`none` asks nothing of the destination, `size` insists on its answer, `auto` takes what there is."""
    for verify, told, expected in (
        ("none", 10, "none"),
        ("auto", 11, "size"),
        ("auto", None, "none"),
        ("size", 11, "size"),
    ):
        scene = Scene(verify=verify)
        scene.destination.hooks["write"] = lambda scene=scene, told=told: Stored(scene.partial, 11, told)
        assert scene.run().verified_by == expected
    scene = Scene(verify="size")
    scene.destination.hooks["write"] = lambda: Stored(scene.partial, 11, None)
    with pytest.raises(errors.SizeMismatch, match="does not tell the size"):
        scene.run()
    assert scene.at_destination == {}


def test_a_failure_while_writing_leaves_the_partial_to_the_caller() -> None:
    """The session that failed cannot be asked to remove it: the task says that something may lie there."""
    scene = Scene()

    def break_off() -> None:
        raise errors.ConnectionLost("cut")

    scene.destination.hooks["write"] = break_off
    with pytest.raises(errors.ConnectionLost):
        scene.run()
    assert scene.task.leaves_partial
    assert scene.said[-1] == "A close abort"


def test_a_failed_final_reply_of_the_source_is_a_failure() -> None:
    """All bytes came, but the source says that they were not all."""
    scene = Scene()

    def refuse() -> None:
        scene.source.hooks.clear()
        raise errors.IOFailure("426")

    scene.source.hooks["close"] = refuse
    with pytest.raises(errors.IOFailure):
        scene.run()
    assert scene.at_destination == {}


# --- overwrite ------------------------------------------------------------------------------------------------

OLD = File(b"old", 500.0)  # older than the source, another size
LATE = File(b"old", 5000.0)
TWIN = File(b"new content", 1000.4)  # the second is all that FTP carries
SAME = File(b"new content", 4000.0)  # our own file, on a server that keeps no time stamps
LIKE = File(b"NEW CONTENT", 4000.0)  # of the same size, no more
UNDATED = File(b"old", None)
DONE, KEPT, REFUSED, THERE_BY_TIME, THERE_BY_CONTENT = (
    "done",
    "kept",
    "refused",
    receipts.SIZE_AND_TIME,
    receipts.CONTENT,
)

MATRIX = [
    *[("replace", found, DONE) for found in (None, OLD, LATE, TWIN, SAME, LIKE, UNDATED)],
    ("skip", None, DONE),
    ("skip", TWIN, THERE_BY_TIME),
    *[("skip", found, KEPT) for found in (OLD, LATE, SAME, LIKE, UNDATED)],
    ("fail", None, DONE),
    ("fail", TWIN, THERE_BY_CONTENT),
    ("fail", SAME, THERE_BY_CONTENT),
    *[("fail", found, REFUSED) for found in (OLD, LATE, LIKE, UNDATED)],
    *[("newer", found, DONE) for found in (None, OLD, UNDATED)],
    ("newer", TWIN, THERE_BY_TIME),
    *[("newer", found, KEPT) for found in (LATE, SAME, LIKE)],
]


@pytest.mark.parametrize(("overwrite", "found", "expected"), MATRIX)
def test_overwrite(overwrite: str, found: File | None, expected: str) -> None:
    """What is at the destination decides; the same file there already is this job's own success."""
    scene = Scene(overwrite=overwrite)
    if found is not None:
        scene.destination.files["/out/a"] = dataclasses.replace(found)
    if expected == REFUSED:
        with pytest.raises(errors.AlreadyExists):
            scene.run()
        assert scene.destination.files == {"/out/a": found}
        return
    receipt = scene.run()
    assert receipt.skipped == (expected == KEPT)
    if expected == DONE:
        assert scene.destination.files == {"/out/a": File(b"new content", 1000.0)}
        return
    assert scene.destination.files == {"/out/a": found}
    assert receipt.verified_by == (receipts.NOTHING if expected == KEPT else expected)


@pytest.mark.parametrize("overwrite", ["skip", "newer"])
def test_before_a_source_action_equal_sizes_are_not_enough(overwrite: str) -> None:
    """The source may be deleted only for a file with its content."""
    there = Scene(overwrite=overwrite, source_action="delete")
    there.destination.files["/out/a"] = dataclasses.replace(SAME)
    assert there.run().verified_by == receipts.CONTENT
    other = Scene(overwrite=overwrite, source_action="delete")
    other.destination.files["/out/a"] = dataclasses.replace(LIKE)
    assert other.run().skipped


def test_a_missing_source_is_said_unless_the_job_would_skip() -> None:
    """`skip` leaves the destination alone, whether or not there is a source."""
    for overwrite in ("fail", "newer"):
        scene = Scene(overwrite=overwrite)
        scene.source.files.clear()
        scene.destination.files["/out/a"] = dataclasses.replace(OLD)
        with pytest.raises(errors.FileMissing):
            scene.run()
    scene = Scene(overwrite="skip")
    scene.source.files.clear()
    scene.destination.files["/out/a"] = dataclasses.replace(OLD)
    assert scene.run().skipped


@pytest.mark.parametrize("overwrite", ["skip", "fail", "newer"])
def test_what_appears_meanwhile_is_not_overwritten(overwrite: str) -> None:
    """Looked at again directly before the rename; the next attempt decides."""
    scene = Scene(overwrite=overwrite)
    scene.destination.hooks["write"] = lambda: scene.destination.files.update({"/out/a": File(b"theirs", 9000.0)})
    with pytest.raises(errors.IOFailure, match="appeared"):
        scene.run()
    assert scene.at_destination == {"/out/a": b"theirs"}


def test_newer_publishes_over_what_is_older_still() -> None:
    """The second look is the first one's question again."""
    scene = Scene(overwrite="newer")
    scene.destination.hooks["write"] = lambda: scene.destination.files.update({"/out/a": File(b"theirs", 1.0)})
    scene.run()
    assert scene.at_destination == {"/out/a": b"new content"}


# --- one session for both sides -------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_one_session_goes_through_the_spool(memory: int) -> None:
    """Read to the end, then written: one control connection does one thing at a time."""
    scene = Scene()
    scene.run(shared=True, memory=memory)
    assert scene.said == [
        "A read /in/a",
        "A close complete",
        f"A write {scene.partial}",
        "A unchanged /in/a",
        "A publish /out/a",
    ]
    assert scene.source.files["/out/a"] == File(b"new content", 1000.0)


def test_the_spool_has_a_limit() -> None:
    """Told before anything is read where the size is known, else as soon as it is reached."""
    known = Scene()
    with pytest.raises(errors.StorageFull, match="has 11 bytes"):
        known.run(shared=True, spool=10)
    unknown = Scene()
    unknown.source.hooks["read"] = lambda: Facts(None, None)
    with pytest.raises(errors.StorageFull, match="larger than the spool's 10 bytes"):
        unknown.run(shared=True, spool=10)
    assert list(unknown.source.files) == ["/in/a"]


# --- tidying up -----------------------------------------------------------------------------------------------


def test_removing_orphans_removes_this_jobs_partials_and_no_others() -> None:
    """Those of earlier attempts, whoever made them."""
    scene = Scene()
    others = [
        partials.partial_path(
            Task(scene.task.record, Origin("jobs", 2, 7), scene.task.job), scene.destination.server, "x"
        ),
        "/out/.etl-notes.txt",
        "/elsewhere/.etl-x.part",
    ]
    mine = partials.partial_path(scene.task, scene.destination.server, "dead0000")
    for path in (*others, mine):
        scene.destination.files[path] = File(b"half")
    scene.task.orphan_scan_since = SCAN_ANEW
    scene.run()
    assert sorted(scene.destination.files) == sorted([*others, "/out/a"])


def test_what_a_run_of_this_process_writes_is_no_orphan() -> None:
    """Not even if another record says that it is the same job."""
    scene = Scene()
    running = partials.partial_path(scene.task, scene.destination.server, "cafe00ff")
    scene.destination.files[running] = File(b"half")
    scene.task.orphan_scan_since = SCAN_ANEW
    scene.orphans.live.add("cafe00ff")
    scene.run()
    assert sorted(scene.destination.files) == [running, "/out/a"]
    scene.orphans.live.clear()
    scene.run()
    assert sorted(scene.destination.files) == ["/out/a"]


@pytest.mark.parametrize("pattern", [".etl-{id}.part", ".etl-{id}", "{id}.old"])
def test_removing_orphans_puts_back_what_an_attempt_moved_aside_whatever_partial_names_end_with(pattern: str) -> None:
    """It is the only copy of the file that was there; with one in its place it is a leftover."""
    scene = Scene()
    scene.destination.server = dataclasses.replace(scene.destination.server, partial_pattern=pattern)
    partial = partials.partial_path(scene.task, scene.destination.server, "dead0000")
    scene.destination.files = {partial: File(b"half"), f"{partial}.old": File(b"old")}
    relay.remove_orphans(scene.task, scene.destination, scene.orphans)
    assert scene.at_destination == {"/out/a": b"old"}
    scene.destination.files[f"{partial}.old"] = File(b"older")
    relay.remove_orphans(scene.task, scene.destination, scene.orphans)
    assert scene.at_destination == {"/out/a": b"old"}


def test_one_listing_tells_of_all_jobs_that_may_trust_it() -> None:
    """Of a predecessor's jobs in one folder, only the first pays for it; what was tried meanwhile has its own."""
    scene = Scene()
    mine = scene.partial.replace(TOKEN, "dead0000")
    scene.destination.files[mine] = File(b"half")
    scene.task.orphan_scan_since = 0.0
    other = dataclasses.replace(scene.task, origin=Origin("jobs", 2, 78))
    assert not relay.can_pipeline(other, scene.orphans)
    relay.remove_orphans(other, scene.destination, scene.orphans)
    assert relay.can_pipeline(other, scene.orphans)
    assert not relay.can_pipeline(scene.task, scene.orphans)
    relay.remove_orphans(scene.task, scene.destination, scene.orphans)
    assert scene.destination.files == {}
    assert scene.said.count("B names /out") == 1
    for since in (time.monotonic(), SCAN_ANEW):
        other.orphan_scan_since = since
        assert not relay.can_pipeline(other, scene.orphans)
    relay.remove_orphans(other, scene.destination, scene.orphans)
    assert scene.said.count("B names /out") == 2


def test_listings_are_kept_for_some_folders_and_some_leftovers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies about at a server, it is not kept in memory."""
    monkeypatch.setattr(partials, "ORPHANS_KEPT", 2)
    monkeypatch.setattr(partials, "FOLDERS_KEPT", 2)
    scene = Scene()
    scene.task.orphan_scan_since = 0.0
    for token in ("a", "b", "c"):
        scene.destination.files[scene.partial.replace(TOKEN, token)] = File(b"half")
    assert len(scene.orphans.of(scene.task, scene.destination)) == 3
    assert scene.orphans.known(scene.task) is None

    def in_folder(name: str) -> Task:
        destination = Endpoint(hostname="B", path=f"/{name}/a")
        return dataclasses.replace(scene.task, job=scene.task.job.model_copy(update={"destination": destination}))

    for name in ("x", "y", "z"):
        assert scene.orphans.of(in_folder(name), scene.destination) == []
        assert scene.orphans.known(in_folder(name)) == []
    assert scene.orphans.known(in_folder("x")) is None


def test_no_listing_is_paid_in_normal_work() -> None:
    """Only an unclean takeover or a failed attempt looks."""
    scene = Scene()
    scene.run()
    assert not any(" names " in said for said in scene.said)


# --- after the publish ----------------------------------------------------------------------------------------


def finish(scene: Scene, *, facts: Facts | None = None) -> int | None:
    scene.destination.files.setdefault("/out/a", File(b"new content", 1000.0))
    return relay.finish(scene.task, scene.source, scene.destination, facts)


@pytest.mark.parametrize("facts", [Facts(11, 1000.0), None])
def test_finish_deletes_or_moves_the_source(facts: Facts | None) -> None:
    """Also when another process published: then the published file tells what the source was."""
    scene = Scene(source_action="delete")
    assert finish(scene, facts=facts) == 11
    assert scene.source.files == {}
    moved = Scene(source_action={"move": "/done/a"})
    assert finish(moved, facts=facts) == 11
    assert list(moved.source.files) == ["/done/a"]
    said = [what.split()[1] for what in moved.said]
    assert said.index("sync") < said.index("dispose"), "a power cut must not take both"


def test_finish_of_a_source_that_is_gone_is_done() -> None:
    """It was dealt with before the crash."""
    scene = Scene(source_action="delete")
    scene.source.files.clear()
    assert finish(scene) == 11
    assert not any("dispose" in said for said in scene.said)


def test_finish_leaves_a_new_file_under_the_old_name_alone() -> None:
    """Somebody put another file there after the copy was published."""
    longer = Scene(source_action="delete")
    longer.source.files["/in/a"] = File(b"something else")
    finish(longer)
    assert "/in/a" in longer.source.files
    later = Scene(source_action="delete")
    later.source.files["/in/a"] = File(b"NEW CONTENT", 7000.0)
    finish(later, facts=Facts(11, 1000.0))
    assert "/in/a" in later.source.files


def test_finish_after_a_restart_compares_what_time_and_size_do_not_tell_apart() -> None:
    """Another process read the source, so its time is not known: only the very content that was copied is deleted."""
    other = Scene(source_action="delete")
    other.source.files["/in/a"] = File(b"NEW CONTENT", 7000.0)
    assert finish(other) == 11
    assert "/in/a" in other.source.files
    unstamped = Scene(source_action="delete")
    unstamped.destination.files["/out/a"] = File(b"new content", 9000.0)
    assert finish(unstamped) == 11
    assert unstamped.source.files == {}


def test_finish_of_a_copy_that_was_taken_away_does_not_know_its_size() -> None:
    """Another process published it, and somebody took it from the destination since then."""
    gone = Scene(source_action="delete")
    assert relay.finish(gone.task, gone.source, gone.destination, None) is None
    assert gone.source.files == {}


@pytest.mark.parametrize("facts", [Facts(11, 1000.0), None])
def test_finish_of_an_unproven_publication_leaves_a_source_without_a_copy_alone(facts: Facts | None) -> None:
    """A header may be forged, and so may the facts in it."""
    forged = Scene(source_action="delete")
    forged.task.unproven = True
    with pytest.raises(errors.FileMissing, match=r"^B:/out/a is not there: A:/in/a is left alone$"):
        relay.finish(forged.task, forged.source, forged.destination, facts)
    assert "/in/a" in forged.source.files
    other = Scene(source_action="delete")
    other.task.unproven = True
    other.destination.files["/out/a"] = File(b"old content", 5.0)
    assert finish(other, facts=facts) == 11
    assert "/in/a" in other.source.files


def test_finish_of_an_unproven_publication_goes_on_where_the_copy_is_seen() -> None:
    """By size and time, or by its content: nothing is lost then."""
    for mtime in (1000.0, 9000.0):
        seen = Scene(source_action="delete")
        seen.task.unproven = True
        seen.destination.files["/out/a"] = File(b"new content", mtime)
        assert finish(seen, facts=Facts(3, 3.0)) == 11
        assert seen.source.files == {}


def test_finish_does_nothing_to_a_job_that_is_not_ours() -> None:
    """The new owner does the source action."""
    scene = Scene(source_action="delete")
    scene.owned = False
    with pytest.raises(errors.OwnershipLost):
        finish(scene)
    assert "/in/a" in scene.source.files


def test_finish_of_keep_touches_nothing() -> None:
    """A published job without an action."""
    scene = Scene()
    assert finish(scene) == 11
    assert "/in/a" in scene.source.files


def test_the_server_of_a_task_is_a_config() -> None:
    """Guard of this file: the sessions are real `Session`s with real settings."""
    assert isinstance(Scene().destination.server, ServerConfig)


# --- the source is the destination, under another name -------------------------------------------------------


def one_folder(**options: Any) -> Scene:
    """Return a scene whose two servers are one, and whose job names one file twice."""
    scene = Scene(**options)
    job = {
        "source": {"hostname": "A", "path": "/in/a"},
        "destination": {"hostname": "B", "path": "/in/a"},
        "options": options,
    }
    scene.task.job = FileTransferJob.from_dict(job)
    scene.destination.files = scene.source.files
    return scene


@pytest.mark.parametrize("overwrite", ["replace", "skip", "fail", "newer"])
@pytest.mark.parametrize("action", ["delete", {"move": "/done/a"}])
def test_a_source_that_is_its_own_destination_is_not_taken_away(overwrite: str, action: object) -> None:
    """Its action would leave no file where the result says one is."""
    scene = one_folder(overwrite=overwrite, source_action=action)
    with pytest.raises(errors.InvalidPath, match="is the source A:/in/a itself"):
        scene.run()
    assert scene.source.files == {"/in/a": File(b"new content")}
    assert not scene.task.leaves_partial


@pytest.mark.parametrize("overwrite", ["skip", "newer"])
def test_a_file_of_one_size_and_second_but_other_content_costs_no_source(overwrite: str) -> None:
    """Inspection tools write images of one size several times a second: only the content tells them apart."""
    scene = Scene(overwrite=overwrite, source_action="delete")
    scene.destination.files["/out/a"] = File(b"old content", 1000.0)
    scene.source.files["/in/a"] = File(b"new content", 1000.0)
    assert scene.run().skipped
    assert scene.source.files["/in/a"] == File(b"new content", 1000.0)


def test_fail_does_not_take_a_file_of_one_size_and_second_for_its_own() -> None:
    """What was never copied is not reported as there."""
    scene = Scene(overwrite="fail")
    scene.destination.files["/out/a"] = File(b"old content", 1000.0)
    scene.source.files["/in/a"] = File(b"new content", 1000.0)
    with pytest.raises(errors.AlreadyExists):
        scene.run()


def test_a_copy_that_was_there_already_is_probed_and_leaves_no_trace() -> None:
    """Two folders: the job is done, and its action may follow."""
    scene = Scene(overwrite="skip", source_action="delete")
    scene.destination.files["/out/a"] = File(b"new content", 1000.0)
    scene.source.files["/in/a"] = File(b"new content", 1000.0)
    assert scene.run().verified_by == receipts.CONTENT
    assert list(scene.destination.files) == ["/out/a"]
    assert not scene.task.leaves_partial


class Bent(dict[str, File]):
    """The files of a server that knows each by more than one name."""

    def __init__(self, bend: Callable[[str], str], files: dict[str, File]) -> None:
        super().__init__()
        self.bend = bend
        for path, file in files.items():
            self[path] = file

    def __getitem__(self, path: str) -> File:
        return super().__getitem__(self.bend(path))

    def __setitem__(self, path: str, file: File) -> None:
        super().__setitem__(self.bend(path), file)

    def get(self, path: str, default: Any = None) -> Any:
        return super().get(self.bend(path), default)

    def pop(self, path: str, *default: Any) -> Any:
        return super().pop(self.bend(path), *default)


TWO_NAMES = {
    "letter case": ("/in/report.TXT", "/in/Report.txt", str.casefold),
    "normal form": ("/in/\u00e9.txt", "/in/e\u0301.txt", lambda path: unicodedata.normalize("NFD", path)),
    "trailing dot": ("/in/a.txt", "/in/a.txt.", lambda path: path.rstrip(".")),
    "trailing blank": ("/in/a.txt", "/in/a.txt ", str.rstrip),
    "short name": ("/in/long name.txt", "/in/LONGNA~1.TXT", lambda path: path.replace("LONGNA~1.TXT", "long name.txt")),
    "stream": ("/in/a.txt", "/in/a.txt::$DATA", lambda path: path.removesuffix("::$DATA")),
    "folder and name": ("/in/a.txt", "/IN/A.txt", str.casefold),
    "link": ("/in/a.txt", "/link/a.txt", lambda path: path.replace("/link/", "/in/")),
    "link and name": ("/in/a.txt", "/link/A.txt", lambda path: path.replace("/link/", "/in/").casefold()),
}


def named_twice(source: str, destination: str, files: dict[str, File], **options: Any) -> Scene:
    """Return a scene whose two servers are one."""
    scene = Scene(**options)
    job = {
        "source": {"hostname": "A", "path": source},
        "destination": {"hostname": "B", "path": destination},
        "options": options,
    }
    scene.task.job = FileTransferJob.from_dict(job)
    scene.source.files = scene.destination.files = files
    return scene


@pytest.mark.parametrize("overwrite", ["replace", "skip", "newer"])
@pytest.mark.parametrize("action", ["delete", {"move": "/done/a"}])
@pytest.mark.parametrize("how", TWO_NAMES)
def test_two_names_of_one_file_are_found_out_by_looking(how: str, action: object, overwrite: str) -> None:
    """Two names, one file: it is refused and kept, however alike or unlike the names are."""
    source, destination, bend = TWO_NAMES[how]
    files = Bent(bend, {source: File(b"only copy")})
    scene = named_twice(source, destination, files, source_action=action, overwrite=overwrite)
    with pytest.raises(errors.InvalidPath, match="itself"):
        scene.run()
    assert dict(files) == {bend(source): File(b"only copy")}


@pytest.mark.parametrize("there", [{}, {"/in/b": File(b"old", 5.0)}])
def test_two_files_of_one_folder_are_told_from_two_names(there: dict[str, File]) -> None:
    """The folder shows both, or the other one is not there yet: the job is done."""
    files = {"/in/a": File(b"new content"), **there}
    scene = named_twice("/in/a", "/in/b", files, source_action="delete")
    facts = scene.run().facts
    assert files["/in/b"].content == b"new content"
    assert relay.finish(scene.task, scene.source, scene.destination, facts) == 11
    assert list(files) == ["/in/b"]


def test_folders_are_asked_once_whether_they_are_two() -> None:
    """The first job with a source action looks, those that follow are pipelined; for a kept source nothing is asked."""
    scene = Scene(source_action="delete")
    assert not relay.can_pipeline(scene.task, scene.orphans)
    scene.run()
    assert sum(said.startswith("A look") for said in scene.said) == 1
    assert relay.can_pipeline(scene.task, scene.orphans)
    kept = one_folder()
    assert relay.can_pipeline(kept.task, kept.orphans)
    kept.run()
    assert not any(said.startswith("A look") for said in kept.said)


# --- only the rename failed ------------------------------------------------------------------------------------


def refusing(error: errors.EtlError) -> Callable[[], None]:
    """Return a hook that fails."""

    def hook() -> None:
        raise error

    return hook


def test_what_was_proven_is_only_renamed_again() -> None:
    """The upload is kept: the next run of this process neither reads nor writes."""
    scene = Scene()
    scene.destination.hooks["publish"] = refusing(errors.ConnectionLost("gone"))
    with pytest.raises(errors.ConnectionLost):
        scene.run()
    assert not relay.can_pipeline(scene.task, scene.orphans)
    del scene.destination.hooks["publish"], scene.said[:]
    receipt = scene.run()
    assert (receipt.size_bytes, receipt.verified_by, receipt.facts) == (11, receipts.SIZE, Facts(11, 1000.0))
    assert list(scene.destination.files) == ["/out/a"]
    assert not any(said.split()[1] in {"read", "write"} for said in scene.said)
    assert scene.task.unpublished is None
    assert not scene.task.leaves_partial


@pytest.mark.parametrize(("mtime", "remarks"), [(1000.0, {}), (2000.0, {"mtime_kept": False})])
def test_a_rename_that_was_not_answered_is_looked_at_first(mtime: float, remarks: dict[str, bool]) -> None:
    """It was carried out: the partial file is gone, the file is there; nothing is sent again. Its time is told."""
    scene = Scene()
    scene.destination.hooks["publish"] = refusing(errors.TransferTimeout("no answer"))
    with pytest.raises(errors.TransferTimeout):
        scene.run()
    (partial,) = scene.destination.files
    scene.destination.files["/out/a"] = scene.destination.files.pop(partial)
    del scene.said[:]
    scene.destination.files["/out/a"].mtime = mtime
    assert scene.run().size_bytes == 11
    assert not any(said.split()[1] in {"read", "write", "publish"} for said in scene.said)
    assert scene.task.remarks == remarks


def test_another_source_by_now_is_copied_anew() -> None:
    """What was kept is of a file that is no more; its source gone, it is the only copy."""
    for now in (File(b"newer", 2000.0), None):
        scene = Scene()
        scene.destination.hooks["publish"] = refusing(errors.ConnectionLost("gone"))
        with pytest.raises(errors.ConnectionLost):
            scene.run()
        del scene.destination.hooks["publish"]
        scene.task.orphan_scan_since = SCAN_ANEW
        del scene.source.files["/in/a"]
        if now is not None:
            scene.source.files["/in/a"] = now
        scene.run()
        assert list(scene.destination.files) == ["/out/a"]
        assert scene.destination.files["/out/a"].content == (b"newer" if now else b"new content")


def test_what_was_not_as_usual_stands_in_the_result() -> None:
    """A time that was not kept, an action that was not done, and why."""
    scene = Scene(source_action="delete")
    scene.destination.hooks["publish"] = Published
    receipt = scene.run()
    assert scene.task.remarks == {"mtime_kept": False}
    scene.source.files["/in/a"] = File(b"another one", 3000.0)
    relay.finish(scene.task, scene.source, scene.destination, receipt.facts)
    assert scene.task.remarks["source_action_done"] is False
    assert "another file" in scene.task.remarks["source_action_error"]
    assert "/in/a" in scene.source.files


@pytest.mark.parametrize("told", [Facts(11, 1000.0), Facts(None, None)])
def test_a_file_that_is_too_large_is_not_copied(told: Facts) -> None:
    """Neither one whose size is known, of which nothing is read, nor one that goes on and on."""
    scene = Scene()
    limits = TransferSettings(max_file_bytes=10)
    scene.source.settings = scene.destination.settings = limits
    scene.source.hooks["read"] = lambda: told
    with pytest.raises(errors.TooLarge, match="ETL_MAX_FILE_BYTES") as caught:
        scene.run()
    assert caught.value.fate is errors.Fate.DEAD
    assert scene.at_destination == {}
    assert scene.said[-1] == "A close abort"
    del scene.source.hooks["read"]
    limits = TransferSettings(max_file_bytes=11)
    scene.source.settings = scene.destination.settings = limits
    scene.run()
    assert scene.at_destination == {"/out/a": b"new content"}
