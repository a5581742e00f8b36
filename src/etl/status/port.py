"""A consumer's own metrics over HTTP, for Prometheus where no API runs. One request at a time, and nothing else."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

from etl.errors import SettingsError
from etl.status import metrics
from etl.status.fleet import Process

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.models.status import Snapshot

REQUEST_SECONDS = 5.0


class MetricsPort:
    """Answers `GET /metrics` on all addresses of this host. `build` takes a snapshot of this process."""

    def __init__(self, port: int, build: Callable[[], Snapshot]) -> None:
        """Listen. Raises SettingsError if the port is taken."""

        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_SECONDS

            def do_GET(self) -> None:
                if self.path.partition("?")[0] != "/metrics":
                    self.send_error(404)
                    return
                snapshot = build()
                own = Process(snapshot.key, snapshot, 0.0, spoken=True)
                text = metrics.render([own], datetime.now(UTC)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                """Log nothing: Prometheus asks all day."""

        try:
            self._server = HTTPServer(("", port), Handler)
        except OSError as error:
            raise SettingsError(f"ETL_METRICS_PORT: cannot listen on port {port}: {error.strerror}") from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="metrics", daemon=True)

    @property
    def number(self) -> int:
        """The port."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()
