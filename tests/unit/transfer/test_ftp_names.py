"""Paths, names, times and listings of FTP, as pure text."""

from __future__ import annotations

import calendar
import contextlib
import random
import re
from encodings.aliases import aliases

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.errors import InvalidPath, SettingsError
from etl.transfer import paths
from etl.transfer.ftp import names, telnet
from etl.transfer.ftp.listing import LINE_BYTES, NAME_BYTES, GarbledListingError, Listing
from etl.transfer.ftp.names import Names

pytestmark = pytest.mark.unit


@given(st.binary(max_size=40), st.sampled_from(["utf-8", "euc-kr", "cp949", "latin-1"]))
def test_every_name_goes_there_and_back(name: bytes, encoding: str) -> None:
    """Bytes of a listing can be sent again as they were, in every encoding."""
    known = Names(encoding)
    assert known.wire(known.read(name)) == name


@pytest.mark.parametrize(
    ("base", "home", "path", "whole"),
    [
        ("", "/", "/a/b", "/a/b"),
        ("", "/", "a", "/a"),
        ("", "/home/u", "a", "/home/u/a"),
        ("", "/home/u", "/a", "/a"),
        ("/base", "/home/u", "/a", "/base/a"),
        ("/base/", "/home/u", "a", "/base/a"),
        ("/base", "/", "///a", "/base/a"),
        ("base", "/home/u", "/a", "/home/u/base/a"),
        ("/", "/home/u", "/a", "/a"),
        ("/", "/home/u", "a", "/a"),
    ],
)
def test_whole_paths_begin_at_the_root(base: str, home: str, path: str, whole: str) -> None:
    """Base path first; without one an absolute path is the server's, a relative one begins at the login's folder."""
    assert Names("utf-8", base, home).whole(path) == whole


@given(st.text(max_size=30))
def test_no_path_leaves_its_base(path: str) -> None:
    """What is accepted stays below, however it is put together."""
    try:
        whole = paths.below("/base", path)
    except InvalidPath:
        return
    place: list[str] = []
    for part in whole.split("/"):
        if part == "..":
            place.pop()
        elif part not in {"", "."}:
            place.append(part)
    assert place[:1] == ["base"]
    assert not set(whole) & set("\r\n\0")


@given(st.integers(0, 253402300799))
def test_stamps_are_read_as_they_were_written(seconds: int) -> None:
    """Any time of a four-digit year."""
    text = names.stamp(seconds + 0.75)
    assert text is not None
    assert names.time_in(text) == seconds
    assert names.time_in(text + b".5") == seconds + 0.5


@pytest.mark.parametrize("mtime", [1e300, -1e300, float("nan"), float("inf"), 253402300800.0])
def test_times_that_have_no_stamp_have_none(mtime: float) -> None:
    """Nothing is raised."""
    assert names.stamp(mtime) is None


@given(st.binary(max_size=40))
def test_no_line_breaks_a_parser(line: bytes) -> None:
    """Servers may say anything."""
    names.time_in(line)
    names.size_in(line)
    names.quoted_path(line)
    names.facts_in(line)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5), st.booleans())
def test_no_listing_breaks_its_parser(listing: bytes, cuts: list[int], with_facts: bool) -> None:
    """Servers may list anything, and it may be cut anywhere: bare names come out, the same ones every time."""
    known = names_listed(listing, cuts, with_facts=with_facts)
    assert known == names_listed(listing, [], with_facts=with_facts)
    for name in known:
        assert b"/" not in name
        assert name not in {b"", b".", b".."}
    begin = known[0][:1] if known else b"x"
    wanted = names_listed(listing, cuts, with_facts=with_facts, prefix=begin)
    assert wanted == [name for name in known if name.startswith(begin)]


def names_listed(listing: bytes, cuts: list[int], *, with_facts: bool, prefix: bytes = b"") -> list[bytes]:
    """Feed a listing in pieces."""
    taker, start = Listing(with_facts=with_facts, prefix=prefix), 0
    for cut in [*sorted(cuts), len(listing)]:
        taker.feed(listing[start:cut])
        start = max(start, cut)
    taker.end()
    return taker.names


def test_a_listing_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """One endless line, endless lines, or endless names that are wanted: memory stays bounded."""
    with pytest.raises(GarbledListingError, match="a line of more"):
        names_listed(b"x" * (LINE_BYTES + 1), [], with_facts=False)
    monkeypatch.setattr("etl.transfer.ftp.listing.LIMIT_BYTES", 1000)
    with pytest.raises(GarbledListingError):
        names_listed(b"x\n" * 501, [], with_facts=False, prefix=b"y")
    monkeypatch.setattr("etl.transfer.ftp.listing.LIMIT_BYTES", 1 << 20)
    monkeypatch.setattr("etl.transfer.ftp.listing.KEPT_BYTES", 100 * NAME_BYTES)
    with pytest.raises(GarbledListingError):
        names_listed(b"x\n" * 101, [], with_facts=False)


