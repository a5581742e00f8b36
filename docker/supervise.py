"""supervisord as the appliance runs it: its lines carry its name, and it ends with the code that `watch.py` noted."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from supervisor import loggers, supervisord

EXIT_CODE_FILE = Path(os.environ["APPLIANCE_RUN_DIR"]) / "exit-code"


def main() -> int:
    """Run until told to stop; return 0, or the exit code of the program that ended it all."""
    plain = loggers.handle_stdout
    loggers.handle_stdout = lambda logger, fmt: plain(logger, fmt.replace("%(message)s", "supervisord %(message)s"))
    EXIT_CODE_FILE.unlink(missing_ok=True)
    supervisord.main()
    return int(EXIT_CODE_FILE.read_text()) if EXIT_CODE_FILE.exists() else 0


if __name__ == "__main__":
    sys.exit(main())
