"""Jobs and results: what is accepted, what is refused by name, and that both forms come back as they went."""

import difflib
import json
import string
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.errors import Fate, InvalidMessage
from etl.models import Endpoint, FileTransferJob, TransferOptions, TransferResult
from etl.models.field import normalise_path

pytestmark = pytest.mark.unit

NESTED = {
    "source": {"hostname": "SRC", "path": "/in/a.tif"},
    "destination": {"hostname": "DST", "path": "/out/a.tif"},
}
FLAT = {"task_id": "t1", "src_id": "SRC", "src_path": "/in/a.tif", "dst_id": "DST", "dst_path": "/out/a.tif"}

letters = st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/")
names = st.text(letters, min_size=1, max_size=20).filter(lambda name: name not in (".", ".."))
paths = st.builds(lambda root, parts: root + "/".join(parts), st.sampled_from(["", "/"]), st.lists(names, min_size=1))
labels = st.text(letters, min_size=1, max_size=40).filter(lambda text: text.strip())
sources = st.builds(Endpoint, hostname=labels.map(lambda name: "S" + name), path=paths)
destinations = st.builds(Endpoint, hostname=labels.map(lambda name: "D" + name), path=paths)
moments = st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3),
    max_leaves=8,
)
metadata = st.none() | st.dictionaries(plain, json_values, max_size=4)


@st.composite
def options(draw: st.DrawFn) -> TransferOptions:
    values = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "overwrite": st.sampled_from(["replace", "skip", "fail", "newer"]),
                "source_action": st.sampled_from(["keep", "delete", {"move": "/done/" + "x" * 300}]),
                "verify": st.sampled_from(["auto", "size", "none"]),
                "preserve_mtime": st.booleans(),
                "timeout_seconds": st.floats(min_value=0.001, max_value=1e6),
                "not_before": moments,
            },
        )
    )
    if draw(st.booleans()):
        values["deadline"] = values.get("not_before", datetime(2026, 1, 1, tzinfo=UTC)) + timedelta(seconds=1)
    return TransferOptions(**values)


jobs = st.builds(
    FileTransferJob,
    job_id=st.none() | labels,
    source=sources,
    destination=destinations,
    priority=st.sampled_from(["high", "normal", "low"]),
    options=options(),
    metadata=metadata,
)
flat_jobs = st.builds(
    FileTransferJob,
    job_id=st.none() | labels,
    source=sources,
    destination=destinations,
    metadata=metadata,
    flat=st.just(True),
)


@given(jobs | flat_jobs)
def test_a_job_written_and_read_again_is_the_same_in_the_same_form(job: FileTransferJob) -> None:
    """Claim: both forms make the round trip, as text, bytes and object."""
    text = job.to_json()
    assert FileTransferJob.from_json(text) == job
    assert FileTransferJob.from_json(b"\xef\xbb\xbf" + text.encode()) == job
    assert FileTransferJob.from_dict(job.to_dict()) == job
    assert ("task_id" in job.to_dict() or "src_id" in job.to_dict()) == job.flat


@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_no_bytes_make_anything_but_a_job_or_an_invalid_message(raw: bytes) -> None:
    """Claim: nothing else than InvalidMessage escapes, and it is a dead letter at once."""
    try:
        assert isinstance(FileTransferJob.from_json(raw), FileTransferJob)
    except InvalidMessage as refusal:
        caught = refusal
    else:
        return
    assert caught.fate is Fate.DEAD
    assert caught.code == "INVALID_MESSAGE"
    str(caught).encode("utf-8")


@given(
    st.dictionaries(
        st.sampled_from([*NESTED, *FLAT, "job_id", "options", "priority", "metadata", "message_version", "flat"]),
        json_values | st.just(NESTED["source"]) | st.just({"overwrite": "skip"}),
    )
)
def test_no_object_makes_anything_but_a_job_or_an_invalid_message(data: dict[str, object]) -> None:
    """Claim: wrong types in known places never escape as another exception, through either entrance."""
    for read, form in ((FileTransferJob.from_dict, data), (FileTransferJob.from_json, json.dumps(data))):
        try:
            job = read(form)  # type: ignore[operator]
        except InvalidMessage:
            continue
        assert isinstance(job, FileTransferJob)


