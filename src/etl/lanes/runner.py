"""What a lane does with a job: sessions, relay, in one step or two; what became of it goes to `endings`.

Runs in the lanes' threads. Knows no Kafka client and no protocol.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import structlog

from etl.errors import DeadlineExceeded, EtlError, Fate, PermissionRefused, fate_of
from etl.models.task import SCAN_ANEW
from etl.outcomes.reporter import context
from etl.transfer import partials, relay
from etl.transfer.base import CrossThread

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.config import Settings
    from etl.dispatch.dispatcher import Dispatcher
    from etl.lanes.flight import Flight, Row, Store
    from etl.models.task import Task
    from etl.outcomes.reporter import Endings
    from etl.sessions.lease import Lease
    from etl.sessions.pools import Pools
    from etl.transfer.base import Session

log = structlog.get_logger(__name__)


@dataclass
class Runner:
    """Runs jobs, each by itself or in a row."""

    settings: Settings
    token: str
    pools: Pools
    dispatcher: Dispatcher
    endings: Endings
    store: Store
    orphans: partials.OrphanIndex = field(default_factory=partials.OrphanIndex)

    def run(self, flight: Flight) -> None:
        """Do one job in a lane; with one side only, open it and have the job run again. Never raises."""
        task, lease = flight.task, flight.lease
        started = task.began or time.time()  # of a published job: when its copying began
        opened = False
        log.debug("job taken", job_id=task.job.job_id, attempts=len(task.attempts), published=task.published)
        try:
            _require_ours_and_in_time(task)
            lease.open()
            opened = True
            self._let_in(lease)
            receipt = self._transfer(flight) if lease.is_pair else None
        except BaseException as error:  # noqa: BLE001 - a bug is an outcome, too: a dead letter with its traceback
            cause = flight.cause(error)
            lease.release(clean=opened and (_survives(lease.source, error), self._clean_up(flight, error)))
            self._ended_badly(task, cause, started, answered=opened)
        else:
            lease.release(clean=True)
            if receipt is None:  # the server is reached: now the job waits for both sides
                self.dispatcher.later(task, 0.0)
                return
            self._tell_dispatcher(task, None, answered=True)
            self.endings.succeeded(task, receipt, started)

    def _transfer(self, flight: Flight) -> relay.Receipt:
        task, lease = flight.task, flight.lease
        if task.published:
            size_bytes = relay.finish(task, lease.source, lease.destination, task.facts)
            return relay.Receipt(size_bytes, task.verified_by or relay.NOTHING, facts=task.facts)
        limits = relay.Limits(
            flight.buffer, self.settings.store_bytes // self.settings.workers, self.settings.spool_limit_bytes
        )
        return relay.run(task, lease.source, lease.destination, self._token(flight), limits, self.orphans)

    # --- the same in two stages, of a row of jobs (`row.Stages`)

    def can_pipeline(self, flight: Flight) -> bool:
        """May this job go through two stages?"""
        return flight.lease.is_pair and not flight.lease.shared and relay.can_pipeline(flight.task, self.orphans)

    def open(self, flight: Flight) -> bool:
        """Have the sessions of its row open. False: the job failed, and was reported."""
        flight.began = time.time()
        try:
            _require_ours_and_in_time(flight.task)
            if not flight.row.is_open:
                flight.lease.open()
                flight.row.is_open = True
                self._let_in(flight.lease)
        except BaseException as error:  # noqa: BLE001 - a bug is an outcome, too: a dead letter with its traceback
            self._failed_in_row(flight, error, answered=False)
            return False
        return True

    def fetch(self, flight: Flight) -> bool:
        """Open the source's file; take it into memory if it is small. False: it failed, and was reported."""
        task, lease = flight.task, flight.lease
        try:
            relay.require_disposal(task, lease.source)
            flight.parcel = parcel = relay.fetch(task, lease.source)
            size_bytes = parcel.facts.size_bytes
            if size_bytes is not None and self.store.take(size_bytes):
                flight.held_bytes = size_bytes
                if parcel.load(size_bytes):
                    flight.unchanged = CrossThread()
        except BaseException as error:  # noqa: BLE001 - a bug is an outcome, too: a dead letter with its traceback
            if flight.parcel is not None:
                flight.parcel.close(complete=False)
            flight.row.source_is_clean = _survives(lease.source, error)
            self.store.give(flight.held_bytes)
            self._failed_in_row(flight, error, answered=True)
            return False
        return True

    def confirm(self, flight: Flight) -> None:
        """End the reading of a file in memory, and have its source asked whether it changed."""
        parcel, unchanged, source = flight.parcel, flight.unchanged, flight.lease.source
        if parcel is None or unchanged is None:
            return
        try:
            unchanged.follow(source.confirm(parcel))
        except BaseException as error:  # noqa: BLE001 - it is the delivery's: there it is reported
            flight.row.source_is_clean = False
            unchanged.fail(error)

    def settle(self, row: Row) -> None:
        """Read all answers of the source: no file follows for now."""
        if row.is_open:
            try:
                row.lease.source.flush()
            except Exception:  # noqa: BLE001 - whoever waits for an answer is told
                row.source_is_clean = False

    def expect(self, row: Row) -> None:
        """Get the destination ready: a file is on its way."""
        if not row.is_over:
            try:
                row.lease.destination.prepare()
                row.lease.destination.flush()
            except Exception as error:  # noqa: BLE001 - the session is broken: the file that comes fails of it
                row.lost, row.destination_is_clean = error, False

    def deliver(self, flight: Flight, is_followed: Callable[[], bool]) -> None:
        """Bring a fetched file to its destination, and report."""
        task, row, parcel, held = flight.task, flight.row, flight.parcel, flight.unchanged
        assert parcel is not None  # noqa: S101 - it was fetched
        destination, source = flight.lease.destination, flight.lease.source
        try:
            if row.lost is not None:
                error, row.lost = row.lost, None  # of one file: those that follow did nothing wrong
                raise error
            if not row.destination_is_clean:
                if held is None:
                    row.source_is_clean = False  # its parcel is broken off below
                self._run_again(task)
                return
            relay.require_owned(task)
            receipt = relay.deliver(
                task,
                parcel,
                partial(relay.confirm, task, parcel, source, destination, self.orphans)
                if held is None
                else (lambda _stored: held),
                destination,
                self._token(flight),
                flight.buffer,
                is_followed,
            )
        except BaseException as error:  # noqa: BLE001 - a bug is an outcome, too
            row.destination_is_clean = self._clean_up(flight, error)
            if held is None:
                row.source_is_clean = False
            self._failed_in_row(flight, error, answered=True)
        else:
            self._tell_dispatcher(task, None, answered=True)
            self.endings.succeeded(task, receipt, flight.began)
        finally:
            if held is None:
                parcel.close(complete=False)
            self.store.give(flight.held_bytes)

    def _failed_in_row(self, flight: Flight, error: BaseException, *, answered: bool) -> None:
        task, cause = flight.task, flight.cause(error)
        if flight.aborted is None and flight.lease.aborted:
            self._run_again(task)  # a neighbour was reset; this job did nothing wrong
            return
        self._ended_badly(task, cause, flight.began, answered=answered)

    def _ended_badly(self, task: Task, cause: BaseException, started: float, *, answered: bool) -> None:
        """Tell dispatcher and ledger. `answered`: the sessions were open, so the error is the servers' word."""
        is_answer = fate_of(cause) is Fate.DEAD or isinstance(cause, PermissionRefused)
        self._tell_dispatcher(task, cause, answered=answered and is_answer)
        self.endings.failed(task, cause, started)

    def _run_again(self, task: Task) -> None:
        """Have a job run again that was only in the way of another's failure."""
        log.info("job runs again", **context(task))
        self.dispatcher.later(task, 0.0)

    # --- servers

    def _let_in(self, lease: Lease) -> None:
        """Tell that the servers are there: at once, as the transfer may take long."""
        for name in lease.servers:
            self.dispatcher.worked(name)

    def _tell_dispatcher(self, task: Task, error: BaseException | None, *, answered: bool) -> None:
        if answered:
            self.dispatcher.answered(task)
        elif isinstance(error, EtlError) and error.server is not None:
            self.dispatcher.failed(error.server, error, task)

    def _token(self, flight: Flight) -> str:
        """Name a run, as no other of any process is named."""
        return f"{self.token}{flight.number:x}"

    def _clean_up(self, flight: Flight, error: BaseException) -> bool:
        """Remove the partial file of a failed attempt; return whether the destination's session goes on.

        If it does not, another one or the server's next removes the file.
        """
        task, destination = flight.task, flight.lease.destination
        survives = _survives(destination, error)
        if not task.leaves_partial:
            return survives
        server = self.pools.server(task.job.destination.hostname)
        path = partials.partial_path(task, server, self._token(flight))
        if survives:
            try:
                destination.remove(path)
            except Exception as unclean:  # noqa: BLE001 - best effort: it is tried once more below
                log.info("partial file not removed", server=server.hostname, path=path, error=str(unclean))
                survives = False
        if not survives:
            task.orphan_scan_since = SCAN_ANEW  # what the server did with commands that were on their way nobody knows
            destination.disconnect()  # its place at the server is ours until the lease is given back
            if not self.pools.tidy(server, path):
                self.endings.untidy = True
        task.leaves_partial = False
        return survives


def _survives(session: Session, error: BaseException) -> bool:
    """May a session go on after an error? A backlog of files that are not there must not cost a login each."""
    try:
        return session.survives(error)
    except Exception:  # a bug is no reason to trust it
        log.exception("session could not tell whether it can go on", server=session.server.hostname)
        return False


def _require_ours_and_in_time(task: Task) -> None:
    relay.require_owned(task)
    deadline = task.job.options.deadline
    if deadline is not None and not task.published and datetime.now(UTC) >= deadline:
        raise DeadlineExceeded(f"options.deadline {deadline.isoformat()} has passed")
