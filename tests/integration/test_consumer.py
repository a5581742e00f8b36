"""A consumer with a real broker and real FTP servers: what its options do, what becomes of bad messages."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata

import stack
from etl.broker import GroupConsumer, TransactionalProducer
from etl.broker.group import PARTITION_FETCH_BYTES
from etl.dispatch import overflow
from etl.models import header
from etl.models.wire import Partition
from servers.fake import SILENCE, FakeFTP, FakeSession
from workbench import Desk, folder, job, login, original

pytestmark = pytest.mark.integration

OLD, NEW = 1_700_000_000, 1_760_000_000


def utc(seconds_from_now: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds_from_now)).isoformat()


# --- options --------------------------------------------------------------------------------------------------


def test_a_file_of_every_kind_arrives(desk: Desk, places: Any) -> None:
    """Empty, large, of any name, into folders that are missing; between all kinds of servers; with its time."""
    contents = {
        "SRC:/in/empty": b"",
        "SRC:/in/한글 이름 #1 %41.tif": b"korean",
        "SRC:/in/-dash": b"dash",
        "SRC:/in/.hidden": b"hidden",
        "SRC:/in/large": b"0123456789abcdef" * 300_000,
        "HERE:/in/local": b"local",
    }
    for place, content in contents.items():
        places.put(place, content, OLD)
    others = ("DST", "HERE", "SRC")
    jobs = [job(place, f"{other}:/out/deep/er/{place.rpartition('/')[2]}") for place in contents for other in others]
    with desk.consuming(places.settings):
        results = desk.do(*jobs, limit=40)
        desk.wait(lambda: desk.lag() == 0, 10, "lag 0")
    for message, result in zip(jobs, results, strict=True):
        source, destination = (
            f"{end['hostname']}:{end['path']}" for end in (message["source"], message["destination"])
        )
        assert places.get(destination) == contents[source], destination
        assert (result["status"], result["bytes"]) == ("SUCCESS", len(contents[source]))
        assert result["verified_by"] == "size"
        assert int(places.path(destination).stat().st_mtime) == OLD, destination
    assert len(desk.results()) == len(jobs)
    assert desk.letters() == []
    assert not any("etl" in path for name in places.roots for path in places.files(name))


@pytest.mark.parametrize("overwrite", ["replace", "skip", "fail", "newer"])
def test_overwrite(overwrite: str, desk: Desk, places: Any) -> None:
    """Over nothing, an older file, a later one, and the very same."""
    found = {"nothing": None, "older": (b"old", OLD - 100), "later": (b"old", NEW), "same": (b"content", OLD)}
    jobs = []
    for name, there in found.items():
        places.put(f"SRC:/in/{name}", b"content", OLD)
        if there is not None:
            places.put(f"DST:/out/{name}", *there)
        jobs.append(job(f"SRC:/in/{name}", f"DST:/out/{name}", name, overwrite=overwrite))
    with desk.consuming(places.settings):
        results = dict(zip(found, desk.do(*jobs), strict=True))
    replaced = {"replace": set(found), "skip": {"nothing"}, "fail": {"nothing"}, "newer": {"nothing", "older"}}[
        overwrite
    ]
    for name, there in found.items():
        old = b"content" if there is None else there[0]
        assert places.get(f"DST:/out/{name}") == (b"content" if name in replaced else old)
    if overwrite == "fail":
        assert {name for name, result in results.items() if result["status"] == "FAILED"} == {"older", "later"}
        assert {letter.error_code for letter in desk.letters()} == {"ALREADY_EXISTS"}
        return
    skipped = {"replace": set(), "skip": {"older", "later"}, "newer": {"later"}}[overwrite]
    assert {name for name, result in results.items() if result["skipped"]} == skipped
    assert {result["status"] for result in results.values()} == {"SUCCESS"}


def test_source_actions(desk: Desk, places: Any) -> None:
    """Deleted or moved once the copy is in place; kept otherwise, and where nothing was copied."""
    for name in ("keep", "delete", "move", "skipped"):
        for place in ("SRC", "HERE"):
            places.put(f"{place}:/in/{name}")
    places.put("DST:/SRC/skipped", b"another file")
    places.put("DST:/HERE/skipped", b"another file")
    jobs = []
    for place in ("SRC", "HERE"):
        jobs += [
            job(f"{place}:/in/keep", f"DST:/{place}/keep", source_action="keep"),
            job(f"{place}:/in/delete", f"DST:/{place}/delete", source_action="delete"),
            job(f"{place}:/in/move", f"DST:/{place}/move", source_action={"move": "/done/today/moved"}),
            job(f"{place}:/in/skipped", f"DST:/{place}/skipped", source_action="delete", overwrite="skip"),
        ]
    with desk.consuming(places.settings):
        results = desk.do(*jobs)
        desk.wait(lambda: desk.lag() == 0, 10, "lag 0")
    assert [result["status"] for result in results] == ["SUCCESS"] * 8
    for place in ("SRC", "HERE"):
        assert places.files(place) == {"/in/keep", "/in/skipped", "/done/today/moved"}
        for name in ("keep", "delete", "move"):
            assert places.get(f"DST:/{place}/{name}") == b"content"
    assert len(desk.results()) == 8


def test_small_options(desk: Desk, places: Any) -> None:
    """preserve_mtime, verify, metadata and the flat form do what they say."""
    places.put("SRC:/in/a", b"content", OLD)
    flat = {
        "task_id": "flat-1",
        "src_id": "src",
        "src_path": "/in/a",
        "dst_id": "dst",
        "dst_path": "/flat",
        "metadata": {"n": [1, None]},
    }
    with desk.consuming(places.settings):
        unstamped, unverified, sized, proven, told = desk.do(
            job("SRC:/in/a", "DST:/unstamped", preserve_mtime=False),
            job("SRC:/in/a", "DST:/unverified", verify="none"),
            job("SRC:/in/a", "DST:/sized", verify="size"),
            job("SRC:/in/a", "DST:/proven", verify="checksum", write_checksum_file="sha256"),
            flat,
        )
    assert places.path("DST:/unstamped").stat().st_mtime > NEW
    assert (unstamped["verified_by"], unverified["verified_by"], sized["verified_by"]) == ("size", "none", "size")
    digest = hashlib.sha256(places.get("DST:/proven")).hexdigest()
    assert (proven["verified_by"], proven["checksum"]) == ("content", f"sha256:{digest}")
    assert places.get("DST:/proven.sha256") == f"{digest}  proven\n".encode()
    assert sized["checksum"].startswith("xxh3-128:")
    assert told["task_id"] == "flat-1"
    assert "job_id" not in told
    assert (told["dst_path"], told["metadata"]) == ("/flat", {"n": [1, None]})
    assert places.get("DST:/flat") == b"content"


def test_a_job_without_an_id_is_named_after_its_record(desk: Desk, places: Any) -> None:
    """Topic, partition, offset of its first delivery; the result is keyed by it."""
    places.put("SRC:/in/a")
    message = job("SRC:/in/a", "DST:/out/a")
    del message["job_id"]
    with desk.consuming(places.settings):
        ((partition, offset),) = desk.send(message)
        desk.outcome(f"{desk.topic}-{partition}-{offset}")
    assert desk.records[desk.results_topic][0].key == f"{desk.topic}-{partition}-{offset}".encode()


def test_priorities(make_desk: Callable[..., Desk], places: Any) -> None:
    """Within a queue high goes before normal before low, whatever their order in the topic."""
    desk = make_desk(partitions=1)
    order = ["low", "normal", "high"]
    jobs = []
    for number in range(30):
        places.put(f"SRC:/in/{number}", b"x" * 1000)
        rank = order[number % 3]
        jobs.append(job(f"SRC:/in/{number}", f"DST:/out/{number}", f"{rank}-{number}") | {"priority": rank})
    desk.send(*jobs)
    with desk.consuming(places.settings, {"ETL_WORKERS": "1"}):
        desk.wait(lambda: len(desk.results()) == 30, 20)
    in_order = sorted(desk.results(), key=lambda result: result["finished_at"])
    ranks = [["high", "normal", "low"].index(result["job_id"].split("-")[0]) for result in in_order]
    late = ranks[5:]  # the lane took its first jobs while the others were still being read
    assert late == sorted(late), ranks


# --- times ----------------------------------------------------------------------------------------------------


def test_a_time_limit_ends_each_attempt(desk: Desk, tmp_path: Path) -> None:
    """A server that falls silent: every attempt ends after `timeout_seconds`; all are listed in the dead letter."""
    with FakeFTP({"/a": b"x"}, {"RETR": SILENCE}) as silent:
        settings = login("SRC", silent) | folder("HERE", tmp_path / "here") | {"ETL_RETRY_MAX_ATTEMPTS": "2"}
        with desk.consuming(settings):
            (result,) = desk.do(job("SRC:/a", "HERE:/a", "slow", timeout_seconds=0.5))
            desk.wait(desk.letters)
    assert (result["status"], result["error_code"], result["attempts"]) == ("FAILED", "TRANSFER_TIMEOUT", 2)
    letter = desk.letter("slow")
    assert len(letter.attempts) == 2
    assert all(attempt.what.startswith("TRANSFER_TIMEOUT") for attempt in letter.attempts)
    assert list((tmp_path / "here").iterdir()) == []


def test_not_before_and_deadline(short_tiers: tuple[float, ...], desk: Desk, places: Any) -> None:
    """Early ones wait, in memory or set aside in T-retry; a passed deadline is a dead letter."""
    places.put("SRC:/in/a")
    with desk.consuming(places.settings):
        desk.do(job("SRC:/in/a", "DST:/warm"))
        deferred, soon = utc(5), utc(0.7)
        desk.send(
            job("SRC:/in/a", "DST:/deferred", "deferred", not_before=deferred),
            job("SRC:/in/a", "DST:/soon", "soon", not_before=soon),
            job("SRC:/in/a", "DST:/hour", "hour", not_before=utc(3700)),
            job("SRC:/in/a", "DST:/late", "late", deadline="2026-01-01T00:00:00Z"),
        )
        late = desk.outcome("late")
        results = {name: desk.outcome(name) for name in ("soon", "deferred")}
        desk.wait(lambda: len(desk.deferred()) >= 2, what="two set aside")
        assert places.get("DST:/hour") is None
    for name, wanted in (("deferred", deferred), ("soon", soon)):
        started = datetime.fromisoformat(results[name]["started_at"])
        assert timedelta(0) <= started - datetime.fromisoformat(wanted) < timedelta(seconds=5), name
    assert (late["error_code"], desk.letter("late").error_code) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    hour = next(record for record in desk.deferred() if dict(record.headers)["etl-job-id"] == b"hour")
    assert hour.partition == 3
    assert dict(hour.headers)["etl-origin"].startswith(desk.topic.encode())
    assert len(desk.results()) == 4


def test_an_hours_wait_delays_no_other(short_tiers: tuple[float, ...], desk: Desk, places: Any) -> None:
    """Each length of wait has partitions of its own: first in, first due."""
    places.put("SRC:/in/a")
    with desk.consuming(places.settings):
        for number in range(3):
            desk.send(job("SRC:/in/a", f"DST:/h{number}", f"hour-{number}", not_before=utc(3700)))
        desk.wait(lambda: len(desk.deferred()) == 3, what="three set aside")
        (quick,) = desk.do(job("SRC:/in/a", "DST:/quick", "quick", not_before=utc(5)), limit=15)
        assert quick["status"] == "SUCCESS"
    assert [record.partition for record in desk.deferred()[:3]] == [3, 3, 3]
    assert {record.partition for record in desk.deferred()[3:]} <= {0, 1}
    assert len(desk.deferred()) > 3


def test_what_other_groups_set_aside_is_left_to_them(desk: Desk, places: Any) -> None:
    """Records of T-retry carry their group; ours passes them by and is not behind because of them."""
    places.put("SRC:/in/a")
    headers = [("etl-group", b"others"), ("etl-job-id", b"theirs"), ("etl-origin", f"{desk.topic}-0-0".encode())]
    desk.send(job("SRC:/in/a", "DST:/theirs", "theirs"), topic=desk.retry, partition=0, headers=headers)
    own = [("etl-group", desk.group.encode()), *headers[1:], ("etl-not-before", utc(-1).encode())]
    desk.send(job("SRC:/in/a", "DST:/ours", "ours"), topic=desk.retry, partition=0, headers=own)
    with desk.consuming(places.settings):
        desk.outcome("ours")
        desk.wait(lambda: desk.lag() == 0, 10, "lag 0")
    assert places.get("DST:/theirs") is None
    assert [result["job_id"] for result in desk.results()] == ["ours"]


# --- messages that are no jobs --------------------------------------------------------------------------------

BAD: dict[str, tuple[bytes | None, str]] = {
    "nothing": (None, "message"),
    "empty": (b"", "message"),
    "no json": (b"{broken", "JSON"),
    "no text": (b"\xff\xfe\x00", "UTF-8"),
    "no object": (b"[1, 2]", "object"),
    "doubled": (b'{"source": 1, "source": 2}', "source"),
    "a typo": (json.dumps(job("SRC:/a", "DST:/b") | {"prioritty": "high"}).encode(), "did you mean priority"),
    "a typo within": (json.dumps(job("SRC:/a", "DST:/b", overwrites="skip")).encode(), "options.overwrites"),
    "no such value": (json.dumps(job("SRC:/a", "DST:/b", verify="always")).encode(), "options.verify"),
    "missing": (b'{"source": {"hostname": "SRC"}, "destination": {"hostname": "DST", "path": "/a"}}', "source.path"),
    "climbing": (json.dumps(job("SRC:/a/../../b", "DST:/b")).encode(), "source.path"),
    "injection": (json.dumps(job("SRC:/a\r\nDELE /b", "DST:/b")).encode(), "source.path"),
    "unknown server": (json.dumps(job("SRV:/a", "DST:/b", "unknown")).encode(), "SRV"),
    "deep": (b'{"metadata": ' + b"[" * 5000 + b"]" * 5000 + b"}", ""),
}


def test_bad_messages_are_dead_letters_and_hold_nobody_up(make_desk: Callable[..., Desk], places: Any) -> None:
    """One dead letter and one failed result each, the reason names the field, the bytes are recoverable."""
    desk = make_desk(partitions=1)
    places.put("SRC:/in/a")
    placed = desk.send(*(value for value, _ in BAD.values()))
    with desk.consuming(places.settings):
        desk.do(job("SRC:/in/a", "DST:/out/a", "good"))
        desk.wait(lambda: len(desk.results()) == len(BAD) + 1 and len(desk.letters()) == len(BAD))
        desk.wait(lambda: desk.lag() == 0, 10, "lag 0")
    letters = {letter.original_offset: letter for letter in desk.letters()}
    failed = {result["job_id"]: result for result in desk.results() if result["status"] == "FAILED"}
    for (name, (value, expected)), (_, offset) in zip(BAD.items(), placed, strict=True):
        letter = letters[offset]
        assert expected.lower() in letter.error.lower(), name
        assert letter.original_bytes() == (value or b""), name
        assert letter.error_code == ("INVALID_CONFIG" if name == "unknown server" else "INVALID_MESSAGE"), name
        assert failed[str(letter.job_id)]["error"] == letter.error, name
    assert len(failed) == len(BAD)


def test_a_message_larger_than_the_dead_letter_topic_takes(
    make_desk: Callable[..., Desk], places: Any, topic: str
) -> None:
    """Its short form tells where it was, what it was and its start; the partition goes on."""
    small = {"max.message.bytes": "20000"}
    desk = make_desk(partitions=1, configs={f"{topic}-dlq": small, f"{topic}-results": small})
    places.put("SRC:/in/a")
    noise = bytes(hashlib.sha256(b"%d" % number).digest()[0] for number in range(300_000))
    bad = b'{"broken": "' + noise.hex().encode()
    wordy = job("SRC:/in/a", "DST:/out/b", "wordy") | {"metadata": {"text": noise.hex()}}
    with desk.consuming(places.settings):
        ((_, offset),) = desk.send(bad)
        desk.do(wordy, job("SRC:/in/a", "DST:/out/a", "good"))
        desk.wait(desk.letters)
    (letter,) = desk.letters()
    assert letter.truncated
    assert (letter.original_topic, letter.original_offset) == (topic, offset)
    assert letter.original_sha256 == hashlib.sha256(bad).hexdigest()
    start = original(letter)
    assert start
    assert bad.startswith(start)
    assert [result["status"] for result in desk.results()] == ["FAILED", "SUCCESS", "SUCCESS"]
    assert desk.outcome("wordy")["metadata"] is None


# --- failures -------------------------------------------------------------------------------------------------


def test_what_is_missing_and_what_is_forbidden_are_told_apart(
    desk: Desk, places: Any, make_vsftpd: Callable[..., stack.Vsftpd]
) -> None:
    """FTP's 550 is both: the server is asked. A real vsftpd, which has no MLST."""
    strict = make_vsftpd(deny_file="{*.secret}")
    read_only = make_vsftpd(write_enable="NO")
    (strict.root / "in").mkdir()
    (strict.root / "in" / "a.secret").write_bytes(b"x")
    (strict.root / "in" / "a").write_bytes(b"x")
    settings = places.settings | login("STRICT", strict) | login("FIXED", read_only)
    jobs = {
        "FILE_NOT_FOUND": [job("STRICT:/in/none", "HERE:/1"), job("STRICT:/nowhere/at/all", "HERE:/2")],
        "PERMISSION_DENIED": [job("STRICT:/in/a.secret", "HERE:/3"), job("STRICT:/in/a", "FIXED:/4")],
        "IO_ERROR": [job("STRICT:/in", "HERE:/5")],
    }
    with desk.consuming(settings):
        for code, sent in jobs.items():
            for result in desk.do(*sent):
                assert (result["status"], result["error_code"]) == ("FAILED", code), result
        desk.wait(lambda: len(desk.letters()) == 5)
    missing, folder_missing = (desk.letter(sent["job_id"]).error for sent in jobs["FILE_NOT_FOUND"])
    assert "no such file" in missing
    assert "no such folder: /nowhere" in folder_missing
    for code, sent in ((code, sent) for code, group in jobs.items() for sent in group):
        # What is refused may be in use only: it is tried again.
        assert len(desk.letter(sent["job_id"]).attempts) == (3 if code == "PERMISSION_DENIED" else 1)


