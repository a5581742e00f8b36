"""Dead letters as a table: all that match, whole, and nothing in it that a spreadsheet would carry out."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from apiworld import World
from etl.api.routes import exporting

pytestmark = pytest.mark.unit

EXPORT = "/api/v1/dead-letters/export"


def table(text: str) -> list[dict[str, str]]:
    assert text.startswith("\ufeff"), "the mark that has spreadsheets read UTF-8"
    return list(csv.DictReader(io.StringIO(text[1:], newline="")))


def test_all_that_match_are_exported_newest_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim: over many parts none is left out or doubled; filters are those of the list; it is a download."""
    monkeypatch.setattr(exporting, "PART", 7)
    world.take(*(world.letter(n) for n in range(30)))
    with world.client("viewer") as client:
        answer = client.get(EXPORT)
        few = client.get(f"{EXPORT}?job_id=j3&server=src")
        none = client.get(f"{EXPORT}?server=NOBODY")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"].startswith('attachment; filename="dead-letters-2')
    rows = table(answer.text)
    assert [row["place"] for row in rows] == [f"0:{n}" for n in reversed(range(30))]
    assert rows[0]["source_path"] == "/in/a.tif"
    assert [row["job_id"] for row in table(few.text)] == ["j3"]
    assert table(none.text) == []


@pytest.mark.parametrize(
    "evil",
    [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "  =1",
        "\u00a0=1",
        "\u3000=1",
        "\uff1d1",
        "\uff0b1",
        "'=1",
        "\n=1",
        " " * 60,
    ],
)
def test_no_cell_is_a_formula(evil: str) -> None:
    """Claim: what a spreadsheet would take for a formula begins with an apostrophe; the rest of it stays as it is."""
    assert exporting.plain(evil) == f"'{evil}"


@pytest.mark.parametrize("calm", ["", "/a=b.csv", "a+b", "x", "한글 파일.tif", "0:1"])
def test_other_cells_stay_as_they_are(calm: str) -> None:
    """Claim: an ordinary path is not changed."""
    assert exporting.plain(calm) == calm


def test_names_of_strangers_do_not_leave_their_cell(world: World) -> None:
    """Claim: quotes, commas, line breaks and formulas in ids and paths stay in the cell of their letter."""
    evil = '=cmd|"/c calc"!A1,"\u2028x'
    source: dict[str, Any] = {"hostname": "SRC", "path": '/a\u202e,"b'}
    world.take(world.letter(1, job_id=evil, source=source))
    with world.client("viewer") as client:
        (row,) = table(client.get(EXPORT).text)
    assert row["source_path"] == '/a\u202e,"b'
    assert None not in row
    assert not any((cell or "").startswith("=") for cell in row.values())


def test_an_export_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim: after the limit the last line says that there are more; two run at the same time, a third is refused."""
    monkeypatch.setattr(exporting, "ROWS", 10)
    monkeypatch.setattr(exporting, "PART", 4)
    world.take(*(world.letter(n) for n in range(11)))
    with world.client("viewer") as client:
        rows = table(client.get(EXPORT).text)
        assert len(rows) == 11
        assert rows[-1]["place"] == "more match: only the newest 10 are here; ask for the others with older_than"
        monkeypatch.setattr(exporting, "ROWS", 11)
        assert len(table(client.get(EXPORT).text)) == 11
        for _ in range(exporting.AT_ONCE):
            exporting._running.acquire()
        refused = client.get(EXPORT)
        for _ in range(exporting.AT_ONCE):
            exporting._running.release()
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")
        assert client.get(EXPORT).status_code == 200
