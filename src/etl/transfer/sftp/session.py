"""A session with an SFTP server: the verbs of the contract, made of requests over the pipes of an ssh."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from etl.errors import EtlError, FileMissing, IOFailure, NotAFile
from etl.models.server import ProtocolSpec, ServerConfig, TransferSettings
from etl.models.task import Facts
from etl.transfer.base import ANSWERS, Promise, Published, Settled, Stored
from etl.transfer.budget import LISTINGS
from etl.transfer.promises import Mapped
from etl.transfer.resumable import Resumable
from etl.transfer.sftp import hashing, login, options
from etl.transfer.sftp.link import FSYNC, WANTED, Link
from etl.transfer.sftp.packets import (
    END_OF_FILE,
    FOR_READING,
    FOR_WRITING,
    FSTAT,
    NAME,
    OPENDIR,
    READDIR,
    REMOVE,
    RMDIR,
    STAT,
    STATUS,
    string,
)
from etl.transfer.sftp.publishing import Renaming
from etl.transfer.sftp.reading import HeldParcel, SFTPParcel, open_file
from etl.transfer.sftp.refusals import attributes_of, is_missing, no_file, plain_error, why_not_written
from etl.transfer.sftp.upload import Upload

if TYPE_CHECKING:
    from etl.transfer.base import Parcel
    from etl.transfer.sftp.child import Child
    from etl.transfer.sftp.packets import Answer

_LISTS_AT_ONCE = 4  # READDIRs on their way
_LISTS = 1_000_000  # of one folder at most; OpenSSH puts 100 names into each


class SFTPTransfer(Resumable):
    """One login at an SFTP server, by an ssh of its own."""

    spec: ClassVar[ProtocolSpec] = ProtocolSpec(
        default_port=22,
        needs_password=False,
        settings=options.SETTINGS,
        secrets=options.SECRETS,
        problems=options.problems,
    )

    def __init__(self, server: ServerConfig, settings: TransferSettings | None = None) -> None:
        super().__init__(server, settings)
        self._options = options.Options.of(server)
        self._child: Child | None = None
        self._link: Link | None = None
        self._is_cut = False
        self._told: dict[str, str] = {}
        self._begun: Upload | None = None  # sent, and not judged yet

    # --- the session itself -----------------------------------------------------------------------------------

    def connect(self) -> None:
        """Start ssh and log in. Raises ServerUnavailable, ServerBusy, AuthenticationFailed, HostKeyRefused."""
        server, settings = self.server, self.settings
        port = server.port or self.spec.default_port or 22
        self._child = child = login.start_ssh(server, settings, self._options, port)
        if self._is_cut:  # by another thread, before there was a child to cut
            child.cut()
        try:
            wire, extensions = login.log_in(child, server, settings)
            self._link = Link(server, settings, wire, self._options, extensions)
        except BaseException:
            self.disconnect()
            raise
        self._told = login.facts_of(child.said)

    def disconnect(self) -> None:
        """End the ssh: every answer that matters was read."""
        if self._link is not None:
            self._link.wire.abandon(login.lost(self.server.hostname, "the session is closed"))
        if self._child is not None:
            self._child.close()

    def abort(self) -> None:
        """End the ssh, from any thread."""
        self._is_cut = True
        if self._child is not None:
            self._child.cut()

    def ping(self) -> None:
        """Ask for any answer."""
        self.link.ping()

    def round_trip_seconds(self) -> float | None:
        """Return the shortest that was measured."""
        return None if self._link is None else self._link.round_trip

    def adopt(self, server: ServerConfig) -> None:
        """Serve jobs of another name of the same address."""
        super().adopt(server)
        self.link.adopt(server)

    def push(self) -> None:
        """Send what is corked."""
        self.link.wire.push()

    def flush(self) -> None:
        """Send what is corked, read every answer that is due, settle every promise."""
        self.link.flush()

    def traits(self) -> dict[str, str]:
        """Return what the login showed of the server."""
        missing = [name.decode() for name in WANTED if not self.link.offers(name)]
        told = {**self._told, "checksums": ", ".join(self.hashes()) or "none"}
        return {**told, "missing": ", ".join(missing)} if missing else told

    @property
    def link(self) -> Link:
        """The login that the parts of the session work with. Raises ConnectionLost before `connect`."""
        if self._link is None:
            raise login.lost(self.server.hostname, "not connected")
        return self._link

    # --- transfers --------------------------------------------------------------------------------------------

    def read(self, path: str) -> Parcel:
        """Open a file; its first blocks are on their way."""
        return open_file(self.link, path)

    def read_on(self, path: str, offset: int) -> Parcel | None:
        """Open a file at an offset."""
        return open_file(self.link, path, offset)

    def write(self, partial: str, parcel: Parcel, buffer: memoryview) -> Stored:
        """Stream a parcel into a new file; every answer is read."""
        begun, self._begun = self._begun, None
        whole = self.link.whole(partial)
        upload = begun if begun and begun.whole == whole else Upload(self.link, whole, parcel, buffer)
        return Stored(partial, *upload.run())

    def write_on(self, partial: str, parcel: Parcel, buffer: memoryview, offset: int) -> Stored:
        """Stream a parcel into a file from an offset on."""
        upload = Upload(self.link, self.link.whole(partial), parcel, buffer, offset)
        try:
            return Stored(partial, *upload.run())
        finally:
            if upload.is_refused:
                self.goes_on = False

    def begin(self, partial: str, parcel: Parcel) -> bool:
        """Send a small file in one go with its OPEN, where its handle can be foreseen."""
        upload = Upload(self.link, self.link.whole(partial), parcel, memoryview(b""))
        if upload.begin():
            self._begun = upload
        return self._begun is upload

    def publish(self, stored: Stored, final: str, mtime: float | None) -> Promise[Published]:
        """Stamp and rename, in one write that leaves at once."""
        return self._publish(stored, final, mtime, replace=True)

    def publish_new(self, stored: Stored, final: str, mtime: float | None) -> Promise[Published]:
        """Do the same by a rename that replaces nothing, where the server keeps to the protocol."""
        return self._publish(stored, final, mtime, replace=False)

    def _publish(self, stored: Stored, final: str, mtime: float | None, *, replace: bool) -> Promise[Published]:
        link = self.link
        partial, target = link.whole(stored.partial), link.whole(final)
        published = link.promises.later(Renaming(link).publishing(partial, target, mtime, replace=replace))
        link.wire.push()
        return published

    # --- questions and changes --------------------------------------------------------------------------------

    def look(self, path: str) -> Facts | None:
        """Ask what is there."""
        whole = self.link.whole(path)
        answer = self.link.ask(STAT, whole).result()
        found = answer.attributes
        if found is None:
            if is_missing(answer):
                return None
            raise plain_error(self.link, whole, answer)
        if not found.is_file:
            raise no_file(self.link, whole, found)
        return found.facts

    def unchanged(self, parcel: Parcel) -> Promise[bool]:
        """Ask size and time again, by name."""
        by_name = self.link.ask(STAT, self.link.whole(parcel.path))
        return Mapped(lambda answer: _has_facts(answer, parcel.facts), by_name)

    def confirm(self, parcel: Parcel) -> Promise[bool]:
        """Ask size and time of the file that was read: of the open one, or by name where that is closed, or refused."""
        if isinstance(parcel, HeldParcel):
            if not parcel.is_same:
                return Settled(value=False)
            # Once more, and later: a file that is still being written may have looked complete for that instant.
            by_name = self.link.ask(STAT, self.link.whole(parcel.path))
            return Mapped(lambda answer: not answer.is_success or _has_facts(answer, parcel.facts), by_name)
        if not isinstance(parcel, SFTPParcel):
            return super().confirm(parcel)
        is_open, by_name = self.link.ask_handle(FSTAT, parcel.handle), self.link.ask(STAT, self.link.whole(parcel.path))
        parcel.close(complete=True)
        return Mapped(
            lambda first, second: _has_facts(first if first.is_success else second, parcel.facts), is_open, by_name
        )

    def dispose(self, path: str, move_to: str | None = None) -> Promise[None]:
        """Delete or move a file."""
        link = self.link
        whole = link.whole(path)
        if move_to is not None:
            return link.promises.later(Renaming(link).moving(whole, link.whole(move_to)))
        removed = link.ask(REMOVE, whole)

        def complete() -> None:
            _was_removed(link, whole, removed.result())

        return link.promises.later(complete)

    def sync(self, path: str) -> None:
        """Have the server write the file to its disk, where it offers that."""
        link = self.link
        if not link.offers(FSYNC):
            return
        whole = link.whole(path)
        for flags in (FOR_READING, FOR_WRITING):  # write-only accounts may open it in the other way alone
            handle = link.handles.opened(link.handles.open(link.wire_name(whole), flags).result())
            if handle is not None:
                synced = link.extended(FSYNC, string(handle))
                link.handles.close(handle)
                if not synced.result().is_success:
                    raise plain_error(link, whole, synced.result())
                return

    def hashes(self) -> tuple[str, ...]:
        """Return those of `check-file`. Asked for once in a session: not all servers announce it."""
        return hashing.offered(self.link)

    def hash_of(self, path: str, algorithm: str, size_bytes: int) -> str | None:
        """Ask by `check-file-name`."""
        silence_limit = max(self.settings.reply_timeout, self.settings.stall_timeout)
        return hashing.hash_of(self.link, self.link.whole(path), algorithm, size_bytes, silence_limit)

    def remove(self, path: str) -> bool:
        """Delete a file."""
        whole = self.link.whole(path)
        return _was_removed(self.link, whole, self.link.ask(REMOVE, whole).result())

    def remove_folder(self, path: str) -> bool:
        """Remove an empty folder."""
        return self.link.ask(RMDIR, self.link.whole(path)).result().is_success

    def survives(self, error: BaseException) -> bool:
        """After an answer about the file itself, with every other answer read."""
        if not isinstance(error, ANSWERS) or self._is_cut:
            return False
        try:
            self.flush()
        except EtlError:
            return False
        return self.link.wire.lost is None

    def require_base(self) -> None:
        """Look at the base path, or the login's folder."""
        link = self.link
        found = attributes_of(link, link.top)
        if found is None or not (found.is_folder or found.mode is None):
            kind = FileMissing if found is None else NotAFile
            raise kind(f"{link.name}: {link.top} is no folder", server=link.name)

    def names(self, folder: str, prefix: str = "") -> list[str]:
        """List a folder."""
        link = self.link
        whole = link.whole(folder) if folder.strip("/.") else link.top
        answer = link.ask(OPENDIR, whole).result()
        handle = link.handles.opened(answer)
        if handle is None:
            found = attributes_of(link, whole)
            if is_missing(answer) or (found is not None and not found.is_folder):
                return []
            raise plain_error(link, whole, answer)
        names: list[str] = []
        for _ in range(_LISTS // _LISTS_AT_ONCE):
            asked = [link.ask_handle(READDIR, handle) for _ in range(_LISTS_AT_ONCE)]
            ends = [_names_in(link, pending.result(), prefix, names) for pending in asked]
            if end := next(filter(None, ends), None):
                break
        else:
            raise IOFailure(f"{link.name}:{whole}: a listing of more than {_LISTS} parts", server=link.name)
        link.handles.close(handle)
        if end.code != END_OF_FILE and not is_missing(end):  # some look at the folder only now
            raise plain_error(link, whole, end)
        return names


def _names_in(link: Link, answer: Answer, prefix: str, names: list[str]) -> Answer | None:
    """Take the names of one part of a listing that begin with `prefix`; return the answer that ends it."""
    if answer.kind == STATUS:
        return answer
    reader = answer.expect(NAME)
    for _ in range(reader.u32()):
        name = link.read_name(reader.string())
        if name.startswith(prefix) and name not in {".", ".."}:
            LISTINGS.take(len(name))
            names.append(name)
        reader.string()
        reader.attributes()
    return None


def _has_facts(answer: Answer, facts: Facts) -> bool:
    """Is a file as it was? One that is gone since was read as it was."""
    found = answer.attributes
    if found is None:
        return is_missing(answer) or facts == Facts(None, None)
    return found.is_file and found.facts == facts


def _was_removed(link: Link, whole: str, answer: Answer) -> bool:
    """Say whether a REMOVE deleted; raises for a file that is still there."""
    if answer.is_success:
        return True
    found = None if is_missing(answer) else attributes_of(link, whole)
    if found is None:
        return False
    raise why_not_written(link, whole, answer)
