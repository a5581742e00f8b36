"""What a lane does with a job: open the sessions, relay the file in one step or two, report how it ended.

Runs in the lanes' threads. Knows no Kafka client and no protocol.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import structlog

from etl import clock as wall_clock
from etl.errors import ConnectionLost, DeadlineExceeded, EtlError, Fate, PermissionRefused, fate_of
from etl.models import document
from etl.models.task import SCAN_ANEW, Phase, Start
from etl.outcomes.reporter import context
from etl.transfer import partials, relay, resuming
from etl.transfer.budget import LISTINGS
from etl.transfer.promises import CrossThread
from etl.transfer.receipts import NOTHING, Receipt

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.config import Settings
    from etl.dispatch.dispatcher import Dispatcher
    from etl.lanes.run import Run, Store
    from etl.models.task import Task
    from etl.outcomes.reporter import Reporter
    from etl.sessions.lease import Lease
    from etl.sessions.pools import Pools
    from etl.transfer.base import Session

log = structlog.get_logger(__name__)


@dataclass
class Runner:
    """Runs jobs, alone or in two stages."""

    settings: Settings
    token: str
    pools: Pools
    dispatcher: Dispatcher
    reporter: Reporter
    store: Store
    orphans: partials.OrphanIndex = field(default_factory=partials.OrphanIndex)
    require_wanted: Callable[[Task], None] = lambda _task: None  # raises Cancelled

    @LISTINGS.room()
    def execute(self, run: Run) -> None:
        """Run one job alone; if the lease has one side only, open it and have the job run again. Never raises."""
        task, lease = run.task, run.lease
        start = task.start or run.start  # a published job began when its copying did
        opened = False
        log.debug("job taken", job_id=task.job.job_id, attempts=len(task.attempts), published=task.published)
        try:
            _require_ours_and_in_time(task)
            self.require_wanted(task)
            lease.open()
            opened = True
            task.progress.phase = Phase.READING
            self._say_let_in(lease)
            receipt = self._transfer(run) if lease.is_pair else None
        except BaseException as error:  # noqa: BLE001 - a bug is an outcome, too: a dead letter with its traceback
            cause = run.cause(error)
            self._note_death(cause)
            lease.release(reusable=opened and (_survives(lease.source, error), self._remove_partial(run, error)))
            self._ended_badly(run, cause, start, answered=opened)
        else:
            lease.release(reusable=True)
            if receipt is None:  # the server let us in: now the job waits for both sides
                run.again_in = 0.0
                return
            self.dispatcher.answered(task)
            self.reporter.succeeded(task, receipt, start)
        finally:
            self._end_writing(run)

    def _transfer(self, run: Run) -> Receipt:
        task, lease = run.task, run.lease
        if task.published:
            task.progress.phase = Phase.SOURCE_ACTION
            size_bytes = relay.finish(task, lease.source, lease.destination, task.facts)
            return Receipt(size_bytes, task.verified_by or NOTHING, facts=task.facts, checksum=task.checksum)
        limits = relay.Limits(
            run.buffer, self.settings.store_bytes // self.settings.workers, self.settings.spool_limit_bytes
        )
        token = self._begin_writing(run)
        return relay.run(task, lease.source, lease.destination, token, limits, self.orphans)

    # --- the same in two stages, of the jobs of one lease (`delivery.Stages`)

    def can_pipeline(self, run: Run) -> bool:
        """May this job go through two stages?"""
        if not run.lease.is_pair or run.lease.shared:
            return False
        destination = self.pools.server(run.task.job.destination.hostname)
        return destination.publish == "rename" and relay.can_pipeline(run.task, self.orphans)

    def open(self, run: Run) -> bool:
        """Have the sessions of its lease open. False: the job failed, and was reported."""
        run.start = Start.now()
        try:
            _require_ours_and_in_time(run.task)
            self.require_wanted(run.task)
            if not run.lease.is_open:
                run.lease.open()
                self._say_let_in(run.lease)
            run.task.progress.phase = Phase.READING
        except BaseException as error:  # noqa: BLE001 - a bug is an outcome, too: a dead letter with its traceback
            self._failed_in_stage(run, error, answered=False)
            return False
        return True

    def fetch(self, run: Run) -> bool:
        """Open the source's file; take it into memory if it is small. False: it failed, and was reported."""
        task, lease = run.task, run.lease
        try:
            relay.require_disposal(task, lease.source)
            run.parcel = parcel = relay.fetch(task, lease.source)
            size_bytes = parcel.facts.size_bytes
            if size_bytes is not None and self.store.take(size_bytes):
                run.held_bytes = size_bytes
                if parcel.load(size_bytes):
                    run.unchanged = CrossThread()
        except BaseException as error:  # noqa: BLE001 - a bug is an outcome, too: a dead letter with its traceback
            if run.parcel is not None:
                run.parcel.close(complete=False)
            run.lease.source_is_reusable = _survives(lease.source, error)
            self.store.give(run.held_bytes)
            self._failed_in_stage(run, error, answered=True)
            return False
        return True

    def confirm(self, run: Run) -> None:
        """End the reading of a file in memory, and have its source asked whether it changed."""
        parcel, unchanged, source = run.parcel, run.unchanged, run.lease.source
        if parcel is None or unchanged is None:
            return
        try:
            unchanged.follow(source.confirm(parcel))
        except BaseException as error:  # noqa: BLE001 - the delivery waits for the answer, and reports the error
            run.lease.source_is_reusable = False
            unchanged.fail(error)

    def settle(self, lease: Lease) -> None:
        """Read all answers that the source still owes: no file follows for now."""
        if lease.is_open:
            try:
                lease.source.flush()
            except Exception:  # noqa: BLE001 - whoever waits for an answer gets the error
                lease.source_is_reusable = False

    def expect(self, lease: Lease) -> None:
        """Get the destination ready for a file that is being fetched."""
        if not lease.is_over:
            try:
                lease.destination.prepare()
                lease.destination.flush()
            except Exception as error:  # noqa: BLE001 - the session is broken: this error is the next file's
                lease.lost, lease.destination_is_reusable = error, False

    @LISTINGS.room()
    def deliver(self, run: Run, is_followed: Callable[[], bool], behind: Callable[[], Run | None]) -> None:
        """Bring a fetched file to its destination, and report; the one `behind` it may be sent ahead."""
        task, lease, parcel, held = run.task, run.lease, run.parcel, run.unchanged
        assert parcel is not None  # noqa: S101 - it was fetched
        destination, source = run.lease.destination, run.lease.source
        try:
            if lease.lost is not None:
                error, lease.lost = lease.lost, None  # one file fails of it; the next ones only run again
                raise error
            if not lease.destination_is_reusable:
                if held is None:
                    lease.source_is_reusable = False  # its parcel is broken off below
                if task.leaves_partial:  # it was sent ahead
                    self._remove_partial(run, ConnectionLost("a neighbour's session was reset"))
                self._run_again(run)
                return
            relay.require_owned(task)
            receipt = relay.deliver(
                task,
                parcel,
                partial(relay.confirm, task, parcel, source, destination, self.orphans)
                if held is None
                else (lambda _stored: held),
                destination,
                self._begin_writing(run),
                run.buffer,
                is_followed,
                lambda: self._begin(behind()),
            )
        except BaseException as error:  # noqa: BLE001 - a bug is an outcome, too
            if not lease.aborted:
                self._note_death(error)
            lease.destination_is_reusable = self._remove_partial(run, error)
            if held is None:
                lease.source_is_reusable = False
            self._failed_in_stage(run, error, answered=True)
        else:
            self.dispatcher.answered(task)
            self.reporter.succeeded(task, receipt, run.start)
        finally:
            self._end_writing(run)
            if held is None:
                parcel.close(complete=False)
            self.store.give(run.held_bytes)

    def _begin(self, run: Run | None) -> None:
        """Send a small file ahead of its delivery, if its protocol can: its partial file may be there from now on."""
        if run is None or run.parcel is None or run.parcel.held is None:
            return
        task, destination = run.task, run.lease.destination
        path = partials.partial_path(task, destination.server, self._begin_writing(run))
        task.leaves_partial = True
        with contextlib.suppress(Exception):  # it is met again, and told, when it is the file's turn
            task.leaves_partial = destination.begin(path, run.parcel)

    def _failed_in_stage(self, run: Run, error: BaseException, *, answered: bool) -> None:
        if run.aborted is None and run.lease.aborted:
            self._run_again(run)  # the lease was aborted for another job; this one did nothing wrong
        else:
            self._note_death(run.cause(error))
            self._ended_badly(run, run.cause(error), run.start, answered=answered)

    def _ended_badly(self, run: Run, cause: BaseException, start: Start, *, answered: bool) -> None:
        """Tell dispatcher and reporter. `answered`: the sessions were open, so a final error is the servers' answer."""
        task, wait = run.task, 0.0
        is_answer = fate_of(cause) is Fate.DEAD or isinstance(cause, PermissionRefused)
        if answered and is_answer:
            self.dispatcher.answered(task)
        elif isinstance(cause, EtlError) and cause.server is not None:
            wait = self.dispatcher.failed(cause.server, cause, task)
        run.again_in = self.reporter.failed(task, cause, start, wait)

    def _note_death(self, error: BaseException) -> None:
        """Note that a session is dead, before anybody connects in its place: a refusal is no limit then."""
        if isinstance(error, ConnectionLost) and error.server is not None:
            self.pools.died(self.pools.server(error.server))

    def _run_again(self, run: Run) -> None:
        """Have a job run again that only shared its sessions with one that failed."""
        log.info("job requeued: a neighbour's session was reset", **context(run.task))
        run.again_in = 0.0

    # --- servers

    def _say_let_in(self, lease: Lease) -> None:
        """Say that the servers let us in: at once, as the transfer may take long."""
        for name in lease.servers:
            self.dispatcher.worked(name)

    def _token(self, run: Run) -> str:
        """Return a name of the run that no other has, in any process."""
        return f"{self.token}{run.number:x}"

    def _begin_writing(self, run: Run) -> str:
        """Return the token of a run that may write a partial file from now on, until `_end_writing`."""
        token = self._token(run)
        self.orphans.live.add(token)
        return token

    def _end_writing(self, run: Run) -> None:
        self.orphans.live.discard(self._token(run))

    def _may_go_on(self, task: Task, error: BaseException) -> bool:
        """Is the partial file kept, since only its rename failed, and will be tried again?"""
        return task.unpublished is not None and not self._is_last(task) and fate_of(error) is Fate.RETRY

    def _is_last(self, task: Task) -> bool:
        return len(task.attempts) + 1 >= self.settings.retry_max_attempts

    def _remove_partial(self, run: Run, error: BaseException) -> bool:
        """Remove the partial file of a failed attempt; return whether the destination's session is reusable.

        If it is not, a new session removes the file: now, or the next one that is opened with the server.
        """
        task, destination = run.task, run.lease.destination
        survives = _survives(destination, error)
        if not task.leaves_partial:
            return survives
        if self._may_go_on(task, error) or resuming.is_kept(task, run.cause(error), is_last=self._is_last(task)):
            task.orphan_scan_since = SCAN_ANEW  # whoever does not go on with it removes it
            return survives
        server = self.pools.server(task.job.destination.hostname)
        path = task.part or partials.partial_path(task, server, self._token(run))
        if task.unpublished is not None:  # perhaps of an earlier run
            path, task.unpublished = task.unpublished.partial, None
        if survives:
            try:
                destination.remove(path)
            except Exception as failure:  # noqa: BLE001 - it is tried once more below
                log.info("partial file not removed", server=server.hostname, path=path, error=str(failure))
                survives = False
        if not survives:
            task.orphan_scan_since = SCAN_ANEW  # the server may still carry out commands that were on their way
            destination.disconnect()  # its slot belongs to this lease, so a new session may take it
            if not self.pools.remove_orphan(server, path):
                self.reporter.leaves_orphans = True
        task.leaves_partial, task.part = False, None
        return survives


def _survives(session: Session, error: BaseException) -> bool:
    """Is a session reusable after an error? A thousand files that do not exist must not cost a login each."""
    try:
        return session.survives(error)
    except Exception:  # a bug: do not trust the session
        log.exception("session could not tell whether it is reusable", server=session.server.hostname)
        return False


def _require_ours_and_in_time(task: Task) -> None:
    relay.require_owned(task)
    deadline = task.job.options.deadline
    if deadline is not None and not task.published and document.moment(wall_clock.now()) >= deadline:
        raise DeadlineExceeded(f"options.deadline {deadline.isoformat()} has passed")
