"""Names as SFTP sends them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from etl.errors import InvalidPath, IOFailure
from etl.models.server import ServerConfig
from etl.transfer import budget
from etl.transfer.budget import LISTINGS
from etl.transfer.sftp.link import Link
from etl.transfer.sftp.packets import NAME, Answer, string
from etl.transfer.sftp.session import _names_in

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("path", [r"/a/..\..\x", "/.. /x", "/\uff0e\uff0e/x", '/".."/x'])
def test_no_name_is_sent_that_a_server_of_windows_reads_as_a_path_that_climbs(path: str) -> None:
    """A base path with `..` of its own stays possible."""
    server = ServerConfig("S", "sftp", base_path="/base/../other")
    link = SimpleNamespace(server=server, name="S")
    with pytest.raises(InvalidPath):
        Link.wire_name(link, server.base_path + path)  # type: ignore[arg-type]  # all of it that a name takes
    assert Link.wire_name(link, "/base/../other/a").endswith(b"/base/../other/a")  # type: ignore[arg-type]


def a_part(*names: bytes) -> Answer:
    """Return one part of a listing."""
    entries = b"".join(string(name) + string(b"-rw- " + name) + bytes(4) for name in names)
    return Answer(NAME, len(names).to_bytes(4, "big") + entries)


def test_only_names_that_are_looked_for_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a folder of any size; and of those no more than there is memory for."""
    link = SimpleNamespace(read_name=lambda name: name.decode())
    part = a_part(*[b"other"] * 1000, b".etl-1.part", b".", b"..", b".etl-2.part")
    names: list[str] = []
    assert _names_in(link, part, ".etl-", names) is None  # type: ignore[arg-type]  # all of a link that it takes
    assert names == [".etl-1.part", ".etl-2.part"]
    monkeypatch.setattr(budget, "LIMIT_BYTES", 10_000)
    monkeypatch.setattr(budget, "OWN_BYTES", 1000)
    with LISTINGS.room(), pytest.raises(IOFailure, match="too many names"):
        _names_in(link, a_part(*[b".etl-"] * 1000), ".etl-", names)  # type: ignore[arg-type]
    assert len(names) < 100
