"""The bandwidth limit: what may pass when, by an injected clock; and sessions that keep to it, on real folders."""

import io
import threading
from pathlib import Path

import pytest

from etl.config import ServerConfig
from etl.errors import ConnectionLost
from etl.models.task import Facts
from etl.models.timetable import Timetable
from etl.transfer.bandwidth import Bandwidth, Bucket, Limited, Sharing
from etl.transfer.base import Session
from etl.transfer.local import LocalTransfer
from etl.transfer.resumable import Resumable
from etl.transfer.streaming import FileParcel, MemoryParcel

pytestmark = pytest.mark.unit

RATE = 1_000_000


class Now:
    """A clock that stands still."""

    at = 100.0

    def __call__(self) -> float:
        return self.at


def limit(text: str = "1M", processes: int = 1, minute: int = 0) -> Bandwidth:
    sharing = Sharing()
    sharing.processes = processes
    bandwidth = Bandwidth(sharing, lambda: minute)
    bandwidth.register(Timetable.parse(text))
    return bandwidth


def session(root: Path, bandwidth: Bandwidth) -> Session:
    return bandwidth.limited(LocalTransfer(ServerConfig("HERE", "local", base_path=str(root))))


def buffer() -> memoryview:
    return memoryview(bytearray(1 << 20))


# --- the bucket -----------------------------------------------------------------------------------------------


def test_whoever_takes_more_than_a_burst_waits_as_long_as_the_limit_says() -> None:
    now = Now()
    bucket = Bucket(lambda: RATE, now)
    assert bucket.take(RATE // 8) == pytest.approx(0.125)
    assert bucket.take(RATE // 8) == pytest.approx(0.25), "in the order of asking"
    now.at += 0.5  # a quarter of a second beyond that is saved
    assert bucket.take(RATE // 4) == 0.0
    assert bucket.take(RATE) == pytest.approx(1.0)


def test_a_long_pause_saves_no_more_than_a_burst() -> None:
    now = Now()
    bucket = Bucket(lambda: RATE, now)
    now.at += 3600
    assert bucket.take(RATE) == pytest.approx(0.75)


def test_what_did_not_come_is_given_back() -> None:
    bucket = Bucket(lambda: RATE, Now())
    bucket.take(RATE)
    bucket.give_back(RATE // 2)
    assert bucket.take(0) == pytest.approx(0.5)


def test_without_a_limit_nobody_waits() -> None:
    bucket = Bucket(lambda: None)
    assert (bucket.take(10**12), bucket.burst_bytes, bucket.block_bytes) == (0.0, None, None)


# --- which limit counts ---------------------------------------------------------------------------------------


def test_the_limit_is_divided_among_the_processes_and_the_smallest_of_all_names_counts() -> None:
    bandwidth = limit("08:00-18:00 4M, 10M", processes=2, minute=600)
    assert bandwidth.bytes_per_second() == 2_000_000
    bandwidth.register(Timetable.parse("3M"))
    bandwidth.register(None)
    assert bandwidth.bytes_per_second() == 1_500_000


def test_a_session_without_a_limit_is_left_as_it_is(tmp_path: Path) -> None:
    plain = LocalTransfer(ServerConfig("HERE", "local", base_path=str(tmp_path)))
    assert Bandwidth(Sharing()).limited(plain) is plain


# --- sessions -------------------------------------------------------------------------------------------------


class Passing(Now):
    """A clock that goes on only by the waits of sessions, in place of the event that ends them."""

    def wait(self, seconds: float) -> bool:
        self.at += seconds
        return False


def in_no_time(one: Session, bandwidth: Bandwidth) -> Passing:
    """Have a session wait without waiting; return the clock that tells how long it would have taken."""
    now = Passing()
    one._cut = now  # type: ignore[attr-defined]
    bandwidth.inward, bandwidth.outward = (Bucket(bandwidth.bytes_per_second, now) for _ in range(2))
    return now


def test_reading_and_writing_keep_to_the_limit_in_each_direction(tmp_path: Path) -> None:
    """2 MB each way take two seconds, not one and not four."""
    content = bytes(range(256)) * 2000
    bandwidth = limit("1M")
    one = session(tmp_path, bandwidth)
    now = in_no_time(one, bandwidth)
    for number in range(4):
        (tmp_path / f"in{number}").write_bytes(content)
        parcel = one.read(f"/in{number}")
        one.write(f"/out{number}", parcel, buffer())
        assert one.confirm(parcel).result()
        assert (tmp_path / f"out{number}").read_bytes() == content
    assert now.at - Now.at == pytest.approx(2.048, abs=0.25)


def test_a_small_file_is_taken_whole_a_larger_one_than_a_burst_is_streamed(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"s" * 1000)
    (tmp_path / "large").write_bytes(b"l" * 260_000)
    one = session(tmp_path, limit("1M"))
    small, large = one.read("/small"), one.read("/large")
    assert small.load(1 << 20)
    assert bytes(small.held or b"") == b"s" * 1000
    assert not large.load(1 << 20)
    assert large.readinto(buffer()) == 125_000, "an eighth of a second"
    for parcel in (small, large):
        parcel.close(complete=False)


def test_a_file_in_memory_that_is_larger_than_a_burst_of_the_destination_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "held"
    path.write_bytes(b"x" * 400_000)
    parcel = FileParcel(str(path))
    assert parcel.load(1 << 20)
    bandwidth = limit("1M")
    one = session(tmp_path, bandwidth)
    now = in_no_time(one, bandwidth)
    one.write("/out", parcel, buffer())
    assert now.at - Now.at == pytest.approx(0.4, abs=0.15)  # with a block to find the end
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


def test_an_abort_ends_the_wait(tmp_path: Path) -> None:
    one = session(tmp_path, limit("1K"))
    assert isinstance(one, Limited)
    cutter = threading.Timer(0.2, one.abort)
    cutter.start()  # the file would take a hundred seconds
    with pytest.raises(ConnectionLost, match="HERE: the session was aborted"):
        one.write("/out", MemoryParcel("", Facts(100_000, None), io.BytesIO(b"x" * 100_000)), buffer())
    cutter.join()


def test_what_moves_no_file_is_passed_on(tmp_path: Path) -> None:
    with session(tmp_path, limit("1M")) as one:
        assert one.server.hostname == "HERE"
        assert one.look("/nothing") is None
        assert one.names("/") == []
        one.adopt(ServerConfig("OTHER", "local", base_path=str(tmp_path)))
        assert one.server.hostname == "OTHER"
        assert not one.is_over


def test_a_file_that_is_gone_on_with_keeps_to_the_limit(tmp_path: Path) -> None:
    """In both directions; and a session with a limit can go on with files if the session itself can."""
    content = bytes(range(256)) * 2000
    (tmp_path / "in").write_bytes(content)
    (tmp_path / "part").write_bytes(content[:100_000])
    bandwidth = limit("1M")
    one = session(tmp_path, bandwidth)
    now = in_no_time(one, bandwidth)
    assert isinstance(one, Resumable)
    parcel = one.read_on("/in", 100_000)
    assert parcel is not None
    one.write_on("/part", parcel, buffer(), 100_000)
    assert now.at - Now.at == pytest.approx(0.412, abs=0.25)
    assert one.confirm(parcel).result()
    assert (tmp_path / "part").read_bytes() == content
