"""Debian's Chromium as a process of its own, driven by Playwright over its debugging port."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Self

import stack

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find() -> str:
    """Return the browser. Raises MissingInfrastructureError."""
    for name in [os.environ.get("CHROMIUM", ""), *NAMES]:
        if name and (found := shutil.which(name)):
            return found
    raise stack.MissingInfrastructureError("no Chromium; run: docker/bootstrap.sh --tests, as root, or install it")


class Chromium(stack.Server):
    """One browser without a window; its contexts share nothing."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.log = folder / "chromium.log"
        self.log.touch()
        self.port = stack.free_port()

    def start(self) -> Self:
        """Start it; return when it can be driven."""
        command = [
            find(),
            "--headless=new",
            "--no-sandbox",  # tests may run as root, and every page is ours
            "--disable-gpu",
            "--hide-scrollbars",  # on pictures
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-default-apps",
            "--disable-extensions",
            "--disable-sync",
            "--no-first-run",
            "--no-default-browser-check",
            "--no-proxy-server",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing leaves this machine
            "--lang=en-US",
            "--font-render-hinting=none",
            f"--user-data-dir={self.folder / 'profile'}",
            f"--remote-debugging-port={self.port}",
            "about:blank",
        ]
        environment = {"HOME": str(self.folder), "TZ": "Asia/Seoul", "LANG": "C.UTF-8"}
        self._launch(command, environment, lambda process: stack.listens(process, self.port))
        return self

    @property
    def url(self) -> str:
        """Where it is driven."""
        return f"http://127.0.0.1:{self.port}"
