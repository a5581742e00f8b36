"""Bandwidth limits: how they are written, and which one counts when."""

import pytest

from etl.models.timetable import Period, Timetable

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "rate"),
    [("20M", 20_000_000), ("1.5m", 1_500_000), ("1K", 1000), ("2000", 2000), ("1000G", 10**12), (" 3k ", 3000)],
)
def test_one_rate_counts_all_day(text: str, rate: int) -> None:
    assert {Timetable.parse(text).bytes_per_second(minute) for minute in (0, 600, 1439)} == {rate}


def test_the_first_period_that_contains_the_time_counts() -> None:
    table = Timetable.parse("08:00-18:00 20M, 100M, 17:00-19:00 1M")
    at = {hour: table.bytes_per_second(hour * 60) for hour in (7, 8, 17, 18, 19)}
    assert at == {7: 100_000_000, 8: 20_000_000, 17: 20_000_000, 18: 1_000_000, 19: 100_000_000}
    assert table.bytes_per_second(17 * 60 + 59) == 20_000_000


def test_outside_of_all_periods_there_is_no_limit() -> None:
    table = Timetable.parse("08:00-18:00 20M")
    assert table.bytes_per_second(18 * 60) is None
    assert table.least == 20_000_000


def test_a_period_may_go_over_midnight() -> None:
    table = Timetable.parse("22:00-06:00 5M,18:00-24:00 1M")
    assert table.periods[0] == Period(22 * 60, 6 * 60, 5_000_000)
    assert [table.bytes_per_second(hour * 60) for hour in (23, 0, 5, 6, 20)] == [5_000_000] * 3 + [None, 1_000_000]


@pytest.mark.parametrize("text", ["20M", "08:00-18:00 20M, 100M", "22:00-06:00 1500, 08:00-24:00 2G"])
def test_a_timetable_is_shown_as_it_is_written(text: str) -> None:
    assert str(Timetable.parse(text)) == text
    assert Timetable.parse(str(Timetable.parse(text))) == Timetable.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "fast",
        "0",
        "999",
        "1001G",
        "-5M",
        "20MB",
        "20M 100M",
        "20M, 100M",
        "08:00-08:00 20M",
        "08:00-24:30 20M",
        "25:00-26:00 20M",
        "8:00-18:00 20M",
        "08:00-18:00",
        "08:00-18:00 20M,",
        "\N{ARABIC-INDIC DIGIT FIVE}M",
    ],
)
def test_what_is_no_timetable_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Timetable.parse(text)
