"""The settings of a bucket: what is wrong stops the start; where requests go, and as whom."""

from __future__ import annotations

import pytest

from etl.config import ConfigLoader, ServerConfig
from etl.errors import SettingsError
from etl.models.server import TransferSettings
from etl.transfer.ftp.sockets import Sockets
from etl.transfer.s3 import options as s3_options
from etl.transfer.s3.link import Link
from etl.transfer.s3.options import Options, placed

pytestmark = pytest.mark.unit

GOOD = {"X_TYPE": "s3", "X_BUCKET": "bucket", "X_ACCESS_KEY": "AKIA", "X_SECRET_KEY": "Secret-4711"}


def load(**properties: str) -> ConfigLoader:
    values = GOOD | {f"X_{name}": value for name, value in properties.items()}
    return ConfigLoader(environ={name: value for name, value in values.items() if value})


def options(**given: str) -> Options:
    return Options.of(ServerConfig("X", "s3", options={"BUCKET": "bkt", "ACCESS_KEY": "a", "SECRET_KEY": "s", **given}))


@pytest.mark.parametrize(
    ("properties", "said"),
    [
        ({"BUCKET": ""}, "X_BUCKET: is missing"),
        ({"BUCKET": "a/b"}, "X_BUCKET: is no name of a bucket"),
        ({"ACCESS_KEY": ""}, "X_ACCESS_KEY: is missing"),
        ({"ACCESS_KEY": "a b"}, "X_ACCESS_KEY: holds a blank"),
        ({"SECRET_KEY": ""}, "X_SECRET_KEY: is missing (or SECRET_KEY_FILE)"),
        ({"SECRET_KEY": "Secret\n4711"}, "X_SECRET_KEY: contains a line break or another control character"),
        ({"CREDENTIALS": "mine"}, "X_CREDENTIALS: is not aws"),
        ({"CREDENTIALS": "aws"}, "X_ACCESS_KEY: only one of it and CREDENTIALS"),
        ({"PORT": "9000"}, "X_PORT: means nothing for a server of type s3: set ENDPOINT"),
        ({"SECRET_KEY_FILE": "/x"}, "only one of X_SECRET_KEY and X_SECRET_KEY_FILE"),
        ({"SESSION_TOKEN_FILE": "/no/such/file"}, "X_SESSION_TOKEN_FILE: the file cannot be read"),
        ({"ENDPOINT": "store.example.com:9000"}, "X_ENDPOINT: is no URL of a store"),
        ({"ENDPOINT": "https://user@store"}, "X_ENDPOINT: is no URL of a store"),
        ({"ENDPOINT": "https://store/?x"}, "X_ENDPOINT: is no URL of a store"),
        ({"REGION": "eu west"}, "X_REGION: is no name of a region"),
        ({"VIRTUAL_HOST": "perhaps"}, "X_VIRTUAL_HOST: is neither true nor false"),
        ({"STORAGE_CLASS": "COLD\tONE"}, "X_STORAGE_CLASS: is no storage class"),
        ({"SSE": "aes"}, "X_SSE: is none of AES256, aws:kms, aws:kms:KEY"),
        ({"HOST": "store"}, "X_HOST: means nothing for a server of type s3: set ENDPOINT"),
        ({"USER": "me"}, "X_USER: means nothing for a server of type s3: set ACCESS_KEY"),
        ({"PASS": "Pw-4711"}, "X_PASS: means nothing for a server of type s3: set SECRET_KEY"),
        ({"PUBLISH": "direct"}, "X_PUBLISH: direct means nothing"),
        ({"TLS_CA_FILE": "/no/such/file"}, "X_TLS_CA_FILE: the file cannot be read"),
        ({"TLS": "implicit"}, "X_TLS: unknown property for a server of type s3"),
    ],
)
def test_a_wrong_setting_stops_the_start(properties: dict[str, str], said: str) -> None:
    """It is named, and no secret is shown."""
    with pytest.raises(SettingsError) as caught:
        load(**properties)
    assert said in str(caught.value)
    assert "4711" not in str(caught.value)


