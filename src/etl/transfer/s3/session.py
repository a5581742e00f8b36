"""A session with a bucket: the verbs of the contract, made of requests."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, ClassVar

import structlog

from etl.errors import EtlError, InvalidPath, IOFailure, PermissionRefused
from etl.models.server import ProtocolSpec, ServerConfig, TransferSettings
from etl.transfer.base import ANSWERS, Promise, Published, Settled, Stored
from etl.transfer.budget import LISTINGS
from etl.transfer.ftp.sockets import Sockets
from etl.transfer.paths import basename
from etl.transfer.promises import Lazy, Mapped
from etl.transfer.resumable import Foothold, Resumable
from etl.transfer.s3 import conditions, documents, kept, known, options, publishing, upload
from etl.transfer.s3.link import Link
from etl.transfer.s3.reading import S3Parcel, etag_of, facts_of, open_object, open_rest

if TYPE_CHECKING:
    from etl.models.task import Facts
    from etl.transfer.base import Parcel
    from etl.transfer.s3.channel import Answer

log = structlog.get_logger(__name__)

_PAGES = 10_000  # of a listing at most, with 1000 names each


class S3Transfer(Resumable):
    """One connection to a store. Folders are but parts of keys: none is made, and none is missing."""

    spec: ClassVar[ProtocolSpec] = ProtocolSpec(
        needs_host=False,
        needs_login=False,
        settings=options.SETTINGS,
        secrets=options.SECRETS,
        problems=options.problems,
        placed=options.placed,
    )

    marks_files = True

    def __init__(self, server: ServerConfig, settings: TransferSettings | None = None) -> None:
        super().__init__(server, settings)
        self._sockets = Sockets()
        self._link = Link(server, self.settings, self._sockets)
        self._aside: Link | None = None  # a second connection, for what is asked beside a file that is read
        self._asked: Lazy[Answer] | None = None  # by it, and not read yet
        self._plan: upload.Plan | None = None
        self._writings: dict[str, upload.Writing] = {}  # by whole partial path: written, and not published yet
        self._spared = ("", "")  # whole partial path and id of the upload that is to be gone on with
        self._looked: dict[str, str | None] = {}  # since the last `write`, by key: the tag; None: nothing was there

    # --- the session itself -----------------------------------------------------------------------------------

    def connect(self) -> None:
        """Reach the store, and have it take our signature. Raises ServerUnavailable, AuthenticationFailed."""
        try:
            self._link.connect()
            if self._link.ask("HEAD").status >= 300:  # which tells no reason
                self._ask_for_reason()
        except BaseException:
            self.disconnect()
            raise

    def _ask_for_reason(self) -> None:
        try:
            self.require_base()
        except PermissionRefused:
            """It knows us; what we may do is told by each key."""

    def disconnect(self) -> None:
        """Close the connection. Nothing is owed."""
        self._writings.clear()
        self._asked = None
        for link in (self._link, self._aside):
            if link is not None:
                link.close()
        self._sockets.close_all()

    def abort(self) -> None:
        """Cut the connection, from any thread."""
        self._sockets.cut()

    def ping(self) -> None:
        """Ask for any answer."""
        self._link.ask("HEAD")

    def round_trip_seconds(self) -> float | None:
        """Return the kernel's measure."""
        return self._link.round_trip_seconds()

    def adopt(self, server: ServerConfig) -> None:
        """Serve jobs of another name of the same bucket."""
        super().adopt(server)
        self._link.adopt(server)
        if self._aside is not None:
            self.flush()
            self._aside.adopt(server)
        self._looked.clear()
        self._plan = None

    def survives(self, error: BaseException) -> bool:
        """After an answer about an object: each request stands for itself."""
        return isinstance(error, ANSWERS) and not self._sockets.is_cut

    # --- transfers --------------------------------------------------------------------------------------------

    def read(self, path: str) -> Parcel:
        """Open an object: all that comes is of one version."""
        parcel = open_object(self._link, path, reads_ahead=self.reads_ahead)
        self.flush()  # it has come meanwhile
        return parcel

    @property
    def goes_on(self) -> bool | None:  # type: ignore[override]  # learnt of the store, for all sessions
        """Can what is there of a file be proven, by the tags of its parts, and may its note be removed?"""
        store = self._link.store
        if not store.deletes:  # a note of the upload would stay
            return False
        return store.proves_parts if store.is_tried else None

    @property
    def reads_on(self) -> bool:
        """Does the store send ranges, as far as is known?"""
        return self._link.store.sends_ranges

    def read_on(self, path: str, offset: int) -> Parcel | None:
        """Open an object in the middle: the version that was looked at last."""
        version = self._looked.get(self._link.key(path)) or ""
        parcel = open_rest(self._link, path, offset, version, reads_ahead=self.reads_ahead)
        self.flush()
        return parcel

    def unchanged(self, parcel: Parcel) -> Promise[bool]:
        """Ask for the version that is there."""
        return Settled(self._is_same(parcel, self._link.ask("HEAD", self._link.key(parcel.path))))

    def confirm(self, parcel: Parcel) -> Promise[bool]:
        """Ask the same by a connection of its own, so that the next object need not wait for the answer."""
        parcel.close(complete=True)
        self.flush()
        if self._aside is None:
            self._aside = Link(self.server, self.settings, self._sockets)
        self._asked = self._aside.ask_ahead(self._aside.key(parcel.path))
        return Mapped(lambda answer: self._is_same(parcel, answer), self._asked)

    def flush(self) -> None:
        """Read the answer that is due."""
        asked, self._asked = self._asked, None
        if asked is not None:
            with contextlib.suppress(EtlError):  # whoever holds the promise is told
                asked.result()

    def _is_same(self, parcel: Parcel, answer: Answer) -> bool:
        if answer.status == 404:
            return True
        self._link.require_success(parcel.path, answer)
        is_same_version = not isinstance(parcel, S3Parcel) or etag_of(answer) == parcel.etag
        return is_same_version and facts_of(answer) == parcel.facts

    def foresee(self, final: str, mtime: float | None) -> None:
        """Note what the next `write` is for: parts go to the final key at once."""
        self.require_name(final)
        self._plan = upload.Plan(self._link.key(final), mtime)

    def require_name(self, path: str) -> None:
        """Raise InvalidPath for what is no key."""
        if not basename(path):
            raise InvalidPath(f"{path!r} names no file")
        self._link.key(path)

    def prepare_proof(self, size_bytes: int | None) -> bool:
        """Find out whether the store checks checksums; else have the next file staged, as an object to be read.

        A part waits in memory for its checksum, so that a file of which parts are too large is staged, too.
        """
        plan = self._plan
        if plan is None:
            return False
        is_gathered = upload.part_bytes(size_bytes or 0, upload.BLIND_PART_BYTES) <= upload.GATHERED_BYTES
        plan.checks = conditions.checked(self._link, plan.key) if is_gathered else ""
        plan.is_staged = not plan.checks
        return not plan.is_staged

    def write(self, partial: str, parcel: Parcel, buffer: memoryview) -> Stored:
        """Take a parcel in: a small one into memory, of a larger one the parts are sent."""
        writing = self._new_writing(partial, parcel)
        upload.send(self._link, writing, parcel, buffer)
        return self._written(partial, writing)

    def _new_writing(self, partial: str, parcel: Parcel) -> upload.Writing:
        self._looked.clear()
        whole = self._link.key(partial)
        plan, self._plan = self._plan or upload.Plan(whole, parcel.facts.mtime), None
        if plan.is_staged:
            plan.key = whole
        return upload.Writing(plan, whole, upload.mark_of(partial))

    def _written(self, partial: str, writing: upload.Writing) -> Stored:
        plan, whole = writing.plan, writing.partial
        self._writings[whole] = writing
        if plan.is_staged:
            writing.is_staged = writing.is_shown = True
            publishing.publish(self._link, writing, whole, plan.mtime, {})
        return Stored(partial, writing.sent_bytes, writing.sent_bytes, is_checked=bool(plan.checks))

    def is_trusted(self, partial: str, buffer: memoryview) -> bool:  # noqa: ARG002 - the contract's argument
        """Find out whether the store tells the MD5 of parts, by which what is there of a file can be proven."""
        conditions.try_out(self._link, self._link.key(partial))
        return self.goes_on is True

    def take_over(self, left: str, partial: str, size_bytes: int) -> Foothold | None:
        """Go on with an upload to the key that was foreseen."""
        if self._plan is None:
            return None
        link, self._spared = self._link, ("", "")
        return kept.take_over(link, link.key(left), link.key(partial), self._plan.key, size_bytes)

    def write_on(self, partial: str, parcel: Parcel, buffer: memoryview, offset: int) -> Stored:
        """Send the rest of a file, or all of it, by an upload that can be gone on with."""
        link, writing = self._link, self._new_writing(partial, parcel)
        note = functools.partial(kept.note, link, writing.partial)
        if not offset:
            upload.send(link, writing, parcel, buffer, note)
            return self._written(partial, writing)
        begun = known.upload(link.server, writing.partial)
        if begun is None or begun.key != writing.plan.key or offset != begun.part_bytes * len(begun.parts):
            raise IOFailure(f"{link.name}:{writing.partial} is gone", server=link.name)
        writing.upload, writing.mark, writing.sent_bytes, writing.is_shown = begun, begun.mark, offset, True
        upload.send_on(link, writing, parcel, buffer, note)
        return self._written(partial, writing)

    def publish(self, stored: Stored, final: str, mtime: float | None) -> Promise[Published]:
        """Put the file under its final key; over what was looked at since `write`, if anything was."""
        return self._publish(stored, final, mtime, self._looked_condition(self._link.key(final)))

    def publish_new(self, stored: Stored, final: str, mtime: float | None) -> Promise[Published]:
        """Put it there where nothing is, if the store keeps to that."""
        return self._publish(stored, final, mtime, conditions.NOTHING_THERE)

    def _publish(
        self, stored: Stored, final: str, mtime: float | None, condition: dict[str, str]
    ) -> Promise[Published]:
        self.require_name(final)
        key, whole = self._link.key(final), self._link.key(stored.partial)
        writing = self._writings.get(whole) or self._staged_before(stored.partial, whole)
        if writing is None:
            raise IOFailure(f"{self.server.hostname}:{whole} is gone", server=self.server.hostname)
        if writing.is_staged:
            return Settled(self._publish_staged(writing, key, mtime))
        is_parts = writing.held is None
        condition = conditions.kept(self._link, condition, whole, is_parts=is_parts)
        published = publishing.publish(self._link, writing, key, mtime, condition)
        self._writings.pop(whole, None)
        self._looked.clear()
        if writing.is_shown:
            self._hide(whole)
        return Settled(published)

    def _staged_before(self, partial: str, whole: str) -> upload.Writing | None:
        """Return a file that another session has staged: its mark tells a note of an upload from it."""
        answer, mark = self._link.ask("HEAD", whole), upload.mark_of(partial)
        if answer.status != 200 or answer.headers.get(upload.MARK) != mark:
            return None
        plan = upload.Plan(whole, facts_of(answer).mtime)
        return upload.Writing(plan, whole, mark, is_staged=True, is_shown=True)

    def _publish_staged(self, writing: upload.Writing, key: str, mtime: float | None) -> Published:
        """Have the store copy what was read back; on no condition, which stores that check nothing do not keep to."""
        publishing.move(self._link, writing.partial, key)
        if not publishing.is_published(self._link, writing.mark, key):
            raise IOFailure(f"{self._link.name}:{writing.partial} is gone", server=self._link.name)
        self._writings.pop(writing.partial, None)
        self._looked.clear()
        return Published(stamped=mtime is not None and writing.plan.mtime == mtime)

    def _hide(self, whole: str) -> None:
        """Delete what is under a partial name; the file is published, so that it does not fail of this."""
        try:
            publishing.delete(self._link, whole)
        except EtlError as error:
            if isinstance(error, PermissionRefused):
                self._link.store.deletes = False
            log.warning("a partial name stays", server=self._link.name, key=whole, error=str(error))

    def _looked_condition(self, key: str) -> dict[str, str]:
        """Return on which condition the key may be replaced: that it has what was looked at since `write`."""
        if key not in self._looked:
            return {}
        version = self._looked[key]
        if version is None:
            return conditions.NOTHING_THERE
        return {"if-match": version} if version else {}

    # --- questions and changes --------------------------------------------------------------------------------

    def look(self, path: str) -> Facts | None:
        """Ask what is there."""
        key = self._link.key(path)
        answer = self._link.ask("HEAD", key)
        if answer.status == 404:
            self._looked = {key: None}
            return None
        self._link.require_success(key, answer)
        self._looked = {key: etag_of(answer)}
        return facts_of(answer)

    def look_published(self, partial: str, final: str) -> Facts | None:
        """Look at an object, if it is marked as what was written as `partial`."""
        begun = known.upload(self.server, self._link.key(partial))
        mark = begun.mark if begun else upload.mark_of(partial)
        answer = self._link.ask("HEAD", self._link.key(final))
        if answer.status != 200 or answer.headers.get(upload.MARK) != mark:
            return None
        if begun is not None:
            known.ended(self.server, self._link.key(partial))
            self._hide(self._link.key(partial))  # its note, if there is one
        return facts_of(answer)

    def dispose(self, path: str, move_to: str | None = None) -> Promise[None]:
        """Delete an object, or copy and delete it."""
        self._looked.clear()
        key = self._link.key(path)
        if move_to is None:
            publishing.delete(self._link, key)
        else:
            publishing.move(self._link, key, self._link.key(move_to))
        return Settled(None)

    def remove(self, path: str) -> bool:
        """Delete an object, or forget what is written and not published."""
        key = self._link.key(path)
        writing = self._writings.pop(key, None)
        if writing is not None and not writing.is_shown:
            upload.abort(self._link, key)
            return True
        has_begun = kept.give_up(self._link, key, self._spared)
        if is_there := self._link.ask("HEAD", key).status != 404:
            publishing.delete(self._link, key)
        return is_there or has_begun

    def show(self, stored: Stored) -> None:
        """Put an empty object under the partial name."""
        key = self._link.key(stored.partial)
        writing = self._writings.get(key)
        if writing is not None and writing.is_shown:
            return
        self._link.require_success(key, self._link.ask("PUT", key))
        if writing is not None:
            writing.is_shown = True

    def remove_leftovers(self, final: str, but: str | None = None) -> None:
        """Abort the uploads to a key that nobody here is busy with."""
        key = self._link.key(final)
        with contextlib.suppress(PermissionRefused):  # copying itself needs no such right
            spared = None if but is None else kept.find(self._link, self._link.key(but))
            self._spared = ("", "") if but is None or spared is None else (self._link.key(but), spared.upload_id)
            for left in upload.left_of(self._link, key):
                if left.upload_id != self._spared[1]:
                    upload.abort_by_id(self._link, left.key, left.upload_id)

    def require_base(self) -> None:
        """Ask for the bucket: a base path is but the beginning of keys."""
        query = [("list-type", "2"), ("max-keys", "1")]
        self._link.require_success("", self._link.ask("GET", query=query))

    def names(self, folder: str, prefix: str = "") -> list[str]:
        """List what is directly below a folder."""
        link, base = self._link, self.server.base_path.strip("/")
        top = link.key(folder) if folder.strip("/.") else base
        top = f"{top.rstrip('/')}/" if top else ""
        query = [("list-type", "2"), ("prefix", top + prefix), ("delimiter", "/"), ("encoding-type", "url")]
        names: list[str] = []
        page = ""
        for _ in range(_PAGES):
            more = [("continuation-token", page)] if page else []
            answer = link.require_success(top, link.ask("GET", query=[*query, *more]))
            listed = link.parsed(documents.listing_of, answer)
            for key in (*listed.keys, *listed.folders):
                name = key.removeprefix(top).rstrip("/")
                if key.startswith(top) and name and "/" not in name:
                    LISTINGS.take(len(name))
                    names.append(name)
            page = listed.next_page
            if not page:
                return names
        raise IOFailure(f"{link.name}:{top}: a listing of more than {_PAGES} pages", server=link.name)

    def traits(self) -> dict[str, str]:
        """Try the store out, and return what was found."""
        conditions.try_out(self._link, self._link.key("etl-check"))
        conditions.checked(self._link, self._link.key("etl-check"))
        return conditions.traits(self._link)
