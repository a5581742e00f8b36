"""Keeps files in flight in a demonstration that was left running, so that its page has something to show.

`traffic.py FOLDER ENV_FILE` puts some files into the folder of the server SCANNER, which has a slow line, and has them
copied again and again.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

SCANNER, TARGET = "SCANNER", "DST_FTP_SERVER1"
LINE = "1M"  # bytes per second
MEGABYTES = (2, 3, 4, 2, 3, 4)  # of the files
AT_ONCE = 3  # half of them: they take nine of the ten seconds until the next
EVERY_SECONDS = 10.0


def settings(folder: Path) -> list[str]:
    """Return the settings of the server."""
    return [f"{SCANNER}_TYPE=local", f"{SCANNER}_BASE_PATH={folder}", f"{SCANNER}_BANDWIDTH_LIMIT={LINE}"]


def main(folder: Path, env_file: str) -> None:
    """Make the files, and send jobs for ever."""
    folder.mkdir(exist_ok=True)
    for number, megabytes in enumerate(MEGABYTES):
        (folder / f"plate_{number}.tif").write_bytes(random.randbytes(megabytes * 1_000_000))
    command = [sys.executable, "-m", "etl.main", "submit", "--file", "-", "--env-file", env_file]
    for first in count(step=AT_ONCE):
        began = time.monotonic()
        paths = [f"/plate_{number % len(MEGABYTES)}.tif" for number in range(first, first + AT_ONCE)]
        jobs = [
            {
                "job_id": f"live-{number}",
                "source": {"hostname": SCANNER, "path": path},
                "destination": {"hostname": TARGET, "path": f"/live{path}"},
            }
            for number, path in enumerate(paths, first)
        ]
        lines = "\n".join(map(json.dumps, jobs))
        # Not checked: the broker may be away.
        subprocess.run(command, input=lines, text=True, stdout=subprocess.DEVNULL, check=False)
        time.sleep(max(0.0, EVERY_SECONDS - (time.monotonic() - began)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
