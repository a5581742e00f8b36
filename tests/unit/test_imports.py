"""Who may import whom: downward only, one seam to Kafka, one to FTP, one to the environment."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.unit

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = REPOSITORY / "src" / "etl"

# From the bottom up. A module imports what stands before its row; folders, marked +, also their own parts.
ROWS = [
    ("errors",),
    ("models", "+"),
    ("transfer", "+"),
    ("config", "+"),
    ("identity", "logs", "clock"),
    ("retry", "+"),
    ("sessions", "+"),
    ("dispatch", "+"),
    ("broker", "+"),
    ("topics", "+"),
    ("outcomes", "+"),
    ("lanes", "+"),
    ("intake", "+"),
    ("status", "+"),
    ("control", "+"),
    ("api", "+"),
    ("consumer",),
    ("process",),
    ("cli", "+"),
    ("main",),
]
RANKS = {room: rank for rank, row in enumerate(ROWS) for room in row if room != "+"}


class Import(NamedTuple):
    """`importer` names `imported`: both full names. Those for type checkers and those within functions count, too."""

    importer: str
    imported: str


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(SOURCES.rglob("*.py")):
        parts = ("etl", *path.relative_to(SOURCES).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports() -> list[Import]:
    known, found = modules(), []
    for name, path in known.items():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: imports are absolute"
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                targets = [target if target in known else str(node.module) for target in whole]
            else:
                continue
            found += [Import(name, target) for target in targets]
    return found


def room(module: str) -> str:
    return module.split(".")[1]


def rank(module: str) -> int:
    return RANKS[room(module)]


INNER = [found for found in imports() if found.imported.startswith("etl.")]


def test_every_module_has_its_room() -> None:
    """A new module stands in ROWS: somebody decided what it may know."""
    assert {room(name) for name in modules() if name != "etl"} <= RANKS.keys()


def is_allowed(found: Import) -> bool:
    same_folder = room(found.importer) == room(found.imported) and "+" in ROWS[rank(found.importer)]
    return same_folder or rank(found.imported) < rank(found.importer)


def test_imports_go_downward() -> None:
    """A module imports only what lies below it; a folder also its own parts."""
    assert len(INNER) > 100
    assert [f"{found.importer} > {found.imported}" for found in INNER if not is_allowed(found)] == []


def test_imports_have_no_cycle() -> None:
    """Not even within a folder, nor for type checkers alone."""
    below: dict[str, set[str]] = {}
    for found in INNER:
        if found.importer != found.imported:
            below.setdefault(found.importer, set()).add(found.imported)
    # Importing a module of another folder runs that folder's `__init__` first; of its own, it is running already.
    for importer, found_names in below.items():
        packages = {name.rpartition(".")[0] for name in found_names} & modules().keys() - {"etl"}
        found_names |= {package for package in packages if not f"{importer}.".startswith(f"{package}.")}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " > ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in below.get(name, ()):
                visit(other, (*path, name))
            done.add(name)

    for name in sorted(below):
        visit(name, ())


def test_the_listing_shows_the_rooms() -> None:
    """The root of the package is short, and no file is a drawer."""
    root = [path for path in SOURCES.glob("*.py") if path.name != "__init__.py"]
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    print(f"{len(root)} modules in the root, {len(lines)} in all, the longest {max(lines.values())} lines")
    assert len(root) <= 8
    assert {name: count for name, count in lines.items() if count > 400} == {}


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("kafka", ("etl.broker",)),
        ("ftplib", ("etl.transfer.ftp",)),
        ("click", ("etl.cli",)),
        ("rich", ("etl.cli",)),
        ("dotenv", ("etl.config",)),
        ("pydantic", ("etl.models", "etl.api")),
        ("fastapi", ("etl.api",)),
        ("starlette", ("etl.api",)),
        ("uvicorn", ("etl.api",)),
        ("jwt", ("etl.api",)),
        ("sqlite3", ("etl.api",)),
        (
            "socket",
            (
                "etl.transfer.ftp",
                "etl.transfer.ftps",
                "etl.transfer.s3",
                "etl.transfer.sftp",
                "etl.config",
                "etl.broker.connection",
                "etl.broker.network",
                "etl.api",
            ),
        ),  # the host's name; is it there; to listen
        ("subprocess", ("etl.transfer.sftp",)),
        ("botocore", ("etl.transfer.s3.keys",)),
        ("asyncio", ("etl.api",)),
    ],
)
def test_a_library_stays_in_its_room(library: str, rooms: tuple[str, ...]) -> None:
    """Only broker knows the Kafka client, only the protocol its own library; only the API an event loop."""
    users = {found.importer for found in imports() if found.imported.split(".")[0] == library}
    assert {user for user in users if not f"{user}.".startswith(tuple(f"{room}." for room in rooms))} == set()


def test_only_the_command_starts_the_api() -> None:
    """No consumer imports the API, which takes five times its memory in libraries alone."""
    users = {found.importer for found in INNER if room(found.imported) == "api" and room(found.importer) != "api"}
    assert users == {"etl.cli.api"}


def test_a_consumer_loads_no_library_that_others_use(tmp_path: Path) -> None:
    """Neither the API's nor the terminal's, nor by way of another library. An extra is loaded when used."""
    tell = "atexit.register(lambda: print(*sorted({n.split('.')[0] for n in sys.modules})))"
    script = f"import atexit, sys; {tell}; from etl.main import main; main(['consume', '--topic', 'no topic'])"
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COV")}  # it loads sqlite3, too
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=plain, cwd=tmp_path, check=False
    )
    assert told.returncode == 2, told.stderr
    loaded = set(told.stdout.split())
    assert {"kafka", "structlog"} <= loaded
    assert not {"fastapi", "starlette", "uvicorn", "jwt", "sqlite3", "botocore", "rich", "pygments"} & loaded


def test_only_the_factory_knows_protocols() -> None:
    """`transfer/__init__` registers them; everybody else sees sessions."""
    protocols = ("etl.transfer.ftp", "etl.transfer.ftps", "etl.transfer.local", "etl.transfer.s3", "etl.transfer.sftp")
    users = {
        found.importer
        for found in INNER
        if found.imported.startswith(protocols) and not found.importer.startswith(protocols)
    }
    assert users == {"etl.transfer"}


def test_the_environment_is_read_in_one_place() -> None:
    """Settings come from `config`: no other module looks into the environment."""
    readers = set()
    for name, path in modules().items():
        for node in ast.walk(tree_of(path)):
            names = (
                {alias.name for alias in node.names}
                if isinstance(node, ast.ImportFrom) and node.module == "os"
                else set()
            )
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
                names = {node.attr}
            if names & {"environ", "environb", "getenv", "getenvb", "putenv"}:
                readers.add(name)
    assert readers == {"etl.config.loader"}


def test_no_folder_shadows_a_library() -> None:
    """A package named `kafka` or `docker` beside the sources would hide the real ones."""
    assert not [path for folder in ("kafka", "docker") for path in (REPOSITORY / folder).rglob("__init__.py")]


def test_modules_say_what_they_are() -> None:
    """Each module opens with what it owns; none is a drawer for odds and ends."""
    for name, path in modules().items():
        assert not {"utils", "helpers", "common", "manager"} & set(name.split(".")), name
        if path.name != "__init__.py" or path.read_text(encoding="utf-8").strip():
            assert ast.get_docstring(tree_of(path)), f"{name} has no docstring"
