"""The layout of T-retry: which tiers there are, and which partitions hold which of them.

Each tier, a length of wait, has its own partitions, so that within a partition the first record in is the first one
due. A block is one partition of each tier. The first quarter of the blocks holds jobs that must not run before they are
due, the others recallable ones, which therefore never stand behind those. Members of a group share the partitions of
each kind evenly (`kind_of`), so that one that comes later gets its part of each.

    tier_for(remaining) -> tier | None      None: wait in memory, as less than the shortest tier remains
    tier_until(now, not_before) -> tier     the tier in which a job waits next
    partition_for(tier, key, blocks, recallable=…) -> partition     tier_of(partition) -> tier
    due_at(partition, appended, not_before) -> wall clock
    wait_after(seconds) -> how long a job waits for a server that has been down for so long

Pure: the caller supplies the clock. Knows no topic and no client.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right

TIERS = (10.0, 60.0, 600.0, 3600.0)  # seconds
BLOCKS = 4  # in a T-retry that a consumer creates
PARTITIONS = BLOCKS * len(TIERS)
TIER_TOLERANCE_SECONDS = 0.5  # by the time a wait of exactly one tier is recorded, slightly less remains


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
    timed = _timed(blocks)
    first, count = (timed, blocks - timed) if recallable else (0, max(1, timed))
    block = first + zlib.crc32(key) % count
    return block * len(TIERS) + (tier + block) % len(TIERS)


def _timed(blocks: int) -> int:
    """Return how many blocks are for jobs that must wait for their time; 0: the only one is for all."""
    return min(blocks - 1, -(-blocks // 4))


def kind_of(partition: int, blocks: int) -> tuple[int, bool]:
    """Return what a partition holds: its tier, and whether its jobs are recallable."""
    return tier_of(partition), partition // len(TIERS) >= _timed(blocks)


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


def wait_after(seconds: float) -> float:
    """Return how long a job waits for a server that has been down for so long: a whole tier, longer than that.

    Never the shortest tier, which is for jobs that could run.
    """
    return TIERS[min(max(1, bisect_right(TIERS, seconds)), len(TIERS) - 1)]
