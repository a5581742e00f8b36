"""The page's files: every text in both languages, nothing inline, nothing from elsewhere, no string read as HTML."""

from __future__ import annotations

import gzip
import re

import pytest

from apiworld import World
from etl.api.app import STATIC
from etl.api.routes.events import BEAT_SECONDS, SNAPSHOTS
from etl.status.summary import KINDS

pytestmark = pytest.mark.unit

MODULES = {path.name: path.read_text(encoding="utf-8") for path in sorted(STATIC.glob("*.js"))}
ROW = re.compile(r'^  "?([\w-]+)"?: \[\s*"((?:[^"\\]|\\.)*)",\s*"((?:[^"\\]|\\.)*)",?\s*\],$', re.MULTILINE)
TEXTS = {name: (english, korean) for name, english, korean in ROW.findall(MODULES["texts.js"])}
LIMIT_BYTES = 40_000  # of all files, compressed


def test_every_text_is_there_in_both_languages() -> None:
    """Claim: each row has two texts, which are filled in with the same values; Korean ones are in Korean."""
    table = MODULES["texts.js"].split("const TEXTS = {")[1].split("\n};")[0]
    rows = re.findall(r'^  "?[\w-]+"?: \[', table, re.MULTILINE)
    assert len(rows) == len(TEXTS)
    for name, (english, korean) in TEXTS.items():
        assert set(re.findall(r"\{(\d)\}", english)) == set(re.findall(r"\{(\d)\}", korean)), name
        assert name == "age-hint" or re.search("[가-힣]", korean), name


def test_every_text_that_is_asked_for_exists_and_is_used() -> None:
    """Claim: no key is missing in the table, and none is left over."""
    code = "\n".join(text for name, text in MODULES.items() if name != "texts.js")
    fixed = set(re.findall(r'\bt\("([\w-]+)"', code)) | set(re.findall(r'\bcount\("([\w-]+)"', code))
    assert fixed - TEXTS.keys() == set()
    made = {re.escape(start) + r"[\w-]+" for start in re.findall(r"\bt\(`([\w-]+)\$\{", code)}
    made |= {r"(replay|discard)-title"}
    quoted = set(re.findall(r'"([\w-]+)"', code)) | set(re.findall(r"\b(\w+): \w", code))
    own = {"seconds", "minutes", "hours", "days", "unseen"}
    unused = {
        name for name in TEXTS.keys() - fixed - quoted - own if not any(re.fullmatch(pattern, name) for pattern in made)
    }
    assert unused == set()


@pytest.mark.parametrize("kind", KINDS)
def test_every_need_has_its_words(kind: str) -> None:
    """Claim: what needs somebody is told in words, whatever kind it is."""
    assert f"need-{kind}" in TEXTS


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    """Claim: the policy of the page's answers is kept by its files: no inline script or style, no other origin."""
    index = (STATIC / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", index) == []
    others = {"http://www.w3.org/2000/svg"}  # a name, which nobody fetches
    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"""\b(?:https?|wss?)://[^\s"'`)]+""", text)) <= others, path.name
    for name, text in MODULES.items():
        for imported in re.findall(r'from "([^"]+)"', text):
            assert imported.removeprefix("./") in MODULES, (name, imported)


def test_no_string_is_read_as_html_or_code() -> None:
    """Claim: names of strangers can only become text."""
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|srcdoc|setHTML"
        r"|\beval\(|new Function"
    )
    assert {name: found for name, text in MODULES.items() if (found := re.findall(forbidden, text))} == {}


def test_the_page_listens_to_what_is_sent() -> None:
    """Claim: the kinds of its stream exist, and its patience fits the beat of the stream."""
    kinds = re.search(r"const KINDS = \[([^\]]+)\]", MODULES["net.js"])
    beat = re.search(r"const BEAT_SECONDS = (\d+);", MODULES["net.js"])
    assert kinds is not None
    assert beat is not None
    assert set(re.findall(r'"(\w+)"', kinds[1])) <= SNAPSHOTS.keys()
    assert float(beat[1]) == BEAT_SECONDS


def test_the_page_is_small() -> None:
    """Claim: all of it is less than a single photograph."""
    assert sum(len(gzip.compress(path.read_bytes(), 9)) for path in STATIC.iterdir()) < LIMIT_BYTES


def test_the_files_are_open_and_asked_for_anew(world: World) -> None:
    """Claim: everybody gets the page's files, which hold no data; browsers ask whether they are current.

    They are given as they are written: nothing is built, so nothing that is built can differ from its source.
    """
    client = world.client(None)
    assert client.get("/", follow_redirects=False).headers["location"] == "/ui/"
    for path in ("/ui/", *(f"/ui/{path.name}" for path in STATIC.iterdir())):
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert answer.content == (STATIC / (path.removeprefix("/ui/") or "index.html")).read_bytes(), path
        assert answer.headers["cache-control"] == "no-cache"
        assert "script-src 'self'" in answer.headers["content-security-policy"]
