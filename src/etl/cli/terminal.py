"""How commands print tables and sizes. Keeps passwords and the control characters of messages off the terminal."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from etl import logs
from etl.models import document

# An escape sequence in a file name could rewrite the screen; an invisible letter could make two names look
# the same, and one that changes the direction of writing could hide where a name ends.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb"
    "\U000e0000-\U000e0fff]"
)
_WIDE = 200  # columns of a file or a pipe


def visible(text: object) -> str:
    """Return `text` without passwords, and with control characters and invisible ones written as escapes."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], logs.redact(document.printable(str(text))))


def json_line(data: object) -> str:
    """Return `data` as one line of JSON that is safe to print."""
    return _CONTROL.sub(lambda found: json.dumps(found[0])[1:-1], logs.redact(document.write(data)))


def console(*, error: bool = False) -> Console:
    """Return a console on standard output or standard error; wide if that is not a terminal."""
    stream = sys.stderr if error else sys.stdout
    width = shutil.get_terminal_size().columns if stream.isatty() else _WIDE
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numbers: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> Table:
    """Return a plain table. Columns in `numbers` are right-aligned; those in `whole` are never folded, for copying."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        justify: Literal["right", "left"] = "right" if column in numbers else "left"
        made.add_column(column, justify=justify, overflow="fold", no_wrap=column in whole)
    for row in rows:
        made.add_row(*(Text(visible(cell)) for cell in row))
    return made


def size(count: float) -> str:
    """Return a number of bytes in readable form: 12.3 MB."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def plural(count: int, noun: str) -> str:
    """Return `1 job`, `2 jobs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith('s') else 's'}"
