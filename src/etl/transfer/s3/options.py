"""The settings of a bucket beside the common ones, and what may be wrong with them."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from etl.transfer.ftps import options as tls
from etl.transfer.properties import Properties

if TYPE_CHECKING:
    from collections.abc import Mapping

    from etl.models.server import ServerConfig

_OF_FTP = ("TLS", "TLS_DATA")  # what encrypts is ENDPOINT's https
SETTINGS = {
    "BUCKET": "name of the bucket",
    "REGION": "region of the bucket; unset: us-east-1, or the one that the store tells",
    "ACCESS_KEY": "id of the access key",
    "SECRET_KEY": "secret of the access key (or SECRET_KEY_FILE)",
    "SESSION_TOKEN_FILE": "file of the token that belongs to temporary keys; read again when it has expired",
    "CREDENTIALS": "aws: keys of this machine's role, a web identity or a profile (the extra aws); unset: ACCESS_KEY",
    "ENDPOINT": "URL of a store that is not Amazon's, https://HOST[:PORT]; unset: Amazon's of the region",
    "VIRTUAL_HOST": "true: the bucket is part of the host name; unset: for Amazon's alone",
    "READ_STREAMS": "connections that read one large object at once, beside MAX_CONNECTIONS, 1 to 16; unset: 10",
    "STORAGE_CLASS": "storage class of new objects, such as STANDARD_IA; unset: the bucket's",
    "SSE": "encryption of new objects: AES256, aws:kms, or aws:kms:KEY; unset: the bucket's",
    **{name: help_ for name, help_ in tls.SETTINGS.items() if name not in _OF_FTP},
}
SECRETS = ("SECRET_KEY", *tls.SECRETS)

DEFAULT_REGION = "us-east-1"
LACKING = "aws needs the library botocore, which is not installed: pip install 'etl-file-sync[aws]'"
_READ_STREAMS = 10
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KEY_ID = re.compile(r"[!-~]{1,200}")
_ENCRYPTIONS = re.compile(r"AES256|aws:kms(:dsse)?(:[!-~]{1,200})?")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252})|[0-9A-Fa-f:.]+")


@dataclass(frozen=True)
class Options:
    """The settings, parsed."""

    bucket: str = ""
    region: str = ""  # empty: as the store tells
    finds_keys: bool = False  # by Amazon's library
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    token_file: str = ""
    scheme: str = "https"
    host: str = ""
    port: int = 443
    prefix: str = ""  # of every path, where the endpoint has one
    is_virtual: bool = False
    storage_class: str = ""
    encryption: str = ""
    read_streams: int = _READ_STREAMS

    @classmethod
    def of(cls, server: ServerConfig) -> Options:
        """Return those of a server. Raises SettingsError for the first that is wrong."""
        parsed = _Parsed(server.options)
        options = parsed.options()
        parsed.require_right(server)
        return options

    @property
    def is_encrypted(self) -> bool:
        """Are connections encrypted?"""
        return self.scheme == "https"

    @property
    def connect_host(self) -> str:
        """The host that is connected to."""
        return f"{self.bucket}.{self.host}" if self.is_virtual else self.host

    @property
    def host_header(self) -> str:
        """The host as requests name it: without the scheme's own port."""
        name = f"[{self.connect_host}]" if ":" in self.connect_host else self.connect_host
        return name if self.port == (443 if self.is_encrypted else 80) else f"{name}:{self.port}"

    def headers_of_new(self) -> dict[str, str]:
        """Return the headers that a new object is made with."""
        headers = {"x-amz-storage-class": self.storage_class} if self.storage_class else {}
        if self.encryption:
            kind, key = _split_encryption(self.encryption)
            headers["x-amz-server-side-encryption"] = kind
            if key:
                headers["x-amz-server-side-encryption-aws-kms-key-id"] = key
        return headers


def is_finder_installed() -> bool:
    """Is Amazon's own library there, which finds keys? Does not load it."""
    return importlib.util.find_spec("botocore") is not None


def problems(server: ServerConfig) -> Mapping[str, str]:
    """Return what is wrong with a server's settings, by property; no value is repeated that may be secret."""
    parsed = _Parsed(server.options)
    parsed.options()
    for name, value, instead in (
        ("HOST", server.host, "ENDPOINT"),
        ("PORT", server.port, "ENDPOINT"),
        ("USER", server.username, "ACCESS_KEY"),
        ("PASS", server.password, "SECRET_KEY"),
    ):
        if value:
            parsed.problems.setdefault(name, f"means nothing for a server of type s3: set {instead}")
    if server.publish == "direct":
        parsed.problems.setdefault("PUBLISH", "direct means nothing for a server of type s3: no file is renamed there")
    return {**tls.problems(server), **parsed.problems}


