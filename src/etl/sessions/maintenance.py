"""Maintains idle sessions: pings them, closes those that expired, opens some ahead of need, and closes all at the end.

    Maintenance(stock, pause)       `stock`: the pools, which decide; `pause`: seconds between two rounds
    .start()  .run_once()  .close(idle, end, farewell_seconds) -> bool

Owns the threads and the I/O. Knows no job and no lock of the pools.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Protocol

import structlog

from etl.sessions.lease import is_alive

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.sessions.lease import Lease
    from etl.sessions.pool import Key, Pool, PooledSession

CLOSERS = 8  # threads that close sessions at the end

log = structlog.get_logger(__name__)


class Stock(Protocol):
    """What maintenance needs of the pools. Only `close_taken` blocks: it ends a session politely."""

    now: Callable[[], float]
    ping_limit: float

    def needing_care(self) -> list[tuple[Key, Pool]]:
        """Return the pools that need maintenance."""
        ...

    def take_expired(self, pool: Pool, now: float) -> PooledSession | None:
        """Take an idle session that is too old."""
        ...

    def take_stale(self, pool: Pool, now: float) -> PooledSession | None:
        """Take an idle session that has to be pinged."""
        ...

    def put_back(self, pool: Pool, pooled: PooledSession, *, reusable: bool) -> None:
        """Put a taken session back, or close it."""
        ...

    def close_taken(self, pool: Pool, pooled: PooledSession) -> None:
        """Close a taken session."""
        ...

    def reserve_warm(self, pool: Pool) -> Lease | None:
        """Return a lease of a session to open ahead of need."""
        ...


class Maintenance:
    """One thread that finds the pools that need maintenance, and one for each of them while it does."""

    def __init__(self, stock: Stock, pause: float) -> None:
        self._stock = stock
        self._pause = pause
        self._lock = threading.Lock()  # guards _busy; threads are started under it, so that `close` joins them all
        self._busy: dict[Key, threading.Thread] = {}
        self._end = threading.Event()
        self._reaper = threading.Thread(target=self._loop, name="reaper", daemon=True)

    def start(self) -> None:
        """Start the first thread."""
        self._reaper.start()

    def run_once(self) -> None:
        """Do one round, and wait for its end."""
        for thread in self._care_for_all():
            thread.join()

    def close(self, idle: list[tuple[Pool, PooledSession]], end: float, farewell_seconds: float) -> bool:
        """Stop, and close `idle` sessions: politely, or by a reset `farewell_seconds` before `end` (monotonic).

        Returns whether everything had ended by then.
        """
        self._end.set()
        farewells: queue.SimpleQueue[tuple[Pool, PooledSession]] = queue.SimpleQueue()
        for item in idle:
            farewells.put(item)
        closers = [
            threading.Thread(target=self._say_farewell, args=(farewells,), name=f"closer-{number}", daemon=True)
            for number in range(min(CLOSERS, len(idle)))
        ]
        for thread in closers:
            thread.start()
        if not _join(closers, end - farewell_seconds):
            for _, pooled in idle:
                pooled.session.abort()
        with self._lock:
            threads = closers + list(self._busy.values())
        if self._reaper.ident is not None:
            threads.append(self._reaper)
        return _join(threads, end)

    def _loop(self) -> None:
        while not self._end.is_set():
            try:
                self._care_for_all()
            except Exception:  # no thread could be started, or a bug: the next round may succeed
                log.exception("reaper failed")
            self._end.wait(self._pause)

    def _care_for_all(self) -> list[threading.Thread]:
        """Give each pool that needs care a thread of its own, unless it has one: a silent server delays no other."""
        needy = self._stock.needing_care()
        with self._lock:  # critical section: decide which pools get a thread; none once closing
            if self._end.is_set():
                return []
            threads = {
                key: threading.Thread(target=self._run, args=(key, pool), name=f"maintainer-{number}", daemon=True)
                for number, (key, pool) in enumerate(needy)
                if key not in self._busy
            }
            for key, thread in threads.items():
                thread.start()
                self._busy[key] = thread
        return list(threads.values())

    def _run(self, key: Key, pool: Pool) -> None:
        try:
            self._care_for(pool)
        except Exception:  # a bug must not end the maintenance
            log.exception("reaper failed")
        finally:
            with self._lock:
                del self._busy[key]

    def _care_for(self, pool: Pool) -> None:
        """Close expired sessions, ping those that are due, open some ahead of need. If one is dead, close all due."""
        stock, started = self._stock, self._stock.now()
        while (pooled := stock.take_expired(pool, started)) is not None:
            stock.close_taken(pool, pooled)
        is_dead = False
        while (pooled := stock.take_stale(pool, started)) is not None:
            is_dead = is_dead or not is_alive(pooled, stock.now, stock.ping_limit)
            if is_dead:
                pooled.session.abort()
            stock.put_back(pool, pooled, reusable=not is_dead)
        while (lease := stock.reserve_warm(pool)) is not None:
            try:
                lease.open()
            except Exception as error:  # noqa: BLE001 - the job that needs a session meets the error, and reports it
                log.info("session not opened ahead of need", servers=sorted(pool.names), error=str(error))
            lease.release(reusable=True)

    def _say_farewell(self, sessions: queue.SimpleQueue[tuple[Pool, PooledSession]]) -> None:
        while True:
            try:
                pool, pooled = sessions.get_nowait()
            except queue.Empty:
                return
            self._stock.close_taken(pool, pooled)


def _join(threads: list[threading.Thread], end: float) -> bool:
    """Wait for threads until `end` of the monotonic clock. Return whether all ended."""
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)