def test_keys_that_are_found_need_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is missing, the start says how to get it; else no key has to be set."""
    found = {"ACCESS_KEY": "", "SECRET_KEY": "", "CREDENTIALS": "aws"}
    assert load(**found).servers["X"].address == ("s3", "s3.us-east-1.amazonaws.com", 443, "@bucket")
    monkeypatch.setattr(s3_options, "is_finder_installed", lambda: False)
    with pytest.raises(SettingsError, match=r"X_CREDENTIALS: aws needs the library botocore.*etl-file-sync\[aws\]"):
        load(**found)


def test_a_bucket_has_an_address_and_a_login_of_its_own() -> None:
    """Names that share both share sessions; others do not. The secret is known to whoever redacts."""
    loaded = load(ENDPOINT="http://store:9000")
    server = loaded.servers["X"]
    assert server.address == ("s3", "store", 9000, "AKIA@bucket")
    assert "Secret-4711" in loaded.secrets
    assert "Secret-4711" not in repr(server)
    assert placed(server) == server


@pytest.mark.parametrize(
    ("given", "host", "port"),
    [
        ({}, "bkt.s3.us-east-1.amazonaws.com", 443),
        ({"REGION": "eu-west-3"}, "bkt.s3.eu-west-3.amazonaws.com", 443),
        ({"BUCKET": "a.b"}, "s3.us-east-1.amazonaws.com", 443),
        ({"VIRTUAL_HOST": "false"}, "s3.us-east-1.amazonaws.com", 443),
        ({"ENDPOINT": "https://store.example.com"}, "store.example.com", 443),
        ({"ENDPOINT": "http://store.example.com", "VIRTUAL_HOST": "true"}, "bkt.store.example.com", 80),
        ({"ENDPOINT": "http://[::1]:9000"}, "::1", 9000),
    ],
)
def test_where_requests_go(given: dict[str, str], host: str, port: int) -> None:
    """Amazon's host of the region, with the bucket in it; other stores have it in the path."""
    assert (options(**given).connect_host, options(**given).port) == (host, port)


@pytest.mark.parametrize(
    ("given", "line", "header"),
    [
        ({"ENDPOINT": "http://store:9000/base/"}, "GET /base/bkt/a//b%20c HTTP/1.1", "host: store:9000"),
        ({"ENDPOINT": "http://[::1]:80"}, "GET /bkt/a//b%20c HTTP/1.1", "host: [::1]"),
        ({}, "GET /a//b%20c HTTP/1.1", "host: bkt.s3.us-east-1.amazonaws.com"),
    ],
)
def test_how_an_object_is_asked_for(given: dict[str, str], line: str, header: str) -> None:
    """The path is that of the key, as it is; the host is named without the scheme's own port."""
    server = ServerConfig("X", "s3", options={"BUCKET": "bkt", "ACCESS_KEY": "a", "SECRET_KEY": "s", **given})
    link = Link(server, TransferSettings(), Sockets())
    lines = link._head("GET", link.key("/a//b c"), (), {}, "UNSIGNED-PAYLOAD", 0).decode().split("\r\n")
    assert lines[0] == line
    assert header in lines


@pytest.mark.parametrize(
    ("base", "path", "key"),
    [("", "/a", "a"), ("", "a", "a"), ("", "//a", "/a"), ("/base/", "/a/b", "base/a/b"), ("base", "a", "base/a")],
)
def test_what_key_a_path_is(base: str, path: str, key: str) -> None:
    """One slash at its beginning is none of the key."""
    own = {"BUCKET": "bkt", "ACCESS_KEY": "a", "SECRET_KEY": "s"}
    link = Link(ServerConfig("X", "s3", base_path=base, options=own), TransferSettings(), Sockets())
    assert link.key(path) == key


def test_what_new_objects_are_made_with() -> None:
    """As it is set; nothing where nothing is."""
    assert options().headers_of_new() == {}
    made = options(STORAGE_CLASS="GLACIER_IR", SSE="aws:kms:dsse:key-1").headers_of_new()
    assert made == {
        "x-amz-storage-class": "GLACIER_IR",
        "x-amz-server-side-encryption": "aws:kms:dsse",
        "x-amz-server-side-encryption-aws-kms-key-id": "key-1",
    }
