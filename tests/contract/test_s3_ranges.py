"""A large object that several connections read side by side: right to the byte, and of one version."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from contract_parts import LONG, content_of, drain, s3_config

from etl.config import TransferSettings
from etl.errors import ConnectionLost, EtlError, ServerBusy, ServerUnavailable, SessionFault, SourceChanged
from etl.models.timetable import Timetable
from etl.transfer import S3Transfer
from etl.transfer.bandwidth import Bandwidth, Sharing
from etl.transfer.s3 import known, ranges
from etl.transfer.s3.link import Link
from servers.certificates import Authority
from servers.s3 import FakeStore

pytestmark = pytest.mark.contract

KIB = 1 << 10
SIZE, FROM, BEGINNING, PIECE = 900_001, 400_000, 200_000, 32 * KIB


@pytest.fixture(params=[PIECE // 4, PIECE])
def room(request: pytest.FixtureRequest) -> int:
    """For a part of each piece, and for whole ones."""
    return int(request.param)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, room: int) -> Iterator[None]:
    """Have less than a megabyte count as large; no memory is ever lost."""
    memory = ranges._Memory()
    monkeypatch.setattr(ranges, "_MEMORY", memory)
    monkeypatch.setattr(ranges, "FROM_BYTES", FROM)
    monkeypatch.setattr(ranges, "BEGINNING_BYTES", BEGINNING)
    monkeypatch.setattr(ranges, "PIECE_BYTES", PIECE)
    monkeypatch.setattr(ranges, "ROOM_BYTES", room)
    yield
    assert memory._taken == 0


@pytest.fixture
def buffer() -> memoryview:
    """A buffer of which several are needed before the pieces begin."""
    return memoryview(bytearray(60 * KIB))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., tuple[FakeStore, S3Transfer, bytes]]]:
    """Start a store with one large object `x`, and a session with it, which has six more connections."""
    stores: list[FakeStore] = []
    sessions: list[S3Transfer] = []

    def start(options: dict[str, str] | None = None, **behaviour: Any) -> tuple[FakeStore, S3Transfer, bytes]:
        stores.append(FakeStore(tmp_path / f"store{len(stores)}", **behaviour))
        content = os.urandom(SIZE)
        stores[-1].keep("x", content, {})
        sessions.append(S3Transfer(s3_config(stores[-1], **{"READ_STREAMS": "6", **(options or {})}), LONG))
        sessions[-1].connect()
        return stores[-1], sessions[-1], content

    yield start
    known.forget()
    for session in sessions:
        session.disconnect()
    for store in stores:
        store.close()


@pytest.fixture
def siblings(monkeypatch: pytest.MonkeyPatch) -> list[Link]:
    """The links that had one more beside them, one for each further connection."""
    made: list[Link] = []
    sibling = Link.sibling
    monkeypatch.setattr(Link, "sibling", lambda link: made.append(link) or sibling(link))
    return made


@contextmanager
def beside(session: S3Transfer, buffer: memoryview) -> Iterator[tuple[Any, S3Transfer]]:
    """Have the session read an object, and another one connected; that one ends with the block."""
    first = session.read("/x")
    first.readinto(buffer)
    other = S3Transfer(session.server, LONG)
    other.connect()
    try:
        yield first, other
    finally:
        first.close(complete=False)
        other.disconnect()


def pieces(store: FakeStore) -> int:
    """Return how many pieces were asked for."""
    return sum("range" in head for head in store.heads)


@pytest.mark.parametrize("streams", ["2", "3", "8"])
@pytest.mark.parametrize("size_bytes", [1000, 60 * KIB, 1 << 20])
def test_all_pieces_come_in_their_order(make, streams: str, size_bytes: int) -> None:
    """Whatever is taken at once; the session goes on afterwards."""
    store, session, content = make({"READ_STREAMS": streams})
    assert content_of(session, "/x", memoryview(bytearray(size_bytes))) == content
    assert pieces(store) == -(-(SIZE - BEGINNING) // PIECE) or size_bytes > BEGINNING
    assert session.look("/x").size_bytes == SIZE
    assert content_of(session, "/x", memoryview(bytearray(size_bytes))) == content


def test_pieces_come_encrypted(make, authority: Authority, buffer: memoryview) -> None:
    """Each connection is checked as the first one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.sign("store", "127.0.0.1").pem)
    store, session, content = make({"TLS_CA_FILE": str(authority.ca)}, tls=context)
    assert content_of(session, "/x", buffer) == content
    assert pieces(store) > 10


