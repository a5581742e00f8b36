"""Lines of LIST: the forms that servers have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.transfer.ftp.longlist import Entry, entry_in

LINES = {
    b"-rw-r--r--   1 zoo      0               1 Nov 30 14:54 -a": (Entry.FILE, b"-a"),
    b"-rw-------   1 user group            1 Nov 30  2019  lead and trail ": (Entry.FILE, b" lead and trail "),
    b"drwxr-xr-x  4 zoo  root  4096 Nov 30 23:54 .": (Entry.FOLDER, b"."),
    b"d---------   2 root      root                 4096 Nov 30 14:54 closed": (Entry.FOLDER, b"closed"),
    b"drwxrwxr-x folder 2 May 10 1996 network": (Entry.FOLDER, b"network"),
    b"-rw-r--r--+  1 domain users 5 2026-11-30 14:54 iso": (Entry.FILE, b"iso"),
    b"-rw-r--r--  1 owner group 1803128 10 Jul 14:54 day first": (Entry.FILE, b"day first"),
    "-rw-r--r-- 1 a b 12 11월 30 14:54 한글".encode(): (Entry.FILE, "한글".encode()),
    b"lrwxrwxrwx 1 a b 4 Jan  1 2020 link -> /tmp/x": (Entry.OTHER, b"link"),
    b"prw-r--r-- 1 a b 0 Jan  1 2020 pipe": (Entry.OTHER, b"pipe"),
    b"11-30-26  02:54PM       <DIR>          my folder": (Entry.FOLDER, b"my folder"),
    b"11-30-2026  14:54                12345 a file.txt": (Entry.FILE, b"a file.txt"),
    b"04-27-00  09:09PM       <JUNCTION>     licensed": (Entry.OTHER, b"licensed"),
    b"+i8388621.29609,m824255902,/,\tdev": (Entry.FOLDER, b"dev"),
    b"+i8388621.44468,m839956783,r,s10376,\tRFC EPLF": (Entry.FILE, b"RFC EPLF"),
    b"d [R----F--] supervisor            512       Jan 16 18:53    login": (Entry.FOLDER, b"login"),
    b"total 28": None,
    b"-rw-r--r-- a name in a list of names alone": None,
    b"": None,
}


@pytest.mark.parametrize("line", LINES)
def test_an_entry_is_read_in_each_form(line: bytes) -> None:
    """Unix, Windows, EPLF and NetWare; what is none of these says nothing."""
    assert entry_in(line) == LINES[line]


@given(st.binary())
def test_no_line_breaks_it(line: bytes) -> None:
    """Whatever a server sends."""
    found = entry_in(line)
    assert found is None or line.endswith(found[1]) or found[0] is Entry.OTHER
