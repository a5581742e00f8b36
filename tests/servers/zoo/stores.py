"""Stores of objects that other people wrote: one that checks what it is told, two that ignore or refuse some of it."""

from __future__ import annotations

import subprocess
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import stack
from servers.zoo.server import ZOO, Resident


class Store(Resident):
    """A store with one bucket."""

    bucket = "lab"
    access_key, secret_key = "zoo-access", "Zoo-secret-4711"
    keeps: ClassVar[dict[str, str]]  # what trying it out finds

    def settings(self, **more: str) -> dict[str, str]:
        """Return the settings of a server of type s3."""
        endpoint = f"http://{self.host}:{self.port}"
        own = {"BUCKET": self.bucket, "ACCESS_KEY": self.access_key, "SECRET_KEY": self.secret_key}
        return {"ENDPOINT": endpoint, **own, **more}

    def below(self, folder: str) -> Any:
        """Return a folder of the bucket, as a path."""
        return self.root / self.bucket / folder


class Versitygw(Store):
    """versitygw over a folder of this disk."""

    needs = ZOO / "go" / "bin" / "versitygw"
    keeps: ClassVar[dict[str, str]] = {"put": "kept", "parts": "kept", "size": "kept", "checksums": "crc32c"}

    def command(self) -> list[str]:
        """Return the program and its arguments; makes the bucket."""
        (self.root / self.bucket).mkdir(exist_ok=True)
        (self.folder / "sidecar").mkdir(exist_ok=True)
        login = ("--access", self.access_key, "--secret", self.secret_key)
        place = ("posix", "--sidecar", str(self.folder / "sidecar"), str(self.root))
        return [str(self.needs), *login, "--port", f"{self.host}:{self.port}", "--quiet", *place]


class Gofakes3(Store):
    """gofakes3, which holds all in memory, and takes any signature."""

    needs = ZOO / "go" / "bin" / "gofakes3"
    keeps: ClassVar[dict[str, str]] = {
        "put": "kept",
        "parts": "ignored or refused",
        "size": "ignored or refused",
        "checksums": "md5",
    }

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        own = ("-backend", "memory", "-initialbucket", self.bucket)
        return [str(self.needs), "-host", f"{self.host}:{self.port}", *own]

    def below(self, folder: str) -> Any:
        """Return a folder of the bucket, by requests that nobody signed."""
        return Objects(f"http://{self.host}:{self.port}/{self.bucket}", folder)


class S3Proxy(Store):
    """s3proxy over a folder of this disk."""

    needs = ZOO / "s3proxy" / ".made-by"
    keeps: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("put", "parts", "size"), "ignored or refused"),
        "checksums": "md5",
    }

    def command(self) -> list[str]:
        """Return the program and its arguments; writes its configuration."""
        (self.root / self.bucket).mkdir(exist_ok=True)
        own = {
            "s3proxy.authorization": "aws-v2-or-v4",
            "s3proxy.identity": self.access_key,
            "s3proxy.credential": self.secret_key,
            "s3proxy.endpoint": f"http://{self.host}:{self.port}",
            "jclouds.provider": "filesystem-nio2",
            "jclouds.filesystem.basedir": str(self.root),
            "jclouds.identity": "any",
            "jclouds.credential": "any",
        }
        configuration = self.write("s3proxy.conf", "".join(f"{name}={value}\n" for name, value in own.items()))
        command = [str(stack.KAFKA_BIN / "kafka-run.sh"), "--print-java"]
        java = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        program = ("-cp", str(ZOO / "s3proxy" / "*"), "org.gaul.s3proxy.Main", "--properties", str(configuration))
        return [java, "-Xmx256m", "-XX:TieredStopAtLevel=1", *program]


class Objects:
    """A folder or an object of a store that checks no signature, with those methods of a path that tests use."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self.key = key.strip("/")

    def __truediv__(self, name: str) -> Objects:
        return Objects(self._url, f"{self.key}/{name}")

    def __str__(self) -> str:
        return self.key

    @property
    def parent(self) -> Objects:
        """The folder."""
        return Objects(self._url, self.key.rpartition("/")[0])

    def _ask(self, method: str, query: str = "", body: bytes | None = None) -> bytes:
        place = f"{self._url}?{query}" if query else f"{self._url}/{urllib.parse.quote(self.key)}"
        request = urllib.request.Request(place, body, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bytes(answer.read())

    def read_bytes(self) -> bytes:
        """Return the content."""
        return self._ask("GET")

    def write_bytes(self, content: bytes) -> None:
        """Store an object."""
        self._ask("PUT", body=content)

    def unlink(self) -> None:
        """Delete an object."""
        self._ask("DELETE")

    def mkdir(self, **_how: Any) -> None:
        """Make no folder: there are none."""

    def rmdir(self) -> None:
        """Remove no folder: there are none."""

    def is_dir(self) -> bool:
        """Is it a folder? Only objects are listed."""
        return False

    def exists(self) -> bool:
        """Is there an object?"""
        return self.key in self._keys()

    def relative_to(self, folder: Objects) -> str:
        """Return the key below a folder."""
        return self.key.removeprefix(f"{folder.key}/")

    def rglob(self, _pattern: str) -> Iterator[Objects]:
        """Return all objects below."""
        return (Objects(self._url, key) for key in self._keys() if key.startswith(f"{self.key}/"))

    def _keys(self) -> list[str]:
        root = ET.fromstring(self._ask("GET", "list-type=2&max-keys=1000"))
        return [str(found.text) for found in root.iter() if found.tag.endswith("Key")]


STORES: dict[str, type[Store]] = {"versitygw": Versitygw, "gofakes3": Gofakes3, "s3proxy": S3Proxy}


def made(name: str, folder: Path) -> Store:
    """Return a store to start."""
    return STORES[name](folder)