@pytest.mark.parametrize("options", [{}, {"overwrite": "fail"}])
def test_files_that_are_not_there_cost_no_login_each(
    options: dict[str, str], desk: Desk, places: Any, make_vsftpd: Callable[..., stack.Vsftpd]
) -> None:
    """Nor do those that are there already, or may not be written; at ten logins a minute it would take half an hour."""
    fixed = login("FIXED", make_vsftpd(write_enable="NO")) | {"FIXED_CONNECTS_PER_MINUTE": "10"}
    settings = fixed | {f"{name}_CONNECTS_PER_MINUTE": "10" for name in ("SRC", "DST", "HERE")}
    places.put("SRC:/in/there")
    places.put("DST:/out/other", b"another file")
    jobs = [job(f"SRC:/in/{number}", f"DST:/out/{number}", **options) for number in range(150)]
    jobs += [job(f"HERE:/in/{number}", f"DST:/out/{number}", **options) for number in range(150)]
    if options:
        jobs += [job("SRC:/in/there", "DST:/out/other", f"o{number}", **options) for number in range(50)]
    refused = [job("SRC:/in/there", f"FIXED:/out/{number}") for number in range(100)]
    with desk.consuming(places.settings, settings):
        results = desk.do(*jobs, limit=60)
        assert {result["error_code"] for result in desk.do(*refused, limit=60)} == {"PERMISSION_DENIED"}
        (good,) = desk.do(job("SRC:/in/there", "DST:/out/new"), limit=10)
    assert {result["error_code"] for result in results[:300]} == {"FILE_NOT_FOUND"}
    assert {result["error_code"] for result in results[300:]} <= {"ALREADY_EXISTS"}
    assert good["status"] == "SUCCESS"


