"""The layout of T-retry: which tiers there are, and which partitions hold which of them.

Each tier, a length of wait, has its own partitions, so that within a partition the first record in is the first one
due. A block is one partition of each tier. The lower half of the blocks holds jobs that must not run before they are
due, the upper half recallable ones, which therefore never stand behind the others.

    tier_for(remaining) -> tier | None      None: wait in memory, as less than the shortest tier remains
    tier_until(now, not_before) -> tier     the tier in which a job waits next
    partition_for(tier, key, blocks, recallable=…) -> partition     tier_of(partition) -> tier
    due_at(partition, appended, not_before) -> wall clock
    DeferralPacer().seconds(age, probe_in, now) -> how long another job of a server in trouble waits

Pure: the caller supplies the clock. Knows no topic and no client.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_right

TIERS = (10.0, 60.0, 600.0, 3600.0)  # seconds
BLOCKS = 4  # in a T-retry that a consumer creates
PARTITIONS = BLOCKS * len(TIERS)
TIER_TOLERANCE_SECONDS = 0.5  # by the time a wait of exactly one tier is recorded, slightly less remains
DEFERRED_READS_PER_SECOND = 100.0  # per process: deferred jobs read although they can only be deferred again


def tier_for(remaining: float) -> int | None:
    """Return the longest tier that is not longer than `remaining` seconds; None if even the shortest is."""
    return bisect_right(TIERS, remaining) - 1 if remaining >= TIERS[0] else None


def tier_until(now: float, not_before: float) -> int:
    """Return the tier in which a job due at `not_before` waits next. Both times by the same clock."""
    return tier_for(not_before - now + TIER_TOLERANCE_SECONDS) or 0


def round_down(seconds: float) -> float:
    """Return the length of the longest tier that is not longer than a wait; the wait itself if there is none."""
    tier = tier_for(seconds)
    return seconds if tier is None else TIERS[tier]


def partition_for(tier: int, key: bytes, blocks: int, *, recallable: bool) -> int:
    """Return the partition for a job of that tier; `blocks`: how many T-retry has. Equal keys share a block."""
    middle = blocks // 2
    first, count = (middle, blocks - middle) if recallable else (0, max(1, middle))
    block = first + zlib.crc32(key) % count
    return block * len(TIERS) + (tier + block) % len(TIERS)


def holds_recallable(partition: int, blocks: int) -> bool:
    """Does a partition hold jobs that only wait for their servers? `blocks`: how many T-retry has."""
    return partition // len(TIERS) >= blocks // 2


def tier_of(partition: int) -> int:
    """Return the tier of a partition. Adding partitions to the topic does not change it.

    Each block begins with a different tier: assignors deal partitions out in turn, and no process is to get all
    partitions of one tier.
    """
    block, index = divmod(partition, len(TIERS))
    return (index - block) % len(TIERS)


def due_at(partition: int, appended: float, not_before: float | None) -> float:
    """Return when a record leaves its tier (wall clock), either to run or to wait in another tier.

    `appended`, `not_before`: wall clock.
    """
    hop = appended + TIERS[tier_of(partition)]
    return hop if not_before is None else min(hop, not_before)


class DeferralPacer:
    """Chooses how long a job of a server that is down or busy is deferred: always a whole tier.

    Roughly as long as the trouble has lasted so far, or twice the time to the next probe. A tier takes at most
    DEFERRED_READS_PER_SECOND jobs per second of its length; once full, the next longer tier is used, so that no more
    jobs come due than can be read and deferred again: a million of them keep no process busy.
    """

    def __init__(self) -> None:
        # By tier: `_count` jobs since `_started`, which is in seconds of the caller's clock.
        self._started = [-math.inf] * len(TIERS)
        self._count = [0] * len(TIERS)

    def __repr__(self) -> str:
        return (
            "DeferralPacer(" + ", ".join(f"{tier:g} s: {n}" for tier, n in zip(TIERS, self._count, strict=True)) + ")"
        )

    def seconds(self, age: float, probe_in: float, now: float) -> float:
        """Return how long to defer another job, and count it.

        `age`: seconds since its server went down, or became busy. `probe_in`: seconds to the next probe. `now`: seconds
        of any clock, always the same one.
        """
        tier = tier_for(max(age, 2 * probe_in, TIERS[0])) or 0
        while tier < len(TIERS) - 1 and self._is_full(tier, now):
            tier += 1
        self._count[tier] += 1
        return TIERS[tier]

    def _is_full(self, tier: int, now: float) -> bool:
        """Return whether a tier has taken all the jobs it may within its length; once that has passed, start anew."""
        if now - self._started[tier] >= TIERS[tier]:
            self._started[tier], self._count[tier] = now, 0
        return self._count[tier] >= TIERS[tier] * DEFERRED_READS_PER_SECOND
