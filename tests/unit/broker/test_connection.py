"""Errors of the Kafka client, as they are told; and what a closed producer says of itself."""

import base64

import pytest
from kafka import errors as kafka_errors
from kafka.net.sasl.scram import ScramClient

from etl.broker import TransactionalProducer, connection

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
    assert ("(or the SASL_SSL login or certificate was refused)" in connection.in_words(error)) is is_named


def test_another_process_under_our_name_is_told_with_the_remedy() -> None:
    assert connection.displaced_message("desk-100") == (
        "group member desk-100 is already in use by another live process; give each its own ETL_INSTANCE_ID or slot"
    )


def test_a_producer_shows_its_id_and_its_state() -> None:
    assert repr(TransactionalProducer("localhost:9092", "etl-desk")) == "<TransactionalProducer etl-desk closed>"


def test_a_broker_that_does_not_know_the_password_is_refused() -> None:
    """It may say that we are logged in, but cannot sign that; nor does it get the password by being asked for less."""
    for faked in (base64.b64encode(bytes(64)).decode(), ""):
        client = ScramClient("anna", "Scram-7d21", "SCRAM-SHA-512")
        nonce = client.first_message().rpartition(b"r=")[2].decode()
        client.process_server_first_message(f"r={nonce}more,s={base64.b64encode(b'salt').decode()},i=4096".encode())
        assert b"Scram-7d21" not in client.final_message()
        with pytest.raises(ValueError, match="wrong signature"):
            client.process_server_final_message(f"v={faked}".encode())