@pytest.mark.parametrize("field", ["source", "destination"])
@pytest.mark.parametrize("part", ["hostname", "path"])
@pytest.mark.parametrize("value", [..., None, "", 5, [], {}, "a\nb", "a\0b", "x" * 5000])
def test_a_missing_empty_or_wrong_field_of_an_endpoint_is_named(field: str, part: str, value: object) -> None:
    """Claim: the error says which field it was, in the words of the form that came in."""
    endpoint = {**NESTED[field]}
    flat = {**FLAT}
    flat_name = f"{field[:3].replace('sou', 'src').replace('des', 'dst')}_{'id' if part == 'hostname' else 'path'}"
    if value is ...:
        del endpoint[part], flat[flat_name]
    else:
        endpoint[part] = flat[flat_name] = value  # type: ignore[assignment]
    with pytest.raises(InvalidMessage, match=rf"^{field}\.{part}: "):
        FileTransferJob.from_json(json.dumps({**NESTED, field: endpoint}))
    with pytest.raises(InvalidMessage, match=f"^{flat_name}: "):
        FileTransferJob.from_json(json.dumps(flat))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"priority": "urgent"}, "priority: must be 'high', 'normal' or 'low'"),
        ({"prioritty": "high"}, r"prioritty: is unknown \(did you mean priority\?\)"),
        ({"flat": True}, "flat: is unknown"),
        ({"job_id": 7}, "job_id: must be a string"),
        ({"job_id": " "}, "job_id: is empty"),
        ({"message_version": "2.0"}, "message_version: '2.0' is not supported"),
        ({"message_version": "1." + "0" * 100_000}, "message_version: '1.0+' is not supported"),
        ({"metadata": []}, "metadata: must be"),
        ({"source": "SRC:/a"}, "source: must be an object"),
        ({"source": {**NESTED["source"], "user": "x"}}, "source.user: is unknown"),
        ({"options": {"overwrte": "skip"}}, r"options.overwrte: is unknown \(did you mean overwrite\?\)"),
        ({"options": {"overwrite": "always"}}, "options.overwrite: must be"),
        ({"options": {"verify": "always"}}, "options.verify: must be 'auto', 'size', 'checksum' or 'none'"),
        (
            {"options": {"checksum": {"algorithm": "crc32", "value": 12345678}}},
            "options.checksum: algorithm and value must be strings",
        ),
        ({"options": {"checksum": "0"}}, 'options.checksum: must be {"algorithm": name, "value": digits}'),
        (
            {"options": {"checksum": {"algorithm": "md5", "value": "0"}}},
            "options.checksum: value: is not the 32 hexadecimal digits of md5",
        ),
        (
            {"options": {"checksum": {"algorithm": "rot13", "value": "0"}}},
            "options.checksum: algorithm: 'rot13' is not supported",
        ),
        ({"options": {"checksum_file": True}}, "options.checksum_file: must be 'ignore', 'use' or 'require'"),
        ({"options": {"write_checksum_file": "crc32"}}, "options.write_checksum_file: must be 'sha256'"),
        ({"options": {"source_action": "move"}}, "options.source_action: must be"),
        ({"options": {"source_action": {"move": "../x"}}}, "options.source_action: move: climbs"),
        (
            {"options": {"source_action": {"move": "/in/a.tif"}}},
            "options.source_action: would move the source onto itself",
        ),
        ({"options": {"preserve_mtime": "no"}}, "options.preserve_mtime: must be"),
        ({"options": {"timeout_seconds": 0}}, "options.timeout_seconds: must be greater than 0"),
        ({"options": {"timeout_seconds": True}}, "options.timeout_seconds: must be"),
        ({"options": {"deadline": "tomorrow"}}, "options.deadline: must be a time in ISO 8601"),
        ({"options": {"deadline": "2026-01-01T00:00:00"}}, "options.deadline: has no time zone"),
        ({"options": {"not_before": "0001-01-01T00:00:00+23:59"}}, "options.not_before: is out of range"),
        (
            {"options": {"not_before": "2026-01-02T00:00:00Z", "deadline": "2026-01-01T00:00:00Z"}},
            "options: deadline is not after not_before",
        ),
        ({"destination": {"hostname": "src", "path": "/in/./a.tif"}}, "destination: is the source itself"),
        ({"task_id": "x"}, "task_id: is unknown"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(change: dict[str, object], named: str) -> None:
    """Claim: unknown, unsupported and senseless fields are errors that name them; none is ignored."""
    with pytest.raises(InvalidMessage, match=f"^{named}"):
        FileTransferJob.from_json(json.dumps({**NESTED, **change}))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"", "message: is empty"),
        (None, "message: is empty"),
        (b"{", "message: is not JSON"),
        (b"\xff\xfe", "message: is not UTF-8"),
        (b"[]", "message: must be a JSON object, not a list"),
        (b"7", "message: must be a JSON object, not a number"),
        (b'{"source": 1, "source": 2}', "source: appears twice"),
        (b'{"metadata": {"a": NaN}}', "message: NaN is not JSON"),
        (b'{"metadata": {"a": 1e999}}', "message: the number 1e999 is out of range"),
        (b'{"metadata": {"a": ' + b"9" * 5000 + b"}}", "message: the number 9+... is out of range"),
        (b'{"metadata": {"a": "\\ud800"}}', r"metadata\.a: contains half of a surrogate pair"),
        (b'{"\\udc00": 1}', r"\\udc00: contains half"),
        (b"[" * 20_000, "message: is nested deeper"),
        (b"[" * 200_000, "message: has more than 100000 commas and brackets"),
        (b'{"metadata":"' + b"m" * (4 << 20) + b'"}', "message: is larger than 4194304 bytes"),
        (b'{"metadata":' + b"[" * 100 + b"]" * 100 + b"}", r"metadata\[.*: is nested deeper"),
    ],
)
def test_what_is_no_plain_json_object_is_refused(text: bytes | None, named: str) -> None:
    """Claim: what two programs could read differently, or none could write again, is no job."""
    with pytest.raises(InvalidMessage, match=f"^{named}"):
        FileTransferJob.from_json(text)


