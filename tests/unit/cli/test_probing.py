"""What `etl servers check --write` finds out: servers with one quirk each, played by a local folder."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from etl.cli.probing import Survey, probe
from etl.errors import ConnectionLost, NotAFile, PermissionRefused
from etl.models.server import ServerConfig, TransferSettings
from etl.models.task import Facts
from etl.transfer.base import Parcel, Promise, Published, Settled, Stored
from etl.transfer.local import LocalTransfer

pytestmark = pytest.mark.unit

NINE_HOURS = 9 * 3600.0


class Dotless(LocalTransfer):
    """Takes no names that begin with a dot."""

    def write(self, partial: str, parcel: Parcel, buffer: memoryview) -> Stored:
        if "/." in partial:
            raise PermissionRefused("no dots")
        return super().write(partial, parcel, buffer)


class Hiding(LocalTransfer):
    """Lists none of them."""

    def names(self, folder: str, prefix: str = "") -> list[str]:
        return [name for name in super().names(folder, prefix) if not name.startswith(".")]


class Blind(LocalTransfer):
    """Lists nothing."""

    def names(self, folder: str, prefix: str = "") -> list[str]:
        return []


class ReadOnly(LocalTransfer):
    def write(self, partial: str, parcel: Parcel, buffer: memoryview) -> Stored:
        raise PermissionRefused("read only")


class Renameless(LocalTransfer):
    """Renames nothing, so that files must be written under their own names."""

    def publish(self, stored: Stored, final: str, mtime: float | None) -> Promise[Published]:
        if self.server.publish != "direct":
            raise PermissionRefused("nothing is renamed")
        return super().publish(stored, final, mtime)


class Broken(LocalTransfer):
    def write(self, partial: str, parcel: Parcel, buffer: memoryview) -> Stored:
        raise ConnectionLost("reset")


class Keeping(LocalTransfer):
    def remove(self, path: str) -> bool:
        raise PermissionRefused("nothing is deleted")


class Pretending(LocalTransfer):
    """Says that it deletes, and does not."""

    def remove(self, path: str) -> bool:
        return True


class Bending(LocalTransfer):
    """Stores names without blanks at their end, and finds them so."""

    def publish(self, stored: Stored, final: str, mtime: float | None) -> Promise[Published]:
        return super().publish(stored, final.rstrip(), mtime)


class Refusing(LocalTransfer):
    """Refuses backslashes."""

    def publish(self, stored: Stored, final: str, mtime: float | None) -> Promise[Published]:
        if "\\" in final:
            self.remove(stored.partial)
            raise ConnectionLost("it hung up")
        return super().publish(stored, final, mtime)


class Folding(LocalTransfer):
    """Finds names whatever their letters' case, and however accents are written."""

    def look(self, path: str) -> Facts | None:
        folder, _, name = path.rpartition("/")
        for there in self.names(folder):
            if _folded(there) == _folded(name):
                return super().look(f"{folder}/{there}")
        return None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


class Timeless(LocalTransfer):
    """Keeps no times."""

    def publish(self, stored: Stored, final: str, mtime: float | None) -> Promise[Published]:
        return super().publish(stored, final, None)


class Elsewhere(Timeless):
    """And tells those of its own zone."""

    def look(self, path: str) -> Facts | None:
        facts = super().look(path)
        return None if facts is None else Facts(facts.size_bytes, (facts.mtime or 0) + NINE_HOURS)


class Sizeless(LocalTransfer):
    def look(self, path: str) -> Facts | None:
        return None if super().look(path) is None else Facts(None, None)


class Translating(LocalTransfer):
    """Ends lines its own way, as a server in text mode does."""

    def publish(self, stored: Stored, final: str, mtime: float | None) -> Promise[Published]:
        done = super().publish(stored, final, mtime)
        done.result()
        place = Path(self.server.base_path, final)
        place.write_bytes(place.read_bytes().replace(b"\n", b"\r\n"))
        return done


class Adding(LocalTransfer):
    """Leaves the old file where a new one is to replace it."""

    def publish(self, stored: Stored, final: str, mtime: float | None) -> Promise[Published]:
        if Path(self.server.base_path, final).exists():
            self.remove(stored.partial)
            return Settled(Published())
        return super().publish(stored, final, mtime)


class Swapping(LocalTransfer):
    def publish(self, stored: Stored, final: str, mtime: float | None) -> Promise[Published]:
        super().publish(stored, final, mtime).result()
        return Settled(Published(swapped=True))


class NoBase(LocalTransfer):
    def require_base(self) -> None:
        raise NotAFile("the base path is no folder")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "own").touch()
    return folder


