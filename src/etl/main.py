"""`python -m etl.main`: the command `etl`, under the name by which supervisors and scripts call it."""

import sys
from typing import TYPE_CHECKING, Any

from etl.cli import main

if TYPE_CHECKING:
    from etl.process import run

__all__ = ["main", "run"]


def __getattr__(name: str) -> Any:
    if name != "run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from etl.process import run  # noqa: PLC0415 - the consumer, which most commands need nothing of

    return run


if __name__ == "__main__":
    sys.exit(main(prog_name="python -m etl.main"))
