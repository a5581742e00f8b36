"""Errors of the Kafka client, as they are told."""

import pytest
from kafka import errors as kafka_errors

from etl.broker import connection

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "ConnectionRefusedError: [Errno 111] Connection refused"),
        (kafka_errors.KafkaTimeoutError("no metadata in 5 s"), "KafkaTimeoutError: no metadata in 5 s"),
        (kafka_errors.UnknownTopicOrPartitionError(), "[Error 3] UnknownTopicOrPartitionError"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_the_kind_of_an_error_is_said_once(error: Exception, said: str) -> None:
    words = connection.in_words(error)
    assert words.startswith(said)
    assert words.count(type(error).__name__) == 1


@pytest.mark.parametrize(
    ("protocol", "error", "is_named"),
    [
        ("SASL_SSL", kafka_errors.KafkaTimeoutError("late"), True),
        ("PLAINTEXT", kafka_errors.KafkaTimeoutError("late"), False),
        ("SASL_SSL", kafka_errors.NodeNotReadyError("late"), False),
    ],
)
def test_a_timeout_may_be_a_refused_login(
    monkeypatch: pytest.MonkeyPatch, protocol: str, error: Exception, *, is_named: bool
) -> None:
    monkeypatch.setattr(connection, "_security", {"security_protocol": protocol})
    assert ("SASL_SSL was refused" in connection.in_words(error)) is is_named
