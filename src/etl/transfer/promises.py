"""Promises made of others: whose answer takes more than one reply, or another form."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from etl.errors import ConnectionLost, EtlError, TransferTimeout
from etl.transfer.base import Promise

T = TypeVar("T")
A = TypeVar("A")
T_co = TypeVar("T_co", covariant=True)

CROSS_THREAD_SECONDS = 2 * 86_400.0  # a bug must not keep a thread for ever; longer than any limit that settings allow


class Lazy(Generic[T]):
    """A promise whose answer takes more than one reply: computed once, when asked for."""

    def __init__(self, compute: Callable[[], T], *, asks_more: bool) -> None:
        self.asks_more = asks_more  # it may need more commands, which a transfer forbids
        self._compute: Callable[[], T] | None = compute
        self._value: T | None = None
        self._error: EtlError | None = None
        self._tell: Callable[[], None] = _nobody

    @property
    def is_settled(self) -> bool:
        """Was it computed?"""
        return self._compute is None

    def result(self) -> T:
        """Read the replies that are needed; send more commands if they want it."""
        if self._compute is not None:
            compute, self._compute = self._compute, None
            try:
                self._value = compute()
            except EtlError as error:
                self._error = error
                self._tell()
            except BaseException:  # a question at a wrong time is none: it may be asked again
                self._compute = compute
                raise
            else:
                self._tell()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # computed above, or there is an error

    def then(self, tell: Callable[[], None]) -> None:
        """Have `tell` called once it is settled."""
        if self._compute is None:
            tell()
        else:
            self._tell = tell


class Unsettled:
    """The promises of one session that were not settled yet, in the order in which they were made."""

    def __init__(self) -> None:
        self._promises: deque[Lazy[Any]] = deque()  # the first is not settled; of those behind it some may be

    def later(self, compute: Callable[[], T], *, asks_more: bool = True) -> Lazy[T]:
        """Return a promise that `settle` settles, if nobody asks for it before."""
        self._drop_settled()
        promise = Lazy(compute, asks_more=asks_more)
        self._promises.append(promise)
        return promise

    @property
    def asks_more(self) -> bool:
        """May one of them need more commands, which a transfer forbids?"""
        self._drop_settled()
        return bool(self._promises) and any(one.asks_more and not one.is_settled for one in self._promises)

    def _drop_settled(self) -> None:
        while self._promises and self._promises[0].is_settled:
            self._promises.popleft()

    def settle(self, *, answered: bool = False) -> None:
        """Settle all; or only those that take no more than the replies that are read in passing (`answered`)."""
        waiting, self._promises = self._promises, deque()
        for promise in waiting:
            if answered and promise.asks_more:
                self._promises.append(promise)
                continue
            with contextlib.suppress(EtlError):  # whoever holds the promise is told
                promise.result()


class Mapped(Generic[A, T]):
    """A promise made of others: their answers in another form, for which nothing more is asked."""

    def __init__(self, convert: Callable[..., T], *promises: Promise[A]) -> None:
        self._convert = convert
        self._promises = promises

    def result(self) -> T:
        """Return what the answers come to."""
        return self._convert(*(promise.result() for promise in self._promises))

    def then(self, tell: Callable[[], None]) -> None:
        """Have `tell` called once all of them are settled."""
        for promise in reversed(self._promises):
            tell = partial(promise.then, tell)
        tell()


def _nobody() -> None:
    """Tell nobody."""


class CrossThread(Generic[T_co]):
    """An answer that one thread gets and another one waits for."""

    def __init__(self) -> None:
        self._settled = threading.Lock()  # held until then: an Event costs ten times as much
        self._settled.acquire()
        self._promise: Promise[T_co] | None = None
        self._error: BaseException | None = None

    def follow(self, promise: Promise[T_co]) -> None:
        """Settle when `promise` does."""
        self._promise = promise
        promise.then(self._settled.release)

    def fail(self, error: BaseException) -> None:
        """Settle with an error, unless it is settled. Called by the thread that keeps it, and not after `follow`."""
        if self._settled.locked():
            self._error = error
            self._settled.release()

    def result(self) -> T_co:
        """Wait for the other thread, whose waits have limits of their own."""
        if not self._settled.acquire(timeout=CROSS_THREAD_SECONDS):
            raise TransferTimeout("the other side of the lane does not answer")
        self._settled.release()
        if self._error is not None or self._promise is None:
            raise self._error or ConnectionLost("the other side of the lane is gone")
        return self._promise.result()
