"""The record of a process: small whatever it holds, and it says what it left off."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from etl.models.status import (
    LIMIT_BYTES,
    PartitionStatus,
    ServerStatus,
    ServerTotals,
    Snapshot,
    TotalsStatus,
    TransferStatus,
)

pytestmark = pytest.mark.unit

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)


def snapshot(transfers: int, servers: int, partitions: int, name: str = "S", **fields: object) -> Snapshot:
    return Snapshot(
        kind="consumer",
        id="h/0",
        incarnation="a",
        seq=1,
        at=AT,
        started_at=AT,
        interval_seconds=2,
        state="running",
        transfers=tuple(
            TransferStatus(
                place=f"T-0-{number}",
                source="A:/" + "é" * 250,
                destination="B:/" + "é" * 250,
                phase="streaming",
                began_at=AT,
            )
            for number in range(transfers)
        ),
        servers=tuple(ServerStatus(name=f"{name}{number}") for number in range(servers)),
        partitions=tuple(PartitionStatus(topic="T", partition=number) for number in range(partitions)),
        **fields,  # type: ignore[arg-type]
    )


def test_what_fits_is_kept_whole() -> None:
    """An ordinary process leaves nothing off."""
    told = snapshot(8, 10, 24)
    read = Snapshot.from_json(told.to_json())
    assert read == told
    assert not any(read.more.model_dump().values())


@pytest.mark.parametrize("counts", [(200, 0, 0), (0, 500, 0), (0, 0, 1000), (200, 500, 1000), (33, 65, 65)])
def test_a_record_is_never_too_large_and_counts_what_it_left_off(counts: tuple[int, int, int]) -> None:
    """The first of each list are kept."""
    told = snapshot(*counts)
    written = told.to_json()
    read = Snapshot.from_json(written)
    assert len(written) <= LIMIT_BYTES
    for name, count in zip(("transfers", "servers", "partitions"), counts, strict=True):
        kept = getattr(read, name)
        assert len(kept) + getattr(read.more, name) == count
        assert kept == getattr(told, name)[: len(kept)]
        assert kept or not count


def test_names_that_are_too_long_cost_their_totals() -> None:
    """Even then the record is small enough."""
    totals = TotalsStatus(servers={"N" * 250 + str(number): ServerTotals(bytes_in=1) for number in range(65)})
    assert len(snapshot(3, 3, 3, totals=totals).to_json()) <= LIMIT_BYTES
