"""A thread that works beside a test."""

from __future__ import annotations

import threading
from typing import Self


class Background:
    """Runs `_run` in a thread for as long as its context lasts; that ends soon once `_stop` is set."""

    def __init__(self, name: str) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        raise NotImplementedError