def test_attempts_run_out_and_are_all_told(desk: Desk, tmp_path: Path) -> None:
    """What may pass is tried again; the dead letter lists when, where and what, once for each attempt."""
    moody = FakeFTP({"/a": b"x", "/b": b"y"}, {"RETR": "451 not now"})

    def once(session: FakeSession, argument: str) -> str:
        moody.answers.clear()
        return "451 not now"

    with moody, desk.consuming(login("SRC", moody), folder("HERE", tmp_path / "here")):
        (result,) = desk.do(job("SRC:/a", "HERE:/a", "never"))
        desk.wait(desk.letters)
        moody.answers["RETR"] = once
        (second,) = desk.do(job("SRC:/b", "HERE:/b", "twice"))
    assert (result["status"], result["attempts"]) == ("FAILED", 3)
    letter = desk.letter("never")
    assert (letter.retry_count, len(letter.attempts)) == (2, 3)
    assert all("451 not now" in attempt.what and attempt.at and attempt.where for attempt in letter.attempts)
    assert (second["status"], second["attempts"]) == ("SUCCESS", 2)


def test_an_outage_spends_no_attempt_and_drains_nothing(
    short_tiers: tuple[float, ...], desk: Desk, places: Any, make_ftpd: Callable[..., stack.Ftpd]
) -> None:
    """Jobs of a server that is down wait, in T-retry when it takes long; back up, all are done; others never wait."""
    down = make_ftpd()
    down.kill()
    for number in range(20):
        places.put(f"SRC:/in/{number}")
    settings = places.settings | login("DOWN", down)
    settings |= {"ETL_RETRY_BACKOFF_SECONDS": "7", "ETL_RETRY_BACKOFF_MAX_SECONDS": "7"}
    waiting = [job(f"SRC:/in/{number}", f"DOWN:/out/{number}", f"w{number}") for number in range(20)]
    with desk.consuming(settings):
        desk.send(*waiting)
        desk.do(*(job(f"SRC:/in/{number}", f"DST:/out/{number}") for number in range(20)), limit=10)
        desk.wait(lambda: len(desk.deferred()) >= 10, 15, "set aside")
        assert desk.letters() == []
        down.start()
        results = [desk.outcome(message["job_id"], 40) for message in waiting]
        desk.wait(lambda: desk.lag() == 0, 20, "lag 0")
    assert {result["status"] for result in results} == {"SUCCESS"}
    assert {result["attempts"] for result in results} == {1}
    assert len(desk.results()) == 40
    assert desk.letters() == []
    assert {path.name for path in (down.root / "out").iterdir()} == {str(number) for number in range(20)}


