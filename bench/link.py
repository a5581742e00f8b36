"""A place to measure in: two network namespaces of our own, joined by a link with latency that `link.c` makes.

The kernel here may have no netem; two TUN devices and a queue do the same. Needs root and a C compiler. Whatever was
made is removed when the context ends; no other namespace or device is touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NEAR_ADDRESS, FAR_ADDRESS = "10.99.77.1", "10.99.77.2"
UP_SECONDS = 5.0


@dataclass(frozen=True)
class Link:
    """Two namespaces; processes are started in one of them by `inside`."""

    near: str
    far: str

    def inside(self, namespace: str, command: list[str]) -> list[str]:
        """Return the command that runs `command` in a namespace."""
        return ["ip", "netns", "exec", namespace, *command]


@contextlib.contextmanager
def link(one_way_ms: float) -> Iterator[Link]:
    """Make the namespaces and the link between them: everything that crosses it arrives `one_way_ms` later."""
    mark = str(os.getpid())
    made = Link(f"bench-near-{mark}", f"bench-far-{mark}")
    folder = Path(tempfile.mkdtemp(prefix="etl-bench-link-"))
    program, process = folder / "link", None
    try:
        source = Path(__file__).with_name("link.c")
        subprocess.run(["gcc", "-O2", "-pthread", "-o", str(program), str(source)], check=True, timeout=60)
        for name in (made.near, made.far):
            subprocess.run(["ip", "netns", "add", name], check=True, timeout=10)
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True, timeout=10)
        ends = [made.near, NEAR_ADDRESS, made.far, FAR_ADDRESS]
        process = subprocess.Popen([str(program), *ends, str(int(one_way_ms * 1000)), f"etl{mark[-6:]}"])
        ping = made.inside(made.near, ["sh", "-c", f"ip route get {FAR_ADDRESS} >/dev/null 2>&1"])
        deadline = time.monotonic() + UP_SECONDS
        while subprocess.run(ping, check=False, timeout=5).returncode != 0:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the link does not come up")
            time.sleep(0.05)
        yield made
    finally:
        if process is not None:
            process.kill()
            process.wait(5)
        for name in (made.near, made.far):
            subprocess.run(["ip", "netns", "del", name], check=False, timeout=10, stderr=subprocess.DEVNULL)
        shutil.rmtree(folder, ignore_errors=True)
