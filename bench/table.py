"""The one table: what was compared, ours beside the others, and whether the goal was met. Knows no measurement."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

COLUMNS = ("ours", "rclone", "lftp", "curl", "C")
NOTHING = "-"


@dataclass(frozen=True)
class Goal:
    """A ratio, or a value of ours, that must be reached; `aim` is what one would like."""

    text: str  # what is compared, for example "/rclone"; empty: the value itself
    must: float
    value: float | None  # None: could not be measured
    aim: float | None = None
    at_most: bool = False  # the smaller the better

    @property
    def met(self) -> bool | None:
        """Whether it was reached; None: not measured."""
        return None if self.value is None else self.reaches(self.must)

    def reaches(self, bound: float) -> bool:
        """Whether the value is as good as this bound, as printed."""
        value = round(self.value or 0.0, 2)
        return value <= bound if self.at_most else value >= bound

    def ratio_text(self) -> str:
        """Return the value for the table."""
        return NOTHING if self.value is None else f"{self.value:.2f}{self.text}"

    def goal_text(self) -> str:
        """Return the bounds for the table."""
        sign = "<=" if self.at_most else ">="
        aim = "" if self.aim is None else f" (aim {self.aim:g})"
        return f"{sign} {self.must:g}{aim}"

    def verdict(self) -> str:
        """Return a word for the table."""
        if self.met is None:
            return "not measured"
        if not self.met:
            return "MISSED"
        return "aim reached" if self.aim is not None and self.reaches(self.aim) else "met"


@dataclass(frozen=True)
class Row:
    """One line: values by column, and goals, each with a line of its own below the first."""

    what: str
    values: Mapping[str, float | str]
    goals: Sequence[Goal] = ()
    notes: Sequence[str] = field(default_factory=tuple)  # settings and caveats, printed below the table


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Return the median of the ratios round by round: what hits a round hits both."""
    pairs = list(zip(ours, theirs, strict=False))
    return statistics.median(a / b for a, b in pairs) if pairs else None


def render(rows: Sequence[Row], missing: Sequence[str] = ()) -> str:
    """Return the table for people; `missing` says what is not in it."""
    cells = [["", *COLUMNS, "ratio", "goal", ""]]
    for row in rows:
        values = [_number(row.values.get(column)) for column in COLUMNS]
        goals: list[Goal | None] = [*row.goals] or [None]
        for number, goal in enumerate(goals):
            head = [row.what, *values] if number == 0 else [""] * (1 + len(COLUMNS))
            cells.append(
                [*head, *([""] * 3 if goal is None else [goal.ratio_text(), goal.goal_text(), goal.verdict()])]
            )
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = []
    for line in cells:
        padded = [
            text.ljust(width) if column in {0, len(line) - 1} else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    notes = list(dict.fromkeys(note for row in rows for note in row.notes))
    return "\n".join([*lines, *missing, "", *(f"* {note}" for note in notes)])


def as_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Return the table for programs."""
    return [asdict(row) | {"verdicts": [goal.verdict() for goal in row.goals]} for row in rows]


def _number(value: float | str | None) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
