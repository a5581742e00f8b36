"""`.env.example` lists every setting with its true default, nothing else, and works as it is."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from etl.config import PROTOCOLS, SERVER_PROPERTIES, SETTINGS, ConfigLoader, Settings
from etl.errors import SettingsError

pytestmark = pytest.mark.unit

EXAMPLE = Path(__file__).parents[3] / ".env.example"
LINE = re.compile(r"(#?)([A-Z][A-Z0-9_]*)=(.*)")
SHOWN = "SRC_FTP_SERVER1"  # the server on which every property is shown
OTHERS = ("DST_FTP_SERVER1_", "ARCHIVE_", "BANK_", "LAKE_", "VAULT_")


def lines() -> list[tuple[bool, str, str]]:
    """Return (active, name, value) of every setting in the file."""
    found = [LINE.fullmatch(line) for line in EXAMPLE.read_text(encoding="utf-8").splitlines()]
    return [(not match[1], match[2], match[3]) for match in found if match]


def test_every_setting_is_there_once_with_its_default():
    """And every default that is shown is the real one."""
    shown = [(name, value) for _, name, value in lines() if not name.startswith((SHOWN, *OTHERS))]
    assert sorted(shown) == sorted((row.name, row.default) for row in SETTINGS.values())


def test_every_property_of_a_server_is_there_once():
    """The common ones, and those of the protocols that come with us."""
    importlib.import_module("etl.transfer")
    own = {f"{SHOWN}_{name}" for name in PROTOCOLS["ftp"].settings}
    shown = [name for _, name, _ in lines() if name.startswith(SHOWN)]
    assert sorted(shown) == sorted({f"{SHOWN}_{name}" for name in SERVER_PROPERTIES} | own)


def test_every_property_of_a_folder_is_there_with_its_help():
    """A server of type local has an example of its own."""
    importlib.import_module("etl.transfer")
    for name, help_ in PROTOCOLS["local"].settings.items():
        assert f"# {help_}\n#ARCHIVE_{name}=" in EXAMPLE.read_text(encoding="utf-8"), name


@pytest.mark.parametrize(("kind", "server"), [("sftp", "VAULT"), ("ftps", "BANK"), ("s3", "LAKE")])
def test_every_property_of_a_protocol_is_there_with_its_help(kind, server):
    """Beside those that it needs; its secrets may come from files."""
    importlib.import_module("etl.transfer")
    spec = PROTOCOLS[kind]
    text = EXAMPLE.read_text(encoding="utf-8")
    for name, help_ in spec.settings.items():
        assert f"# {help_}\n#{server}_{name}=" in text, name
    shown = {name.removeprefix(f"{server}_") for _, name, _ in lines() if name.startswith(f"{server}_")}
    files = {f"{name}_FILE" for name in spec.secrets}
    login = {"HOST", "USER", "PASS"} if spec.needs_login else set()
    assert shown == {"TYPE"} | login | set(spec.settings) | files


def test_every_default_of_a_property_is_the_real_one():
    """Those that are commented out show the default."""
    for active, name, value in lines():
        row = SERVER_PROPERTIES.get(name.removeprefix(f"{SHOWN}_"))
        if name.startswith(SHOWN) and row and not active:
            assert value == row.default, name


def test_every_setting_has_its_line_of_help_above_it():
    """With the unit, as the table has it."""
    text = EXAMPLE.read_text(encoding="utf-8")
    for row in SETTINGS.values():
        assert f"# {row.help}\n#{row.name}={row.default}\n" in text, row.name
    for row in SERVER_PROPERTIES.values():
        assert re.search(rf"# {re.escape(row.help)}\n#?{SHOWN}_{row.name}=", text), row.name


def test_the_file_works_as_it_is(tmp_path, monkeypatch):
    """Copied to `.env` it gives two servers, the defaults, and not one warning."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_bytes(EXAMPLE.read_bytes())
    loader = ConfigLoader(environ={})
    assert loader.warnings == []
    assert loader.settings == Settings()
    assert set(loader.servers) == {"SRC_FTP_SERVER1", "DST_FTP_SERVER1"}


def test_every_default_of_the_file_may_be_made_active(tmp_path):
    """Removing the # signs of all lines changes nothing but the folder server."""
    file = tmp_path / "all.env"
    file.write_text("".join(f"{name}={value}\n" for _, name, value in lines()), encoding="utf-8")
    try:
        loader = ConfigLoader(file, {})
    except SettingsError as error:
        pytest.fail(str(error))
    assert loader.warnings == []
    assert loader.settings == Settings()
    assert loader.servers["ARCHIVE"].base_path == "/srv/archive"
