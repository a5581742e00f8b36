"""A lease: one or two sessions for one job, made ready by the lane, given back with a verdict.

Owns the I/O of a lease (connect, ping, close); what is taken and free is the pools' business (`pool.Pools`).
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import structlog

from etl.errors import (
    AuthenticationFailed,
    ConnectionLost,
    EtlError,
    ServerUnavailable,
)
from etl.transfer.shelf import Held

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.config import ServerConfig
    from etl.transfer.base import Session
    from etl.transfer.pool import Pools
    from etl.transfer.shelf import Place

LITTER_TRIES = 3

log = structlog.get_logger(__name__)


class Lease:
    """One or two sessions for one job. `open` and `release` belong to the lane, `abort` to any thread."""

    def __init__(self, pools: Pools, source: Place, destination: Place | None, *, shared: bool = False) -> None:
        self._pools = pools
        self._places = [source] if destination is None else [source, destination]
        self.shared = shared  # one session serves both sides: the file goes through memory or a spool file
        self.is_pair = shared or destination is not None  # else it is there to be opened: a job needs both sides
        self._lock = threading.Lock()  # guards changes of _aborted and _released, and which sessions an abort meets
        self._aborted = False
        self._released = False

    @property
    def servers(self) -> tuple[str, ...]:
        """The names of the servers whose sessions these are."""
        return tuple(place.server.hostname for place in self._places)

    @property
    def source(self) -> Session:
        """The open session of the source."""
        return _session_of(self._places[0])

    @property
    def destination(self) -> Session:
        """The open session of the destination; the source's own when the lease is shared or has one side only."""
        return _session_of(self._places[-1])

    @property
    def aborted(self) -> bool:
        """Was the lease aborted?"""
        return self._aborted

    def open(self) -> None:
        """Make every session ready: close what is in the way, ping what idled long, connect what is missing.

        Blocks at most the limits of connect and login, per side. On any error both sides are given back and the
        lease is over; the error's `server` names the side.
        """
        for place in self._places:
            try:
                self._prepare(place)
            except BaseException:
                self._end({other for other in self._places if other is not place})
                raise

    def release(self, clean: bool | tuple[bool, bool]) -> None:
        """Give the sessions back. Clean ones (per side: source, destination) are reused, others closed at once.

        Clean means: no exception was seen and every reply was read. After an abort none is clean. A second call
        does nothing.
        """
        sides = clean if isinstance(clean, tuple) else (clean, clean)
        if self.shared:
            sides = (all(sides), all(sides))
        self._end({place for place, is_clean in zip(self._places, sides, strict=False) if is_clean})

    def abort(self) -> None:
        """Make what blocks in these sessions fail at once; they are not reused. Does nothing after release."""
        with self._lock:
            if self._released or self._aborted:
                return
            # From here on all count as unclean: none can reach another job before its abort below.
            self._aborted = True
            sessions = [place.session for place in self._places]
        for session in sessions:
            if session is not None:
                session.abort()

    def _end(self, clean: set[Place]) -> None:
        with self._lock:
            if self._released:
                return
            self._released = True
            clean = set() if self._aborted else clean | {place for place in self._places if not place.is_touched}
        self._pools.give_back(self, [(place, place in clean) for place in self._places])

    def _prepare(self, place: Place) -> None:
        pools = self._pools
        self._require_not_aborted()
        place.is_touched = True
        if place.victim is not None:
            disconnect(place.victim)
            place.victim = None
            pools.closed(place)
        if place.held is not None and place.dials and not is_alive(place.held, pools.now, pools.ping_limit):
            self._discard(place)
        if place.held is None:
            self._connect(place, tidy=True)
        elif place.held.server is not place.server:
            place.held.session.adopt(place.server)
            place.held.server = place.server
        if place.dials:
            pools.dialled(place)
        self._require_not_aborted()

    def _connect(self, place: Place, *, tidy: bool) -> None:
        pools, server = self._pools, place.server
        session = pools.create(server)
        with self._lock:
            place.attempt = session  # from here on `abort` reaches it
        self._require_not_aborted()
        try:
            session.connect()
        except Exception as error:
            session.abort()
            disconnect(Held(session, server, 0.0, 0.0, 0.0))
            reason = named(error, server)
            if not self.aborted:
                pools.refused(server, reason)
            raise reason from error
        now = pools.now()
        with self._lock:
            place.held, place.attempt = Held(session, server, pools.expiry(), used=now, proven=now), None
        pools.opened(place)
        if tidy and not self._tidy(place, session):
            self._discard(place)  # it saw an error: never used again, not even for the job it was opened for
            self._connect(place, tidy=False)

    def _tidy(self, place: Place, session: Session) -> bool:
        """Remove remembered partial files, best effort; False when the session saw an error."""
        litter = self._pools.take_litter(place)
        while litter:
            path, piece = litter.popitem(last=False)
            try:
                session.remove(path)
            except Exception as error:  # noqa: BLE001 - best effort; the session goes, the path gets more chances
                log.warning("partial file not removed", server=place.server.hostname, path=path, error=str(error))
                piece.tries += 1
                if piece.tries < LITTER_TRIES:
                    litter[path] = piece
                self._pools.put_litter(place, litter)
                return False
            log.info("partial file removed", server=place.server.hostname, path=path)
        return True

    def _discard(self, place: Place) -> None:
        with self._lock:
            held, place.held = place.held, None
        if held is not None:
            held.session.abort()
            disconnect(held)
            self._pools.discarded(place)

    def _require_not_aborted(self) -> None:
        if self.aborted:
            raise ConnectionLost("the sessions were reset from outside")


def disconnect(held: Held) -> None:
    """Close a session."""
    try:
        held.session.disconnect()
    except Exception:  # by contract it never raises; a user's own class may
        log.exception("session could not be closed", server=held.server.hostname)


def is_alive(held: Held, now: Callable[[], float], limit: float) -> bool:
    """Ping a session; note the time when it answered. Takes `limit` seconds at most: then the session is cut."""
    was_cut = threading.Event()

    def cut() -> None:
        was_cut.set()
        held.session.abort()

    watch = threading.Timer(limit, cut)
    watch.name, watch.daemon = "ping-watch", True
    try:
        watch.start()
    except RuntimeError as error:  # no thread to be had: nothing would limit the ping
        log.info("idle session not pinged: closed", server=held.server.hostname, error=str(error))
        return False
    try:
        held.session.ping()
    except Exception as error:  # noqa: BLE001 - whatever a ping raises: the session is dead
        log.info("idle session closed", server=held.server.hostname, error=str(error))
        return False
    finally:
        watch.cancel()
        watch.join()
    if was_cut.is_set():
        return False
    held.proven = now()
    return True


def _session_of(place: Place) -> Session:
    if place.held is None:
        raise RuntimeError(f"the lease on {place.server.hostname} is not open")
    return place.held.session


def named(error: Exception, server: ServerConfig) -> Exception:
    """Return a connect's error as one of ours, with the server's name."""
    if isinstance(error, EtlError):
        error.server = error.server or server.hostname
        return error
    if isinstance(error, PermissionError):
        return AuthenticationFailed(f"{server.hostname}: {error}", server=server.hostname)
    if isinstance(error, OSError):
        return ServerUnavailable(f"{server.hostname}: {error}", server=server.hostname)
    return error
