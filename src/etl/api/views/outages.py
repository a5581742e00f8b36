"""When servers were down, as processes told it on `etl-status`: in the cache, as the topic keeps last words alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from etl.api.views.store import Store
    from etl.models.status import Snapshot

KEPT_SECONDS = 7 * 86400.0
WORDS = 3  # of a process: so many are missed by one that is silent
MOST = 20_000  # outages: whoever may write the topic chooses names and times


def note(store: Store, said: Iterable[tuple[Snapshot, float]]) -> None:
    """Note which servers are down by these words; `said`: each with its time, seconds since the epoch.

    Several processes find the same outage at times of their own: what overlaps is one, and so is what begins anew
    within three words of a process.
    """
    down: list[tuple[str, float, float, float]] = []
    for snapshot, at in said:
        for row in snapshot.servers:
            if row.breaker != "closed":
                began = at if row.since is None else row.since.timestamp()
                began = min(max(began, at - KEPT_SECONDS), at)
                down.append((row.name.upper(), began, at, began - WORDS * snapshot.interval_seconds))
    if not down:
        return
    with store.writing() as connection:
        for name, began, at, still in down:
            of_it = "server = ? AND ended >= ? AND began <= ?"
            first, last = connection.execute(
                f"SELECT min(began), max(ended) FROM outages WHERE {of_it}",  # noqa: S608 - ours
                (name, still, at),
            ).fetchone()
            if first is not None:
                connection.execute(f"DELETE FROM outages WHERE {of_it}", (name, still, at))  # noqa: S608 - ours
                began, at = min(began, first), max(at, last)  # noqa: PLW2901 - with those that it joins
            else:
                connection.execute("DELETE FROM outages WHERE ended < ?", (at - KEPT_SECONDS,))
            connection.execute(
                "INSERT INTO outages SELECT ?, ?, ? WHERE (SELECT count(*) FROM outages) < ?", (name, began, at, MOST)
            )
