"""`python -m etl.main`: the command `etl`, under the name by which supervisors and scripts call it."""

import sys

from etl.cli import main
from etl.process import run

__all__ = ["main", "run"]

if __name__ == "__main__":
    sys.exit(main(prog_name="python -m etl.main"))
