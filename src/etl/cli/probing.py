"""What a server can do, found out by doing it in a folder of the probe's own, which is removed again.

    probe(server, connect) -> Survey        `connect(server)` gives an open session
    Survey: .findings  .settings  .left  .fit

Sees only what the contract of a session shows; so it finds what a job would.
"""

from __future__ import annotations

import io
import secrets
import time
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from etl.errors import EtlError, PermissionRefused
from etl.models.server import ServerConfig
from etl.models.task import Facts
from etl.transfer.base import Published, Session
from etl.transfer.sameness import is_direct
from etl.transfer.streaming import MemoryParcel

STAMP = 1_600_000_000  # seconds since the epoch: a time that no clock tells
SLACK_SECONDS = 120.0  # by which a server's clock may differ without being told
ZONE_SECONDS = 900.0  # zones differ by quarters of an hour
NOT_HIDDEN = "etl-{id}.part"  # a partial pattern without a dot
NAMES_AT_RISK = {
    "quotes": "quo'te\"d.bin",
    "backslashes": "back\\slash.bin",
    "blanks around": " blanks ",
    "signs": "50%25 #1;[a]{b}*?.bin",
    "accents": unicodedata.normalize("NFC", "é ü.bin"),
    "other scripts": "한글 я.bin",
}
# Settings with which to write, until one does; dots before renaming, as a refused dot shows first.
WAYS: tuple[dict[str, str], ...] = ({}, {"PARTIAL_PATTERN": NOT_HIDDEN}, {"PUBLISH": "direct"})
UNKNOWN = "not found out"
BYTE_255 = ("ÿ.bin", "ÿÿ.bin")  # in Latin-1; a server that follows Telnet takes the one for the other


@dataclass(frozen=True)
class Finding:
    """One thing found out; `good` None: neither good nor bad."""

    topic: str
    found: str
    good: bool | None = True


@dataclass
class Survey:
    """All that was found of one server."""

    findings: list[Finding] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)  # properties that should be set, and their values
    left: list[str] = field(default_factory=list)  # what could not be removed again
    reads: bool = False
    writes: bool = False

    @property
    def fit(self) -> str:
        """What the server can be in a job."""
        sides = [side for side, is_fit in (("source", self.reads), ("destination", self.writes)) if is_fit]
        return "both" if len(sides) == 2 else (sides[0] if sides else "neither")

    def add(self, topic: str, found: str, *, good: bool | None = True) -> None:
        """Note a finding."""
        self.findings.append(Finding(topic, found, good))

    def to_dict(self) -> dict[str, Any]:
        """Return it for a program."""
        return {
            "fit": self.fit,
            "found": {finding.topic: finding.found for finding in self.findings},
            "settings": self.settings,
            "left": self.left,
        }


def probe(server: ServerConfig, connect: Callable[[ServerConfig], Session]) -> Survey:
    """Try out a server: some thirty small files in a new folder below its base path, all removed again."""
    return _Probe(server, connect).run()


