"""A lease: the sessions for a job, made ready by the lane, and given back as reusable or not.

Owns the I/O of a lease (connect, ping, close); the lender keeps account of what is taken and free.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

import structlog

from etl.errors import (
    AuthenticationFailed,
    ConnectionLost,
    EtlError,
    ServerUnavailable,
)
from etl.sessions.pool import PooledSession

if TYPE_CHECKING:
    from collections import OrderedDict
    from collections.abc import Callable

    from etl.models.server import ServerConfig
    from etl.sessions.pool import Orphan, Slot
    from etl.transfer.base import Session

ORPHAN_TRIES = 3

log = structlog.get_logger(__name__)


class Lender(Protocol):
    """What a lease needs of whoever lent its sessions; nothing here blocks."""

    now: Callable[[], float]
    ping_limit: float

    def create(self, server: ServerConfig) -> Session:
        """Return a new, unconnected session."""
        ...

    def expiry(self) -> float:
        """Return when a session that is opened now will be past its lifetime."""
        ...

    def opened(self, slot: Slot) -> None:
        """Count a session that connected."""
        ...

    def closed(self, slot: Slot) -> None:
        """Count an evicted session as closed."""
        ...

    def discarded(self, slot: Slot) -> None:
        """Count a session as closed, which turned out to be dead, and whose slot a new one takes."""
        ...

    def connect_ended(self, slot: Slot) -> None:
        """Count a connect as over."""
        ...

    def refused(self, server: ServerConfig, error: Exception) -> None:
        """Note a connect that failed."""
        ...

    def take_orphans(self, slot: Slot) -> OrderedDict[str, Orphan]:
        """Return partial files for this session to remove, and forget them."""
        ...

    def put_back_orphans(self, slot: Slot, orphans: OrderedDict[str, Orphan]) -> None:
        """Remember again those that were not removed."""
        ...

    def checkin(self, lease: Lease, slots: list[tuple[Slot, bool]]) -> None:
        """End a lease; each slot comes with whether its session is reusable."""
        ...


class Lease:
    """One or two sessions for one job, or for several that follow each other.

    `open` and `release` belong to the lane, `abort` to any thread. The lane's two threads note here which session may
    not be used any more.
    """

    def __init__(self, lender: Lender, source: Slot, destination: Slot | None, *, shared: bool = False) -> None:
        self._lender = lender
        self._slots = [source] if destination is None else [source, destination]
        self.shared = shared  # one session serves both sides: the file goes through memory or a spool file
        self.is_pair = shared or destination is not None  # else only to connect: a job needs both sides
        self._lock = threading.Lock()  # guards changes of _aborted, _released, and of the sessions in the slots
        self._aborted = False
        self._released = False
        self.is_open = False
        self.source_is_reusable = True  # written by the fetching thread, or by the delivering one while that waits
        self.destination_is_reusable = True  # written by the delivering thread
        self.lost: BaseException | None = None  # why the destination did not get ready: the next file's error

    def __repr__(self) -> str:
        state = "released" if self._released else "aborted" if self._aborted else "open" if self.is_open else "reserved"
        return f"<Lease {' to '.join(self.servers)} {state}{' shared' if self.shared else ''} reusable={self.reusable}>"

    @property
    def reusable(self) -> tuple[bool, bool]:
        """May the sessions of source and destination be used again?"""
        return (self.source_is_reusable, self.destination_is_reusable)

    @property
    def is_over(self) -> bool:
        """Did a session fail or end, so that no job may begin with it?"""
        is_lost = self._aborted or not self.source_is_reusable or not self.destination_is_reusable
        return is_lost or any(map(_is_over, self._slots))

    @property
    def servers(self) -> tuple[str, ...]:
        """The names of the servers."""
        return tuple(slot.server.hostname for slot in self._slots)

    @property
    def source(self) -> Session:
        """The open session of the source."""
        return _session_of(self._slots[0])

    @property
    def destination(self) -> Session:
        """The open session of the destination; the source's own when the lease is shared or has one side only."""
        return _session_of(self._slots[-1])

    @property
    def aborted(self) -> bool:
        """Was the lease aborted?"""
        return self._aborted

    def open(self) -> None:
        """Make every session ready: close what it evicts, ping what was idle for long, connect what is missing.

        Blocks per side for the limits of connect and login at most. On any error both sides are given back and the
        lease is over; the error's `server` names the side.
        """
        for slot in self._slots:
            try:
                self._prepare(slot)
            except BaseException:
                self._end({other for other in self._slots if other is not slot})
                raise
        self.is_open = True

    def release(self, reusable: bool | tuple[bool, bool]) -> None:
        """Give the sessions back: `reusable` ones (per side: source, destination) are kept, others are closed at once.

        A session is reusable if it saw no exception and every reply was read. After an abort none is. A second call
        does nothing.
        """
        sides = reusable if isinstance(reusable, tuple) else (reusable, reusable)
        if self.shared:
            sides = (all(sides), all(sides))
        self._end({slot for slot, is_reusable in zip(self._slots, sides, strict=False) if is_reusable})

    def abort(self) -> None:
        """Make whatever blocks in these sessions fail at once; they are not reused. Does nothing after `release`."""
        with self._lock:  # critical section: decide whether the lease is still there to abort
            if self._released or self._aborted:
                return
            # From here on no session is reusable, so none can reach another job before it is aborted below.
            self._aborted = True
            sessions = [slot.session for slot in self._slots]
        for session in sessions:
            if session is not None:
                session.abort()

    def _end(self, reusable: set[Slot]) -> None:
        with self._lock:  # critical section: decide, once, which sessions are reusable
            if self._released:
                return
            self._released = True
            reusable = set() if self._aborted else reusable | {slot for slot in self._slots if not slot.is_touched}
            reusable = {slot for slot in reusable if not _is_over(slot)}
        self._lender.checkin(self, [(slot, slot in reusable) for slot in self._slots])

    def _prepare(self, slot: Slot) -> None:
        lender = self._lender
        self._require_not_aborted()
        slot.is_touched = True
        if slot.evicts is not None:
            disconnect(slot.evicts)
            slot.evicts = None
            lender.closed(slot)
        if slot.pooled is not None and slot.is_connecting and not is_alive(slot.pooled, lender.now, lender.ping_limit):
            self._discard(slot)
        if slot.pooled is None:
            self._connect(slot, removes_orphans=True)
        elif slot.pooled.server is not slot.server:
            slot.pooled.session.adopt(slot.server)
            slot.pooled.server = slot.server
        if slot.is_connecting:
            lender.connect_ended(slot)
        self._require_not_aborted()

    def _connect(self, slot: Slot, *, removes_orphans: bool) -> None:
        lender, server = self._lender, slot.server
        session = lender.create(server)
        with self._lock:
            slot.attempt = session  # from here on `abort` reaches it
        self._require_not_aborted()
        try:
            session.connect()
        except Exception as error:
            session.abort()
            disconnect(PooledSession(session, server, 0.0, 0.0, 0.0))
            reason = as_our_error(error, server)
            if not self.aborted:
                lender.refused(server, reason)
            raise reason from error
        now = lender.now()
        expires = min(lender.expiry(), now + session.lifetime_seconds())
        with self._lock:
            slot.pooled, slot.attempt = PooledSession(session, server, expires, used=now, proven=now), None
        lender.opened(slot)
        if removes_orphans and not self._remove_orphans(slot, session):
            self._discard(slot)  # it saw an error: it is not even used for the job that it was opened for
            self._connect(slot, removes_orphans=False)

    def _remove_orphans(self, slot: Slot, session: Session) -> bool:
        """Try to remove remembered partial files; False: the session saw an error."""
        orphans = self._lender.take_orphans(slot)
        while orphans:
            path, orphan = orphans.popitem(last=False)
            try:
                session.remove(path)
            except Exception as error:  # noqa: BLE001 - the session is closed, and another one tries again
                log.warning("partial file not removed", server=slot.server.hostname, path=path, error=str(error))
                orphan.tries += 1
                if orphan.tries < ORPHAN_TRIES:
                    orphans[path] = orphan
                self._lender.put_back_orphans(slot, orphans)
                return False
            log.info("partial file removed", server=slot.server.hostname, path=path)
        return True

    def _discard(self, slot: Slot) -> None:
        with self._lock:
            pooled, slot.pooled = slot.pooled, None
        if pooled is not None:
            pooled.session.abort()
            disconnect(pooled)
            self._lender.discarded(slot)

    def _require_not_aborted(self) -> None:
        if self.aborted:
            raise ConnectionLost("the sessions were reset from outside")


