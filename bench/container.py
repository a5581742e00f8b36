"""How long an appliance takes from `docker run` to its first job done, to stop, to come back; and its memory at rest.

Wants the image `etl-file-sync` (`make image`). Usage: bench/container.py [IMAGE]. Prints one line a figure.
"""

from __future__ import annotations

import subprocess
import sys
import time
import uuid

IMAGE = sys.argv[1] if len(sys.argv) > 1 else "etl-file-sync"
NAME = f"etl-bench-{uuid.uuid4().hex[:8]}"
LIMIT_SECONDS = 120
FOLDER = ["--env", "A_TYPE=local", "--env", "A_BASE_PATH=/data"]


def docker(*arguments: str, check: bool = True) -> str:
    """Run `docker …` and return what it printed."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
    if check and done.returncode != 0:
        sys.exit(f"docker {' '.join(arguments)}: {done.stderr}")
    return done.stdout


def seconds_until_a_job_is_done(began: float, number: int) -> float:
    """Send a job as soon as one can be sent, and wait until its file is there."""
    docker("exec", NAME, "sh", "-c", "echo hello > /data/in.txt")

    send = f"until etl submit A:/in.txt A:/out{number}.txt 2>/dev/null; do sleep 0.1; done >/dev/null"
    docker("exec", NAME, "sh", "-c", f"{send}; until [ -e /data/out{number}.txt ]; do sleep 0.05; done")
    return time.monotonic() - began


def main() -> None:
    """Measure, print, remove everything."""
    try:
        began = time.monotonic()
        docker("run", "--detach", "--name", NAME, *FOLDER, IMAGE)
        print(f"docker run to the first job done   {seconds_until_a_job_is_done(began, 1):5.1f} s")
        time.sleep(10)
        used = docker("stats", "--no-stream", "--format", "{{.MemUsage}}", NAME).split(" ")[0]
        print(f"memory at rest                     {used}")
        began = time.monotonic()
        docker("stop", NAME)
        print(f"docker stop                        {time.monotonic() - began:5.1f} s")
        began = time.monotonic()
        docker("start", NAME)
        print(f"docker start to a job done         {seconds_until_a_job_is_done(began, 2):5.1f} s")
        docker("kill", NAME)
        began = time.monotonic()
        docker("start", NAME)
        print(f"after docker kill                  {seconds_until_a_job_is_done(began, 3):5.1f} s")
    finally:
        docker("rm", "--force", "--volumes", NAME, check=False)


if __name__ == "__main__":
    main()