def test_an_object_whose_pieces_are_refused_is_read_by_one_connection(make, buffer: memoryview) -> None:
    """The one that is there goes on, and nobody is told."""
    store, session, content = make(faults={"GET": ["", *["slow_down"] * 6]})
    assert content_of(session, "/x", buffer) == content
    assert store.requests.count("GET") <= 1 + 6


def test_a_store_that_answers_no_further_connection_costs_no_attempt(make, buffer: memoryview) -> None:
    """The first connection goes on, and the next object does not wait again."""
    store, session, content = make(faults={"GET": ["", *["hang"] * 6]})
    session.settings = session._link.settings = TransferSettings(stall_timeout=0.5)
    assert content_of(session, "/x", buffer) == content
    store.requests.clear()
    assert content_of(session, "/x", buffer) == content
    assert store.requests == ["GET"]


def test_a_store_that_takes_no_further_connection_is_remembered(make, buffer: memoryview, monkeypatch) -> None:
    """The next object does not try again."""
    _store, session, content = make()
    tried = []

    def refuse(link: Link) -> Link:
        tried.append(link)
        raise ServerUnavailable("no more connections")

    monkeypatch.setattr(
        Link, "sibling", lambda link: type("Refusing", (), {"connect": refuse, "close": lambda _: None})()
    )
    for _ in range(2):
        assert content_of(session, "/x", buffer) == content
    assert len(tried) == 1


def test_more_streams_than_memory_suffices_for_are_as_many_as_it_does(make, buffer, room: int, monkeypatch) -> None:
    """Not one alone."""
    monkeypatch.setattr(ranges, "MEMORY_BYTES", 12 * room)
    store, session, content = make({"READ_STREAMS": "16"})
    assert content_of(session, "/x", buffer) == content
    assert pieces(store) > 10


def test_a_large_buffer_connects_as_many(make, siblings) -> None:
    """As a small one."""
    _store, session, content = make()
    parcel = session.read("/x")
    assert drain(parcel, memoryview(bytearray(SIZE))) == content
    parcel.close(complete=True)
    assert len(siblings) == 6


def test_a_store_that_ignores_ranges_sends_the_whole(make, buffer: memoryview) -> None:
    """By the connection that was asked first."""
    store, session, content = make(sends_ranges=False)
    assert content_of(session, "/x", buffer) == content
    assert store.requests.count("GET") <= 1 + 6


def among_pieces(session: S3Transfer, buffer: memoryview) -> tuple[Any, bytes]:
    """Begin to read an object, as far as its first pieces; the last ones were not asked for yet."""
    parcel, came = session.read("/x"), b""
    while len(came) <= BEGINNING:
        came += buffer[: parcel.readinto(buffer)]
    return parcel, came


@pytest.mark.parametrize("keeps", [True, False])
def test_two_versions_are_never_mixed(make, buffer: memoryview, keeps: bool) -> None:
    """The store says so where it keeps to the condition; else the tags do."""
    store, session, content = make(keeps_read_conditions=keeps)
    parcel, came = among_pieces(session, buffer)
    store.keep("x", os.urandom(SIZE), {})
    with pytest.raises(SourceChanged):
        drain(parcel, buffer)
    parcel.close(complete=False)
    assert content.startswith(came)


def aged(store: FakeStore, seconds: float) -> None:
    """Have the object be as old as that."""
    then = time.time() - seconds
    os.utime(store.place("x"), (then, then))


