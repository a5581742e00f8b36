"""The geometry of T-retry: which lengths of wait there are, and which partitions hold which of them.

Each tier, a length of wait, has partitions of its own, so that within a partition the first record in is the first one
due. A block is one partition of each tier. The lower half of the blocks holds jobs that must wait until their time, the
upper half jobs that only wait for their servers and may be recalled earlier.

    tier_for(remaining) -> tier | None      None: less than the shortest tier remains, wait in memory
    tier_until(now, not_before) -> tier     in which a job waits next
    partition_for(tier, key, blocks, recallable=…) -> partition     tier_of(partition) -> tier
    due_at(partition, appended, not_before) -> wall clock
    DeferralPacer().seconds(age, probe_in, now) -> how long one more job of a server in trouble waits

Pure: the clock is handed in. Knows no topic and no client.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_right

TIERS = (10.0, 60.0, 600.0, 3600.0)  # seconds
BLOCKS = 4  # in a T-retry that we create
PARTITIONS = BLOCKS * len(TIERS)
# Seconds of tolerance: by the time a wait of exactly one tier is recorded, slightly less remains.
TIER_SLIP = 0.5
DEFERRED_READS_PER_SECOND = 100.0  # per process: deferred jobs read although they can only be deferred again


def tier_for(remaining: float) -> int | None:
    """Return the longest tier that is not longer than `remaining` seconds; None: wait in memory."""
    return bisect_right(TIERS, remaining) - 1 if remaining >= TIERS[0] else None


def tier_until(now: float, not_before: float) -> int:
    """Return the tier in which a job waits next that is due at `not_before`."""
    return tier_for(not_before - now + TIER_SLIP) or 0


def rounded_down(seconds: float) -> float:
    """Return the length of the longest tier that fits into a wait; the wait itself when none does."""
    tier = tier_for(seconds)
    return seconds if tier is None else TIERS[tier]


def partition_for(tier: int, key: bytes, blocks: int, *, recallable: bool) -> int:
    """Return the partition for a job of that tier; `blocks`: how many T-retry has. The same key, the same block."""
    middle = blocks // 2
    first, count = (middle, blocks - middle) if recallable else (0, max(1, middle))
    block = first + zlib.crc32(key) % count
    return block * len(TIERS) + (tier + block) % len(TIERS)


def tier_of(partition: int) -> int:
    """Return the tier of a partition; adding partitions does not change it.

    Each block begins with another tier: where partitions are dealt out in turn, as assignors do, no process gets all
    partitions of one tier.
    """
    block, place = divmod(partition, len(TIERS))
    return (place - block) % len(TIERS)


def due_at(partition: int, appended: float, not_before: float | None) -> float:
    """Return when a record is due where it lies (wall clock): at its own time, or at the next hop towards it."""
    hop = appended + TIERS[tier_of(partition)]
    return hop if not_before is None else min(hop, not_before)


class DeferralPacer:
    """How long jobs wait, untried, while their server is down or busy: a whole tier each, so one record.

    Roughly as long as the trouble has lasted so far, or twice the time to the next probe. A tier takes at most
    DEFERRED_READS_PER_SECOND jobs per second of its length; once full, the next longer tier is used, so that no more
    jobs come due than can be read and deferred again: a million of them keep no process busy.
    """

    def __init__(self) -> None:
        self._began = [-math.inf] * len(TIERS)  # by tier: since when jobs are counted, its own length at most
        self._count = [0] * len(TIERS)

    def seconds(self, age: float, probe_in: float, now: float) -> float:
        """Return the wait of one more job of a server that has been down, or busy, for `age` seconds."""
        tier = tier_for(max(age, 2 * probe_in, TIERS[0])) or 0
        while tier < len(TIERS) - 1 and self._is_full(tier, now):
            tier += 1
        self._count[tier] += 1
        return TIERS[tier]

    def _is_full(self, tier: int, now: float) -> bool:
        """Has a tier got what it may within its length? Counts anew once that is over."""
        if now - self._began[tier] >= TIERS[tier]:
            self._began[tier], self._count[tier] = now, 0
        return self._count[tier] >= TIERS[tier] * DEFERRED_READS_PER_SECOND
