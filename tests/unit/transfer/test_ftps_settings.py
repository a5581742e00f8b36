"""The settings of FTPS servers: what may be set, and how what is wrong is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from etl.config import ConfigLoader
from etl.errors import SettingsError
from etl.transfer.ftps.options import Options
from servers.certificates import Authority

pytestmark = pytest.mark.unit

PRINT = "AB" * 32


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


def loaded(**properties: str) -> ConfigLoader:
    """Load the settings of one server."""
    values = {"TYPE": "ftps", "HOST": "ftps.example.com", "USER": "u", "PASS": "p"} | properties
    return ConfigLoader(environ={f"BANK_{key}": value for key, value in values.items()})


def test_the_port_follows_the_mode() -> None:
    """990 where TLS begins with the first byte, unless it is set."""
    assert loaded().servers["BANK"].port == 21
    assert loaded(TLS="explicit").servers["BANK"].port == 21
    assert loaded(TLS="Implicit").servers["BANK"].port == 990
    assert loaded(TLS="implicit", PORT="2121").servers["BANK"].port == 2121


@pytest.mark.parametrize(
    ("properties", "wrong", "what"),
    [
        ({"TLS": "yes"}, "TLS", "neither explicit nor implicit"),
        ({"TLS": "off"}, "TLS", "in clear is TYPE=ftp"),
        ({"TLS_VERIFY": "maybe"}, "TLS_VERIFY", "neither true nor false"),
        ({"TLS_CA_FILE": "/nowhere.pem"}, "TLS_CA_FILE", "cannot be read: No such file"),
        ({"TLS_CA_FILE": __file__}, "TLS_CA_FILE", "no certificate in PEM format"),
        ({"TLS_FINGERPRINT": "AB:CD"}, "TLS_FINGERPRINT", "64 hexadecimal digits"),
        ({"TLS_FINGERPRINT": PRINT, "TLS_CA_FILE": __file__}, "TLS_CA_FILE", "beside TLS_FINGERPRINT"),
        ({"TLS_FINGERPRINT": PRINT, "TLS_VERIFY": "false"}, "TLS_VERIFY", "beside TLS_FINGERPRINT"),
        ({"TLS_VERIFY": "false", "TLS_CA_FILE": __file__}, "TLS_CA_FILE", "beside TLS_VERIFY=false"),
        ({"TLS_NAME": "-"}, "TLS_NAME", "TLS_FINGERPRINT must be set"),
        ({"TLS_NAME": "a b"}, "TLS_NAME", "no host name"),
        ({"TLS_MIN": "1.1"}, "TLS_MIN", "none of 1.0, 1.2, 1.3"),
        ({"TLS_MAX": "1.0"}, "TLS_MAX", "none of 1.2, 1.3"),
        ({"TLS_MIN": "1.3", "TLS_MAX": "1.2"}, "TLS_MAX", "older than TLS_MIN"),
        ({"TLS_CIPHERS": "NONSENSE"}, "TLS_CIPHERS", "none of these ciphers"),
        ({"TLS_KEY_FILE": __file__}, "TLS_KEY_FILE", "needs TLS_CERT_FILE"),
        ({"TLS_CERT_FILE": __file__}, "TLS_CERT_FILE", "no certificate with its private key"),
        ({"TLS_CERTIFICATE": "x"}, "TLS_CERTIFICATE", "unknown property"),
        ({"TYPE": "ftp", "TLS": "explicit"}, "TLS", "unknown property for a server of type ftp"),
    ],
)
def test_what_is_wrong_is_named(properties: dict[str, str], wrong: str, what: str) -> None:
    """The start ends, with the name of the setting."""
    with pytest.raises(SettingsError) as refused:
        loaded(**properties)
    assert f"BANK_{wrong}: " in str(refused.value)
    assert what in str(refused.value)


def test_what_is_right_is_taken(authority: Authority) -> None:
    """A certificate with its key in one file or two; a fingerprint in any form."""
    ours = authority.sign("ours")
    server = loaded(
        TLS_CA_FILE=str(authority.ca), TLS_CERT_FILE=str(ours.pem), TLS_KEY_FILE=str(ours.pem), TLS_DATA="no"
    ).servers["BANK"]
    options = Options.of(server)
    assert (options.verifies, options.encrypts_data, options.is_implicit) == (True, False, False)
    shown = f"{ours.fingerprint}, SHA256:{PRINT.lower()}"
    pinned = Options.of(loaded(TLS_FINGERPRINT=shown, TLS_NAME="-").servers["BANK"])
    assert pinned.fingerprints == (ours.fingerprint.replace(":", ""), PRINT)


def test_a_key_with_a_pass_phrase_is_opened_and_asks_nobody(authority: Authority, tmp_path: Path) -> None:
    """A missing or wrong one is named, and the pass phrase is a secret."""
    ours = authority.sign("ours").with_passphrase("Pass-4711")
    loader = loaded(TLS_CERT_FILE=str(ours), TLS_KEY_PASSPHRASE="Pass-4711")
    assert "Pass-4711" in loader.secrets
    for wrong in ({}, {"TLS_KEY_PASSPHRASE": "Pass-4712"}):
        with pytest.raises(SettingsError, match="TLS_KEY_PASSPHRASE is wrong") as refused:
            loaded(TLS_CERT_FILE=str(ours), **wrong)
        assert "4712" not in str(refused.value)
    (tmp_path / "secret").write_text("Pass-4711\n")
    assert loaded(TLS_CERT_FILE=str(ours), TLS_KEY_PASSPHRASE_FILE=str(tmp_path / "secret")).servers