@pytest.mark.parametrize("data", [{1: 2}, {"metadata": {"a": {1, 2}}}, {"metadata": {"a": float("nan")}}, [], None])
def test_an_object_that_json_cannot_carry_is_refused(data: object) -> None:
    """Claim: from_dict raises nothing but InvalidMessage either."""
    with pytest.raises(InvalidMessage):
        FileTransferJob.from_dict(data)  # type: ignore[arg-type]


def test_all_faults_are_named_at_once_and_the_error_stays_short() -> None:
    """Claim: one error lists every wrong field, however many and long they are, in bounded length."""
    with pytest.raises(InvalidMessage, match=r"prio: .*source.path: .*destination: is missing"):
        FileTransferJob.from_dict({"source": {"hostname": "A", "path": ""}, "prio": 1})
    with pytest.raises(InvalidMessage) as caught:
        FileTransferJob.from_dict({**NESTED, **{string.ascii_letters * 1000 + str(i): i for i in range(1000)}})
    assert len(str(caught.value)) < 5000


def test_null_means_left_out() -> None:
    """Claim: a serialiser that writes null for every unset field is understood."""
    job = FileTransferJob.from_dict(
        {
            **NESTED,
            "job_id": None,
            "priority": None,
            "options": {"deadline": None, "verify": None},
            "metadata": None,
        }
    )
    assert job == FileTransferJob.from_dict(NESTED)


