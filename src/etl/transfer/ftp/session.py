"""A session with an FTP server: the verbs of the contract, made of commands, replies and data connections."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, TypeVar

from etl.errors import (
    ConnectionLost,
    EtlError,
    FileMissing,
    IOFailure,
    NotAFile,
    PermissionRefused,
    ServerUnavailable,
)
from etl.models.server import ProtocolSpec, ServerConfig, TransferSettings
from etl.models.task import Facts
from etl.transfer.base import ANSWERS, Promise, Published, Stored
from etl.transfer.ftp import asking, listing
from etl.transfer.ftp.control import Control, Pending
from etl.transfer.ftp.login import log_in
from etl.transfer.ftp.names import Names, check_encoding, folders_above, size_in, time_in
from etl.transfer.ftp.opening import DataConnections
from etl.transfer.ftp.parcel import FTPParcel
from etl.transfer.ftp.pipelining import Pipelining
from etl.transfer.ftp.promises import Lazy
from etl.transfer.ftp.publishing import Renaming, Stamping
from etl.transfer.ftp.replies import Reply
from etl.transfer.ftp.sockets import Sockets, dial, round_trip
from etl.transfer.ftp.starting import Starting
from etl.transfer.ftp.upload import Upload
from etl.transfer.paths import basename, parent
from etl.transfer.streaming import Streaming

if TYPE_CHECKING:
    from etl.transfer.base import Parcel

T = TypeVar("T")


class FTPTransfer(Streaming):
    """One login at an FTP server. Commands are queued; see `Control` for when they leave."""

    spec: ClassVar[ProtocolSpec] = ProtocolSpec(default_port=21)

    def __init__(self, server: ServerConfig, settings: TransferSettings | None = None) -> None:
        super().__init__(server, settings)
        self.name = server.hostname
        self._sockets = Sockets()
        self._names = Names(check_encoding(server.encoding or "utf-8", server.hostname), server.base_path)
        self._features: frozenset[str] = frozenset()
        self._unsettled: list[Lazy[Published] | Lazy[None] | Lazy[bool]] = []
        self._control: Control | None = None
        self._starting: Starting | None = None
        self._stamping = Stamping(self)
        self._renaming = Renaming(self)

    # --- the session itself ---------------------------------------------------------------------------------

    def connect(self) -> None:
        """Reach the server and log in. Raises ServerUnavailable, ServerBusy, AuthenticationFailed."""
        server, settings = self.server, self.settings
        port = server.port or self.spec.default_port or 0
        try:
            sock = dial(self._sockets, server.host, port, settings.connect_timeout, settings.reply_timeout)
        except TimeoutError as error:
            raise ServerUnavailable(
                f"{self.name}: no connection to {server.host}:{port} within {settings.connect_timeout:g} s "
                f"(ETL_CONNECT_TIMEOUT_SECONDS): {error}",
                server=self.name,
            ) from error
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that is none
            raise ServerUnavailable(
                f"{self.name}: no connection to {server.host}:{port}: {error}", server=self.name
            ) from error
        try:
            pipelining = Pipelining(server)
            limits = {"login": settings.login_timeout, "reply": settings.reply_timeout}
            self._begin(Control(sock, self._sockets, self.name, pipelining, **limits))
        except BaseException:
            self.disconnect()
            raise

    def disconnect(self) -> None:
        """Close everything; QUIT is sent, its reply not waited for."""
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.say_goodbye()
            self._control.abandon(ConnectionLost(f"{self.name}: the session is closed", server=self.name))
        self._sockets.close_all()

    def abort(self) -> None:
        """Cut all sockets, from any thread."""
        self._sockets.cut()

    def ping(self) -> None:
        """Send NOOP; any reply but a farewell is a sign of life, if nothing unasked came before it."""
        self.starting.require_fresh()
        self.control.require_quiet()
        self.control.send("NOOP").result()

    def round_trip_seconds(self) -> float | None:
        """Return what the kernel measured on the control connection."""
        return None if self._control is None else round_trip(self._control.sock)

    def adopt(self, server: ServerConfig) -> None:
        """Serve jobs of another name of the same address."""
        super().adopt(server)
        encoding = check_encoding(server.encoding or "utf-8", server.hostname)
        home = Names(encoding).read(self._names.wire(self._names.home))
        self.name = server.hostname
        self._names = Names(encoding, server.base_path, home)

    def flush(self) -> None:
        """Send what is corked, read every reply that is due, settle every promise."""
        waiting, self._unsettled = self._unsettled, []
        for later in waiting:
            with contextlib.suppress(EtlError):  # whoever holds the promise is told
                later.result()
        self.control.flush()
        self.starting.connect_prepared()

    def _begin(self, control: Control) -> None:
        self._control = control
        self._names, self._features = log_in(control, self.server, self._names.encoding)
        passive = self.settings.passive if self.server.passive is None else self.server.passive
        ways = DataConnections(control, self._sockets, self.settings, self.name, passive=passive)
        self._starting = Starting(self, control, ways)

    @property
    def control(self) -> Control:
        """The control connection. Raises ConnectionLost before `connect`."""
        if self._control is None:
            raise self._not_connected()
        return self._control

    @property
    def starting(self) -> Starting:
        """The way transfers start. Raises ConnectionLost before `connect`."""
        if self._starting is None:
            raise self._not_connected()
        return self._starting

    def _not_connected(self) -> ConnectionLost:
        return ConnectionLost(f"{self.name}: not connected", server=self.name)

    # --- what the parts of the session need -----------------------------------------------------------------

    def ask(self, verb: str, whole_path: str) -> Pending:
        """Queue a command about a whole path."""
        return self.control.send(verb, self._names.wire(whole_path))

    def command(self, verb: str, argument: bytes) -> Pending:
        """Queue any command."""
        return self.control.send(verb, argument)

    def wire(self, whole_path: str) -> bytes:
        """Return the bytes of a whole path."""
        return self._names.wire(whole_path)

    def offers(self, feature: str) -> bool:
        """Is a feature in the server's FEAT?"""
        return feature in self._features

    def abandon(self, error: EtlError) -> None:
        """Make the session unusable."""
        self.control.abandon(error)

    def why_not_read(self, path: str, refusal: Reply) -> EtlError:
        """Return the error for a refused or broken RETR."""
        return asking.why_not_read(self, self._names.whole(path), refusal)

    def names_in(self, whole_path: str, prefix: str) -> list[str] | None:
        """Return the bare names in a folder that begin with `prefix`; None when it shows no names at all."""
        found = listing.names_in(self, whole_path, self._names.wire(prefix))
        return None if found is None else [self._names.read(name) for name in found]

    # --- transfers ------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Queue the opening of a data connection."""
        self.starting.prepare()

    def push(self) -> None:
        """Send what is corked."""
        self.control.push()

    def read(self, path: str) -> Parcel:
        """Ask size and time, open the file."""
        self._settle_all()
        whole = self._names.whole(path)
        wire = self._names.wire(whole)
        size, mdtm, running = self.command("SIZE", wire), self.command("MDTM", wire), self.starting.begin("RETR", wire)
        if isinstance(running, Reply):
            raise asking.why_not_read(self, whole, running)
        facts = _facts(size.result(), mdtm.result())
        return FTPParcel(self, path, facts, running.command, running.data)

    def write(self, partial: str, parcel: Parcel, buffer: memoryview) -> Stored:
        """Stream a parcel into a new file; its size is asked for with whatever is sent next."""
        self._settle_all()
        whole = self._names.whole(partial)
        upload = Upload(self, whole, parcel, buffer)
        sent_bytes = upload.run()
        size = self.ask("SIZE", whole)
        return Stored(
            partial,
            sent_bytes,
            size=Lazy(lambda: self._stored_size(whole, size), asks_more=True),
            ended=Lazy(upload.judge, asks_more=True) if upload.is_unjudged else None,
        )

    def _stored_size(self, whole: str, size: Pending) -> int | None:
        size_bytes = size_in(size.result().line) if size.result().is_success else None
        if size_bytes is not None:
            return size_bytes
        folder, name = parent(whole) or "/", basename(whole)
        listed = self.names_in(folder, name)
        if listed is not None and name not in listed:
            raise IOFailure(f"{self.name}:{whole}: stored, and not there under this name", server=self.name)
        return None

    def make_folders(self, whole: str) -> bool:
        """Make the missing folders above a path; False when none was missing. Others may do the same meanwhile."""
        missing = []
        for folder in folders_above(whole):
            if self.ask("CWD", folder).result().is_success:
                break
            missing.append(folder)
        for folder in reversed(missing):
            made = self.ask("MKD", folder).result()
            if not made.is_success and not self.ask("CWD", folder).result().is_success:
                raise self._no_folder(folder, made)
        return bool(missing)

    def _no_folder(self, folder: str, refusal: Reply) -> EtlError:
        if self.ask("SIZE", folder).result().is_success:
            return NotAFile(f"{self.name}:{folder} is a file, no folder", server=self.name)
        return asking.why_not_written(self, folder, refusal)

    # --- questions and changes ------------------------------------------------------------------------------

    def look(self, path: str) -> Facts | None:
        """Ask size and time."""
        whole = self._names.whole(path)
        size, mdtm = self.ask("SIZE", whole), self.ask("MDTM", whole)
        if size.result().is_success:
            return _facts(size.result(), mdtm.result())
        kind, _ = asking.kind_of(self, whole, by_listing=False)
        if kind is asking.Kind.MISSING:
            return None
        if kind is asking.Kind.FILE:
            return _facts(size.result(), mdtm.result())
        error = asking.why_not_read(self, whole, size.result())
        if isinstance(error, FileMissing):
            return None
        raise error

    def unchanged(self, parcel: Parcel) -> Promise[bool]:
        """Ask size and time again."""
        is_same = self._ask_again(parcel)
        return self._later(is_same, asks_more=False)

    def confirm(self, parcel: Parcel) -> Promise[bool]:
        """Do so where that is possible without waiting for the final reply, which is read with the answers."""
        if not (self.control.pipelining.may_overtake and isinstance(parcel, FTPParcel) and parcel.is_whole):
            return super().confirm(parcel)
        parcel.leave()
        self.control.overtake()
        is_same = self._ask_again(parcel)
        return self._later(lambda: parcel.judged(is_same=is_same()), asks_more=False)

    def _ask_again(self, parcel: Parcel) -> Callable[[], bool]:
        wire = self._names.wire(self._names.whole(parcel.path))
        size, mdtm = self.command("SIZE", wire), self.command("MDTM", wire)
        return lambda: _facts(size.result(), mdtm.result()) == parcel.facts

    def dispose(self, path: str, move_to: str | None = None) -> Promise[None]:
        """Delete or move a file."""
        whole = self._names.whole(path)
        if move_to is not None:
            return self._later(self._renaming.moving(whole, self._names.whole(move_to)))
        deleted = self.ask("DELE", whole)

        def complete() -> None:
            self._deleted(whole, deleted.result())

        return self._later(complete)

    def publish(self, stored: Stored, final: str, mtime: float | None) -> Promise[Published]:
        """Stamp and rename, in one write that leaves at once; a data connection opened ahead comes up meanwhile."""
        stored.require_stored()
        partial, target = self._names.whole(stored.partial), self._names.whole(final)
        stamped = self._stamping.stamp(partial, mtime)
        published = self._later(self._renaming.publishing(partial, target, stored.sent_bytes, stamped))
        self.control.push()
        self.starting.connect_prepared()
        return published

    def remove(self, path: str) -> bool:
        """Delete a file."""
        whole = self._names.whole(path)
        return self._deleted(whole, self.ask("DELE", whole).result())

    def survives(self, error: BaseException) -> bool:
        """After an answer about the file itself, with every reply read and nothing said unasked.

        A refusal may mean the login: then the server is asked whether that still holds.
        """
        if not isinstance(error, ANSWERS):
            return False
        try:
            self.flush()
            self.control.require_quiet()
            return not isinstance(error, PermissionRefused) or self.control.send("PWD").result().is_success
        except (EtlError, OSError, RuntimeError):  # RuntimeError: a transfer was left open
            return False

    def require_base(self) -> None:
        """Enter the base path, or the login's folder."""
        self._settle_all()
        entered = self.ask("CWD", self._names.top).result()
        if not entered.is_success:
            raise asking.why_no_base(self, self._names.top, entered)

    def names(self, folder: str, prefix: str = "") -> list[str]:
        """List a folder."""
        self._settle_all()
        whole = self._names.whole(folder) if folder.strip("/.") else self._names.top
        return self.names_in(whole, prefix) or []

    def _deleted(self, whole: str, reply: Reply) -> bool:
        if reply.is_success:
            return True
        if not asking.is_there(self, whole):
            return False
        raise asking.why_not_written(self, whole, reply)

    def _later(self, compute: Callable[[], T], *, asks_more: bool = True) -> Lazy[T]:
        later = Lazy(compute, asks_more=asks_more)
        self._unsettled.append(later)  # type: ignore[arg-type]  # of the kinds in its annotation
        return later

    def _settle_all(self) -> None:
        """Settle promises before a transfer whose answers may need commands, which a transfer forbids."""
        if self._unsettled and any(later.asks_more for later in self._unsettled):
            self.flush()

    def settle_answered(self) -> None:
        """Settle promises that take no more than the replies that are read in passing."""
        if not self._unsettled:
            return
        waiting = [later for later in self._unsettled if not later.asks_more]
        self._unsettled = [later for later in self._unsettled if later.asks_more]
        for later in waiting:
            with contextlib.suppress(EtlError):  # whoever holds the promise is told
                later.result()


def _facts(size: Reply, mdtm: Reply) -> Facts:
    return Facts(size_in(size.line) if size.is_success else None, time_in(mdtm.line) if mdtm.is_success else None)