def test_a_share_that_is_gone_for_a_while_is_an_outage(desk: Desk, places: Any, tmp_path: Path) -> None:
    """Also in the middle of work: no attempt is spent on it, and nothing is written where it was mounted."""
    share = tmp_path / "share"
    share.mkdir()
    places.put("SRC:/in/a")
    settings = places.settings | folder("SHARE", share) | {"ETL_RETRY_BACKOFF_MAX_SECONDS": "2"}
    with desk.consuming(settings):
        desk.do(*(job("SRC:/in/a", f"SHARE:/{number}") for number in range(5)))
        share.rename(tmp_path / "away")
        jobs = [job("SRC:/in/a", f"SHARE:/{number}", f"a{number}") for number in range(5, 20)]
        jobs += [job(f"SHARE:/{number}", f"HERE:/{number}", f"b{number}") for number in range(5)]
        desk.send(*jobs)
        time.sleep(3.0)
        assert len(desk.results()) == 5
        assert not share.exists()
        (tmp_path / "away").rename(share)
        results = [desk.outcome(one["job_id"], 30) for one in jobs]
    assert {(result["status"], result["attempts"]) for result in results} == {("SUCCESS", 1)}


def test_a_server_that_is_back_gets_its_jobs_before_their_time(
    desk: Desk, places: Any, make_ftpd: Callable[..., stack.Ftpd]
) -> None:
    """Most of its jobs were deferred for a minute or more; none of these waits for that once it is up.

    Nor for jobs that must wait: some of these came first.
    """
    down = make_ftpd()
    down.kill()
    places.put("SRC:/in/one")
    later = [job("SRC:/in/one", f"DST:/later/{number}", not_before=utc(500)) for number in range(20)]
    settings = places.settings | login("DOWN", down) | {"ETL_RETRY_BACKOFF_MAX_SECONDS": "2"}
    count = 600
    with desk.consuming(settings):
        desk.send(*later, *(job("SRC:/in/one", f"DOWN:/out/{number}", f"w{number}") for number in range(count)))
        desk.wait(lambda: len(desk.deferred()) >= len(later) + count - overflow.DOWN_KEEPS, 40, "set aside")
        down.start()
        desk.wait(lambda: len(desk.results()) == count, 100, "all")
    assert {(result["status"], result["attempts"]) for result in desk.results()} == {("SUCCESS", 1)}
    due: dict[str, str] = {}
    for record in desk.deferred():  # the last one of a job counts
        headers = {name: value.decode() for name, value in record.headers}
        due[headers[header.JOB_ID]] = headers[header.NOT_BEFORE]
    early = [result for result in desk.results() if result["finished_at"] < due.get(result["job_id"], "")]
    assert len(early) >= count / 2
    assert len(list((down.root / "out").iterdir())) == count


