"""supervisord as the appliance runs it: its lines carry its name, and it ends with the code that `watch.py` noted."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from supervisor import loggers, supervisord
from supervisor.supervisord import Supervisor

EXIT_CODE_FILE = Path(os.environ["APPLIANCE_RUN_DIR"]) / "exit-code"


class Prompt(Supervisor):
    """Starts its programs at once; the original waits a second for something to happen first."""

    def runforever(self) -> None:
        """Run."""
        for group in sorted(self.process_groups.values()):
            group.transition()
        super().runforever()


def main() -> int:
    """Run until told to stop; return 0, or the exit code of the program that ended it all."""
    plain = loggers.handle_stdout
    loggers.handle_stdout = lambda logger, fmt: plain(logger, fmt.replace("%(message)s", "supervisord %(message)s"))
    supervisord.Supervisor = Prompt
    EXIT_CODE_FILE.unlink(missing_ok=True)
    supervisord.main()
    return int(EXIT_CODE_FILE.read_text()) if EXIT_CODE_FILE.exists() else 0


if __name__ == "__main__":
    sys.exit(main())
