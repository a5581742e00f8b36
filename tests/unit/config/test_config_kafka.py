"""How we talk and log in to Kafka: what the settings demand, what they hide, and what reaches the client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from etl.broker import connection
from etl.config import ConfigLoader
from etl.errors import SettingsError

pytestmark = pytest.mark.unit

LOGIN = {
    "ETL_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
    "ETL_KAFKA_USERNAME": "worker",
    "ETL_KAFKA_PASSWORD": "Scram-7d21",
}

AUTHORITY = """\
-----BEGIN CERTIFICATE-----
MIIBdTCCARugAwIBAgIUWb85uMoc9lu+gFY21xjdcLiRTEEwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEVGVzdDAgFw0yNjExMjcwMjE0MTFaGA8yMTI2MTEwMzAyMTQx
MVowDzENMAsGA1UEAwwEVGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABCt3
aMnZG1KJ2ZKwXLj41/hwULtDbN8TizdM4GEyT2iUce1BfE003/cmwARlFaTuX+Gs
Fl7WudfxLq2utjtOwMCjUzBRMB0GA1UdDgQWBBQua8b7cRWSmfGbbBBUjcvTypeh
9TAfBgNVHSMEGDAWgBQua8b7cRWSmfGbbBBUjcvTypeh9TAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0gAMEUCIDLpPfsAZCioetxelvYlXbBzvoWE5BkOhkFI
8sW49DZuAiEArpklWO/wtPK/fVc2wNCxdQa+LRsL/ulf6dnHmuWTDjk=
-----END CERTIFICATE-----
"""


@pytest.fixture(autouse=True)
def plain_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test set up for every client of the process is undone. A clone may have an .env of its own."""
    monkeypatch.chdir(tmp_path)
    yield
    connection.secure(ConfigLoader(environ={}).settings)


def test_without_settings_clients_talk_plainly() -> None:
    """The default is a broker of our own on the loopback address."""
    connection.secure(ConfigLoader(environ={}).settings)
    assert connection.common("localhost:9092")["security_protocol"] == "PLAINTEXT"
    assert not [name for name in connection.common("localhost:9092") if name.startswith(("sasl", "ssl"))]


def test_the_settings_reach_every_client(tmp_path: Path) -> None:
    """User, password from a mounted file, authorities, mechanism."""
    (tmp_path / "password").write_text("Scram-7d21\n")
    (tmp_path / "ca.pem").write_text(AUTHORITY)
    more = {
        "ETL_KAFKA_PASSWORD": "",
        "ETL_KAFKA_PASSWORD_FILE": str(tmp_path / "password"),
        "ETL_KAFKA_CA_FILE": str(tmp_path / "ca.pem"),
        "ETL_KAFKA_CHECK_HOSTNAME": "false",
    }
    connection.secure(ConfigLoader(environ=LOGIN | more).settings)
    common = connection.common("kafka:9093")
    assert {name: value for name, value in common.items() if name.startswith(("sasl", "ssl", "security"))} == {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "worker",
        "sasl_plain_password": "Scram-7d21",
        "ssl_check_hostname": False,
        "ssl_cafile": str(tmp_path / "ca.pem"),
    }


def test_the_password_is_a_secret() -> None:
    """It is redacted in logs and stands in no representation."""
    config = ConfigLoader(environ=LOGIN)
    assert "Scram-7d21" in config.secrets
    assert "Scram-7d21" not in repr(config.settings)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"ETL_KAFKA_USERNAME": ""}, "ETL_KAFKA_USERNAME"),
        ({"ETL_KAFKA_PASSWORD": ""}, "ETL_KAFKA_PASSWORD"),
        ({"ETL_KAFKA_PASSWORD_FILE": "/nowhere"}, "ETL_KAFKA_PASSWORD"),
        ({"ETL_KAFKA_PASSWORD": "", "ETL_KAFKA_PASSWORD_FILE": "/nowhere"}, "ETL_KAFKA_PASSWORD_FILE"),
        ({"ETL_KAFKA_CA_FILE": "/nowhere"}, "ETL_KAFKA_CA_FILE: the file cannot be read: No such file"),
        ({"ETL_KAFKA_CA_FILE": "/dev/null"}, "ETL_KAFKA_CA_FILE: the file contains no certificate in PEM format"),
        ({"ETL_KAFKA_SECURITY_PROTOCOL": "TLS"}, "ETL_KAFKA_SECURITY_PROTOCOL"),
        ({"ETL_KAFKA_SASL_MECHANISM": "GSSAPI"}, "ETL_KAFKA_SASL_MECHANISM"),
    ],
)
def test_what_is_missing_or_wrong_is_named(changed: dict[str, str], named: str) -> None:
    """At the start, not at the first message; and without the password."""
    with pytest.raises(SettingsError) as raised:
        ConfigLoader(environ=LOGIN | changed)
    assert named in str(raised.value)
    assert "Scram-7d21" not in str(raised.value)


def test_a_password_that_is_sent_in_the_clear_is_warned_of() -> None:
    """SCRAM sends none, and TLS hides it."""
    plain = LOGIN | {"ETL_KAFKA_SASL_MECHANISM": "PLAIN"}
    for protocol, count in (("SASL_PLAINTEXT", 1), ("SASL_SSL", 0)):
        warnings = ConfigLoader(environ=plain | {"ETL_KAFKA_SECURITY_PROTOCOL": protocol}).warnings
        assert [warning for warning in warnings if "PLAIN without TLS" in warning] == warnings
        assert len(warnings) == count


def test_the_groups_secret_may_be_in_a_file(tmp_path: Path) -> None:
    """It is as secret as a password, and long enough not to be guessed."""
    file = tmp_path / "secret"
    file.write_text("file-secret-of-the-group\n")
    config = ConfigLoader(environ={"ETL_GROUP_SECRET_FILE": str(file)})
    assert config.settings.group_secret == "file-secret-of-the-group"
    assert "file-secret-of-the-group" in config.secrets
    for changed, named in (
        ({"ETL_GROUP_SECRET": "file-secret-of-the-group"}, "only one of ETL_GROUP_SECRET and"),
        ({"ETL_GROUP_SECRET_FILE": "", "ETL_GROUP_SECRET": "short"}, "ETL_GROUP_SECRET: its value is not a secret of"),
    ):
        with pytest.raises(SettingsError, match=named):
            ConfigLoader(environ={"ETL_GROUP_SECRET_FILE": str(file)} | changed)
    file.write_text("short")
    with pytest.raises(SettingsError, match="ETL_GROUP_SECRET_FILE: the file contains less than 16"):
        ConfigLoader(environ={"ETL_GROUP_SECRET_FILE": str(file)})
