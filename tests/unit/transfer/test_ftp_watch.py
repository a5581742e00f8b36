"""Who stands still, or nearly, is noticed; who is merely slow is left alone."""

from __future__ import annotations

import pytest

from etl.config import TransferSettings
from etl.transfer.watch import StalledError, Watch

pytestmark = pytest.mark.unit

DEFAULT = TransferSettings()


def by_default() -> Watch:
    """Make one with the limits that hold unless somebody sets others."""
    return Watch(DEFAULT.stall_timeout, DEFAULT.min_bytes_per_second)


def waits(watch: Watch, count: int, seconds: float, moved_bytes: int) -> None:
    """Wait again and again."""
    for _ in range(count):
        watch.note(seconds, moved_bytes)


def test_one_byte_a_second_is_noticed_by_default() -> None:
    """After a minute, not before; the message names the setting and the figures."""
    watch = by_default()
    waits(watch, 59, 1.0, 1)
    with pytest.raises(StalledError, match=r"60 bytes moved in 60.0 s of waiting, fewer than 10 a second \(ETL_MIN_BY"):
        watch.note(1.0, 1)


def test_one_packet_a_minute_is_enough_by_default() -> None:
    """A link shared by a thousand lanes, or a server that rests for most of a minute, is slow and not hostile."""
    watch = by_default()
    waits(watch, 100, 59.9, 1448)


def test_nothing_for_the_stall_limit_is_noticed_however_fast_it_was() -> None:
    """The average does not make up for a standstill."""
    watch = by_default()
    watch.note(1.0, 1 << 30)
    waits(watch, 59, 1.0, 0)
    with pytest.raises(StalledError, match=r"no byte moved for 60 s \(ETL_STALL_TIMEOUT_SECONDS\)"):
        watch.note(1.0, 0)


def test_a_standstill_ends_with_a_byte() -> None:
    """Waits without a byte are counted from the last one that came."""
    watch = Watch(10.0, 0.0)
    for _ in range(10):
        waits(watch, 9, 1.0, 0)
        assert watch.left() == 1.0
        watch.note(1.0, 1)


def test_only_waiting_counts() -> None:
    """Bytes that were there already keep a connection alive, and cost nothing."""
    watch = Watch(10.0, 100.0)
    for _ in range(1000):
        watch.note(5.0, 0)
        watch.note(0.0, 1000)


def test_a_rate_of_zero_lets_anything_pass_that_moves() -> None:
    """ETL_MIN_BYTES_PER_SECOND=0 turns the average off."""
    waits(Watch(60.0, 0.0), 10_000, 59.0, 1)