def test_a_server_that_dies_in_the_middle_of_its_work_loses_nothing(
    short_tiers: tuple[float, ...], desk: Desk, places: Any, make_vsftpd: Callable[..., stack.Vsftpd]
) -> None:
    """Killed with all its sessions, twice, as source and destination of half of all jobs; the others go on."""
    dying = make_vsftpd(local_max_rate="1000000")
    numbers = range(200)
    contents = {f"{number}": random.Random(number).randbytes(50_000) for number in numbers}
    (dying.root / "in").mkdir(mode=0o777)
    for name, content in contents.items():
        places.put(f"SRC:/in/{name}", content)
        (dying.root / "in" / name).write_bytes(content)
    settings = places.settings | login("DYING", dying)
    settings |= {"ETL_RETRY_BACKOFF_MAX_SECONDS": "2", "ETL_RETRY_MAX_ATTEMPTS": "20"}

    def done(letter: str) -> int:
        return sum(result["job_id"][0] == letter for result in desk.results())

    with desk.consuming(settings):
        desk.send(*(job(f"SRC:/in/{name}", f"DYING:/out/{name}", f"d{name}") for name in contents))
        desk.send(*(job(f"DYING:/in/{name}", f"DST:/from/{name}", f"s{name}") for name in contents), partition=1)
        for least in (20, 60):
            desk.wait(lambda least=least: min(done("d"), done("s")) >= least, 60, "work begun")
            dying.kill()
            before = done("g")
            desk.send(*(job(f"SRC:/in/{name}", f"DST:/out/{least}/{name}", f"g{least}-{name}") for name in contents))
            desk.wait(lambda before=before: done("g") == before + 200, 30, "the others")
            dying.start()
        desk.wait(lambda: len(desk.results()) == 800, 90, "all")
        desk.wait(lambda: desk.lag() == 0, 20, "lag 0")
    assert {result["status"] for result in desk.results()} == {"SUCCESS"}
    assert desk.letters() == []
    others = [places.path(f"DST:/{name}") for name in ("from", "out/20", "out/60")]
    for folder_there in (dying.root / "out", *others):
        assert {path.name: path.read_bytes() for path in folder_there.iterdir()} == contents


def test_patience_with_an_outage_has_an_end(desk: Desk, places: Any) -> None:
    """ETL_OUTAGE_PATIENCE_HOURS; a refused login counts as an outage, too: the password may be on its way."""
    places.put("SRC:/in/a")
    wrong = {"SRC_PASS": "wrong-password", "ETL_OUTAGE_PATIENCE_HOURS": "0.0003"}
    with desk.consuming(places.settings, wrong):
        (result,) = desk.do(job("SRC:/in/a", "DST:/out/a", "locked"))
        desk.wait(desk.letters)
    assert (result["status"], result["error_code"]) == ("FAILED", "AUTHENTICATION_FAILED")
    assert "wrong-password" not in desk.letter("locked").to_json()
    assert "530" in desk.letter("locked").error
    assert "seconds for the server, longer than ETL_OUTAGE_PATIENCE_HOURS)" in desk.letter("locked").error


