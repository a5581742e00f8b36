"""SFTP's packets and the conversation: any split of bytes, any order of answers, anything that is no SFTP."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.errors import ConnectionLost, EtlError, IOFailure, TransferTimeout
from etl.models.task import Facts
from etl.transfer.sftp import packets
from etl.transfer.sftp.handles import Handles
from etl.transfer.sftp.packets import Answer, Attributes, MalformedError, Reader, string, times
from etl.transfer.sftp.wire import Wire
from etl.transfer.watch import Watch

pytestmark = pytest.mark.unit


class Script:
    """A channel that gives bytes in pieces of given sizes, then ends."""

    def __init__(self, incoming: bytes = b"", pieces: list[int] | None = None) -> None:
        self.incoming = bytearray(incoming)
        self.pieces = pieces or []
        self.sent: list[bytes] = []
        self.is_silent = False

    def send(self, parts, limit: float) -> None:
        self.sent.append(b"".join(bytes(part) for part in parts))

    def receive(self, place: memoryview, limit: float) -> int:
        if self.is_silent:
            raise TimeoutError
        count = min(len(place), self.pieces.pop(0) if self.pieces else len(place), len(self.incoming))
        place[:count] = self.incoming[:count]
        del self.incoming[:count]
        return count

    def has_input(self) -> bool:
        return bool(self.incoming)

    def why_ended(self) -> str:
        return "the script is over"


def packet(kind: int, number: int, body: bytes) -> bytes:
    return struct.pack(">IBI", 5 + len(body), kind, number) + body


def status(number: int, code: int = 0, text: bytes = b"said") -> bytes:
    return packet(packets.STATUS, number, struct.pack(">I", code) + string(text) + string(b""))


PIECES = st.lists(st.integers(1, 40), max_size=300)


@given(
    answers=st.lists(st.binary(max_size=300), min_size=1, max_size=8),
    order=st.randoms(),
    pieces=PIECES,
    placed=st.data(),
)
def test_each_answer_reaches_its_request_whatever_the_order_and_the_pieces(answers, order, pieces, placed) -> None:
    """DATA goes to its place where it fits, and is kept where it does not."""
    wire = Wire(channel := Script(pieces=pieces), "X", 5.0)
    asked = [wire.ask(packets.READ, b"x") for _ in answers]
    places = []
    for pending in asked:
        room = placed.draw(st.none() | st.integers(0, 400))
        pending.place = None if room is None else memoryview(bytearray(room))
        places.append(pending.place)
    numbered = [packet(packets.DATA, number + 1, string(content)) for number, content in enumerate(answers)]
    order.shuffle(numbered)
    channel.incoming += b"".join(numbered)
    for pending, content, place in zip(asked, answers, places, strict=True):
        answer = pending.result()
        if place is not None and len(content) <= len(place):
            assert answer.placed_bytes == len(content)
            assert place[: len(content)] == content
        else:
            assert answer.expect(packets.DATA).string() == content
        assert pending.result() is answer
    assert len(channel.sent) == 1  # all requests left in one write


@given(st.binary(max_size=200), PIECES)
def test_whatever_comes_there_is_an_answer_or_an_error(incoming: bytes, pieces: list[int]) -> None:
    """Nothing else is raised, and afterwards the conversation is over or in order."""
    wire = Wire(Script(incoming, pieces), "X", 5.0)
    pending = wire.ask(packets.STAT, string(b"/x"))
    with contextlib.suppress(EtlError):
        answer = pending.result()
        for read in ("code", "attributes", "handle", "text"):
            with contextlib.suppress(MalformedError):
                getattr(answer, read)
        return
    assert wire.lost is not None
    assert wire.lost.server == "X"
    with pytest.raises(EtlError):
        wire.ask(packets.STAT, b"")


@given(st.binary(max_size=100))
def test_a_greeting_is_read_or_refused(incoming: bytes) -> None:
    """Text of a shell, most of all."""
    try:
        extensions = Wire(Script(incoming), "X", 5.0).greet(1.0)
    except (MalformedError, OSError):
        return
    assert all(isinstance(name, bytes) for name in extensions)


@given(st.dictionaries(st.binary(max_size=20), st.binary(max_size=20), max_size=5), PIECES)
def test_extensions_are_read_from_the_greeting(extensions: dict[bytes, bytes], pieces: list[int]) -> None:
    """Ours has the version alone."""
    body = struct.pack(">BI", packets.VERSION_ANSWER, 3)
    body += b"".join(string(name) + string(value) for name, value in extensions.items())
    wire = Wire(channel := Script(struct.pack(">I", len(body)) + body, pieces), "X", 5.0)
    assert wire.greet(1.0) == extensions
    assert channel.sent == [struct.pack(">IBI", 5, packets.INIT, 3)]


def test_a_greeting_that_is_text_is_shown() -> None:
    """The user recognises it."""
    with pytest.raises(MalformedError, match="Welcome, stranger"):
        Wire(Script(b"Welcome, stranger\n"), "X", 5.0).greet(1.0)


def test_a_promise_is_told_when_its_answer_comes() -> None:
    """Also when that is none any more."""
    wire = Wire(channel := Script(status(1)), "X", 5.0)
    first, second = wire.ask(packets.CLOSE, b""), wire.ask(packets.CLOSE, b"")
    told: list[str] = []
    first.then(lambda: told.append("first"))
    second.then(lambda: told.append("second"))
    first.result()
    assert told == ["first"]
    wire.abandon(ConnectionLost("X: closed"))
    assert told == ["first", "second"]
    first.then(lambda: told.append("again"))
    assert told[-1] == "again"
    with pytest.raises(ConnectionLost):
        second.result()
    assert channel.sent


def test_silence_passes_the_limit_of_a_reply_or_of_a_watch() -> None:
    """Each named in its error."""
    for watch, named in ((None, "ETL_REPLY_TIMEOUT_SECONDS"), (Watch(0.0, 0.0), "ETL_STALL_TIMEOUT_SECONDS")):
        wire = Wire(channel := Script(), "X", 5.0)
        channel.is_silent = True
        with pytest.raises(TransferTimeout, match=named):
            wire.ask(packets.STAT, b"").result(watch)


def test_an_answer_to_nothing_ends_the_conversation() -> None:
    """Nobody knows what else is wrong."""
    wire = Wire(Script(status(99)), "X", 5.0)
    with pytest.raises(IOFailure, match="not asked"):
        wire.ask(packets.STAT, b"").result()


@pytest.mark.parametrize("size", [None, 0, 5, 1 << 40])
@pytest.mark.parametrize("mode", [None, 0, 0o100644, 0o40755, 0o120777])
@pytest.mark.parametrize("timed", [False, True])
def test_attributes_are_read_whichever_are_there(size: int | None, mode: int | None, timed: bool) -> None:
    """Owners and extended ones are passed over."""
    flags = 2 | 1 << 31 | (size is not None) | (4 if mode is not None else 0) | (8 if timed else 0)
    body = struct.pack(">I", flags)
    body += b"" if size is None else struct.pack(">Q", size)
    body += bytes(8)
    body += b"" if mode is None else struct.pack(">I", mode)
    body += struct.pack(">II", 1, 1_600_000_000) if timed else b""
    body += struct.pack(">I", 1) + string(b"name") + string(b"value")
    reader = Reader(body + b"rest")
    found = reader.attributes()
    assert found.facts == Facts(size, 1_600_000_000.0 if timed else None)
    assert found.is_file == (mode in {None, 0, 0o100644})
    assert found.is_folder == (mode == 0o40755)
    assert reader._at == len(body)


def test_times_that_do_not_fit_are_left_out() -> None:
    """Before 1970, and after 2106."""
    assert times(-1.0) is times(1e300) is times(float(1 << 32)) is None
    assert Reader(times(1.9)).attributes() == Attributes(None, None, 1.0)


def test_a_status_without_text_is_none_the_less_one() -> None:
    """Early servers send the code alone."""
    answer = Answer(packets.STATUS, struct.pack(">I", 4))
    assert answer.text == "no reason given (status 4)"
    assert not answer.is_success


# --- handles ------------------------------------------------------------------------------------------------------


def handle(number: int, content: bytes) -> bytes:
    return packet(packets.HANDLE, number, string(content))


def opened(handles: Handles, channel: Script, number: int, given: bytes) -> None:
    """Open a file and close it, in two requests from `number` on."""
    channel.incoming += handle(number, given) + status(number + 1)
    pending = handles.open(string(b"x"), 1)
    assert handles.opened(pending.result()) == given
    handles.close(given)


def test_a_handle_is_foreseen_once_it_was_given_twice() -> None:
    """While no file is open, or being closed."""
    handles = Handles(Wire(channel := Script(), "X", 5.0), 16)
    assert handles.foreseen() is None
    opened(handles, channel, 1, b"0")
    assert handles.foreseen() is None
    opened(handles, channel, 3, b"0")
    assert handles.foreseen() == b"0"
    channel.incoming += handle(5, b"0")
    handles.opened(handles.open(string(b"y"), 1).result())
    assert handles.foreseen() is None


def test_nothing_is_foreseen_after_a_mistake_or_one_file_at_a_time() -> None:
    """Another handle than the one that was used: that server is asked step by step from then on."""
    wire = Wire(channel := Script(), "X", 5.0)
    handles = Handles(wire, 16)
    opened(handles, channel, 1, b"0")
    opened(handles, channel, 3, b"0")
    assert handles.foreseen() == b"0"
    channel.incoming += handle(5, b"7") + status(6)
    assert handles.opened(handles.open(string(b"x"), 1).result(), but_closed=b"0") == b"7"
    assert handles.foreseen() is None
    wire.push()
    assert channel.sent[-1].endswith(string(b"7"))  # the one that was given is closed
    careful = Handles(Wire(channel := Script(), "X", 5.0), 1)
    opened(careful, channel, 1, b"0")
    opened(careful, channel, 3, b"0")
    assert careful.foreseen() is None


def test_one_file_at_a_time_waits_for_each_close() -> None:
    """Before the next OPEN leaves."""
    handles = Handles(Wire(channel := Script(), "X", 5.0), 1)
    channel.incoming += handle(1, b"0")
    handles.close(handles.opened(handles.open(string(b"x"), 1).result()))
    channel.incoming += status(2)
    handles.open(string(b"y"), 1)
    assert not channel.incoming
