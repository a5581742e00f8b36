"""Messages of several jobs, and packed ones: what is read of them, and what is refused by name."""

import gzip
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.errors import InvalidMessage
from etl.models import bundle, document
from etl.models.message import FileTransferJob

pytestmark = pytest.mark.unit


def end(name: str, path: str) -> dict[str, str]:
    return {"hostname": name, "path": path}


def entry(name: str, **more: object) -> dict[str, object]:
    return {"source": end("A", f"/in/{name}"), "destination": end("B", f"/out/{name}"), **more}


def message(*files: object, **more: object) -> bytes:
    return json.dumps({"message_version": "2.0", "files": list(files), **more}).encode()


def jobs(text: bytes) -> tuple[FileTransferJob, ...]:
    found = bundle.read(text, "T-0-7")
    assert isinstance(found, tuple)
    return found


def test_each_file_is_a_job_of_its_own() -> None:
    """With an id of its own, and what the message says for all, unless it says something else for itself."""
    first, second = jobs(
        message(
            entry("a"),
            entry("b", job_id="mine", priority="low", options={"overwrite": "skip"}, metadata={"n": 2}),
            job_id="scan",
            priority="high",
            options={"overwrite": "fail", "verify": "size"},
            metadata={"n": 1, "of": "all"},
        )
    )
    assert (first.job_id, second.job_id) == ("scan.1", "mine")
    assert (str(first.source), str(second.destination)) == ("A:/in/a", "B:/out/b")
    assert (first.priority, second.priority) == ("high", "low")
    assert (first.options.overwrite, second.options.overwrite) == ("fail", "skip")
    assert first.options.verify == second.options.verify == "size"
    assert (first.metadata, second.metadata) == ({"n": 1, "of": "all"}, {"n": 2, "of": "all"})
    assert [job.message_version for job in (first, second)] == ["1.0", "1.0"]


def test_without_an_id_jobs_are_called_after_the_place_of_the_message() -> None:
    assert [job.job_id for job in jobs(message(entry("a"), entry("b")))] == ["T-0-7.1", "T-0-7.2"]


def test_a_message_of_one_job_is_read_as_ever() -> None:
    one = bundle.read(json.dumps({**entry("a"), "message_version": "1.0"}).encode(), "x")
    assert isinstance(one, FileTransferJob)
    assert one.job_id is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (message(), "files: must be a list of at least one job"),
        (b'{"message_version": "2.0", "files": 5}', "files: must be a list"),
        (b'{"message_version": "2.0"}', "files: must be a list"),
        (message(entry("a"), 5), r"files\[2\]: must be an object"),
        (message(entry("a"), {"source": end("A", "/a")}), r"files\[2\]: destination: is missing"),
        (message(entry("a", files=[])), r"files\[1\]: files: is unknown"),
        (message(entry("a", message_version="1.0")), r"files\[1\]: message_version: is unknown"),
        (message(entry("a"), source=end("A", "/a")), "source: is unknown in a message of version 2.0"),
        (message(entry("a"), job_id=5), "job_id: must be a string"),
        (message(entry("a", job_id="x"), entry("b", job_id="x")), r"files\[2\].job_id: appears twice"),
        (message(entry("a"), options={"overwrite": "maybe"}), r"files\[1\]: options.overwrite"),
        (message(*[entry(str(n)) for n in range(1001)]), "files: has 1001 entries, more than 1000"),
        (message(*[entry(str(n)) for n in range(100)], metadata={"x": "y" * 50_000}), "more than 4194304 bytes"),
        (json.dumps({**entry("a"), "message_version": "3.0"}).encode(), "message_version: '3.0' is not supported"),
        (json.dumps({"files": [entry("a")], "message_version": "2.7"}).encode(), "'2.7' is not supported"),
        (json.dumps({"files": [entry("a")]}).encode(), 'files: is unknown.* set "message_version": "2.0"'),
    ],
)
def test_what_is_wrong_is_named_and_then_no_job_is_begun(text: bytes, says: str) -> None:
    with pytest.raises(InvalidMessage, match=says):
        bundle.read(text, "T-0-7")


def test_the_error_bears_the_id_of_the_message() -> None:
    with pytest.raises(InvalidMessage) as caught:
        bundle.read(message(5, job_id="scan"), "T-0-7")
    assert caught.value.job_id == "scan"


@given(
    st.dictionaries(
        st.sampled_from([*bundle.FIELDS, "source"]),
        st.recursive(
            st.none() | st.integers() | st.text() | st.just("2.0") | st.just(entry("a")),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(bundle.FIELDS_OF_FILE), inner),
            max_leaves=8,
        ),
    )
)
def test_no_object_makes_anything_but_jobs_or_an_invalid_message(data: dict[str, object]) -> None:
    text = json.dumps(data | {"message_version": "2.0"}).encode()
    try:
        found = jobs(text)
    except InvalidMessage:
        return
    assert all(isinstance(job, FileTransferJob) and job.job_id for job in found)


# --- packed messages ------------------------------------------------------------------------------------------


def test_a_packed_message_is_read_as_what_is_in_it() -> None:
    assert len(jobs(gzip.compress(message(entry("a"), entry("b"))))) == 2
    packed = gzip.compress(json.dumps(entry("a")).encode())
    assert FileTransferJob.from_json(packed) == FileTransferJob.from_json(document.unpacked(packed))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (gzip.compress(b"{}", mtime=0)[:-3], "its gzip is cut off"),
        (gzip.compress(b"{}", mtime=0) + b"x", "its gzip has something behind it"),
        (b"\x1f\x8b" + b"\xff" * 20, "its gzip is broken"),
        (gzip.compress(b"not a job", mtime=0), "is not JSON"),
        (gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "is packed with gzip twice"),
    ],
)
def test_what_is_packed_badly_is_refused(value: bytes, says: str) -> None:
    with pytest.raises(InvalidMessage, match=says):
        bundle.read(value, "T-0-7")


def test_a_small_message_that_unpacks_to_gigabytes_takes_no_memory() -> None:
    bomb = gzip.compress(b" " * (200 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidMessage, match="unpacks to more than 4194304 bytes"):
            bundle.read(bomb, "T-0-7")
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