def test_facts_and_names_are_taken_apart() -> None:
    """A name may hold spaces, semicolons and equal signs (RFC 3659 section 7.2)."""
    facts, name = names.facts_in(b"Type=file;Size=12;Modify=20200102030405; a; b=c d")
    assert facts == {"type": b"file", "size": b"12", "modify": b"20200102030405"}
    assert name == b"a; b=c d"
    listing = b"type=cdir; .\r\ntype=pdir; ..\r\ntype=dir; sub\r\ntype=file;  lead\r\n"
    assert names_listed(listing, [7, 8], with_facts=True) == [b"sub", b" lead"]


def test_replies_are_read_for_what_they_tell() -> None:
    """Sizes, times and paths, with what servers add to them."""
    assert names.size_in(b" 12 ") == 12
    assert names.size_in(b"12 bytes") == 12
    assert names.size_in(b"-1") is None
    assert names.time_in(b"20200102030405") == calendar.timegm((2020, 1, 2, 3, 4, 5))
    assert names.quoted_path(b'"/a ""b""" is it') == b'/a "b"'
    assert names.quoted_path(b"no path") is None


CLIMBING = [
    (r"/a/..\..\secret", "utf-8"),
    (r"/..\secret", "utf-8"),
    ("/.. /x", "utf-8"),
    ("/. ./x", "utf-8"),
    ("/ ../x", "utf-8"),
    ('/".."/x', "utf-8"),
    ("/.'.'/x", "utf-8"),
    ("/.\\./x", "utf-8"),
    ("/.../x", "utf-8"),
    ("/..:/x", "utf-8"),
    ("/a/..*", "utf-8"),
    ("/‥/x", "utf-8"),  # as Windows shows it in a code page that lacks it
    ("/\uff0e\uff0e/x", "utf-8"),
    ("/\u2024\u2024/x", "utf-8"),
    ("/a\uff0f..\uff0f..\uff0fx", "utf-8"),
    ("/a\uff3c..\uff3cx", "utf-8"),
    ("/.\u200b./x", "utf-8"),
    ("/.\u2066./x", "utf-8"),
    ("/.\u00ad./x", "latin-1"),
    ("/‥/x", "idna"),
    ("/℀/x", "idna"),  # a/c
    ("/表..\\x", "cp932"),
    ("/表..", "cp932"),  # its second byte is a backslash
]


@pytest.mark.parametrize(("path", "encoding"), CLIMBING)
def test_what_a_server_may_read_as_a_path_that_climbs_is_refused(path: str, encoding: str) -> None:
    """The bytes count, not the text: separators of Windows, signs that are dropped, and signs that look like dots."""
    with pytest.raises(InvalidPath):
        paths.refuse_misread(path, path.encode(encoding))


@pytest.mark.parametrize(
    ("path", "encoding"),
    [
        ("/a/b.tif", "utf-8"),
        ("/.etl-0011-22.part", "utf-8"),
        ("/base/../other/a", "utf-8"),  # of a base path
        ("/a/..b/c", "utf-8"),
        ("/a/b../c", "utf-8"),
        ('/quo"te..d/x', "utf-8"),
        ("/보고.최종.자료/값", "cp949"),
        ("/表/能.txt", "cp932"),
        ("/пятница.ять", "cp1251"),
    ],
)
def test_odd_names_that_climb_nowhere_are_not(path: str, encoding: str) -> None:
    """Two dots beside letters, in any script, are a name."""
    paths.refuse_misread(path, path.encode(encoding))


def parts_by_telnet(path: bytes, draw: random.Random) -> list[bytes]:
    """Return the parts that a server may see that drops Telnet's commands in one of many ways."""
    seen, place = b"", 0
    while place < len(path):
        dropped = draw.choice([0, 1, 2, 3]) if path[place] == 0xFF else 0
        seen += b"" if dropped else path[place : place + 1]
        place += dropped or 1
    return re.split(rb"[/\\]", seen)


@given(
    st.lists(st.sampled_from([b".", b"/", b"\xff", b"\xff\xf2", b"\xff\xfd", b"a", b" "]), max_size=12), st.randoms()
)
def test_no_way_of_dropping_telnets_commands_makes_a_path_climb(pieces: list[bytes], draw: random.Random) -> None:
    """A command may be dropped alone, with its next byte, or with two: what is accepted is harmless in each case."""
    path = b"/" + b"".join(pieces)
    if not telnet._may_climb(path):
        assert not {b"..", b"...", b".. "} & set(parts_by_telnet(path, draw))
    else:
        assert path.count(b".") >= 2


def test_no_letter_becomes_a_line_break_on_the_wire() -> None:
    """In none of the encodings that a server may have: another command would follow."""
    allowed = []
    for encoding in sorted(set(aliases.values())):
        with contextlib.suppress(SettingsError, TypeError):  # TypeError: it encodes no text
            allowed.append(names.check_encoding(encoding, "A"))
    assert {"cp1251", "euc_kr", "shift_jis", "utf_8"} <= set(allowed)
    letters = [chr(number) for number in range(0x10000) if chr(number) not in "\r\n\0"]
    for encoding in allowed:
        written = "".join(letters).encode(encoding, "ignore")
        assert not re.search(rb"[\r\n\0]", written), encoding
