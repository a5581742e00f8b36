"""`python -m etl.main`: the command `etl` under the name that supervisors and scripts call it by."""

import sys

from etl.cli import main
from etl.process import run

__all__ = ["main", "run"]

if __name__ == "__main__":
    sys.exit(main(prog_name="python -m etl.main"))