def test_a_move_onto_the_destination_is_refused() -> None:
    """Claim: no source action may touch what was just published."""
    with pytest.raises(InvalidMessage, match="would move the source onto the destination"):
        FileTransferJob.from_dict(
            {
                "source": {"hostname": "A", "path": "/x"},
                "destination": {"hostname": "a", "path": "/y"},
                "options": {"source_action": {"move": "//y"}},
            }
        )


def test_what_the_options_ask_for() -> None:
    """Claim: the source action is read off the options, and defaults are not written."""
    kept, moved = TransferOptions(), TransferOptions(source_action={"move": "a//b"})
    assert (kept.deletes, kept.move_to, kept.to_dict()) == (False, None, {})
    assert (moved.deletes, moved.move_to) == (False, "a/b")
    assert TransferOptions(source_action="delete").deletes
    assert FileTransferJob.from_dict(NESTED).with_id("x").job_id == "x"


@pytest.mark.parametrize(
    ("given_path", "expected"),
    [
        ("a//b/./c/../d", "a/b/d"),
        ("/a", "/a"),
        ("//a", "/a"),
        ("./a", "a"),
        ("/a/../b", "/b"),
        ("-a b#%.tif", "-a b#%.tif"),
        ("/한글/파일.tif", "/한글/파일.tif"),
    ],
)
def test_a_path_is_normalised(given_path: str, expected: str) -> None:
    """Claim: one file has one name, so that order by destination path can be kept."""
    assert normalise_path(given_path) == expected
    assert normalise_path(expected) == expected


@pytest.mark.parametrize(
    "path", ["", "/", ".", "a/", "a/.", "a/..", "..", "../a", "/..", "/../a", "a/../../b", "a\rb", "a\x85b"]
)
def test_a_path_that_is_no_file_below_its_start_is_refused(path: str) -> None:
    """Claim: nothing leaves the base folder, injects a command, or names a folder."""
    with pytest.raises(ValueError):
        normalise_path(path)


@given(st.text(st.sampled_from("/.ab\n")))
def test_a_normalised_path_never_climbs(path: str) -> None:
    """Claim: whatever is accepted holds no `..`, `.` or empty part."""
    try:
        normal = normalise_path(path)
    except ValueError:
        return
    assert not {"", ".", ".."} & set(normal.removeprefix("/").split("/"))
    assert "\n" not in normal


results = st.builds(
    TransferResult,
    job_id=labels,
    status=st.sampled_from(["SUCCESS", "FAILED"]),
    source=st.none() | sources,
    destination=st.none() | destinations,
    bytes=st.none() | st.integers(min_value=0),
    duration_seconds=st.none() | st.floats(min_value=0, max_value=1e9),
    attempts=st.integers(min_value=0, max_value=100),
    verified_by=st.none() | st.just("size"),
    skipped=st.booleans(),
    swapped=st.booleans(),
    mtime_kept=st.booleans(),
    published_by=st.none() | st.just("direct"),
    source_action_done=st.booleans(),
    source_action_error=st.none() | plain,
    error=st.none() | plain,
    error_code=st.none() | st.just("IO_ERROR"),
    started_at=st.none() | moments,
    finished_at=st.none() | moments,
    worker=st.none() | plain,
    metadata=metadata,
    flat=st.booleans(),
)


@given(results)
def test_a_result_written_and_read_again_is_the_same(result: TransferResult) -> None:
    """Claim: results make the round trip in both forms."""
    assert TransferResult.from_json(result.to_json()) == result
    assert ("task_id" in result.to_dict()) == result.flat
    assert "job_id" in result.to_dict(flat=False)
    assert result.succeeded == (result.status == "SUCCESS")


