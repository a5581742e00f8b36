"""One login at a bucket: connection, signatures, requests, and what their answers are. Knows no protocol's verb."""

from __future__ import annotations

import contextlib
import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from etl.errors import (
    ConnectionLost,
    EtlError,
    InvalidPath,
    IOFailure,
    SessionFault,
    TransferTimeout,
)
from etl.transfer.paths import refuse_misread, refuse_unusable
from etl.transfer.promises import Lazy
from etl.transfer.s3 import documents, known, refusals, signing
from etl.transfer.s3.channel import Answer, Channel, EndedError, MalformedError, read_answer
from etl.transfer.s3.connecting import aborted, open_channel
from etl.transfer.s3.keys import Keys
from etl.transfer.s3.options import DEFAULT_REGION, Options
from etl.transfer.watch import StalledError, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from etl.models.server import ServerConfig, TransferSettings
    from etl.transfer.ftp.sockets import Sockets
    from etl.transfer.s3.signing import Query

T = TypeVar("T")

_KEY_BYTES = 1024  # of a key at most
_TRIES = 3  # of a request that is put right: region, token, a connection that was closed while idle


class Link:
    """One session's way to its bucket."""

    def __init__(self, server: ServerConfig, settings: TransferSettings, sockets: Sockets) -> None:
        self.settings = settings
        self.sockets = sockets
        self._channel: Channel | None = None
        self.adopt(server)

    def adopt(self, server: ServerConfig) -> None:
        """Work for another name of the same address from now on."""
        self.server = server
        former, self.options = getattr(self, "options", None), Options.of(server)
        self.store = known.of(server)
        if former is not None and former.connect_host != self.options.connect_host:
            self.close()
        self._keys = Keys(server.hostname, self.options, self.settings)

    @property
    def name(self) -> str:
        """The server's name, for errors."""
        return self.server.hostname

    # --- keys -------------------------------------------------------------------------------------------------

    def key(self, path: str) -> str:
        """Return the key of a job's path. Raises InvalidPath."""
        refuse_unusable(path)
        base = self.server.base_path.strip("/")
        key = f"{base}/{path.removeprefix('/')}" if base else path.removeprefix("/")
        try:
            wire = key.encode()
        except UnicodeError as error:
            raise InvalidPath(f"{self.name}:{path!r} cannot be written in UTF-8", server=self.name) from error
        refuse_misread(key, wire)  # the store may be a folder of files
        if len(wire) > _KEY_BYTES:
            raise InvalidPath(f"{self.name}:{path!r} has more than {_KEY_BYTES} bytes", server=self.name)
        return key

    def copy_source(self, key: str) -> str:
        """Return an object of the bucket as a request to copy it names it."""
        return f"/{self.options.bucket}/{signing.quoted(key, '/')}"

    # --- requests ---------------------------------------------------------------------------------------------

    def ask(
        self,
        method: str,
        key: str = "",
        query: Query = (),
        headers: Mapping[str, str] | None = None,
        body: bytes | memoryview = b"",
        *,
        once: bool = False,
    ) -> Answer:
        """Send a request and read its answer whole, refused or not.

        `once`: it is not sent again where its answer may have been lost. Raises ConnectionLost, TransferTimeout ...
        """
        answer = self.begin(method, key, query, headers, body, once=once)
        self.read_whole(answer)
        return answer

    def begin(
        self,
        method: str,
        key: str = "",
        query: Query = (),
        headers: Mapping[str, str] | None = None,
        body: bytes | memoryview = b"",
        *,
        once: bool = False,
    ) -> Answer:
        """Send a request; the body of a success is left to be read."""
        for tries_left in reversed(range(_TRIES)):
            is_new = self._prepare()
            try:
                answer = self._exchange(method, key, query, headers, body)
            except _Ended as ended:
                if is_new or ended.began:
                    raise
                # Most likely it was closed by the store while it was idle.
                if once:
                    raise SessionFault(str(ended), server=self.name) from ended
                if not tries_left:
                    raise
                continue
            if not (tries_left and self._is_mended(answer)):
                return answer
        raise AssertionError("the last try returns or raises")

    def ask_ahead(self, key: str) -> Lazy[Answer]:
        """Ask what is there, and read the answer later: until then nothing else may be asked here."""
        with contextlib.suppress(ConnectionLost):
            self.send_ahead("HEAD", key)

        def receive() -> Answer:
            with contextlib.suppress(ConnectionLost):
                answer = self.receive_ahead("HEAD")
                if answer.status in {200, 404}:
                    return answer
            return self.ask("HEAD", key)

        return Lazy(receive, asks_more=True)

    def send_ahead(self, method: str, key: str, headers: Mapping[str, str] | None = None) -> None:
        """Send a request without a body, whose answer `receive_ahead` reads."""
        self._prepare()
        head = self._head(method, key, (), headers or {}, hashlib.sha256(b"").hexdigest(), 0)
        with self.translated():
            self.channel.send(head, self.watch())

    def receive_ahead(self, method: str) -> Answer:
        """Read the answer to `send_ahead`; the body of a success is left to be read."""
        with self.translated():
            answer = self._answer(self.channel, method)
            if answer.status >= 300:
                answer.content = answer.body.read_all(documents.LIMIT_BYTES)
            return answer

    def stream(
        self,
        key: str,
        query: Query,
        headers: Mapping[str, str],
        length: int,
        send: Callable[[Callable[[bytes | memoryview], None]], None],
    ) -> Answer:
        """PUT a body that is made while it is sent, once: `send` gives its parts to what it is called with."""
        self._prepare()
        channel, watch = self.channel, self.watch()

        def give(block: bytes | memoryview) -> None:
            if channel.has_answer:
                raise _EarlyError
            channel.send(block, watch)

        try:
            with self.translated():
                channel.send(self._head("PUT", key, query, headers, signing.UNSIGNED, length), watch)
                try:
                    send(give)
                except (_EarlyError, BrokenPipeError, ConnectionResetError) as error:
                    answer = self._early_answer(channel, error)
                else:
                    answer = self._answer(channel, "PUT")
        except BaseException:
            self.close()
            raise
        self.read_whole(answer)
        return answer

    def _early_answer(self, channel: Channel, error: Exception) -> Answer:
        """Return the refusal that came before all was sent; no other request may go this way."""
        try:
            answer = self._answer(channel, "PUT")
            answer.content = answer.body.read_all(documents.LIMIT_BYTES)
        except (OSError, EndedError):
            raise EndedError(f"the connection was cut: {error}", began=True) from error
        finally:
            self.close()
        if not refusals.is_refused(answer):
            raise EndedError("an answer before the request was sent", began=True)
        return answer

    def read_whole(self, answer: Answer) -> None:
        """Read the body of an answer into its `content`."""
        with self.translated():
            answer.content += answer.body.read_all(documents.LIMIT_BYTES)

    def parsed(self, read: Callable[..., T], answer: Answer, *arguments: str) -> T:
        """Return what `read` finds in the body of an answer. Raises IOFailure for what is no such document."""
        with self.translated():
            return read(answer.content, *arguments)

    def refused(self, what: str, answer: Answer) -> EtlError:
        """Return the error that a refused answer stands for."""
        return refusals.refused(self.server, what or self.options.bucket, answer, datetime.now(UTC))

    def require_success(self, what: str, answer: Answer) -> Answer:
        """Return an answer; raises what it refuses."""
        if refusals.is_refused(answer):
            raise self.refused(what, answer)
        return answer

    def watch(self) -> Watch:
        """Return a watch over the bytes of one body."""
        return Watch(self.settings.stall_timeout, self.settings.min_bytes_per_second)

    # --- the connection ---------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Connect, unless a connection stands. Raises what `open_channel` does."""
        if self._channel is not None and self._channel.is_idle:
            return
        self.close()
        self._channel = open_channel(self.server, self.options, self.settings, self.sockets)

    def sibling(self) -> Link:
        """Return another way to the same bucket, for the same session."""
        return Link(self.server, self.settings, self.sockets)

    def close(self) -> None:
        """Close the connection; the next request makes another."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def round_trip_seconds(self) -> float | None:
        """Return how long a round trip takes, as the kernel measured it."""
        return None if self._channel is None else self._channel.round_trip_seconds()

    def _prepare(self) -> bool:
        """Have a connection that may be used; say whether it is a new one."""
        if self._channel is not None and self._channel.is_idle and not self.sockets.is_cut:
            return False
        if self.sockets.is_cut:
            raise aborted(self.name)
        self.connect()
        return True

    @property
    def channel(self) -> Channel:
        """The connection of the request that is under way."""
        if self._channel is None:
            raise ConnectionLost(f"{self.name}: the connection ended before an answer", server=self.name)
        return self._channel

    # --- one request ------------------------------------------------------------------------------------------

    def _exchange(
        self, method: str, key: str, query: Query, headers: Mapping[str, str] | None, body: bytes | memoryview
    ) -> Answer:
        channel, watch = self.channel, self.watch()
        # In clear the store shall notice what somebody on the way, or a fault, has changed.
        is_told = not self.options.is_encrypted or not body
        payload = hashlib.sha256(body).hexdigest() if is_told else signing.UNSIGNED
        head = self._head(method, key, query, headers or {}, payload, len(body))
        with self.translated():
            try:
                if len(body) <= 16 * 1024:
                    channel.send(head + bytes(body), watch)
                else:
                    channel.send(head, watch)
                    channel.send(body, watch)
            except (BrokenPipeError, ConnectionResetError) as error:
                with contextlib.suppress(OSError):
                    return self._early_answer(channel, error)
                raise EndedError(f"the connection was cut: {error}", began=False) from error
            answer = self._answer(channel, method)
            if answer.status >= 300:
                answer.content = answer.body.read_all(documents.LIMIT_BYTES)
            return answer

    def _answer(self, channel: Channel, method: str) -> Answer:
        wait, settings = Watch(self.settings.reply_timeout, 0.0), self.settings
        flow = self.watch() if method == "GET" else Watch(settings.stall_timeout, 0.0)
        try:
            return read_answer(channel, method, wait, flow)
        except StalledError as error:
            why = f"no answer within {settings.reply_timeout:g} s (ETL_REPLY_TIMEOUT_SECONDS)"
            raise TimeoutError(why) from error

    def _head(
        self, method: str, key: str, query: Query, headers: Mapping[str, str], payload: str, length: int
    ) -> bytes:
        """Return the head of a request, signed now."""
        options, now = self.options, datetime.now(UTC)
        bucket = "" if options.is_virtual else f"/{options.bucket}"
        path = f"{options.prefix}{bucket}/{signing.quoted(key, '/')}" if key else f"{options.prefix}{bucket}" or "/"
        text = signing.query_string(query)
        signed = {
            "host": options.host_header,
            "x-amz-content-sha256": payload,
            "x-amz-date": signing.stamp_of(now),
            **headers,
        }
        credentials = self._keys.current()
        if credentials.token:
            signed["x-amz-security-token"] = credentials.token
        form = signing.canonical(method, path, text, signed, payload)
        lines = [f"{method} {path}{f'?{text}' if text else ''} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in signed.items()]
        lines.append(f"authorization: {signing.authorization(credentials, self._region(), 's3', now, form)}")
        if length or method in {"PUT", "POST"}:
            lines.append(f"content-length: {length}")
        return "\r\n".join([*lines, "\r\n"]).encode("latin-1")

    def _region(self) -> str:
        return self.store.region or self.options.region or DEFAULT_REGION

    def _is_mended(self, answer: Answer) -> bool:
        """Was a refused request put right, so that it may be sent once more?"""
        if answer.status < 300:
            return False
        code = refusals.code_of(answer)
        if code in {"ExpiredToken", "InvalidToken", "TokenRefreshRequired"} and self.options.token_file:
            return self._keys.renew()
        if answer.status in {301, 307, 400} or code == "AuthorizationHeaderMalformed":
            told = refusals.region_told(answer)
            if told and told != self._region() and code != "InvalidRegion":
                self.store.region = told
                return True
        return False

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what sockets say into our errors."""
        name = self.name
        try:
            yield
        except EtlError:
            raise
        except (StalledError, TimeoutError) as error:
            self.close()
            raise TransferTimeout(f"{name}: {error}", server=name) from error
        except MalformedError as error:
            self.close()
            raise IOFailure(f"{name}: {error}", server=name) from error
        except (EndedError, OSError) as error:
            self.close()
            if self.sockets.is_cut:
                raise aborted(self.name) from error
            raise _Ended(f"{name}: {error}", name, began=isinstance(error, EndedError) and error.began) from error


class _EarlyError(Exception):
    """Raised when an answer comes before a request was sent whole."""


class _Ended(ConnectionLost):
    """Raised when a connection ends; `began`: something of the answer had come."""

    def __init__(self, message: str, server: str, *, began: bool) -> None:
        super().__init__(message, server=server)
        self.began = began