def placed(server: ServerConfig) -> ServerConfig:
    """Return a server with the address and login that its own settings tell: what other names may share."""
    options = _Parsed(server.options).options()
    login = f"{options.access_key}@{options.bucket}"
    return replace(server, host=options.host, port=options.port, username=login, password=options.secret_key)


def _split_encryption(text: str) -> tuple[str, str]:
    for kind in ("aws:kms:dsse", "aws:kms"):
        if text.startswith(kind):
            return kind, text[len(kind) :].lstrip(":")
    return text, ""


class _Parsed(Properties):
    """The settings, one pass."""

    def options(self) -> Options:
        """Parse all."""
        region = self._matching("REGION", _WORD, "is no name of a region")
        bucket = self._matching("BUCKET", _BUCKET, "is no name of a bucket: letters, digits, dots and hyphens")
        endpoint = self._endpoint()
        is_amazon = endpoint is None
        scheme, host, prefix = "https", f"s3.{region or DEFAULT_REGION}.amazonaws.com", ""
        port = None
        if endpoint is not None:
            scheme, host, prefix = endpoint.scheme, endpoint.hostname or "", endpoint.path.rstrip("/")
            port = endpoint.port
        # A certificate for *.HOST is none for a bucket with a dot in its name.
        is_virtual = self._switch("VIRTUAL_HOST", default=is_amazon and "." not in bucket)
        finds_keys = self._finds_keys()
        for name in ("BUCKET",) if finds_keys else ("BUCKET", "ACCESS_KEY"):
            if not self._text(name):
                self.problems.setdefault(name, "is missing")
        secret_key = self._values.get("SECRET_KEY", "").strip()
        if not secret_key and not finds_keys:
            self.problems.setdefault("SECRET_KEY", "is missing (or SECRET_KEY_FILE)")
        elif not (secret_key or "x").isprintable():
            self.problems.setdefault("SECRET_KEY", "contains a line break or another control character")
        return Options(
            bucket=bucket,
            region=region,
            finds_keys=finds_keys,
            access_key=self._matching("ACCESS_KEY", _KEY_ID, "holds a blank or a character that is not ASCII"),
            secret_key=secret_key,
            token_file=self._file("SESSION_TOKEN_FILE"),
            scheme=scheme,
            host=host,
            port=port or (443 if scheme == "https" else 80),
            prefix=prefix,
            is_virtual=is_virtual,
            storage_class=self._matching("STORAGE_CLASS", _WORD, "is no storage class"),
            read_streams=self._number("READ_STREAMS", 1, 16, _READ_STREAMS) or _READ_STREAMS,
            encryption=self._matching("SSE", _ENCRYPTIONS, "is none of AES256, aws:kms, aws:kms:KEY"),
        )

    def _finds_keys(self) -> bool:
        text = self._text("CREDENTIALS").lower()
        if text not in {"", "aws"}:
            self.problems.setdefault("CREDENTIALS", "is not aws, the one thing that it may be")
        if text == "aws" and not is_finder_installed():
            self.problems.setdefault("CREDENTIALS", LACKING)
        if text == "aws":
            for name in ("ACCESS_KEY", "SECRET_KEY", "SESSION_TOKEN_FILE"):
                if self._text(name):
                    self.problems.setdefault(name, "only one of it and CREDENTIALS may be set")
        return text == "aws"

    def _matching(self, name: str, pattern: re.Pattern[str], what: str) -> str:
        text = self._text(name)
        if text and not pattern.fullmatch(text):
            self.problems.setdefault(name, what)
            return ""
        return text

    def _endpoint(self) -> SplitResult | None:
        text = self._text("ENDPOINT")
        if not text:
            return None
        try:
            found = urlsplit(text)
            is_right = found.scheme in {"http", "https"} and _HOST.fullmatch(found.hostname or "") is not None
            is_right = is_right and not (found.query or found.fragment or found.username) and found.port != 0
            is_right = is_right and re.fullmatch(r"[A-Za-z0-9/._~-]*", found.path) is not None
        except ValueError:
            is_right = False
        if not is_right:
            self.problems.setdefault("ENDPOINT", "is no URL of a store: https://HOST[:PORT] or http://HOST[:PORT]")
            return None
        return found