def disconnect(pooled: PooledSession) -> None:
    """Close a session."""
    try:
        pooled.session.disconnect()
    except Exception:  # by contract it never raises, but a user's own class may
        log.exception("session could not be closed", server=pooled.server.hostname)


def is_alive(pooled: PooledSession, now: Callable[[], float], limit: float) -> bool:
    """Ping a session, and note when it answered. After `limit` seconds the session is aborted."""
    was_cut = threading.Event()

    def cut() -> None:
        was_cut.set()
        pooled.session.abort()

    watch = threading.Timer(limit, cut)
    watch.name, watch.daemon = "ping-watch", True
    try:
        watch.start()
    except RuntimeError as error:  # no thread could be started, so nothing would limit the ping
        log.info("idle session closed: it could not be pinged", server=pooled.server.hostname, error=str(error))
        return False
    try:
        pooled.session.ping()
    except Exception as error:  # noqa: BLE001 - whatever a ping raises, the session is dead
        log.info("idle session closed: it did not answer a ping", server=pooled.server.hostname, error=str(error))
        return False
    finally:
        watch.cancel()
        watch.join()
    if was_cut.is_set():
        return False
    pooled.proven = now()
    return True


def _is_over(slot: Slot) -> bool:
    return slot.pooled is not None and slot.pooled.session.is_over


def _session_of(slot: Slot) -> Session:
    if slot.pooled is None:
        raise RuntimeError(f"the lease on {slot.server.hostname} is not open")
    return slot.pooled.session


def as_our_error(error: Exception, server: ServerConfig) -> Exception:
    """Return a connect's error as one of ours, with the server's name."""
    if isinstance(error, EtlError):
        error.server = error.server or server.hostname
        return error
    if isinstance(error, PermissionError):
        return AuthenticationFailed(f"{server.hostname}: {error}", server=server.hostname)
    if isinstance(error, OSError):
        return ServerUnavailable(f"{server.hostname}: {error}", server=server.hostname)
    return error
