"""Topics: which there are, how they are set, and making them. Knows no topic's purpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType

from etl.broker.connection import REQUEST_TIMEOUT_MS, admin_client, in_words, translated
from etl.errors import BrokerUnavailable


class NotAllowed(BrokerUnavailable):
    """Raised when the broker does not let us create or describe topics."""


class TopicFacts(NamedTuple):
    """An existing topic: number of partitions, and the settings that we depend on."""

    partitions: int
    max_message_bytes: int
    settings: dict[str, str]


class Admin:
    """Creates and describes topics."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._bootstrap_servers = bootstrap_servers

    def describe(self, names: Sequence[str]) -> dict[str, TopicFacts]:
        """Return the facts of those topics that exist. Raises BrokerUnavailable."""
        with (
            translated(f"broker {self._bootstrap_servers} cannot describe topics"),
            admin_client(self._bootstrap_servers) as admin,
        ):
            known = set(admin.list_topics())
            wanted = [name for name in names if name in known]
            if not wanted:
                return {}
            partitions = {t["name"]: len(t["partitions"]) for t in admin.describe_topics(wanted)}
            settings = admin.describe_configs(
                [ConfigResource(ConfigResourceType.TOPIC, name) for name in wanted], config_filter="all"
            )["topic"]
        return {name: _facts(partitions[name], settings[name]) for name in wanted}

    def create(self, name: str, partitions: int, settings: Mapping[str, str]) -> bool:
        """Create a topic and wait until it is usable; False when it was there. Raises NotAllowed, BrokerUnavailable."""
        wanted = {name: {"num_partitions": partitions, "configs": dict(settings)}}
        with (
            translated(f"topic {name} cannot be created"),
            admin_client(self._bootstrap_servers) as admin,
        ):
            try:
                admin.create_topics(wanted, timeout_ms=REQUEST_TIMEOUT_MS)
                created = True
            except kafka_errors.TopicAlreadyExistsError:
                created = False
            except (kafka_errors.AuthorizationError, kafka_errors.PolicyViolationError) as error:
                raise NotAllowed(f"topic {name} is not there and may not be created: {in_words(error)}") from error
            admin.wait_for_topics([name], timeout_ms=REQUEST_TIMEOUT_MS)
        return created


def _facts(partitions: int, settings: Mapping[str, Any]) -> TopicFacts:
    plain = {key: str(entry["value"]) for key, entry in settings.items()}
    return TopicFacts(partitions, int(plain.get("max.message.bytes", 1_048_588)), plain)
