"""A session with an FTP server: the verbs of the contract, made of commands, replies and data connections."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, ClassVar

from etl.errors import (
    ConnectionLost,
    EtlError,
    FileMissing,
    PermissionRefused,
    ServerUnavailable,
    SessionFault,
)
from etl.models.server import ProtocolSpec, ServerConfig, TransferSettings
from etl.transfer.base import ANSWERS, Promise, Published, Stored
from etl.transfer.ftp import asking, hashing, known, listing, naming
from etl.transfer.ftp.control import Control
from etl.transfer.ftp.link import Link
from etl.transfer.ftp.login import log_in
from etl.transfer.ftp.names import check_encoding
from etl.transfer.ftp.parcel import FTPParcel
from etl.transfer.ftp.pending import State
from etl.transfer.ftp.pipelining import Pipelining
from etl.transfer.ftp.publishing import Renaming, Stamping
from etl.transfer.ftp.refusals import REFUSED
from etl.transfer.ftp.replies import Reply
from etl.transfer.ftp.security import Security
from etl.transfer.ftp.sockets import Sockets, dial, round_trip
from etl.transfer.ftp.telnet import IAC
from etl.transfer.ftp.traits import traits_of
from etl.transfer.ftp.upload import Upload
from etl.transfer.promises import Lazy
from etl.transfer.resumable import Resumable

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.models.task import Facts
    from etl.transfer.base import Parcel


class FTPTransfer(Resumable):
    """One login at an FTP server. Commands are queued; see `Control` for when they leave."""

    spec: ClassVar[ProtocolSpec] = ProtocolSpec(default_port=21)

    def __init__(self, server: ServerConfig, settings: TransferSettings | None = None) -> None:
        super().__init__(server, settings)
        self._encoding = check_encoding(server.encoding or "utf-8", server.hostname)
        self._sockets = Sockets()
        self._control: Control | None = None
        self._link: Link | None = None
        self._shown: set[str] | None = None  # in the folder of a final name, before it was written directly

    def __repr__(self) -> str:
        state = State.NEW if self._control is None else self._control.state
        return f"<FTPTransfer {self.server.hostname} {state.value}>"

    # --- the session itself ---------------------------------------------------------------------------------

    def connect(self) -> None:
        """Reach the server and log in. Raises ServerUnavailable, ServerBusy, AuthenticationFailed.

        A server that is confused by what others take is met once more, in another way: nothing is at stake.
        """
        quirks = known.of(self.server.address)
        while True:
            pipelining = Pipelining(self.server)
            before = _ways_to_meet(pipelining, quirks)
            try:
                return self._connect(pipelining)
            except (ServerUnavailable, SessionFault):
                if before == _ways_to_meet(pipelining, quirks) or self._sockets.is_cut:
                    raise

    def _connect(self, pipelining: Pipelining) -> None:
        server, settings = self.server, self.settings
        name, port = server.hostname, server.port or self.spec.default_port or 0
        try:
            quirks, limits = known.of(server.address), (settings.connect_timeout, settings.reply_timeout)
            sock = dial(self._sockets, server.host, port, *limits, quirks.working_address)
            quirks.working_address = sock.getpeername()
        except TimeoutError as error:
            raise ServerUnavailable(
                f"{name}: no connection to {server.host}:{port} within {settings.connect_timeout:g} s "
                f"(ETL_CONNECT_TIMEOUT_SECONDS): {error}",
                server=name,
            ) from error
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that is none
            raise ServerUnavailable(f"{name}: no connection to {server.host}:{port}: {error}", server=name) from error
        try:
            security = self._new_security()
            sock = security.meet(sock)
            control = Control(
                sock, self._sockets, name, pipelining, login=settings.login_timeout, reply=settings.reply_timeout
            )
            self._control = control
            passive = settings.passive if server.passive is None else server.passive
            names, features = log_in(
                control, server, self._encoding, security, passive=passive and server.epsv != "off"
            )
            ways = security.ways(control, settings, quirks, passive=passive, epsv=server.epsv != "off")
            self._link = Link(server, control, names, features, ways)
        except BaseException:
            self.disconnect()
            raise

    def _new_security(self) -> Security:
        return Security(self._sockets)

    def disconnect(self) -> None:
        """Close everything; QUIT is sent, its reply not waited for."""
        if self._control is not None:
            with contextlib.suppress(OSError):
                self._control.say_goodbye()
            name = self.server.hostname
            self._control.abandon(ConnectionLost(f"{name}: the session is closed", server=name))
        self._sockets.close_all()

    def abort(self) -> None:
        """Cut all sockets, from any thread."""
        self._sockets.cut()

    def ping(self) -> None:
        """Send NOOP; any reply but a farewell is a sign of life, if nothing unasked came before it."""
        control = self.link.control
        self.link.starting.require_fresh()
        control.flush()
        control.require_silence()
        control.send("NOOP").result()

    def round_trip_seconds(self) -> float | None:
        """Return what the kernel measured on the control connection."""
        return None if self._control is None else round_trip(self._control.sock)

    def adopt(self, server: ServerConfig) -> None:
        """Serve jobs of another name of the same address."""
        super().adopt(server)
        self._encoding = check_encoding(server.encoding or "utf-8", server.hostname)
        self.link.adopt(server)

    def flush(self) -> None:
        """Send what is corked, read every reply that is due, settle every promise."""
        self.link.flush()

    def push(self) -> None:
        """Send what is corked; in a session that is over nothing is, and whoever waits for an answer is told."""
        with contextlib.suppress(EtlError):
            self.link.control.push()

    @property
    def is_over(self) -> bool:
        """Has an error ended it?"""
        return self._control is not None and self._control.broken is not None

    def prepare(self) -> None:
        """Queue the opening of a data connection."""
        self.link.starting.prepare()

    @property
    def link(self) -> Link:
        """The login that the parts of the session work with. Raises ConnectionLost before `connect`."""
        if self._link is None:
            name = self.server.hostname
            raise ConnectionLost(f"{name}: not connected", server=name)
        return self._link

    # --- transfers ------------------------------------------------------------------------------------------

    def read(self, path: str) -> Parcel:
        """Ask size and time, open the file."""
        link = self.link
        link.settle_all()
        whole = link.names.whole(path)
        ask, running = asking.ask_facts(link, whole), link.starting.begin("RETR", link.locate(whole))
        if isinstance(running, Reply) and link.quirks.bare_names is None and running.code >= REFUSED:
            link.tries_bare = True
            ask, running = asking.ask_facts(link, whole), link.starting.begin("RETR", link.locate(whole))
            link.takes_bare(None if isinstance(running, Reply) else True)
        if isinstance(running, Reply):
            raise asking.why_not_read(link, whole, running)
        link.takes_bare(is_so=False)
        return FTPParcel(link, path, whole, ask(), running.command, running.data)

    def require_name(self, path: str) -> None:
        """Find out whether the name can be written in the server's encoding, and byte 0xFF in it."""
        link = self.link
        whole = link.names.whole(path)
        if IAC in link.names.wire(whole):
            link.settle_all()
            link.starting.connect_prepared()
            link.wire(whole)

    @property
    def reads_on(self) -> bool:
        """Did the server not refuse REST?"""
        return not known.of(self.server.address).refuses_offsets

    @property
    def goes_on(self) -> bool | None:
        """Does it take a STOR behind a REST?"""
        return known.of(self.server.address).goes_on if self.reads_on else False

    @goes_on.setter
    def goes_on(self, is_right: bool | None) -> None:
        known.of(self.server.address).goes_on = is_right

    def read_on(self, path: str, offset: int) -> Parcel | None:
        """Ask size and time, open the file at an offset."""
        link = self.link
        link.settle_all()
        whole = link.names.whole(path)
        ask, running = asking.ask_facts(link, whole), link.starting.begin("RETR", link.locate(whole), offset)
        facts = ask()
        if isinstance(running, Reply):
            return None
        return FTPParcel(link, path, whole, facts, running.command, running.data, offset)

    def write(self, partial: str, parcel: Parcel, buffer: memoryview) -> Stored:
        """Stream a parcel into a new file; its size is asked for with whatever is sent next."""
        return self._write(partial, parcel, buffer)

    def write_on(self, partial: str, parcel: Parcel, buffer: memoryview, offset: int) -> Stored:
        """Stream a parcel into a file from an offset on."""
        return self._write(partial, parcel, buffer, offset)

    def _write(self, partial: str, parcel: Parcel, buffer: memoryview, offset: int | None = None) -> Stored:
        link = self.link
        link.settle_all()
        whole = link.names.whole(partial)
        is_final = self.server.publish == "direct"
        self._shown = naming.shown_beside(link, whole) if is_final and naming.is_at_risk(link, whole) else None
        upload = Upload(link, whole, parcel, buffer, offset)
        sent_bytes = upload.run()
        return Stored(
            partial,
            sent_bytes,
            size=Lazy(asking.ask_stored_size(link, whole, sent_bytes), asks_more=True),
            ended=Lazy(upload.judge, asks_more=True) if upload.is_unjudged else None,
        )

    def publish(self, stored: Stored, final: str, mtime: float | None) -> Promise[Published]:
        """Stamp and rename, in one write that leaves at once; a data connection opened ahead comes up meanwhile."""
        stored.require_stored()
        link = self.link
        partial, target = link.names.whole(stored.partial), link.names.whole(final)
        stamped = Stamping(link).stamp(partial, mtime)
        before = self._shown if partial == target else None
        published = link.promises.later(Renaming(link).publishing(partial, target, stored.sent_bytes, stamped, before))
        link.control.push()
        link.starting.connect_prepared()
        return published

    # --- questions and changes ------------------------------------------------------------------------------

    def look(self, path: str) -> Facts | None:
        """Ask size and time; and whether it is a folder, where SIZE answers for folders, too."""
        link = self.link
        whole = link.names.whole(path)
        if asking.lists_facts(link, whole):
            found = asking.listed_facts(link.ask("MLST", whole).result())
            if found is not None:
                return found
        size, mdtm = link.ask("SIZE", whole), link.ask("MDTM", whole)
        entry = asking.ask_entry(link, whole) if link.quirks.sizes_folders else None
        facts = asking.facts_of(link, size.result(), mdtm.result())
        if size.result().is_success and asking.tells_files_by_size(link):
            return facts
        if size.result().is_success and entry is not None and not entry():
            return facts
        kind, _ = asking.kind_of(link, whole, by_listing=False)
        if kind is asking.Kind.MISSING:
            return None
        if kind is asking.Kind.FILE:
            return facts
        error = asking.why_not_read(link, whole, size.result())
        if isinstance(error, FileMissing):
            return None
        raise error

    def unchanged(self, parcel: Parcel) -> Promise[bool]:
        """Ask size and time again."""
        is_same = self._ask_again(parcel)
        return self.link.promises.later(lambda: _unless_over(parcel, is_same), asks_more=False)

    def _ask_again(self, parcel: Parcel) -> Callable[[], bool]:
        whole = self.link.names.whole(parcel.path)
        if self.link.control.state is State.BROKEN and isinstance(parcel, FTPParcel) and parcel.is_proven:
            return lambda: True
        return asking.ask_unchanged(self.link, whole, parcel.facts)

    def confirm(self, parcel: Parcel) -> Promise[bool]:
        """End the read without waiting for the 226 where the server allows it; it is read together with the answers."""
        control = self.link.control
        if not (control.pipelining.may_overtake and isinstance(parcel, FTPParcel) and parcel.is_whole):
            return super().confirm(parcel)
        parcel.leave()
        control.overtake()
        is_same = self._ask_again(parcel)
        return self.link.promises.later(lambda: parcel.judged(is_same=is_same()), asks_more=False)

    def dispose(self, path: str, move_to: str | None = None) -> Promise[None]:
        """Delete or move a file."""
        link = self.link
        whole = link.names.whole(path)
        if move_to is not None:
            return link.promises.later(Renaming(link).moving(whole, link.names.whole(move_to)))
        deleted = link.ask("DELE", whole)

        def complete() -> None:
            _deleted(link, whole, deleted.result())

        return link.promises.later(complete)

    def remove(self, path: str) -> bool:
        """Delete a file."""
        link = self.link
        whole = link.names.whole(path)
        return _deleted(link, whole, link.ask("DELE", whole).result())

    def remove_folder(self, path: str) -> bool:
        """Remove an empty folder, from outside of it: some servers keep one that a session is in."""
        link = self.link
        link.ask("CWD", link.names.top)
        return link.ask("RMD", link.names.whole(path)).result().is_success

    def traits(self) -> dict[str, str]:
        """Ask what the server is like."""
        return traits_of(self.link)

    def hashes(self) -> tuple[str, ...]:
        """Return those that FEAT names, and that the server was not seen to refuse."""
        return hashing.offered(self.link)

    def hash_of(self, path: str, algorithm: str, size_bytes: int) -> str | None:
        """Ask in every way that the server offers."""
        link, silence_limit = self.link, max(self.settings.reply_timeout, self.settings.stall_timeout)
        link.settle_all()
        return hashing.hash_of(link, link.names.whole(path), algorithm, size_bytes, silence_limit)

    def survives(self, error: BaseException) -> bool:
        """After an answer about the file itself, with every reply read and nothing said unasked.

        A refusal may mean the login: then the server is asked whether that still holds.
        """
        if not isinstance(error, ANSWERS):
            return False
        try:
            control = self.link.control
            self.flush()
            control.require_silence()
            return not isinstance(error, PermissionRefused) or control.send("PWD").result().is_success
        except (EtlError, OSError, RuntimeError):  # RuntimeError: a transfer was left open
            return False

    def require_base(self) -> None:
        """Enter the base path, or the login's folder."""
        link = self.link
        link.settle_all()
        entered = link.ask("CWD", link.names.top).result()
        if not entered.is_success:
            raise asking.why_no_base(link, link.names.top, entered)

    def names(self, folder: str, prefix: str = "") -> list[str]:
        """List a folder."""
        link = self.link
        link.settle_all()
        whole = link.names.whole(folder) if folder.strip("/.") else link.names.top
        return listing.names_in(link, whole, prefix) or []


def _ways_to_meet(pipelining: Pipelining, quirks: known.ServerQuirks) -> tuple[object, ...]:
    """Return what is known of a server that changes how a login goes."""
    known_pairs = tuple(quirks.doubles.items())
    ways = (pipelining.is_one_by_one, quirks.answers_feat, quirks.takes_epsv, quirks.keeps_order, known_pairs)
    return *ways, quirks.encrypts_late, tuple(quirks.ended_at), tuple(quirks.withheld_until.items())


def _unless_over(parcel: Parcel, is_same: Callable[[], bool]) -> bool:
    """Ask whether a file changed; of one that came whole, with its 226, a session that ends there says nothing."""
    try:
        return is_same()
    except ConnectionLost:
        if isinstance(parcel, FTPParcel) and parcel.is_proven:
            return True
        raise


def _deleted(link: Link, whole: str, reply: Reply) -> bool:
    """Say whether a DELE deleted; raises for a file that is still there."""
    if reply.is_success:
        return True
    if not asking.is_there(link, whole):
        return False
    raise asking.why_not_written(link, whole, reply)
