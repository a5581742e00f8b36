"""Replies: whatever a server sends, and however it is cut, the parser gives whole replies or says that it is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.transfer.ftp.replies import (
    LINE_LIMIT_BYTES,
    LINE_LIMIT_COUNT,
    REPLY_LIMIT_BYTES,
    GarbledReplyError,
    Reply,
    ReplyParser,
)

pytestmark = pytest.mark.unit

CODES = st.integers(100, 599)
TEXTS = st.binary(max_size=40).map(lambda text: text.replace(b"\n", b"").rstrip(b"\r"))


@st.composite
def replies(draw: st.DrawFn) -> Reply:
    """Make a reply as RFC 959 section 4.2 allows: one line, or many with nearly anything inside."""
    code = draw(CODES)
    mark = str(code).encode()
    if draw(st.booleans()):
        return Reply(code, (mark + b" " + draw(TEXTS),))
    inner = [line for line in draw(st.lists(TEXTS, max_size=5)) if line[:3] != mark]
    return Reply(code, (mark + b"-" + draw(TEXTS), *inner, mark + b" " + draw(TEXTS)))


def wire(reply: Reply, end: bytes = b"\r\n") -> bytes:
    """Write a reply as it travels."""
    return b"".join(line + end for line in reply.lines)


def parse(data: bytes, cuts: list[int]) -> list[Reply]:
    """Feed data in pieces; return the replies."""
    parser, found, start = ReplyParser(), [], 0
    for cut in [*sorted(cuts), len(data)]:
        parser.feed(data[start:cut])
        start = max(start, cut)
        while (reply := parser.take()) is not None:
            found.append(reply)
    return found


@given(st.lists(replies(), max_size=5), st.data(), st.sampled_from([b"\r\n", b"\n"]))
def test_replies_come_out_as_they_went_in(sent: list[Reply], data: st.DataObject, end: bytes) -> None:
    """In order, wherever the stream is cut, with either line end."""
    stream = b"".join(wire(reply, end) for reply in sent)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    assert parse(stream, cuts) == sent


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_anything_else_is_refused_or_waited_for(stream: bytes, cuts: list[int]) -> None:
    """No input escapes as another exception, and none yields a reply without its code."""
    try:
        found = parse(stream, [cut for cut in cuts if cut <= len(stream)])
    except GarbledReplyError:
        return
    for reply in found:
        assert 100 <= reply.code < 600
        assert reply.lines[0][:3] == str(reply.code).encode()
        assert len(reply.text) <= 300
        assert reply.text.isprintable()


def test_memory_is_bounded() -> None:
    """An endless line and an endless reply end in an error, not in memory."""
    parser = ReplyParser()
    parser.feed(b"200 " + b"x" * LINE_LIMIT_BYTES)
    with pytest.raises(GarbledReplyError):
        parser.take()
    parser = ReplyParser()
    parser.feed(b"200-x\r\n" * (LINE_LIMIT_COUNT + 1))
    with pytest.raises(GarbledReplyError, match="lines"):
        parser.take()
    parser = ReplyParser()
    parser.feed((b"200-" + b"x" * 8000 + b"\r\n") * (REPLY_LIMIT_BYTES // 8000 + 1))
    with pytest.raises(GarbledReplyError, match=f"{REPLY_LIMIT_BYTES} bytes"):
        parser.take()


def test_the_end_of_a_reply_needs_its_own_code() -> None:
    """Lines with another code, or with the code and a dash, are inside."""
    assert parse(b"226-a\r\n250 b\r\n226-c\r\n 226 d\r\n226 e\r\n", [])[0].lines[-1] == b"226 e"
    assert parse(b"226\r\n", []) == [Reply(226, (b"226",))]


def test_what_is_no_reply_is_passed_over_where_servers_put_it() -> None:
    """Text before the first reply, an empty line between two; a code without a space is a code."""
    assert parse(b"Hello\r\nthere\r\n220 a\r\n\r\n331b\r\n", []) == [Reply(220, (b"220 a",)), Reply(331, (b"331b",))]
    with pytest.raises(GarbledReplyError):
        parse(b"220 a\r\nHello\r\n", [])


def test_an_end_that_does_not_come_is_made() -> None:
    """By the code that the last line has, or else the first."""
    for data, code in ((b"211-a\r\n b\r\n", 211), (b"220-a\r\n221 b\r\n", 221)):
        parser = ReplyParser()
        parser.feed(data)
        assert parser.take() is None
        assert parser.is_open
        assert parser.end_open().code == code
        assert not parser.is_open