def test_a_slow_server_holds_up_no_other(make_desk: Callable[..., Desk], places: Any) -> None:
    """In the same partition, sent before: most of the slow ones still wait when the last fast one is done."""
    desk = make_desk(partitions=1)
    numbers = range(40)

    def crawl(session: FakeSession, argument: str) -> str:
        time.sleep(0.5)
        return session.retr(argument)

    with FakeFTP({f"/{number}": b"x" for number in numbers}, {"RETR": crawl}) as slow:
        for number in numbers:
            places.put(f"SRC:/in/{number}")
        desk.send(*(job(f"SLOW:/{number}", f"HERE:/s{number}", f"s{number}") for number in numbers))
        desk.send(*(job(f"SRC:/in/{number}", f"DST:/out/{number}", f"f{number}") for number in numbers))
        with desk.consuming(places.settings, login("SLOW", slow)):
            desk.wait(lambda: len(desk.results()) == 80, 60)
    finished = sorted(desk.results(), key=lambda result: result["finished_at"])
    last_fast = max(index for index, result in enumerate(finished) if result["job_id"].startswith("f"))
    slow_before = sum(result["job_id"].startswith("s") for result in finished[:last_fast])
    assert slow_before < 20, [result["job_id"] for result in finished]
    assert {result["status"] for result in finished} == {"SUCCESS"}


def test_a_stalled_server_that_was_alone_leaves_a_lane_to_others(make_desk: Callable[..., Desk], places: Any) -> None:
    """It holds as many lanes as there are by the settings, and answers nothing; what comes then runs all the same."""
    desk = make_desk(partitions=1)
    numbers = range(20)
    released = threading.Event()

    def stall(session: FakeSession, argument: str) -> str:
        released.wait(60)
        return session.retr(argument)

    with FakeFTP({f"/{number}": b"x" for number in numbers}, {"RETR": stall}) as stalled:
        for number in numbers:
            places.put(f"SRC:/in/{number}")
        with desk.consuming(places.settings, login("STALLED", stalled)):
            try:
                desk.send(*(job(f"STALLED:/{number}", f"HERE:/s{number}", f"s{number}") for number in numbers))
                desk.wait(lambda: any(line.startswith("RETR") for line in stalled.commands), 20)
                time.sleep(1.0)  # long enough for it to take every lane that it can get
                desk.send(*(job(f"SRC:/in/{number}", f"DST:/out/{number}", f"f{number}") for number in numbers))
                desk.wait(lambda: len(desk.results()) == 20, 30)
                assert {result["job_id"][0] for result in desk.results()} == {"f"}
            finally:
                released.set()
            desk.wait(lambda: len(desk.results()) == 40, 30)


def test_two_stalled_servers_each_alone_when_its_jobs_came_leave_lanes_to_a_third(
    make_desk: Callable[..., Desk], places: Any
) -> None:
    """Both had done well, took all lanes that they could get, and fell silent in mid transfer; so did nobody else."""
    desk = make_desk(partitions=1)
    numbers = range(30)
    released = threading.Event()
    silent = threading.Event()

    def stall(session: FakeSession, argument: str) -> str:
        if silent.is_set():
            released.wait(60)
        return session.retr(argument)

    files = {f"/{number}": b"x" for number in numbers}
    with FakeFTP(files, {"RETR": stall}) as one, FakeFTP(files, {"RETR": stall}) as two:
        for number in numbers:
            places.put(f"SRC:/in/{number}")
        with desk.consuming(places.settings, login("ONE", one), login("TWO", two)):
            try:
                for name in ("ONE", "TWO"):
                    silent.clear()
                    desk.do(*(job(f"{name}:/{number}", f"HERE:/{name}{number}") for number in range(10)))
                    silent.set()
                    desk.send(*(job(f"{name}:/{number}", f"HERE:/{name}{number}") for number in range(10, 30)))
                    time.sleep(4.0)  # long enough for it to take every lane that it can get
                done = len(desk.results())
                desk.send(*(job(f"SRC:/in/{number}", f"DST:/out/{number}", f"f{number}") for number in numbers))
                desk.wait(lambda: len(desk.results()) == done + 30, 15)
                assert {result["job_id"][0] for result in desk.results()[done:]} == {"f"}
            finally:
                released.set()
            desk.wait(lambda: len(desk.results()) == 90, 30)
    assert {result["status"] for result in desk.results()} == {"SUCCESS"}


