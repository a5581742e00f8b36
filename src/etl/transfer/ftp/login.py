"""From welcome to a session that is ready: login, features, names, binary type. Knows what each refusal means."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from etl.errors import AuthenticationFailed, EtlError, InvalidPath, ServerBusy, ServerUnavailable
from etl.transfer.ftp import known
from etl.transfer.ftp.names import Names, quoted_path
from etl.transfer.ftp.sockets import round_trip

if TYPE_CHECKING:
    from etl.models.server import ServerConfig
    from etl.transfer.ftp.control import Control
    from etl.transfer.ftp.known import ServerQuirks
    from etl.transfer.ftp.replies import Reply
    from etl.transfer.ftp.security import Security

_CODE = re.compile(rb"^211[- ]")  # some put it on each line of FEAT
_FEAT_SECONDS = 10.0  # it is optional, and some never answer it
_ACCIDENTS = 1  # sessions that end at FEAT, or EPSV; the next one means it
_FOLDER = 257  # the success of PWD
_REFUSED = 500
_BROKEN = 500  # vsftpd: "500 OOPS: refusing to run with writable root"; the login is as good as any
# How long the other answers of one write may take longer than the first: a server that lost a command is silent.
_PAIR_SECONDS = 2.0
_PAIR_ROUND_TRIPS = 10
_SAYS_A_LIMIT = ("too many", "maximum", "limit", "connections")
_SAYS_THE_LOGIN = ("incorrect", "attempt", "fail", "lock", "password", "tls", "ssl")  # "too many failed logins"


def log_in(
    control: Control, server: ServerConfig, encoding: str, security: Security, *, passive: bool
) -> tuple[Names, dict[str, str]]:
    """Log in; return how names are written there, and what FEAT offers: its words (upper case), and what follows them.

    Raises ServerUnavailable, ServerBusy, AuthenticationFailed.
    """
    welcome = control.expect_welcome().result()
    if not welcome.is_success:
        raise _not_welcome(server, welcome)
    control.pipelining.meet(b" ".join(welcome.lines), round_trip(control.sock))
    security.before_login(control)
    reply = control.send("USER", _credential(server, server.username, encoding)).result()
    if reply.code == 331:
        reply = control.send("PASS", _credential(server, server.password, encoding)).result()
    if not reply.is_success:
        raise _refused(server, reply)
    security.after_login(control)
    quirks = known.of(server.address)
    features: dict[str, str] = {}
    if quirks.answers_feat:
        began = time.monotonic()
        try:
            features = _features(control.send("FEAT").result(limit=_FEAT_SECONDS))
            quirks.ended_at_feat = 0
        except ServerUnavailable:
            quirks.ended_at_feat += 1
            quirks.answers_feat = time.monotonic() - began < _FEAT_SECONDS and quirks.ended_at_feat <= _ACCIDENTS
            raise
    if encoding.lower() in {"utf-8", "utf8"} and "UTF8" in features:
        control.send("OPTS", b"UTF8 ON")  # a refusal changes nothing
    binary, where = _binary_and_folder(control, quirks, passive=passive)
    if not binary.is_success:
        raise ServerUnavailable(f"{server.hostname}: TYPE I: {binary.text}", server=server.hostname)
    names = Names(encoding, server.base_path)
    home = quoted_path(where.line) if where.is_success else None
    control.logged_in()
    if home is not None and home.startswith(b"/") and not {13, 0} & set(home):
        return Names(encoding, server.base_path, names.read(home)), features
    return Names(encoding, server.base_path, home=""), features


def _binary_and_folder(control: Control, quirks: ServerQuirks, *, passive: bool) -> tuple[Reply, Reply]:
    """Return the replies to TYPE I and PWD.

    They are the first commands that share a write: a server that is confused by that shows it here, where asking again
    costs nothing. At the first meeting a slow command stands between them, to show whether answers change places.
    """
    pipelining, seconds = control.pipelining, _PAIR_SECONDS + _PAIR_ROUND_TRIPS * (round_trip(control.sock) or 0.0)
    binary, port = control.send("TYPE", b"I"), None
    if passive and quirks.takes_epsv is not False and not (pipelining.is_order_known and quirks.takes_epsv):
        port = control.send("EPSV")
    where = control.send("PWD")
    binary.result()
    if port is not None:
        began = time.monotonic()
        try:
            quirks.takes_epsv = port.result(limit=seconds).code < _REFUSED
            quirks.ended_at_epsv = 0
        except ServerUnavailable:
            quirks.ended_at_epsv += 1
            is_meant = port.place <= 1 or quirks.ended_at_epsv > _ACCIDENTS  # alone, or again
            if is_meant or time.monotonic() - began >= seconds:  # or in vain
                quirks.takes_epsv = False
            raise
    asked = time.monotonic()
    try:
        together = binary.result(), where.result(limit=None if pipelining.is_one_by_one else seconds)
    except ServerUnavailable:
        if port is not None and port.result().is_success and time.monotonic() - asked >= seconds:
            pipelining.kept_order()  # it waits until somebody connects to the port: nothing overtakes anything there
        raise
    if together[0].is_success and together[1].code == _FOLDER:
        if port is not None and port.result().is_success:
            pipelining.kept_order()
        return together
    alone = control.send("TYPE", b"I").result(), control.send("PWD").result()
    if (alone[0].code, alone[1].code) != (together[0].code, together[1].code):
        pipelining.failed(transfers=True)
    return alone


def _features(reply: Reply) -> dict[str, str]:
    if not reply.is_success:
        return {}
    lines = (_CODE.sub(b"", line).strip().decode("ascii", "replace") for line in reply.lines[1:-1])
    offered = (line.split(maxsplit=1) for line in lines)
    return {words[0].upper(): words[1] if len(words) > 1 else "" for words in offered if words}


def _credential(server: ServerConfig, text: str, encoding: str) -> bytes:
    """Return the bytes of a user's name or password: in the server's encoding if that can express them."""
    if any(sign in text for sign in "\r\n\0"):
        message = f"{server.hostname}: USER or PASS holds a line break or NUL"
        raise AuthenticationFailed(message, server=server.hostname)
    try:
        return Names(encoding).wire(text)
    except InvalidPath:
        return text.encode("utf-8", "surrogateescape")


def _not_welcome(server: ServerConfig, reply: Reply) -> EtlError:
    kind = ServerBusy if _says_a_limit(reply) else ServerUnavailable
    return kind(f"{server.hostname}: no welcome: {reply.text}", server=server.hostname)


def _refused(server: ServerConfig, reply: Reply) -> EtlError:
    text = reply.text.replace(server.password, "***") if server.password else reply.text
    message = f"{server.hostname}: login as {server.username} refused: {text}"
    if _says_a_limit(reply):
        return ServerBusy(message, server=server.hostname)
    if (reply.is_transient and reply.code != 430) or reply.code == _BROKEN:
        return ServerUnavailable(message, server=server.hostname)
    return AuthenticationFailed(message, server=server.hostname)


def _says_a_limit(reply: Reply) -> bool:
    """Does a refusal speak of a limit, and not of the login? English it is, but the code (421, 530) leaves it open."""
    text = reply.text.lower()
    says_login = any(words in text for words in _SAYS_THE_LOGIN)
    return reply.code == 421 or (any(words in text for words in _SAYS_A_LIMIT) and not says_login)
