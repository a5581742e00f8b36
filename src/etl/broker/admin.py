"""Administers topics: describes and creates them, tells how far groups have read, deletes their oldest records.

Knows nothing about what a topic is for.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kafka import TopicPartition as ClientPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType, OffsetSpec
from kafka.structs import OffsetAndMetadata

from etl.broker.connection import (
    REQUEST_TIMEOUT_MS,
    REQUEST_TIMEOUT_SECONDS,
    admin_client,
    in_words,
    translate_errors,
)
from etl.errors import BrokerUnavailable
from etl.models.wire import Commit, Partition

COORDINATOR_PACE_SECONDS = 0.2
_OFFSETS, _RETENTION = "__consumer_offsets", "offsets.retention.minutes"


class NotAllowed(BrokerUnavailable):
    """Raised when we lack a right on the broker, or the broker does not guarantee what the call needs."""


class TopicFacts(NamedTuple):
    """An existing topic: its number of partitions, message limit in bytes, all settings as text, and replicas."""

    partitions: int
    max_message_bytes: int
    settings: dict[str, str]
    replicas: int = 1  # of the partition that has the fewest


class Stand(NamedTuple):
    """Where a group stands in a partition: its commit, None if there is none; the partition's first and end offset."""

    commit: Commit | None
    first: int
    end: int