@pytest.mark.timeout(300)
def test_a_long_transfer_and_a_single_slow_session_hold_up_nothing_else(
    make_desk: Callable[..., Desk], places: Any
) -> None:
    """In one partition: a transfer that lasts to the end, 5,000 jobs of a server with one session, others behind.

    Those go when all slow ones before them were read and set aside, not when these are done, in more than an hour.
    """
    desk = make_desk(partitions=1)
    ended = threading.Event()
    slow_jobs, limit = 5_000, 60.0

    def crawl(session: FakeSession, argument: str) -> str:
        time.sleep(1.0)
        return session.retr(argument)

    def last(session: FakeSession, argument: str) -> str:
        ended.wait(limit + 40)
        return session.retr(argument)

    slow_files = {f"/{number}": b"x" for number in range(slow_jobs)}
    with FakeFTP(slow_files, {"RETR": crawl}) as slow, FakeFTP({"/long": b"x"}, {"RETR": last}) as long:
        numbers = range(200)
        for number in numbers:
            places.put(f"SRC:/in/{number}")
        desk.send(job("LONG:/long", "DST:/out/long", "long"))
        desk.send(*(job(f"SLOW:/{number}", f"DST:/slow/{number}", f"s{number}") for number in range(slow_jobs)))
        desk.send(*(job(f"SRC:/in/{number}", f"DST:/out/{number}", f"f{number}") for number in numbers))
        settings = login("SLOW", slow, MAX_CONNECTIONS="1"), login("LONG", long), {"ETL_WINDOW_RECORDS": "20"}
        try:
            with desk.consuming(places.settings, *settings):
                desk.wait(lambda: sum(result["job_id"][0] == "f" for result in desk.results()) == 200, limit)
                done = [result["job_id"] for result in desk.results()]
                assert "long" not in done
                assert sum(name[0] == "s" for name in done) < limit + 20
                ended.set()
                desk.outcome("long")
                assert desk.letters() == []
        finally:
            ended.set()


def test_what_waits_for_a_slow_server_is_not_read_again_and_again(
    desk: Desk, places: Any, make_vsftpd: Callable[..., stack.Vsftpd]
) -> None:
    """As many jobs as it takes minutes to do, behind one session: it is never idle, and none of them is moved."""
    slow = make_vsftpd(local_max_rate="40000")
    places.put("SRC:/in/one", b"x" * 2000)
    settings = places.settings | login("SLOW", slow) | {"SLOW_MAX_CONNECTIONS": "1", "ETL_WINDOW_RECORDS": "200"}
    with desk.consuming(settings):
        desk.send(*(job("SRC:/in/one", f"SLOW:/out/{number}", f"w{number}") for number in range(2000)))
        desk.wait(lambda: len(desk.results()) >= 150, 90, "more than its share of the window")
    assert desk.deferred() == []
    assert {result["status"] for result in desk.results()} == {"SUCCESS"}


def test_jobs_larger_than_what_is_fetched_ahead_hold_up_nobody(make_desk: Callable[..., Desk], places: Any) -> None:
    """Messages of more than the limits of a fetch, in every partition, with small ones between them."""
    desk = make_desk(partitions=4)
    numbers = range(60)
    for number in numbers:
        places.put(f"SRC:/in/{number}")
    text = {"text": random.Random(1).randbytes(PARTITION_FETCH_BYTES).hex()}  # twice as long, and hardly compressible
    jobs = [job(f"SRC:/in/{number}", f"DST:/out/{number}") for number in numbers]
    with desk.consuming(places.settings):
        desk.do(*(one | {"metadata": text} if number % 3 == 0 else one for number, one in enumerate(jobs)))
    assert {result["status"] for result in desk.results()} == {"SUCCESS"}
    assert len(desk.results()) == len(numbers)


def test_jobs_of_one_destination_keep_their_order(make_desk: Callable[..., Desk], places: Any) -> None:
    """Within a partition the last one sent is what is there at the end."""
    desk = make_desk(partitions=1)
    for number in range(30):
        places.put(f"SRC:/in/{number}", b"%d" % number)
    with desk.consuming(places.settings):
        desk.do(*(job(f"SRC:/in/{number}", "DST:/out/same", f"n{number}") for number in range(30)))
    assert places.get("DST:/out/same") == b"29"
    assert [result["job_id"] for result in desk.results()] == [f"n{number}" for number in range(30)]


def test_crossing_jobs_with_one_session_each(desk: Desk, make_ftpd: Callable[..., stack.Ftpd]) -> None:
    """A to B, B to A, A to A, at once, with one connection per server on both ends: no deadlock, nothing lost."""
    servers = {name: make_ftpd(max_connections=1) for name in ("A", "B")}
    settings: dict[str, str] = {}
    jobs = []
    for name, server in servers.items():
        settings |= login(name, server, MAX_CONNECTIONS="1")
        (server.root / "in").mkdir()
        for number in range(10):
            (server.root / "in" / str(number)).write_bytes(f"{name}{number}".encode())
    for number in range(10):
        jobs += [
            job(f"A:/in/{number}", f"B:/ab/{number}"),
            job(f"B:/in/{number}", f"A:/ba/{number}"),
            job(f"A:/in/{number}", f"A:/aa/{number}"),
        ]
    with desk.consuming(settings):
        results = desk.do(*jobs, limit=40)
    assert {result["status"] for result in results} == {"SUCCESS"}
    assert {result["attempts"] for result in results} == {1}
    for number in range(10):
        assert (servers["B"].root / "ab" / str(number)).read_bytes() == f"A{number}".encode()
        assert (servers["A"].root / "ba" / str(number)).read_bytes() == f"B{number}".encode()
        assert (servers["A"].root / "aa" / str(number)).read_bytes() == f"A{number}".encode()


# --- settings -------------------------------------------------------------------------------------------------

PLUGIN = """
import shutil
from pathlib import Path
from etl.config import ProtocolSpec
from etl.transfer import BaseTransfer, TransferFactory


class Shelf(BaseTransfer):
    spec = ProtocolSpec(needs_host=False, needs_login=False, settings={"SHELF": "folder of the files"})

    def connect(self):
        self.root = Path(self.server.options["SHELF"])

    def disconnect(self):
        pass

    def download(self, remote_path, local_path):
        shutil.copyfile(self.root / remote_path.lstrip("/"), local_path)

    def upload(self, local_path, remote_path):
        target = self.root / remote_path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(local_path, target)


TransferFactory.register("shelf", Shelf)
"""


