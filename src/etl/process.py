"""The consumer's process: reads settings, sets up logs and signals, runs the consumer, returns the exit code."""

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
# Jobs leave almost no reference cycles. With Python's default of 700 objects, a collection ran every few jobs and found
# nothing.
GC_THRESHOLDS = (20_000, 10, 10)
# Limits glibc's heaps: it gives each thread one of its own, and each keeps the most memory that it ever needed.
HEAPS, M_ARENA_MAX = 2, -8
ECHO_SECONDS = 0.2  # `timeout`, shells and supervisors may send one signal twice: to the process and to its group

log = structlog.get_logger(__name__)


def run(overrides: dict[str, str] | None = None, env_file: str | None = None) -> int:
    """Run a consumer until a signal stops it; return the exit code.

    The first SIGTERM or SIGINT stops the consumer in order, the second one ends the process at once.
    """
    try:
        config = ConfigLoader(env_file=env_file, overrides=overrides)
        config.require_servers()
    except SettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201 - logging is not set up yet: its own settings may be wrong
        return EXIT_WRONG_SETTINGS
    settings = config.settings
    # The name that supervisord gives the process: all of its processes share one output.
    process = "" if settings.slot is None else f"consumer_{settings.slot:02d}"
    # The Kafka client logs every lost connection; the consumer itself logs those that matter.
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
    gc.freeze()  # objects from start-up live as long as the process: collections can skip them
    gc.set_threshold(*GC_THRESHOLDS)
    with suppress(AttributeError):  # the C library is not glibc
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, HEAPS)
    consumer = FileTransferConsumer(settings.topic, settings.group_id, settings.bootstrap_servers, config)
    _stop_on_signals(consumer)
    try:
        consumer.start()
    except SettingsError as error:
        log.error("cannot start", error=str(error))  # noqa: TRY400 - a traceback would add nothing
        return EXIT_WRONG_SETTINGS
    except EtlError as error:
        log.error("stopped", error=str(error), error_code=error.code)  # noqa: TRY400 - a traceback would add nothing
        return EXIT_FAILED
    return EXIT_OK


def _stop_on_signals(consumer: FileTransferConsumer) -> None:
    first_at: float | None = None  # monotonic, of the first signal

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal first_at
        now = time.monotonic()
        if first_at is None:
            first_at = now
            consumer.stop(signal.Signals(number).name)
        elif now - first_at > ECHO_SECONDS:
            os._exit(EXIT_AT_ONCE)  # nothing is lost: work that is not committed is repeated

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
