"""How a store is reached: a connection, encrypted where its address says so. Each refusal has a sentence of its own."""

from __future__ import annotations

import contextlib
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING

from etl.errors import ConnectionLost, EtlError, ServerUnavailable
from etl.transfer.ftp.sockets import CutError, Sockets, dial
from etl.transfer.ftps import options as tls_options
from etl.transfer.ftps import refusals as tls_refusals
from etl.transfer.ftps.agreement import Agreement
from etl.transfer.ftps.tunnel import SecureSocket, Tunnel
from etl.transfer.s3 import refusals
from etl.transfer.s3.channel import Channel

if TYPE_CHECKING:
    import socket

    from etl.models.server import ServerConfig, TransferSettings
    from etl.transfer.s3.options import Options


def open_channel(server: ServerConfig, options: Options, settings: TransferSettings, sockets: Sockets) -> Channel:
    """Connect. Raises ServerUnavailable, CertificateRefused, EncryptionRefused; ConnectionLost once aborted."""
    try:
        sock = _dial(options, settings, sockets)
    except CutError as error:
        raise aborted(server.hostname) from error
    except OSError as error:
        what = f"{server.hostname}: {options.connect_host}:{options.port} cannot be reached: {error}"
        raise ServerUnavailable(what, server=server.hostname) from error
    if not options.is_encrypted:
        return Channel(sockets, sock)
    agreement = Agreement(replace(server, host=options.connect_host))
    secure = SecureSocket(sock, agreement.new_tunnel())
    sockets.replace(sock, secure)
    try:
        secure.shake_hands(settings.login_timeout)
        agreement.met(secure.tunnel.tls)
    except ssl.SSLCertVerificationError as error:
        raise tls_refusals.not_trusted(server, error, _shown(server, options, settings, sockets)) from error
    except OSError as error:
        if sockets.is_cut:
            raise aborted(server.hostname) from error
        raise refusals.no_handshake(server, error) from error
    return Channel(sockets, secure, secure.tunnel)


def aborted(name: str) -> ConnectionLost:
    """Return the error for a session that another thread has ended."""
    return ConnectionLost(f"{name}: the session was aborted", server=name)


def _dial(options: Options, settings: TransferSettings, sockets: Sockets) -> socket.socket:
    return dial(sockets, options.connect_host, options.port, settings.connect_timeout, settings.reply_timeout)


def _shown(server: ServerConfig, options: Options, settings: TransferSettings, sockets: Sockets) -> str:
    """Return the fingerprint that the store shows: asked for in a connection that serves nothing else."""
    with contextlib.suppress(EtlError, OSError):
        trusting = replace(tls_options.Options.of(server), verifies=False, fingerprints=(), authorities="")
        sock = _dial(options, settings, sockets)
        secure = SecureSocket(sock, Tunnel(tls_options.context_of(trusting), options.connect_host))
        sockets.replace(sock, secure)
        secure.shake_hands(settings.login_timeout)
        certificate = secure.tunnel.tls.getpeercert(binary_form=True)
        sockets.close(secure)
        if certificate:
            return tls_refusals.fingerprint_of(certificate)
    return ""
