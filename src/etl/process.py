"""The consumer's process: settings, logs, signals, exit codes. Starts `consumer.FileTransferConsumer`."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType

import structlog

from etl import logs
from etl.config import ConfigLoader
from etl.consumer import FileTransferConsumer
from etl.errors import EtlError, SettingsError

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_WRONG_SETTINGS = 2
EXIT_AT_ONCE = 130
# Jobs leave hardly a cycle behind: at Python's own 700 objects a collection came every few jobs, and found nothing.
GC_THRESHOLDS = (20_000, 10, 10)
# A heap for each of many threads keeps what all of them once needed at the same time.
HEAPS, M_ARENA_MAX = 2, -8
ECHO_SECONDS = 0.2  # `timeout`, shells and supervisors may send one signal both to a process and to its group

log = structlog.get_logger(__name__)


def run(overrides: dict[str, str] | None = None, env_file: str | None = None) -> int:
    """Consume until told to stop; return the exit code. The first signal asks, the second insists."""
    try:
        config = ConfigLoader(env_file=env_file, overrides=overrides)
        config.require_servers()
    except SettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201 - logging is not set up: its settings may be the wrong ones
        return EXIT_WRONG_SETTINGS
    settings = config.settings
    # As supervisord calls it: its processes share one output.
    process = "" if settings.slot is None else f"consumer_{settings.slot:02d}"
    # The client tells every broken connection; what it means for the consumer is told by the consumer itself.
    library_level = "WARNING" if settings.log_level == "DEBUG" else "CRITICAL"
    logs.configure(
        settings.log_format,
        settings.log_level,
        config.secrets,
        sys.stdout,
        process=process,
        library_level=library_level,
    )
    for warning in config.warnings:
        log.warning("settings warning", message=warning)
    gc.freeze()  # what start-up made stays: no collection needs to look at it again
    gc.set_threshold(*GC_THRESHOLDS)
    with suppress(AttributeError):  # another C library than glibc
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, HEAPS)
    consumer = FileTransferConsumer(settings.topic, settings.group_id, settings.bootstrap_servers, config)
    _stop_on_signals(consumer)
    try:
        consumer.start()
    except SettingsError as error:
        log.error("cannot start", error=str(error))  # noqa: TRY400 - a traceback says nothing more
        return EXIT_WRONG_SETTINGS
    except EtlError as error:
        log.error("stopped", error=str(error), error_code=error.code)  # noqa: TRY400 - a traceback says nothing more
        return EXIT_FAILED
    return EXIT_OK


def _stop_on_signals(consumer: FileTransferConsumer) -> None:
    asked: list[float] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if asked and now - asked[0] > ECHO_SECONDS:
            os._exit(EXIT_AT_ONCE)  # nothing is lost by it: what was not committed is repeated
        if not asked:
            asked.append(now)
            consumer.stop(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