def test_an_object_without_a_tag_is_known_by_its_time(make, buffer: memoryview) -> None:
    """As gateways have them, of files that were laid into their folder."""
    store, session, content = make(tags_objects=False)
    aged(store, 60)
    assert content_of(session, "/x", buffer) == content
    assert pieces(store) > 10


def test_an_object_without_a_tag_that_was_stored_just_now_is_read_by_one_connection(make, buffer: memoryview) -> None:
    """It may be replaced within the same second, and nobody could tell."""
    store, session, content = make(tags_objects=False)
    aged(store, 0)
    assert content_of(session, "/x", buffer) == content
    assert pieces(store) == 0


@pytest.mark.parametrize(("size_bytes", "seconds"), [(SIZE, 30), (SIZE + 1, 60)])
def test_two_versions_without_a_tag_are_never_mixed(make, buffer: memoryview, size_bytes: int, seconds: float) -> None:
    """Another time shows it; another size does, too."""
    store, session, content = make(tags_objects=False)
    aged(store, 60)
    stamp = store.place("x").stat().st_mtime
    parcel, came = among_pieces(session, buffer)
    store.keep("x", os.urandom(size_bytes), {})
    os.utime(store.place("x"), (stamp + 60 - seconds,) * 2)
    with pytest.raises(SourceChanged):
        drain(parcel, buffer)
    parcel.close(complete=False)
    assert content.startswith(came)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [("half", ConnectionLost), ("slow_down", ServerBusy), ("cut", EtlError), ("expired", SessionFault)],
)
def test_a_piece_that_fails_ends_the_reading(make, buffer: memoryview, fault: str, kind: type[EtlError]) -> None:
    """With the store's error; the next attempt is right."""
    _store, session, content = make(faults={"GET": [*[""] * 9, fault]})
    parcel = session.read("/x")
    with pytest.raises(kind):
        drain(parcel, buffer)
    parcel.close(complete=False)
    assert content_of(session, "/x", buffer) == content


def test_without_memory_one_connection_reads(make, buffer: memoryview, room: int, siblings, monkeypatch) -> None:
    """All lanes share it; what one gives back another has."""
    monkeypatch.setattr(ranges, "MEMORY_BYTES", 6 * room)
    _store, session, content = make()
    with beside(session, buffer) as (first, other):
        siblings.clear()
        assert content_of(other, "/x", buffer) == content
        assert not siblings
        first.close(complete=False)
        assert content_of(other, "/x", buffer) == content
        assert len(siblings) == 6


def test_what_is_left_of_the_memory_is_shared(make, buffer: memoryview, room: int, siblings, monkeypatch) -> None:
    """One object has as many connections as it may, the next one those that are left."""
    monkeypatch.setattr(ranges, "MEMORY_BYTES", 8 * room)
    _store, session, content = make()
    with beside(session, buffer) as (_first, other):
        siblings.clear()
        assert content_of(other, "/x", buffer) == content
        assert len(siblings) == 2


def test_one_stream_is_one(make, buffer: memoryview) -> None:
    """As it is set."""
    store, session, content = make({"READ_STREAMS": "1"})
    assert content_of(session, "/x", buffer) == content
    assert pieces(store) == 0


def test_what_is_paid_for_is_not_read_ahead(make, buffer: memoryview) -> None:
    """A session with a limit has one connection for an object."""
    store, session, content = make()
    bandwidth = Bandwidth(Sharing())
    bandwidth.register(Timetable.parse("500M"))
    assert content_of(bandwidth.limited(session), "/x", buffer) == content
    assert pieces(store) == 0


def test_nothing_is_left_of_a_reading_that_is_given_up(make, buffer: memoryview) -> None:
    """In the middle of the pieces, and while they are asked for; an abort ends the waiting."""
    _store, session, _content = make()
    for taken in (50_000, 400_000):
        parcel = session.read("/x")
        came = 0
        while came < taken:
            came += parcel.readinto(buffer[:50_000])
        parcel.close(complete=False)
    parcel = session.read("/x")
    parcel.readinto(buffer)
    session.abort()
    with pytest.raises(EtlError):
        drain(parcel, buffer)
    parcel.close(complete=False)
