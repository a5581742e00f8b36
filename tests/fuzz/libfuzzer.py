"""Fuzz one target with libFuzzer: `python -m fuzz.libfuzzer TARGET SECONDS FOLDER`. Ends with 0 if nothing is found."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["etl"]):
    from fuzz import targets

LARGEST_BYTES = 4096
SLOWEST_SECONDS = 5  # of one input
MEMORY_MB = 1024


def main() -> None:
    """Run until the time is over, or until something is found."""
    name, seconds, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    for number, example in enumerate(targets.examples(name)):
        (folder / f"example-{number}").write_bytes(example)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={LARGEST_BYTES}",
        f"-timeout={SLOWEST_SECONDS}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-artifact_prefix={folder}/found-",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(folder)], targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
