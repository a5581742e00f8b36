"""A bandwidth limit that may depend on the time of day: `08:00-18:00 20M, 100M`. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

LEAST_BYTES_PER_SECOND = 1000  # below that, no transfer could be told from one that stands still
MOST_BYTES_PER_SECOND = 10**12
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_ENTRY = re.compile(
    r"(?:([01]\d|2[0-3]):([0-5]\d)\s*-\s*([01]\d|2[0-4]):([0-5]\d)\s+)?(\d{1,13}(?:\.\d{1,6})?)([KMG]?)",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True)
class Period:
    """A time of day, in minutes after midnight, and its limit in bytes per second; it may go over midnight."""

    begin: int
    end: int
    bytes_per_second: int

    def contains(self, minute: int) -> bool:
        """Does it contain a minute of the day?"""
        if self.begin < self.end:
            return self.begin <= minute < self.end
        return minute >= self.begin or minute < self.end


@dataclass(frozen=True)
class Timetable:
    """The limits of a day: the first period that contains the time counts, else `otherwise`; None: no limit."""

    periods: tuple[Period, ...] = ()
    otherwise: int | None = None

    def bytes_per_second(self, minute: int) -> int | None:
        """Return the limit at a minute of the day; None: there is none."""
        return next((period.bytes_per_second for period in self.periods if period.contains(minute)), self.otherwise)

    @property
    def least(self) -> int:
        """The smallest of the limits."""
        return min([*(period.bytes_per_second for period in self.periods), *filter(None, [self.otherwise])])

    def __str__(self) -> str:
        parts = [f"{_clock(one.begin)}-{_clock(one.end)} {_rate(one.bytes_per_second)}" for one in self.periods]
        return ", ".join([*parts, *([] if self.otherwise is None else [_rate(self.otherwise)])])

    @classmethod
    def parse(cls, text: str) -> Timetable:
        """Return the timetable of a text. Raises ValueError."""
        periods: list[Period] = []
        otherwise: int | None = None
        for part in text.split(","):
            found = _ENTRY.fullmatch(part.strip())
            if found is None:
                raise ValueError(text)
            rate = round(float(found[5]) * _UNITS[found[6].upper()])
            if not LEAST_BYTES_PER_SECOND <= rate <= MOST_BYTES_PER_SECOND:
                raise ValueError(text)
            if found[1] is not None:
                begin, end = int(found[1]) * 60 + int(found[2]), int(found[3]) * 60 + int(found[4])
                if begin == end or end > 24 * 60:
                    raise ValueError(text)
                periods.append(Period(begin, end, rate))
            elif otherwise is None:
                otherwise = rate
            else:
                raise ValueError(text)
        return cls(tuple(periods), otherwise)


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _rate(bytes_per_second: int) -> str:
    """Return a rate as the setting is written."""
    exact = (unit for unit in ("G", "M", "K") if not bytes_per_second % _UNITS[unit])
    unit = next(exact, "")
    return f"{bytes_per_second // _UNITS[unit]}{unit}"