def test_a_result_that_is_none_is_refused() -> None:
    """Claim: a reader of results meets InvalidMessage, and ignores fields that later versions add."""
    with pytest.raises(InvalidMessage, match="status: is missing"):
        TransferResult.from_json(b'{"job_id": "x"}')
    assert TransferResult.from_json('{"job_id": "x", "status": "SUCCESS", "new": 1}').job_id == "x"


def _count_suggestions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by each word for which a similar one is looked up."""
    asked: list[str] = []
    look_up = difflib.get_close_matches
    monkeypatch.setattr(
        difflib, "get_close_matches", lambda word, *rest, **more: asked.append(word) or look_up(word, *rest, **more)
    )
    return asked


@pytest.mark.parametrize("place", ["message", "source", "destination", "options"])
def test_a_crowd_of_unknown_fields_is_refused_without_a_look_at_them(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claim: half a minute of suggestions would cost the polling thread its membership, again and again."""
    asked = _count_suggestions(monkeypatch)
    crowd = {f"e{number:06}sourc": 0 for number in range(90_000)}
    job = {**NESTED, **crowd} if place == "message" else {**NESTED, place: crowd}
    with pytest.raises(InvalidMessage, match=f"^{place}: has more than 100 fields$"):
        FileTransferJob.from_json(json.dumps(job))
    assert not asked


def test_suggestions_are_made_only_of_the_problems_that_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim: twenty in all, wherever they are; the rest is counted."""
    asked = _count_suggestions(monkeypatch)
    few = {f"sourc{number:02}": 0 for number in range(15)}
    job = {**NESTED, **few, "options": few, "source": {**NESTED["source"], **few}}
    with pytest.raises(InvalidMessage, match=r"and 25 more$") as caught:
        FileTransferJob.from_json(json.dumps(job))
    assert len(asked) == 20
    assert len(str(caught.value).split("; ")) == 21


def test_jobs_and_endpoints_are_made_by_programs_too() -> None:
    """A job made without an id gets one of its own; from a message it keeps none, as its record names it."""
    source, destination = Endpoint(hostname="A", path="/x"), Endpoint.from_dict({"hostname": "B", "path": "//y"})
    first, second = (FileTransferJob(source=source, destination=destination) for _ in range(2))
    assert first.job_id
    assert first.job_id != second.job_id
    assert first.destination == Endpoint(hostname="B", path="/y")
    assert FileTransferJob.from_json(first.to_json()) == first
    nameless = {"source": first.source.to_dict(), "destination": first.destination.to_dict()}
    assert FileTransferJob.from_dict(nameless).job_id is None
    assert FileTransferJob.from_dict(nameless | {"job_id": None}).job_id is None


@pytest.mark.parametrize("data", [{}, {"hostname": "A"}, {"hostname": "A", "path": "/x", "port": 1}, [], "A:/x", None])
def test_an_endpoint_that_is_none_is_named(data: object) -> None:
    """InvalidMessage and nothing else."""
    with pytest.raises(InvalidMessage):
        Endpoint.from_dict(data)  # type: ignore[arg-type]  # whatever it is


def test_a_checksum_file_replaces_neither_the_source_nor_is_replaced_by_it() -> None:
    """Where both sides are one server; without the option, a name is a name."""

    def job(source: str, **options: object) -> str:
        ends = {"source": {"hostname": "A", "path": source}, "destination": {"hostname": "a", "path": "/x"}}
        return json.dumps({**ends, "options": options})

    assert FileTransferJob.from_json(job("/x.None")).source.path == "/x.None"
    assert FileTransferJob.from_json(job("/y", write_checksum_file="md5", source_action={"move": "/z"}))
    with pytest.raises(InvalidMessage, match=r"options\.write_checksum_file: would replace the source"):
        FileTransferJob.from_json(job("/x.md5", write_checksum_file="md5"))
    with pytest.raises(InvalidMessage, match=r"options\.source_action: would replace the checksum file"):
        FileTransferJob.from_json(job("/y", write_checksum_file="md5", source_action={"move": "/x.md5"}))
