"""Connections to a store that are cut or stand still, anywhere: noticed in time, and no half object is ever seen."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from contract_parts import a_task, moved, s3_config

from etl.config import ServerConfig, TransferSettings
from etl.errors import EtlError, Fate
from etl.transfer import LocalTransfer, S3Transfer
from etl.transfer.s3 import known, upload
from servers.certificates import Authority
from servers.passing import Passing
from servers.s3 import FakeStore, empty

pytestmark = pytest.mark.contract

BRISK = TransferSettings(connect_timeout=2, login_timeout=3, reply_timeout=1, stall_timeout=1)
CONTENT = os.urandom(1_500_000)
LIMIT = 15.0  # seconds for a failure, with all that is tried before
# Of all bytes, in both directions: in the handshake, the first request, its answer, the next ones, the file, its end.
CUTS = [10, 300, 500, 800, 1200, 2000, 3000, 50_000, 1_000_000, 1_500_400, 1_501_500, 1_503_000, 1_505_000]


@dataclass
class Far:
    """A store behind a proxy."""

    store: FakeStore
    way: Passing
    config: ServerConfig


@pytest.fixture(params=["put", "parts", "tls"])
def far(
    request: pytest.FixtureRequest, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Far]:
    """Give a store in three ways: files in one request, in parts, over TLS."""
    context, trust = None, {}
    if request.param == "tls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority.sign("store", "127.0.0.1").pem)
        trust = {"TLS_CA_FILE": str(authority.ca)}
    if request.param == "parts":
        monkeypatch.setattr(upload, "HELD_BYTES", 100_000)
    store = FakeStore(tmp_path / "store", tls=context)
    with Passing(store.port) as way:
        yield Far(store, way, s3_config(store, ENDPOINT=f"{store.scheme}://127.0.0.1:{way.port}", **trust))
    known.forget()
    store.close()


def attempt(far: Far, here: Path, direction: str, buffer: memoryview) -> EtlError | None:
    """Do a job with new sessions; return how it failed."""
    store, near = (
        S3Transfer(far.config, BRISK),
        LocalTransfer(ServerConfig("HERE", "local", base_path=str(here)), BRISK),
    )
    try:
        store.connect()
        source, destination = (near, store) if direction == "up" else (store, near)
        task = a_task()
        task.orphan_scan_since = time.monotonic()
        moved(task, source, destination, buffer)
    except EtlError as error:
        return error
    finally:
        store.disconnect()
    return None


@pytest.mark.parametrize("fault", ["cut", "end", "stall"])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_connection_that_breaks_anywhere(far: Far, buffer, tmp_path: Path, fault: str, direction: str) -> None:
    """Each is survived, or one truthful error within its limit; the next try is right, and leaves no part behind."""
    here = tmp_path / "here"
    here.mkdir()
    ours, theirs = (here, far.store.root) if direction == "up" else (far.store.root, here)
    (ours / "a").write_bytes(CONTENT)
    final = theirs / "out/b"
    for after in CUTS[:: 3 if fault == "stall" else 1]:  # each of these takes seconds
        far.way.fault, far.way.after = fault, after
        began = time.monotonic()
        error = attempt(far, here, direction, buffer)
        assert time.monotonic() - began < LIMIT, after
        assert error is None or error.fate in {Fate.RETRY, Fate.OUTAGE}, (after, error)
        # The answer to a publication may be what is lost; whatever is there is whole.
        assert not final.exists() or final.read_bytes() == CONTENT, after
        assert error is not None or final.exists()
        far.way.fault = ""
        known.forget()  # as another process
        assert attempt(far, here, direction, buffer) is None, after
        assert final.read_bytes() == CONTENT
        assert not far.store.uploads
        empty(theirs / "out")
    assert far.way.happened >= 4
