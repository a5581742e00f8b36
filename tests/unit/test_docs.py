"""The documents name what is there, and leave out nothing that a user or a new contributor looks for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from etl import errors
from etl.config import SETTINGS
from etl.models import TransferOptions

pytestmark = pytest.mark.unit

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
KOREAN = (REPOSITORY / "README.ko.md").read_text(encoding="utf-8")
ARCHITECTURE = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
DOCUMENTS = [
    REPOSITORY / "README.md",
    REPOSITORY / "README.ko.md",
    REPOSITORY / "SECURITY.md",
    REPOSITORY / "bench" / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]


def test_the_architecture_names_every_module() -> None:
    """A module that is new is told of, in its folder's line."""
    modules = [path for path in (REPOSITORY / "src" / "etl").rglob("*.py") if path.name != "__init__.py"]
    summed_up = {"cli", "config", "ftp", "ftps", "s3", "sftp"}  # these have one line each
    own = [path for path in modules if path.parent.name not in summed_up]
    assert [path.name for path in own if path.name not in ARCHITECTURE] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_files_and_links_in_a_document_exist(document: Path) -> None:
    """Whoever follows a link, or looks for a file that is named, finds it."""
    text = document.read_text(encoding="utf-8")
    links = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert [target for target in links if not (document.parent / target).exists()] == []
    named = re.findall(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|sh|conf))`", text)
    rooms = [path for path in (REPOSITORY / "src" / "etl").rglob("*") if path.is_dir()]
    places = (REPOSITORY, REPOSITORY / "src" / "etl", *rooms)
    own = {"web_transfer.py"}  # the user's, in the README's example
    missing = [name for name in named if name not in own and not any((place / name).exists() for place in places)]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_sections_that_are_linked_exist(document: Path) -> None:
    """A link into a document leads to one of its headings."""
    targets = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", document.read_text(encoding="utf-8"))
    assert [
        (file, anchor)
        for file, anchor in targets
        if anchor not in _anchors(document.parent / file if file else document)
    ] == []


def _anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as its readers make them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_tells_every_option_and_error_code() -> None:
    """What a job may say, and how it may end, is all in the README."""
    options = [name for name in TransferOptions.model_fields if f"`{name}`" not in README]
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.EtlError)]
    codes = sorted({kind.code for kind in kinds if f"`{kind.code}`" not in README})
    assert (options, codes) == ([], [])


def test_the_korean_readme_has_the_tables_of_the_english_one() -> None:
    """What is named in a table of one is in the other, in the same order: options, codes, properties, settings."""
    named = [re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE) for text in (README, KOREAN)]
    assert named[0] == named[1]


def test_settings_in_the_documents_exist() -> None:
    """No document tells of a setting that is refused."""
    known = set(SETTINGS)
    for document in DOCUMENTS:
        named = set(re.findall(r"\bETL_[A-Z_]+[A-Z]\b", document.read_text(encoding="utf-8")))
        assert named - known - {"ETL_TOPC"} == set(), document  # the README's example of a wrong one
