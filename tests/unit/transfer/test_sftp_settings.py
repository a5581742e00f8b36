"""The settings of an SFTP server: what is wrong stops the start; what ssh is told."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from etl.config import ConfigLoader, ServerConfig
from etl.errors import AuthenticationFailed, HostKeyRefused, ServerBusy, ServerUnavailable, SettingsError
from etl.transfer.sftp import command, login, options

pytestmark = pytest.mark.unit

PRINT = "SHA256:" + "a" * 43
GOOD = {"X_TYPE": "sftp", "X_HOST": "h", "X_USER": "u", "X_PASS": "p"}


def problems(**properties: str) -> str:
    """Return what the start says to these properties."""
    values = GOOD | {f"X_{name}": value for name, value in properties.items()}
    with pytest.raises(SettingsError) as caught:
        ConfigLoader(environ={name: value for name, value in values.items() if value})
    return str(caught.value)


def server(**given: str) -> ServerConfig:
    return ServerConfig("X", "sftp", "h", 22, "u", "p", options=given)


@pytest.mark.parametrize(
    ("properties", "said"),
    [
        ({"PASS": ""}, "X_PASS: is missing; so are KEY_FILE and AGENT"),
        ({"KEY_FILE": "/no/such/key"}, "X_KEY_FILE: the file cannot be read"),
        ({"KEY_FILE": "relative"}, "X_KEY_FILE: must begin with /"),
        ({"KEY_FILE": "/a%h"}, "X_KEY_FILE: must begin with / and hold no"),
        ({"KEY_PASSPHRASE": "Phrase-3Secret"}, "X_KEY_PASSPHRASE: needs KEY_FILE"),
        ({"KEY_PASSPHRASE": "Phrase-3Secret", "KEY_PASSPHRASE_FILE": "/x"}, "only one of X_KEY_PASSPHRASE and"),
        ({"KEY_PASSPHRASE_FILE": "/no/such/file"}, "X_KEY_PASSPHRASE_FILE: the file cannot be read"),
        ({"HOST_KEY": "SHA256:short"}, "X_HOST_KEY: is no fingerprint"),
        ({"HOST_KEY": PRINT, "KNOWN_HOSTS_FILE": __file__}, "only one of HOST_KEY and KNOWN_HOSTS_FILE"),
        ({"JUMP": "h;id"}, "X_JUMP: is no [USER@]HOST[:PORT]"),
        ({"JUMP": "h:99999"}, "X_JUMP: is no"),
        ({"JUMP": "h", "SSH_OPTIONS": "'ProxyCommand=nc %h %p'"}, "only one of JUMP and ProxyCommand"),
        ({"SSH_LEGACY": "perhaps"}, "X_SSH_LEGACY: is neither true nor false"),
        ({"SSH_OPTIONS": "Cipher=x"}, "'Cipher' is not among those that may be set (nearest: Ciphers)"),
        ({"SSH_OPTIONS": "StrictHostKeyChecking=no"}, "X_SSH_OPTIONS: the option 'StrictHostKeyChecking'"),
        ({"SSH_OPTIONS": "LocalCommand=id"}, "X_SSH_OPTIONS: the option 'LocalCommand'"),
        ({"SSH_OPTIONS": "Ciphers"}, "X_SSH_OPTIONS: is no list of NAME=VALUE"),
        ({"SSH_OPTIONS": "'open"}, "X_SSH_OPTIONS: cannot be split"),
        ({"BLOCK": "1"}, "X_BLOCK: is not a whole number from 1024 to 261120"),
        ({"PIPELINE": "0"}, "X_PIPELINE: is not a whole number from 1 to 64"),
        ({"USER": "a b"}, "X_USER: holds a space"),
        ({"KEYFILE": "/x"}, "X_KEYFILE: unknown property for a server of type sftp (nearest: X_KEY_FILE)"),
    ],
)
def test_a_wrong_setting_stops_the_start(properties: dict[str, str], said: str) -> None:
    """It is named, and no secret is shown."""
    text = problems(**properties)
    assert said in text
    assert "Phrase-3Secret" not in text


def test_a_pass_phrase_may_come_from_a_file_and_is_kept_out_of_logs(tmp_path: Path) -> None:
    """As a password may."""
    (tmp_path / "phrase").write_text("Phrase-5Secret\n")
    (tmp_path / "key").touch()
    given = {"X_KEY_PASSPHRASE_FILE": str(tmp_path / "phrase"), "X_KEY_FILE": str(tmp_path / "key"), "X_PASS": ""}
    config = ConfigLoader(environ=GOOD | given)
    assert config.get_server_config("X").options["KEY_PASSPHRASE"] == "Phrase-5Secret"
    assert "Phrase-5Secret" in config.secrets


def test_everything_may_be_left_out() -> None:
    """But a way to log in."""
    config = ConfigLoader(environ=GOOD).get_server_config("X")
    assert config.port == 22
    assert options.Options.of(config) == options.Options()


def test_secrets_are_in_no_argument() -> None:
    """Not even through a jump host."""
    given = server(KEY_FILE=__file__, KEY_PASSPHRASE="Phrase-6Secret", JUMP="a,b@[::1]:2222", HOST_KEY=PRINT)
    parsed = options.Options.of(given)
    words = command.arguments("/usr/bin/ssh", given, parsed, 2022, 9.5)
    assert "Phrase-6Secret" not in " ".join(words)
    assert words[-4:] == ["-s", "--", "h", "sftp"]
    environment = command.environment(given, parsed)
    assert environment["ETL_SSH_PASSPHRASE"] == "Phrase-6Secret"
    assert environment["ETL_SSH_HOST_KEYS"] == PRINT


def test_hops_are_chained_and_quoted() -> None:
    """What ssh and the shell expand on the way comes out as it was meant."""
    given = server(JUMP="first:23,me@second", SSH_OPTIONS="'HostKeyAlias=it''s'")
    words = command.arguments("ssh", given, options.Options.of(given), 22, 10)
    (proxy,) = [word.removeprefix("ProxyCommand=") for word in words if word.startswith("ProxyCommand=")]
    outer = shlex.split(proxy)
    assert outer[-4:] == ["-W", "[%h]:%p", "--", "second"]
    assert outer[outer.index("-l") + 1] == "me"
    (inner,) = [word.removeprefix("ProxyCommand=") for word in outer if word.startswith("ProxyCommand=")]
    inner = inner.replace("%%", "%")
    assert shlex.split(inner)[-6:] == ["-p", "23", "-W", "[%h]:%p", "--", "first"]
    assert "HostKeyAlias=its" in shlex.split(inner)


@pytest.mark.parametrize(
    ("said", "kind", "told"),
    [
        ("ssh: connect to host h port 22: Network is unreachable\n", ServerUnavailable, "Network is unreachable"),
        ("kex_exchange_identification: read: Connection reset by peer\n", ServerBusy, "before its banner"),
        ("ssh_exchange_identification: Connection closed by remote host\n", ServerBusy, "before its banner"),
        ("kex_exchange_identification: Connection timed out during banner exchange\n", ServerUnavailable, "timed out"),
        ("Connection timed out during banner exchange\n", ServerUnavailable, "timed out"),
        ("u@h: Permission denied (publickey).\n", AuthenticationFailed, "publickey"),
        ("Received disconnect from h port 22:2: Too many authentication failures\n", AuthenticationFailed, "Too many"),
        (f"debug1: Server host key: x {PRINT}\nHost key verification failed.\n", HostKeyRefused, PRINT),
        ("subsystem request failed on channel 0\n", AuthenticationFailed, "may not use SFTP"),
        ("No user exists for uid 10001\n", ServerUnavailable, "/etc/passwd"),
        ("debug1: nothing for people\n", ServerUnavailable, "without a word"),
        ('debug1: Authenticated to h ([::1]:22) using "x".\n', ServerUnavailable, "SFTP did not start"),
    ],
)
def test_what_ssh_says_becomes_the_right_error(said: str, kind: type[Exception], told: str) -> None:
    """Who is busy costs no attempt; who does not trust us is not asked again at once."""
    error = login.why_refused(server(), said)
    assert type(error) is kind
    assert told in str(error)
    assert error.server == "X"
