"""The API's process: settings, logs, signals, TLS, and the server around the application. Returns the exit code."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from etl import broker, logs
from etl.api.app import build
from etl.api.services import Services
from etl.config import ConfigLoader, Settings
from etl.errors import SettingsError

EXIT_OK, EXIT_FAILED, EXIT_WRONG_SETTINGS = 0, 1, 2
STOP_SECONDS = 3  # that answers under way may take when the process ends
HEADERS_BYTES = 64 * 1024
BACKLOG = 128
CONNECTIONS = 500  # at the same time; more are answered with 503

log = structlog.get_logger(__name__)


class Protocol(H11Protocol):
    """HTTP/1.1 whose requests carry the client's verified certificate, which the server does not hand on by itself."""

    def connection_made(self, transport: Any) -> None:
        """Note the certificate of a new connection."""
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and (certificate := tls.getpeercert()):
            app = self.app

            async def with_certificate(scope: Any, receive: Any, send: Any) -> None:
                scope["etl.certificate"] = certificate
                await app(scope, receive, send)

            self.app = with_certificate


class Server(uvicorn.Server):
    """A server whose signals we handle: the library's would end the process by the signal itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def run(overrides: dict[str, str] | None = None, env_file: str | None = None) -> int:
    """Run the API until a signal stops it; return the exit code."""
    try:
        config = ConfigLoader(env_file=env_file, overrides=overrides)
        settings = config.settings
        library_level = "WARNING" if settings.log_level == "DEBUG" else "CRITICAL"
        logs.configure(
            settings.log_format,
            settings.log_level,
            config.secrets,
            sys.stdout,
            process="api",
            library_level=library_level,
        )
        broker.secure(settings)
        services = Services.build(config)
        app = build(services, services.audit.write)
        stopping: threading.Event = app.state.stopping
        server = Server(_configure(settings, app))
    except SettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201 - logging may not be set up yet
        return EXIT_WRONG_SETTINGS
    try:
        listener = _listen(settings.api_host, settings.api_port)
    except OSError as error:
        log.error(  # noqa: TRY400 - a traceback would add nothing
            "cannot listen", host=settings.api_host, port=settings.api_port, error=error.strerror or str(error)
        )
        return EXIT_FAILED
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _stop(server, stopping))
    services.start()
    _say_where(settings, services)
    try:
        with listener:
            asyncio.run(server.serve([listener]))
    finally:
        services.stop()
    log.info("stopped")
    return EXIT_OK


def _stop(server: Server, stopping: threading.Event) -> None:
    """End the streams and then the server; called by a signal."""
    stopping.set()
    server.should_exit = True


def _configure(settings: Settings, app: FastAPI) -> uvicorn.Config:
    """Return the server's configuration. Raises SettingsError for certificates that cannot be used."""
    tls: dict[str, Any] = {}
    if settings.api_tls_cert_file:
        tls = {"ssl_certfile": settings.api_tls_cert_file, "ssl_keyfile": settings.api_tls_key_file}
        if settings.api_tls_client_ca_file:
            tls |= {"ssl_ca_certs": settings.api_tls_client_ca_file, "ssl_cert_reqs": ssl.CERT_OPTIONAL}
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=STOP_SECONDS,
        h11_max_incomplete_event_size=HEADERS_BYTES,
        **tls,
    )
    try:
        config.load()
    except (ssl.SSLError, OSError) as error:
        what = "certificates or key cannot be used" if isinstance(error, ssl.SSLError) else error.strerror
        raise SettingsError(
            f"ETL_API_TLS_CERT_FILE, ETL_API_TLS_KEY_FILE or ETL_API_TLS_CLIENT_CA_FILE: {what}"
        ) from None
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return config


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host.strip("[]"), port), family=family, backlog=BACKLOG)


def _say_where(settings: Settings, services: Services) -> None:
    """Log the page's address; at the first start with the link to log in, which is shown this once."""
    scheme = "https" if settings.api_tls_cert_file else "http"
    host = "localhost" if settings.api_host in ("0.0.0.0", "::", "127.0.0.1") else settings.api_host
    address = f"{scheme}://{host}:{settings.api_port}"
    log.info("page", address=f"{address}/")
    if token := services.guard.make_first_token():
        log.info(
            "log in once with this link; the token in it is shown this once", link=f"{address}/login?token={token}"
        )
