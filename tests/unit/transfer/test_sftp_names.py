"""Names as SFTP sends them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from etl.errors import InvalidPath
from etl.models.server import ServerConfig
from etl.transfer.sftp.link import Link

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("path", [r"/a/..\..\x", "/.. /x", "/\uff0e\uff0e/x", '/".."/x'])
def test_no_name_is_sent_that_a_server_of_windows_reads_as_a_path_that_climbs(path: str) -> None:
    """A base path with `..` of its own stays possible."""
    server = ServerConfig("S", "sftp", base_path="/base/../other")
    link = SimpleNamespace(server=server, name="S")
    with pytest.raises(InvalidPath):
        Link.wire_name(link, server.base_path + path)  # type: ignore[arg-type]  # all of it that a name takes
    assert Link.wire_name(link, "/base/../other/a").endswith(b"/base/../other/a")  # type: ignore[arg-type]
