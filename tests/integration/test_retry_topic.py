"""T-retry on a real broker: what all groups have read is deleted, and nothing that anybody needs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
)

import stack
from etl.broker import Admin, NotAllowed
from etl.errors import BrokerUnavailable
from etl.models.wire import Partition
from stack import wait_until
from workbench import Desk, consuming, folder, job, login

pytestmark = pytest.mark.integration

WAITS = {"ETL_RETRY_BACKOFF_SECONDS": "0.5", "ETL_RETRY_BACKOFF_MAX_SECONDS": "1", "ETL_CONNECT_TIMEOUT_SECONDS": "1"}


def starts(desk: Desk) -> dict[Partition, int]:
    """Return how many records have gone from each partition of T-retry."""
    return Admin(desk.bootstrap_servers).starts([Partition(desk.retry, number) for number in range(8)])


@pytest.mark.usefixtures("short_tiers")
def test_parked_jobs_of_two_groups_outlive_trimming(
    desk: Desk, make_ftpd: Callable[..., stack.Ftpd], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both defer jobs again and again until their time, one goes away: its jobs stay, and all are done in the end.

    The server is down meanwhile.
    """
    monkeypatch.setattr("etl.topics.trimming.LOOK_SECONDS", 0.5)
    monkeypatch.setattr("etl.topics.trimming.WORTHWHILE", 5)
    server = make_ftpd()
    left, right = f"left-{desk.topic}", f"right-{desk.topic}"
    settings = [
        desk.settings(WAITS, folder("HERE", tmp_path / "here"), login("THERE", server, BASE_PATH=f"/{name}"))
        | {"ETL_GROUP_ID": name}
        for name in (left, right)
    ]
    server.kill()
    at = (datetime.now(UTC) + timedelta(seconds=30)).isoformat()
    jobs = [job(f"HERE:/{number}", f"THERE:/{number}", str(number), not_before=at) for number in range(30)]
    for number in range(30):
        (tmp_path / "here" / str(number)).write_bytes(b"x")
    admin = Admin(desk.bootstrap_servers)

    with consuming(settings[0]):
        with consuming(settings[1]):
            desk.send(*jobs)
            wait_until(
                lambda: sum(starts(desk).values()) > 40, 60, "deferred jobs to go round, and their records to go"
            )
        position = admin.committed(right, {desk.retry})

        def went_on() -> bool:
            return sum(admin.committed(left, {desk.retry}).values()) > sum(position.values()) + 100

        wait_until(went_on, 60, "the other group to go on")
        assert all(first <= position.get(partition, 0) for partition, first in starts(desk).items())
        server.start()
        with consuming(settings[1]):
            desk.wait(lambda: len(desk.results()) == 60, 60, "results of both groups")
    assert {result["status"] for result in desk.results()} == {"SUCCESS"}
    assert len(list(server.root.rglob("[0-9]*"))) == 60


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[stack.Broker]:
    """A broker that asks its rules who may do what: all may do all, so far."""
    rules = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    broker = stack.Broker(tmp_path / "broker", rules)
    try:
        yield broker.start()
    finally:
        broker.kill()


def test_where_groups_may_be_hidden_nothing_is_deleted(guarded: stack.Broker) -> None:
    """A list of groups without those that we may not see would look like nobody needed their jobs."""
    admin = Admin(guarded.bootstrap_servers)
    with pytest.raises(NotAllowed, match="every partition of __consumer_offsets"):
        admin.committed_by_all(set(), 1)

    def answers() -> bool:
        with contextlib.suppress(BrokerUnavailable):
            admin.committed("some", set())  # has the broker make the topic of offsets
            return admin.committed_by_all(set(), 1) == {}
        return False

    wait_until(answers, 20, "an answer")
    with pytest.raises(NotAllowed, match=r"broker 1 forgets groups after 525600 minutes .*, not after 366 days"):
        admin.committed_by_all(set(), 366)
    client = KafkaAdminClient(bootstrap_servers=guarded.bootstrap_servers)
    with contextlib.closing(client):
        cluster = ResourcePattern(ResourceType.CLUSTER, "kafka-cluster", ACLResourcePatternType.LITERAL)
        client.create_acls([ACL("User:ANONYMOUS", "*", ACLOperation.DESCRIBE, ACLPermissionType.DENY, cluster)])
    with pytest.raises(NotAllowed, match="DESCRIBE on the cluster"):
        admin.committed_by_all(set(), 1)