def test_a_protocol_of_ones_own(
    desk: Desk, places: Any, tmp_path: Path, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four methods in a module of ETL_PLUGINS; what it cannot do is said, not ignored."""
    module = f"plugin_{topic.replace('-', '_')}"
    (tmp_path / f"{module}.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    (shelf / "a").write_bytes(b"from the shelf")
    places.put("SRC:/in/a", b"to the shelf")
    settings = places.settings | {"ETL_PLUGINS": module, "OWN_TYPE": "shelf", "OWN_SHELF": str(shelf)}
    with desk.consuming(settings):
        there, back, missing, unable = desk.do(
            job("SRC:/in/a", "OWN:/deep/b"),
            job("OWN:/a", "DST:/out/a"),
            job("OWN:/none", "DST:/out/none"),
            job("OWN:/a", "DST:/out/moved", source_action="delete"),
        )
    assert (there["status"], back["status"]) == ("SUCCESS", "SUCCESS")
    assert (shelf / "deep" / "b").read_bytes() == b"to the shelf"
    assert places.get("DST:/out/a") == b"from the shelf"
    assert missing["error_code"] == "FILE_NOT_FOUND"
    assert (unable["status"], unable["error_code"]) == ("FAILED", "INVALID_CONFIG")
    assert (shelf / "a").exists()


def test_results_may_be_split(make_desk: Callable[..., Desk], places: Any, topic: str) -> None:
    """RESULT_TOPIC and FAIL_TOPIC, as FTP Pooler has them."""
    desk = make_desk(more_topics=(f"{topic}-good", f"{topic}-bad"))
    places.put("SRC:/in/a")
    with desk.consuming(places.settings, {"RESULT_TOPIC": f"{topic}-good", "FAIL_TOPIC": f"{topic}-bad"}):
        desk.send(job("SRC:/in/a", "DST:/out/a", "well"), job("SRC:/in/none", "DST:/out/b", "ill"), b"none")
        desk.wait(lambda: desk.results(f"{topic}-good") and len(desk.results(f"{topic}-bad")) == 2)
    assert [result["job_id"] for result in desk.results(f"{topic}-good")] == ["well"]
    assert {result["status"] for result in desk.results(f"{topic}-bad")} == {"FAILED"}
    assert desk.results() == []


def test_a_second_run_finds_nothing_to_do(desk: Desk, places: Any) -> None:
    """What was committed is not done again, also by another instance of the group."""
    places.put("SRC:/in/a")
    for name, other in (("first", "a"), ("second", "b")):
        with desk.consuming(places.settings):
            desk.do(job("SRC:/in/a", f"DST:/out/{other}", name), limit=10)
        places.path("DST:/out/a").unlink(missing_ok=True)
    assert places.get("DST:/out/a") is None
    assert [result["job_id"] for result in desk.results()] == ["first", "second"]


def test_a_named_instance_goes_on_at_once(desk: Desk, places: Any) -> None:
    """With ETL_INSTANCE_ID set its partitions wait for it, and are its own again without a rebalance."""
    places.put("SRC:/in/a")
    for name in ("first", "second"):
        with desk.consuming(places.settings, {"ETL_INSTANCE_ID": "one"}):
            desk.do(job("SRC:/in/a", f"DST:/out/{name}", name), limit=10)
    assert {result["worker"] for result in desk.results()} == {"one/100"}


def test_two_consumers_share_and_hand_over(make_desk: Callable[..., Desk], places: Any) -> None:
    """Partitions move while jobs run; each job has one result."""
    desk = make_desk(partitions=4)
    for number in range(60):
        places.put(f"SRC:/in/{number}", b"%d" % number)
    jobs = [job(f"SRC:/in/{number}", f"DST:/out/{number}", f"j{number}") for number in range(60)]

    def send(some: list[dict[str, Any]]) -> None:
        for number, message in enumerate(some):
            desk.send(message, partition=number % 4)

    with desk.consuming(places.settings):
        send(jobs[:20])
        with desk.consuming(places.settings):
            send(jobs[20:40])
            desk.wait(lambda: len(desk.results()) >= 40)
        send(jobs[40:])
        desk.wait(lambda: len(desk.results()) >= 60)
        desk.wait(lambda: desk.lag() == 0, 10, "lag 0")
    assert sorted(result["job_id"] for result in desk.results()) == sorted(message["job_id"] for message in jobs)
    assert {result["status"] for result in desk.results()} == {"SUCCESS"}


def test_a_successor_ends_its_predecessors_transaction_at_once(desk: Desk, places: Any) -> None:
    """Killed in the middle of a commit: who comes back in its slot does not wait until the broker gives up on it."""
    places.put("SRC:/in/a")
    partition = Partition(desk.topic, 0)
    dead = GroupConsumer(desk.bootstrap_servers, desk.group, [desk.topic], on_revoked=lambda _: None)
    producer = TransactionalProducer(
        desk.bootstrap_servers, f"etl-{desk.group}-{desk.topic}-{socket.gethostname()}-7", desk.group
    )
    stack.wait_until(lambda: dead.poll(0.05) or len(dead.new_partitions()) == 2, 20, "assignment")
    assert all(dead.take_over(one, lambda _: None) for one in dead.new_partitions())
    producer.open()
    producer: Any = producer._producer
    producer.begin_transaction()
    producer.send_offsets_to_transaction({TopicPartition(*partition): OffsetAndMetadata(0, "")}, dead.membership())
    producer.discard()
    dead.close()
    started = time.monotonic()
    with desk.consuming(places.settings, {"ETL_SLOT": "7"}):
        desk.send(job("SRC:/in/a", "DST:/0", "p0"), partition=0)
        desk.send(job("SRC:/in/a", "DST:/1", "p1"), partition=1)
        for name in ("p0", "p1"):
            assert desk.outcome(name)["status"] == "SUCCESS"
    assert time.monotonic() - started < 6
