"""Keys that Amazon's own library finds: by a container's role, and by a web identity; from services of this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from contract_parts import LONG, Bytes, content_of

from etl.config import ServerConfig
from etl.errors import AuthenticationFailed, SettingsError
from etl.transfer import S3Transfer
from etl.transfer.s3 import keys, known
from etl.transfer.s3.options import placed
from servers.s3 import FakeStore

pytestmark = pytest.mark.contract

OF_AMAZON = ("AWS_", "BOTO_")


class Services:
    """What gives a container its keys, and what gives them for the token of a web identity."""

    def __init__(self) -> None:
        self.token, self.asked, self.is_broken = "first", 0, False
        self.seconds = 3600.0  # for which keys are good
        services = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_arguments: Any) -> None:
                """Nothing is printed."""

            def do_GET(self) -> None:
                names = ("AccessKeyId", "SecretAccessKey", "Token", "Expiration")
                self._answer(json.dumps(dict(zip(names, services.keys(), strict=True))))

            def do_POST(self) -> None:
                given = self.rfile.read(int(self.headers["content-length"])).decode()
                assert "Action=AssumeRoleWithWebIdentity" in given
                assert "WebIdentityToken=who-we-are" in given
                names = ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration")
                lines = "".join(f"<{n}>{v}</{n}>" for n, v in zip(names, services.keys(), strict=True))
                kind = "AssumeRoleWithWebIdentity"
                text = f"<{kind}Result><Credentials>{lines}</Credentials></{kind}Result>"
                self._answer(f"<{kind}Response>{text}</{kind}Response>")

            def _answer(self, text: str) -> None:
                self.send_response(500 if services.is_broken else 200)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="services")
        self._thread.start()

    def keys(self) -> tuple[str, ...]:
        """Return what is given out now."""
        self.asked += 1
        until = datetime.now(UTC) + timedelta(seconds=self.seconds)
        return FakeStore.access_key, FakeStore.secret_key, self.token, f"{until:%Y-%m-%dT%H:%M:%SZ}"

    def close(self) -> None:
        """End them."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Services]:
    """Start them, with nothing of this machine's own settings to be found."""
    import os

    for name in [name for name in os.environ if name.startswith(OF_AMAZON)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    made = Services()
    yield made
    made.close()
    keys._finder.cache_clear()
    known.forget()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FakeStore]:
    """A store that knows the first token alone."""
    made = FakeStore(tmp_path / "store", token="first")
    yield made
    made.close()


def open_session(store: FakeStore) -> S3Transfer:
    """Open a session without any key in its settings."""
    given = {name: value for name, value in store.settings(CREDENTIALS="aws").items() if "KEY" not in name}
    session = S3Transfer(placed(ServerConfig("FAKE", "s3", options=given)), LONG)
    session.connect()
    return session


@pytest.mark.parametrize("kind", ["container", "web identity"])
def test_keys_are_found(services: Services, store, monkeypatch, tmp_path: Path, buffer, kind: str) -> None:
    """Asked for once, used for all requests."""
    if kind == "container":
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{services.url}/role")
    else:
        (tmp_path / "identity").write_text("who-we-are")
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "identity"))
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/etl")
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", services.url)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
    session = open_session(store)
    stored = session.write("/.etl-1.part", Bytes(b"12345"), buffer)
    session.publish(stored, "/x", None).result()
    assert content_of(session, "/x", buffer) == b"12345"
    assert not store.refusals
    assert services.asked == 1
    session.disconnect()


def test_keys_are_renewed_before_they_expire(services: Services, store: FakeStore, monkeypatch) -> None:
    """By the session that has the old ones."""
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{services.url}/role")
    services.seconds = 300.0  # less than the time ahead in which they are renewed
    session = open_session(store)
    services.token = store.token = "second"
    session.ping()
    assert session.names("") == []
    assert services.asked >= 2
    session.disconnect()


@pytest.mark.parametrize("is_broken", [False, True])
def test_where_no_keys_are_found_the_error_says_so(services: Services, store, monkeypatch, is_broken: bool) -> None:
    """Without a word of theirs that is secret; once there are some, the next session has them."""
    services.is_broken = is_broken
    if is_broken:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{services.url}/role")
    with pytest.raises(AuthenticationFailed, match=r"FAKE: no keys were found \(CREDENTIALS=aws\)"):
        open_session(store)
    services.is_broken = False
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{services.url}/role")
    open_session(store).disconnect()


PROFILES = {
    "its own": "[default]\ncredential_process = {program}\n",
    "that of its role": "[default]\nrole_arn = arn:aws:iam::123456789012:role/etl\nsource_profile = other\n"
    "[profile other]\ncredential_process = {program}\n",
}


@pytest.mark.parametrize("whose", PROFILES)
def test_no_program_of_a_profile_is_run(services, store, monkeypatch, tmp_path: Path, whose: str) -> None:
    """It might take any time, and say anything; the error names no more than its kind."""
    program, ran = tmp_path / "program", tmp_path / "ran"
    program.write_text(f"#!/bin/sh\ntouch {ran}\necho Secret-4711 >&2\nexit 1\n")
    program.chmod(0o700)
    (tmp_path / "config").write_text(PROFILES[whose].format(program=program))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with pytest.raises(AuthenticationFailed, match=r"no keys were found \(CREDENTIALS=aws\)") as caught:
        open_session(store)
    assert not ran.exists()
    assert "Secret-4711" not in str(caught.value)


def test_the_error_of_the_library_is_not_quoted(services, store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text may hold an answer that it could not read."""

    def fails(*_: object) -> None:
        raise ValueError("Secret-4711")

    with monkeypatch.context() as patched:
        patched.setattr(keys, "_finder", fails)
        with pytest.raises(AuthenticationFailed, match=r"\(CREDENTIALS=aws\): ValueError$"):
            open_session(store)


def test_without_the_library_a_job_says_what_to_install(services, store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the start does; it may have been removed since."""
    import sys

    monkeypatch.setitem(sys.modules, "botocore", None)
    monkeypatch.setitem(sys.modules, "botocore.config", None)
    with pytest.raises(SettingsError, match=r"FAKE_CREDENTIALS: .*etl-file-sync\[aws\]"):
        open_session(store)