class _Probe:
    def __init__(self, server: ServerConfig, connect: Callable[[ServerConfig], Session]) -> None:
        self._server = server
        self._connect = connect
        self._session: Session | None = None
        self._survey = Survey()
        self._folder = f"etl-check-{secrets.token_hex(6)}"
        self._made: list[str] = []  # every name that may be there
        self._lists = False
        self._buffer = memoryview(bytearray(64 * 1024))

    @property
    def _now(self) -> Session:
        """The open session; a new one after a failure."""
        if self._session is None:
            self._session = self._connect(self._server)
        return self._session

    def run(self) -> Survey:
        """Ask everything, and tidy up."""
        try:
            self._ask("base folder", self._base)
            if self._first_file() and self._ask("deleting", self._deleting):
                self._ask_more()
            self._add_traits()
        finally:
            self._tidy()
            self._drop()
        return self._survey

    def _ask_more(self) -> None:
        """Ask what takes more files: they can be removed again."""
        self._ask("listing", self._listing)
        self._ask("replacing", self._replacing)
        self._ask("reading", self._reading)
        self._ask("dot files", self._dot_files)
        self._ask("times", self._times)
        self._ask("letter case", self._letter_case)
        for topic, name in NAMES_AT_RISK.items():
            self._ask(f"names: {topic}", partial(self._name, name))
        self._ask("names: composed letters", self._normalization)
        if self._server.host:
            self._ask("names: byte 0xFF", self._byte_255)

    def _add_traits(self) -> None:
        """Add what a session tells that does nothing else."""
        with suppress(EtlError, OSError):
            session = self._connect(self._server)
            try:
                for topic, found in session.traits().items():
                    self._survey.add(topic, found, good=None)
            finally:
                session.disconnect()

    def _ask(self, topic: str, question: Callable[[], tuple[str, bool | None]]) -> bool:
        """Note the answer to one question; a failure is one, too, after which the session is another."""
        try:
            found, good = question()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            self._survey.add(topic, f"failed: {error}", good=False)
            self._give_up(error)
            return False
        self._survey.add(topic, found, good=good)
        return good is not False

    def _give_up(self, error: BaseException) -> None:
        """Part with the session unless it goes on."""
        if self._session is not None and not self._session.survives(error):
            self._drop()

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.disconnect()

    # --- files ------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _write(self, name: str, content: bytes = b"etl", mtime: float | None = None) -> Published:
        """Bring a file there as a job does."""
        hidden = name
        if not is_direct(self._now):
            hidden = self._server.partial_pattern.replace("{id}", f"check-{len(self._made)}")
        self._made += [hidden, name]
        parcel = MemoryParcel("probe", Facts(len(content), None), io.BytesIO(content))
        stored = self._now.write(self._path(hidden), parcel, self._buffer)
        stored.require_stored()
        return self._now.publish(stored, self._path(name), mtime).result()

    def _names(self) -> list[str]:
        return self._now.names(self._folder)

    def _content(self, name: str) -> bytes:
        parcel = self._now.read(self._path(name))
        content = b""
        while count := parcel.readinto(self._buffer):
            content += self._buffer[:count]
        parcel.close(complete=True)
        return content

    # --- questions --------------------------------------------------------------------------------------------

    def _base(self) -> tuple[str, bool]:
        self._now.require_base()
        self._now.names("")
        self._survey.reads = True
        return "is there, and answers a listing", True

    def _first_file(self) -> bool:
        """Write a file into a new folder, in another way if need be: without that there is nothing more to ask."""
        plain, refusal = self._server, ""
        for settings in WAYS:
            self._become(ServerConfig(**{**vars(plain), **{key.lower(): value for key, value in settings.items()}}))
            try:
                self._write("plain.bin")
            except PermissionRefused as error:
                refusal = refusal or str(error)
                self._give_up(error)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
                self._survey.add("new folder", f"failed: {error}", good=False)
                self._give_up(error)
                return False
            else:
                self._survey.add("new folder", "works" if not settings else f"works by another way; without: {refusal}")
                self._survey.settings |= settings
                self._survey.writes = True
                return True
        self._become(plain)
        self._survey.add("writing", f"refused: {refusal}", good=False)
        return False

    def _become(self, server: ServerConfig) -> None:
        """Go on with other settings, in another session."""
        if server != self._server:
            self._server = server
            self._drop()

    def _deleting(self) -> tuple[str, bool]:
        self._now.remove(self._path("plain.bin"))
        if self._now.look(self._path("plain.bin")) is None:
            return "works", True
        return "does nothing", False

    def _listing(self) -> tuple[str, bool]:
        self._write("plain.bin")
        self._lists = "plain.bin" in self._names()
        return ("shows what is there", True) if self._lists else ("does not show what is there", False)

    def _replacing(self) -> tuple[str, bool]:
        published = self._write("plain.bin", b"another")
        if self._content("plain.bin") != b"another":
            return "the old file stays", False
        if published.swapped:
            return "works; the old file is moved aside first, so for a moment the name is absent", True
        return "works in one step", True

    def _reading(self) -> tuple[str, bool | None]:
        content = secrets.token_bytes(100_000)  # every byte is among them, line ends, too
        self._write("bytes.bin", content)
        if self._content("bytes.bin") != content:
            self._survey.reads = False
            return "other bytes come back than were written", False
        facts = self._now.look(self._path("bytes.bin"))
        if facts is None or facts.size_bytes is None:
            return "works; sizes are not told, so nothing proves that a file is complete", None
        return "works; sizes are told", True

    def _dot_files(self) -> tuple[str, bool | None]:
        if self._server.partial_pattern == NOT_HIDDEN:
            return "refused", True
        self._write(".hidden")
        if not self._lists:
            return UNKNOWN, None
        if ".hidden" in self._names():
            return "are listed", True
        self._survey.settings["PARTIAL_PATTERN"] = NOT_HIDDEN
        return "are not listed: what a crash leaves would not be found", False

    def _times(self) -> tuple[str, bool | None]:
        """Compare a fresh file's time with the clock: one that we set is told as it was set, whatever the zone."""
        self._write("fresh.bin")
        fresh = self._now.look(self._path("fresh.bin"))
        if fresh is None or fresh.mtime is None:
            return "are not told", None
        off, zone = fresh.mtime - time.time(), ""
        if abs(off) >= SLACK_SECONDS:
            minutes = round(off / ZONE_SECONDS) * ZONE_SECONDS / 60
            zone = f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02.0f}:{abs(minutes) % 60:02.0f}"
            self._survey.settings["TIME_ZONE"] = zone
            self._become(replace(self._server, time_zone=zone))
        self._write("time.bin", mtime=STAMP)
        facts = self._now.look(self._path("time.bin"))
        is_kept = facts is not None and facts.mtime is not None and abs(facts.mtime - STAMP) < 2
        words = "are kept" if is_kept else "are not kept: a file has the time of its upload"
        if zone:
            return f"{words}; told in another zone ({zone}): where clocks change in summer, set its name", False
        return words, True if is_kept else None

    def _letter_case(self) -> tuple[str, bool | None]:
        self._write("Letter.bin")
        if self._now.look(self._path("lETTER.bin")) is None:
            return "tells names apart", True
        return "tells no names apart: two that differ in case are one file", None

    def _name(self, name: str) -> tuple[str, bool | None]:
        self._write(name)
        return self._kept(name)

    def _kept(self, *names: str) -> tuple[str, bool | None]:
        listed = self._names()
        if not self._lists:
            return UNKNOWN, None
        if all(name in listed for name in names):
            return "are kept", True
        self._made += listed
        return "are bent: such a file gets another name", False

    def _normalization(self) -> tuple[str, bool | None]:
        name = NAMES_AT_RISK["accents"]
        if self._now.look(self._path(name)) is None:
            return UNKNOWN, None
        if self._now.look(self._path(unicodedata.normalize("NFD", name))) is None:
            return "are told apart from letters and accents", True
        return "are one with letters and accents: two such names are one file", None

    def _byte_255(self) -> tuple[str, bool | None]:
        plain = self._server
        session = self._now
        session.adopt(replace(plain, encoding="latin-1"))
        try:
            for name in BYTE_255:
                self._write(name, name.encode())
            kept = self._kept(*BYTE_255)
            if kept[1] and any(self._content(name) != name.encode() for name in BYTE_255):
                return "one name is taken for another", False
            return kept
        finally:
            with suppress(EtlError):
                for name in BYTE_255:
                    session.remove(self._path(name))
            session.adopt(plain)

    # --- the end ----------------------------------------------------------------------------------------------

    def _tidy(self) -> None:
        """Remove everything; what stays is told."""
        if not self._made:
            return
        with suppress(EtlError, OSError):
            self._made += self._names()
        for name in dict.fromkeys(self._made):
            try:
                self._now.remove(self._path(name))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
                self._give_up(error)
        left = [self._folder]
        with suppress(EtlError, OSError):
            left = [self._path(name) for name in self._names()]
            if not left and not self._now.remove_folder(self._folder) and self._folder in self._now.names(""):
                left = [self._folder]
        self._survey.left = left