@pytest.fixture
def survey(base: Path) -> Callable[[type[LocalTransfer]], Survey]:
    """Probe a server of a kind; whatever it is, its sessions are closed."""

    def run(kind: type[LocalTransfer]) -> Survey:
        def connect(server: ServerConfig) -> LocalTransfer:
            session = kind(server, TransferSettings())
            session.connect()
            return session

        return probe(ServerConfig("HERE", "local", base_path=str(base)), connect)

    return run


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def found(survey: Survey, topic: str) -> tuple[str, bool | None]:
    """Return what was found of a topic."""
    (finding,) = [finding for finding in survey.findings if finding.topic == topic]
    return finding.found, finding.good


def test_a_folder_that_can_everything_is_fit_for_both(survey, base: Path) -> None:
    """All good, no setting follows, and nothing is left."""
    told = survey(LocalTransfer)
    assert told.fit == "both"
    assert [finding for finding in told.findings if finding.good is not True] == []
    assert (told.settings, told.left) == ({}, [])
    assert names_in(base) == ["own"]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Dotless, {"PARTIAL_PATTERN": "etl-{id}.part"}),
        (Hiding, {"PARTIAL_PATTERN": "etl-{id}.part"}),
        (Renameless, {"PUBLISH": "direct"}),
        (Elsewhere, {"TIME_ZONE": "+09:00"}),
    ],
)
def test_what_is_forbidden_or_odd_leads_to_a_setting(survey, base: Path, kind: type, settings: dict[str, str]) -> None:
    """It is named, and works for all other questions."""
    told = survey(kind)
    assert told.settings == settings
    assert told.fit == "both"
    assert names_in(base) == ["own"]


@pytest.mark.parametrize(("kind", "topic"), [(ReadOnly, "writing"), (Broken, "new folder")])
def test_a_server_that_takes_nothing_is_a_source_at_most(survey, base: Path, kind: type, topic: str) -> None:
    """The error is told, nothing more is tried, and nothing is left."""
    told = survey(kind)
    assert found(told, topic)[1] is False
    assert (told.fit, told.left) == ("source", [])
    assert names_in(base) == ["own"]


def test_a_base_that_is_no_folder_is_no_source(survey) -> None:
    """What can be listed nowhere, can be read nowhere."""
    assert found(survey(NoBase), "base folder") == ("failed: the base path is no folder", False)


@pytest.mark.parametrize("kind", [Keeping, Pretending])
def test_a_server_that_deletes_nothing_gets_few_files_and_they_are_named(survey, base: Path, kind: type) -> None:
    """One file is what it costs to find out."""
    told = survey(kind)
    assert found(told, "deleting")[1] is False
    (left,) = told.left
    assert (base / left).is_file()
    assert len([path for path in base.rglob("*") if path.is_file()]) == 2


def test_a_name_that_is_bent_is_told_and_removed(survey, base: Path) -> None:
    """Under the name that it got."""
    told = survey(Bending)
    assert found(told, "names: blanks around") == ("are bent: such a file gets another name", False)
    assert found(told, "names: quotes")[1] is True
    assert names_in(base) == ["own"]


def test_a_name_that_ends_the_session_does_not_end_the_probe(survey, base: Path) -> None:
    """What follows is asked through another session."""
    told = survey(Refusing)
    assert found(told, "names: backslashes") == ("failed: it hung up", False)
    assert found(told, "names: signs")[1] is True
    assert names_in(base) == ["own"]


def test_names_that_are_one_are_told(survey) -> None:
    """By case, and by the way accents are written."""
    told = survey(Folding)
    assert "are one file" in found(told, "letter case")[0]
    assert "are one file" in found(told, "names: composed letters")[0]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Timeless, "not kept: a file has the time of its upload"),
        (Elsewhere, "told in another zone (+09:00)"),
        (Sizeless, "are not told"),
    ],
)
def test_times_are_compared_with_the_clock(survey, kind: type, words: str) -> None:
    """Not kept, in another zone, or not told."""
    assert words in found(survey(kind), "times")[0]


@pytest.mark.parametrize(
    ("kind", "topic", "words"),
    [
        (Sizeless, "reading", "sizes are not told"),
        (Translating, "reading", "other bytes"),
        (Adding, "replacing", "the old file stays"),
        (Swapping, "replacing", "moved aside first"),
        (Blind, "listing", "does not show what is there"),
        (Blind, "dot files", "not found out"),
        (Blind, "names: quotes", "not found out"),
    ],
)
def test_other_quirks_are_told(survey, kind: type, topic: str, words: str) -> None:
    """Each under its topic."""
    assert words in found(survey(kind), topic)[0]