class Admin:
    """Administers topics. Any thread may use it.

    Every call opens a connection of its own and may block for seconds. Each is idempotent: repeat it after an error.
    """

    def __init__(self, bootstrap_servers: str) -> None:
        self._bootstrap_servers = bootstrap_servers

    def describe(self, names: Sequence[str]) -> dict[str, TopicFacts]:
        """Describe those of the named topics that exist. Raises BrokerUnavailable."""
        with (
            translate_errors(f"broker {self._bootstrap_servers} cannot describe topics"),
            admin_client(self._bootstrap_servers) as admin,
        ):
            known = set(admin.list_topics())
            wanted = [name for name in names if name in known]
            if not wanted:
                return {}
            partitions = {t["name"]: t["partitions"] for t in admin.describe_topics(wanted)}
            settings = admin.describe_configs(
                [ConfigResource(ConfigResourceType.TOPIC, name) for name in wanted], config_filter="all"
            )["topic"]
        return {name: _facts(partitions[name], settings[name]) for name in wanted}

    def create(self, name: str, partitions: int, settings: Mapping[str, str]) -> bool:
        """Create a topic and wait until it is usable; False if it existed. Raises NotAllowed, BrokerUnavailable."""
        wanted = {name: {"num_partitions": partitions, "configs": dict(settings)}}
        with (
            translate_errors(f"topic {name} cannot be created"),
            admin_client(self._bootstrap_servers) as admin,
        ):
            try:
                admin.create_topics(wanted, timeout_ms=REQUEST_TIMEOUT_MS)
                created = True
            except kafka_errors.TopicAlreadyExistsError:
                created = False
            except (kafka_errors.AuthorizationError, kafka_errors.PolicyViolationError) as error:
                raise NotAllowed(f"topic {name} does not exist and may not be created: {in_words(error)}") from error
            admin.wait_for_topics([name], timeout_ms=REQUEST_TIMEOUT_MS)
        return created

    def offsets_retention_minutes(self) -> float | None:
        """Return for how long the offsets of a group without members are kept; None if we may not know it.

        Raises BrokerUnavailable.
        """
        try:
            with _allowed("brokers cannot be described"), admin_client(self._bootstrap_servers) as admin:
                return min(_retention_of_brokers(admin, admin.describe_cluster()).values())
        except NotAllowed:
            return None

    def starts(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        """Return the first offset of each of these partitions. Raises NotAllowed, BrokerUnavailable."""
        wanted = {ClientPartition(*partition): OffsetSpec.EARLIEST for partition in partitions}
        with _allowed("first offsets cannot be read"), admin_client(self._bootstrap_servers) as admin:
            found = admin.list_partition_offsets(wanted, timeout_ms=REQUEST_TIMEOUT_MS)
        return {Partition(*tp): int(place.offset) for tp, place in found.items()}

    def committed(self, group: str, topics: Collection[str]) -> dict[Partition, int]:
        """Return the offsets that `group` has committed in these topics. Raises NotAllowed, BrokerUnavailable."""
        with _allowed(f"offsets of group {group} cannot be read"), admin_client(self._bootstrap_servers) as admin:
            return _within(topics, _offsets(admin, group)[group])

    def stands(self, group: str, topics: Sequence[str]) -> dict[Partition, Stand]:
        """Return where `group` stands in every partition of those topics that exist.

        Raises NotAllowed, BrokerUnavailable.
        """
        with _allowed(f"offsets of group {group} cannot be read"), admin_client(self._bootstrap_servers) as admin:
            tps = [
                ClientPartition(topic["name"], partition["partition_index"])
                for topic in admin.describe_topics(list(topics))
                for partition in topic["partitions"]
            ]
            if not tps:
                raise BrokerUnavailable(f"none of the topics {', '.join(topics)} exists")
            told = _offsets(admin, {group: tps})[group]
            firsts = admin.list_partition_offsets(
                dict.fromkeys(tps, OffsetSpec.EARLIEST), timeout_ms=REQUEST_TIMEOUT_MS
            )
            ends = admin.list_partition_offsets(dict.fromkeys(tps, OffsetSpec.LATEST), timeout_ms=REQUEST_TIMEOUT_MS)
        return {
            Partition(*tp): Stand(_commit(told.get(tp)), int(firsts[tp].offset), int(ends[tp].offset)) for tp in tps
        }

    def commit(self, group: str, offsets: Mapping[Partition, Commit]) -> None:
        """Commit offsets for a group without members.

        Raises:
            NotAllowed: the group has members, or we lack the right.
            BrokerUnavailable: the broker does not answer.
        """
        with _allowed(f"offsets of group {group} cannot be set"), admin_client(self._bootstrap_servers) as admin:
            wanted = {ClientPartition(*p): OffsetAndMetadata(at, said, -1) for p, (at, said) in offsets.items()}
            for tp, error in admin.alter_group_offsets(group, wanted).items():
                if error is not kafka_errors.NoError:
                    raise NotAllowed(f"offset of {tp.topic} {tp.partition} cannot be set: {error.__name__}")

    def committed_by_all(self, topics: Collection[str], days: float) -> dict[str, dict[Partition, int]]:
        """Return every group that has committed an offset in these topics, with its offsets.

        Raises:
            NotAllowed: if a group may be missing from the answer, because it is hidden from us, because the broker that
                knows it is away, or because groups are forgotten in less than `days`.
            BrokerUnavailable: if the broker does not answer.
        """
        with _allowed("offsets of all groups cannot be read"), admin_client(self._bootstrap_servers) as admin:
            tps = [
                ClientPartition(topic["name"], partition["partition_index"])
                for topic in admin.describe_topics(list(topics))
                for partition in topic["partitions"]
            ]
            groups = [group["group_id"] for group in admin.list_groups() if group["protocol_type"] in {"", "consumer"}]
            _require_all_groups(admin, days)
            found = admin.list_group_offsets(dict.fromkeys(groups, tps)) if groups else {}
        offsets = {group: _within(topics, places) for group, places in found.items()}
        return {group: places for group, places in offsets.items() if places}

    def delete_before(self, offsets: Mapping[Partition, int]) -> None:
        """Delete all records before these offsets; that cannot be undone. Raises NotAllowed, BrokerUnavailable."""
        with _allowed("records cannot be deleted"), admin_client(self._bootstrap_servers) as admin:
            admin.delete_records({ClientPartition(*p): offset for p, offset in offsets.items()}, REQUEST_TIMEOUT_MS)


def _offsets(admin: Any, wanted: Any) -> Any:
    """Return offsets of groups. A broker that never had a group makes the topic for them first: it is asked again."""
    end = time.monotonic() + REQUEST_TIMEOUT_SECONDS
    while True:
        try:
            return admin.list_group_offsets(wanted)
        except kafka_errors.CoordinatorNotAvailableError:
            if time.monotonic() > end:
                raise
            time.sleep(COORDINATOR_PACE_SECONDS)


@contextlib.contextmanager
def _allowed(what: str) -> Iterator[None]:
    """Translate the client's errors like `translate_errors`, but a missing right into NotAllowed."""
    with translate_errors(what):
        try:
            yield
        except kafka_errors.AuthorizationError as error:
            raise NotAllowed(f"{what}: {in_words(error)}") from error


def _require_all_groups(admin: Any, days: float) -> None:
    """Raise NotAllowed unless a list of groups is sure to hold every group that committed within the last `days`."""
    cluster = admin.describe_cluster()
    if "DESCRIBE" not in (cluster.get("authorized_operations") or ()):
        raise NotAllowed("listing all groups needs DESCRIBE on the cluster")
    (offsets,) = admin.describe_topics([_OFFSETS])
    if not offsets["partitions"] or any(partition["leader_id"] < 0 for partition in offsets["partitions"]):
        raise NotAllowed(f"listing all groups needs a leader for every partition of {_OFFSETS}")
    name, minutes = min(_retention_of_brokers(admin, cluster).items(), key=lambda told: told[1])
    if minutes < days * 24 * 60:
        raise NotAllowed(
            f"broker {name} forgets groups after {minutes} minutes ({_RETENTION}), not after {days:g} days"
        )


def _retention_of_brokers(admin: Any, cluster: Mapping[str, Any]) -> dict[str, int]:
    """Return for how many minutes each broker remembers the offsets of a group without members."""
    brokers = [ConfigResource(ConfigResourceType.BROKER, str(broker["broker_id"])) for broker in cluster["brokers"]]
    told = admin.describe_configs(brokers, config_filter="all")["broker"]
    return {name: int(settings[_RETENTION]["value"]) for name, settings in told.items()}


def _within(topics: Collection[str], places: Mapping[Any, Any]) -> dict[Partition, int]:
    return {Partition(*tp): place.offset for tp, place in places.items() if tp.topic in topics and place.offset >= 0}


def _commit(told: Any) -> Commit | None:
    return None if told is None or told.offset < 0 else Commit(int(told.offset), told.metadata or "")


def _facts(partitions: Sequence[Any], settings: Mapping[str, Any]) -> TopicFacts:
    plain = {key: str(entry["value"]) for key, entry in settings.items()}
    replicas = min((len(partition["replica_nodes"]) for partition in partitions), default=1)
    return TopicFacts(len(partitions), int(plain.get("max.message.bytes", 1_048_588)), plain, replicas)
