"""docs/servers.md: what the zoo found, as a table. Written when `ZOO_TABLE` names the file: `make servers-table`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from servers.zoo import KINDS

HEAD = """# Servers

What works with which server, found by running 169 jobs of every kind on each: to the server, from it and within it;
odd names, all sizes, new folders, every `overwrite` and source action, missing and forbidden things, times. This file
is written by `make servers-table`; `tests/servers/zoo` starts the servers, and `make test-zoo` runs all tests on them.
What a server of your own can do, `etl servers check --write` finds out.

*Our settings*: what to set for such a server, beside its address and login; with TLS also `{NAME}_TYPE=ftps`, with SFTP
`{NAME}_TYPE=sftp`. *Right*: the jobs of 169 that end as they do everywhere, judged on the
disk; why others do not is told below. *Times*: whether an uploaded file keeps its source's time; where not, the result
says `"mtime_kept": false`. *Up*, *down*: files of 20 KB in a second, as a share of vsftpd's in the same minutes on the
same machine (medians). That vsftpd speaks plain FTP, also beside servers with TLS or SFTP; where less than a quarter is
left, the reason is told below.

| Server | Its settings | Our settings | Right | Times | Up | Down |
|---|---|---|---|---|---|---|
"""
NOTES = """
## What does not work

Each of these jobs ends as one dead letter that says why, and leaves nothing behind. *Not yet right* is the exception:
these are faults of ours, which `make test-zoo` shows.

"""


@dataclass
class Finding:
    """What was found of one kind."""

    right: int = 0  # jobs
    told: Counter[str] = field(default_factory=Counter)  # why others are not: how many jobs
    keeps_times: bool = False
    up: float | None = None  # of vsftpd's speed
    down: float | None = None


def render(findings: Mapping[str, Finding]) -> str:
    """Return the document."""
    rows, notes = [], []
    for name, kind in KINDS.items():
        found = findings[name]
        ours = ", ".join(f"`{{NAME}}_{key}={value}`" for key, value in kind.settings.items())
        times = "kept" if found.keeps_times else "not kept"
        cells = (kind.title, kind.setting, ours, str(found.right), times, _share(found.up), _share(found.down))
        rows.append(f"| {' | '.join(cells)} |")
        reasons = [f"{reason} ({count})" for reason, count in found.told.items()] + [kind.slow] * bool(kind.slow)
        if told := "; ".join(reasons):
            notes.append(f"* **{kind.title}**{f', {kind.setting}' if kind.setting else ''}: {told}.")
    return HEAD + "\n".join(rows) + "\n" + NOTES + "\n".join(notes) + "\n"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def write(findings: Mapping[str, Finding], path: Path) -> None:
    """Write the document, if every kind was tried."""
    lacking = [name for name in KINDS if name not in findings]
    if lacking:
        raise ValueError(f"not tried: {', '.join(lacking)}")
    path.write_text(render(findings), encoding="utf-8")
