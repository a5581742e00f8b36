"""Files of FTP Pooler and rclone: what they become, what is refused and how it is named, and what stays secret."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from etl.config import SERVER_PROPERTIES, SETTINGS, ConfigLoader, pooler
from etl.config.obscured import reveal
from etl.errors import SettingsError
from etl.models.server import PROTOCOLS

pytestmark = pytest.mark.unit

PAGE = Path(__file__).parents[3] / "docs" / "ftp-pooler.md"

CONFIG = """
kafka:
  bootstrap_servers:
    - kafka-0:9092
    - kafka-1:9092
  input_topic: tasks
  dlq_topic: tasks-letters
  max_retries: 3
  base_backoff_ms: 250
pool:
  max_sessions_per_pod: 20
  max_sessions_per_connection: 4
  session_timeout_seconds: 120
  prewarm_min_connections: 9
  prewarm_timeout_seconds: 30
transfer:
  transfer_timeout_seconds: 600
circuit_breaker:
  failure_threshold: 5
api:
  port: 8081
logging:
  level: debug
  format: json
"""
CONNECTIONS = """
[remote-server-a]
type = ftp
host = ftp.example.com
port = 2121
user = username
pass = 50%% off:now
passive = false
timeout = 30

[open]
type = ftp
host = open.example.com
password =
bandwidth_limit = 2M

[secure]
type = ftps
host = secure.example.com
port = 990
user = admin
password = Secret-of-the-secure
ssl_verify = false

[shell]
type = sftp
host = sftp.example.com
user = deploy
private_key_path = {key}
known_hosts_path = {hosts}
max_connections = 2

[local]
type = local
base_path = {folder}
"""


def load(tmp_path: Path, alias: str = "ETL_", **files: str) -> ConfigLoader:
    """Load settings from these files alone, whose texts are given: CONFIG, CONNECTIONS."""
    environ = {}
    for name, text in files.items():
        path = tmp_path / {"CONFIG": "config.yaml", "CONNECTIONS": "connections.ini", "RCLONE": "rclone.conf"}[name]
        path.write_text(text)
        environ[alias + name.replace("RCLONE", "CONNECTIONS")] = str(path)
    return ConfigLoader(environ=environ)


def complaint(tmp_path: Path, **files: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, **files)
    return str(caught.value).replace(f"{tmp_path}/", "")


def connections(tmp_path: Path) -> str:
    for name in ("key", "hosts"):
        (tmp_path / name).write_text("")
    return CONNECTIONS.format(key=tmp_path / "key", hosts=tmp_path / "hosts", folder=tmp_path)


def test_the_settings_of_config_yaml(tmp_path: Path) -> None:
    settings = load(tmp_path, CONFIG=CONFIG).settings
    assert settings.bootstrap_servers == "kafka-0:9092,kafka-1:9092"
    assert (settings.topic, settings.dlq_topic_suffix) == ("tasks", "-letters")
    assert (settings.retry_max_attempts, settings.retry_backoff_seconds) == (4, 0.25)
    assert (settings.workers, settings.idle_timeout_seconds) == (20, 120)
    assert (settings.transfer_timeout_seconds, settings.api_port) == (600, 8081)
    assert (settings.log_level, settings.log_format) == ("DEBUG", "json")
    assert (settings.group_id, settings.result_topic) == ("etl-worker-group", None), "ours, as it says nothing of them"


def test_the_servers_of_connections_ini(tmp_path: Path) -> None:
    config = load(tmp_path, CONFIG=CONFIG, CONNECTIONS=connections(tmp_path))
    first = config.get_server_config("remote-server-a")
    assert (first.type, first.host, first.port, first.username) == ("ftp", "ftp.example.com", 2121, "username")
    assert (first.password, first.passive) == ("50% off:now", False)
    assert (first.max_connections, first.prewarm) == (4, 4), "of the pool; no more are opened than there may be"
    other = config.servers["OPEN"]
    assert (other.username, other.password, str(other.bandwidth)) == ("anonymous", "", "2M")
    secure = config.servers["SECURE"]
    assert (secure.password, secure.port, secure.options["TLS"]) == ("Secret-of-the-secure", 990, "implicit")
    assert secure.options["TLS_VERIFY"] == "false"
    shell = config.servers["SHELL"]
    assert (shell.port, shell.max_connections, shell.options["KEY_FILE"]) == (22, 2, str(tmp_path / "key"))
    assert shell.options["KNOWN_HOSTS_FILE"] == str(tmp_path / "hosts")
    assert config.servers["LOCAL"].base_path == str(tmp_path)
    assert config.servers["LOCAL"].prewarm == 0


def test_a_secret_in_a_file_and_one_in_a_setting_are_one_setting(tmp_path: Path) -> None:
    """The environment overrides whichever of them the file has; in one place both are still too many."""
    (tmp_path / "connections.ini").write_text("[a]\ntype = ftp\nhost = h\nuser = u\npass = of-the-file\n")
    (tmp_path / "secret").write_text("of-the-mount\n")
    (tmp_path / ".env").write_text(f"A_PASS_FILE={tmp_path / 'secret'}\n")
    connections = {"ETL_CONNECTIONS": str(tmp_path / "connections.ini")}
    mounted = connections | {"A_PASS_FILE": str(tmp_path / "secret")}
    assert ConfigLoader(environ=mounted).servers["A"].password == "of-the-mount"
    assert ConfigLoader(tmp_path / ".env", environ=connections).servers["A"].password == "of-the-mount"
    given = connections | {"A_PASS": "given"}
    assert ConfigLoader(tmp_path / ".env", environ=given).servers["A"].password == "given"
    with pytest.raises(SettingsError, match="only one of A_PASS and A_PASS_FILE may be set"):
        ConfigLoader(environ=mounted | {"A_PASS": "given"})


def test_the_environment_overrides_the_file_which_overrides_the_default(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "connections.ini").write_text(connections(tmp_path))
    environ = {
        "FTP_POOLER_CONFIG": str(tmp_path / "config.yaml"),
        "FTP_POOLER_CONNECTIONS": str(tmp_path / "connections.ini"),
        "ETL_TOPIC": "mine",
        "DLQ_TOPIC_SUFFIX": "-mine",
        "REMOTE-SERVER-A_HOST": "other.example.com",
        "REMOTE-SERVER-A_MAX_CONNECTIONS": "7",
    }
    config = ConfigLoader(environ=environ)
    assert (config.settings.topic, config.settings.dlq_topic_suffix, config.settings.workers) == ("mine", "-mine", 20)
    first = config.servers["REMOTE-SERVER-A"]
    assert (first.host, first.port, first.max_connections, first.prewarm) == ("other.example.com", 2121, 7, 7)


def test_under_its_own_name_what_the_file_leaves_out_is_as_ftp_pooler_has_it(tmp_path: Path) -> None:
    config = load(tmp_path, "FTP_POOLER_", CONFIG="kafka:\n", CONNECTIONS="[a]\ntype=ftp\nhost=h\n")
    settings, server = config.settings, config.servers["A"]
    assert (settings.topic, settings.group_id) == ("ftp-tasks", "ftp-pooler")
    assert (settings.result_topic, settings.fail_topic) == ("ftp-results", "ftp-failures")
    assert (settings.workers, settings.retry_max_attempts) == (100, 6)
    assert (settings.retry_backoff_seconds, settings.retry_backoff_max_seconds) == (1.0, 30.0)
    assert (settings.transfer_timeout_seconds, settings.connect_timeout_seconds) == (300, 30)
    assert (settings.metrics_port, settings.log_format) == (9090, "json")
    assert (server.max_connections, server.prewarm, server.username) == (10, 2, "anonymous")


def test_what_has_no_meaning_here_is_told_once(tmp_path: Path) -> None:
    config = load(tmp_path, CONFIG=CONFIG, CONNECTIONS=connections(tmp_path))
    idle = [line for line in config.warnings if "without a meaning here" in line]
    assert len(idle) == 2
    assert "pool.prewarm_timeout_seconds (sessions are opened while jobs run)" in idle[0]
    assert "circuit_breaker.failure_threshold" in idle[0]
    assert "[remote-server-a] timeout" in idle[1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kafka:\n  consumer_grp: x\n", "config.yaml, kafka.consumer_grp: unknown name (nearest: consumer_group)"),
        ("kafkaa:\n  x: y\n", "config.yaml, kafkaa: unknown section (nearest: kafka)"),
        ("kafka: [1]\n", "config.yaml, kafka: must be a section"),
        ("- a\n", "config.yaml: must be sections"),
        ("kafka:\n  input_topic: {a: b}\n", "config.yaml, kafka.input_topic: must be one value"),
        ("kafka:\n  input_topic: a b\n", "ETL_TOPIC (config.yaml, kafka.input_topic): 'a b' is not a topic name"),
        ("kafka:\n  max_retries: many\n", "config.yaml, kafka.max_retries: has a value that is not of its kind"),
        ("kafka:\n  dlq_topic: letters\n", "config.yaml, kafka.dlq_topic: must begin with kafka.input_topic"),
        ("pool:\n  prewarm_enabled: perhaps\n", "config.yaml, pool.prewarm_enabled: is not one of true, false"),
        ("pool:\n  max_sessions_per_pod: 0\n", "ETL_WORKERS (config.yaml, pool.max_sessions_per_pod): '0' is not"),
        ("api:\n  port: 1\n  port: 2\n", "config.yaml, line 3: port is set twice"),
        ("a: [Tell-nobody\n", "config.yaml, line 2: is not YAML"),
        ("a: !!python/object/apply:os.system [Tell-nobody]\n", "config.yaml, line 1: is not YAML"),
        ("a: \x01", "config.yaml: is not YAML"),
        *[(f"a: !!{kind}\n", "config.yaml: is not YAML") for kind in ("int ''", "float ''", "bool x", "timestamp x")],
    ],
)
def test_what_is_wrong_in_config_yaml_is_named_by_section_and_name(tmp_path: Path, text: str, says: str) -> None:
    told = complaint(tmp_path, CONFIG=text)
    assert says in told
    assert "Tell-nobody" not in told


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[a]\ntype=ftp\nhost=h\npasword=Tell-nobody\n", "A_PASWORD (connections.ini [a] pasword): unknown property"),
        ("[a]\ntype=ftp\nhost=h\nport=x\n", "A_PORT (connections.ini [a] port): 'x' is not"),
        ("[a]\ntype=ftp\n", "A_HOST: is missing"),
        ("[a]\nhost=h\n", "connections.ini [a] type: is missing"),
        ("[a]\ntype=gopher\n", "connections.ini [a] type: is not a known protocol"),
        ("[a]\ntype=gopher\nhost=h\n", "A_TYPE (connections.ini [a] type): 'gopher' is not a known protocol"),
        ("[a b]\ntype=ftp\n", "connections.ini [a b]: cannot be a server's name"),
        ("[etl_x]\ntype=ftp\nhost=h\n", "ETL_X_TYPE (connections.ini [etl_x] type): ETL_X cannot be a server's name"),
        ("[a]\ntype=ftp\nhost=h\n[A]\ntype=ftp\n", "connections.ini [A]: is the server of connections.ini [a] again"),
        ("[a]\ntype=ftp\n[a]\ntype=ftp\n", "connections.ini, line 3: is there twice"),
        ("[a]\ntype=ftp\npass=%(Tell-nobody)s\n", "connections.ini [a] pass: refers to another value"),
        ("type=ftp\nTell-nobody\n", "connections.ini, line 1: is no [section] and no name = value"),
        ("[a]\ntype=ftp\nTell-nobody\n", "connections.ini, line 3: is no [section] and no name = value"),
    ],
)
def test_what_is_wrong_in_connections_ini_is_named_by_section_and_name(tmp_path: Path, text: str, says: str) -> None:
    told = complaint(tmp_path, CONNECTIONS=text)
    assert says in told
    assert "Tell-nobody" not in told


@pytest.mark.parametrize("odd", ["\N{SUPERSCRIPT TWO}", "9" * 5000, "-1", "many"])
def test_a_number_of_sessions_that_is_none_is_named(tmp_path: Path, odd: str) -> None:
    """Also where sessions to be opened ahead are limited by it."""
    pool = f"pool:\n  max_sessions_per_connection: '{odd}'\n  prewarm_min_connections: 3\n"
    told = complaint(tmp_path, CONFIG=pool, CONNECTIONS="[a]\ntype=ftp\nhost=h\npass=x\n")
    assert "A_MAX_CONNECTIONS: " in told


@pytest.mark.parametrize("name", ["ETL_CONFIG", "ETL_CONNECTIONS", "FTP_POOLER_CONFIG", "FTP_POOLER_CONNECTIONS"])
def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="/nowhere cannot be read: No such file"):
        ConfigLoader(environ={name: str(tmp_path / "nowhere")})
    (tmp_path / "odd").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="odd is not UTF-8"):
        ConfigLoader(environ={name: str(tmp_path / "odd")})
    with pytest.raises(SettingsError, match=r"not a valid file name|text without control characters"):
        ConfigLoader(environ={name: "a\0b"})


def test_passwords_of_files_are_known_to_be_secret(tmp_path: Path) -> None:
    config = load(tmp_path, CONNECTIONS=connections(tmp_path))
    assert {"50% off:now", "Secret-of-the-secure"} <= set(config.secrets)
    assert "Secret-of-the-secure" not in f"{config.servers} {config.settings} {config.warnings}"


def test_a_file_with_passwords_that_everybody_may_read_is_told(tmp_path: Path) -> None:
    text = "[a]\ntype=ftp\nhost=h\npass=x\n"
    assert not any("every user" in line for line in load(tmp_path, CONNECTIONS=text).warnings)
    (tmp_path / "connections.ini").chmod(0o644)
    assert any("every user may read its passwords" in line for line in load(tmp_path, CONNECTIONS=text).warnings)


# --- rclone ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        # rclone's own: fs/config/obscure/obscure_test.go
        ("YWFhYWFhYWFhYWFhYWFhYQ", ""),
        ("YWFhYWFhYWFhYWFhYWFhYXMaGgIlEQ", "potato"),
        ("YmJiYmJiYmJiYmJiYmJiYp3gcEWbAw", "potato"),
    ],
)
def test_obscured_passwords(text: str, plain: str) -> None:
    assert reveal(text) == plain


@pytest.mark.parametrize("text", ["potato", "", "a b", "YWFhYWFhYWFhYWFhYWFhYf//////"])
def test_what_was_not_obscured_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not obscured"):
        reveal(text)


def test_the_remotes_of_rclone(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("")
    text = f"""
[scanner]
type = ftp
host = ftp.example.com
user = u
pass = YWFhYWFhYWFhYWFhYWFhYXMaGgIlEQ
explicit_tls = true
no_check_certificate = true
concurrency = 3
disable_epsv = true
description = the one in the hall

[vault]
type = sftp
host = sftp.example.com
user = u
key_file = {tmp_path}/key
key_file_pass = YmJiYmJiYmJiYmJiYmJiYp3gcEWbAw
ciphers = aes256-ctr aes128-ctr
macs = hmac-sha2-256
shell_type = unix

[store]
type = s3
provider = Minio
access_key_id = key-of-the-store
secret_access_key = Secret-of-the-store
region = eu-west-1
endpoint = store.example.com:9000
force_path_style = false
sse_kms_key_id = abc
server_side_encryption = aws:kms
bucket = scans

[cloud]
type = drive
token = Tell-nobody
"""
    config = load(tmp_path, RCLONE=text)
    assert set(config.servers) == {"SCANNER", "VAULT", "STORE"}
    store = config.servers["STORE"].options
    assert (store["BUCKET"], store["ACCESS_KEY"], store["REGION"]) == ("scans", "key-of-the-store", "eu-west-1")
    assert (store["ENDPOINT"], store["VIRTUAL_HOST"]) == ("https://store.example.com:9000", "true")
    assert (store["SSE"], store["SECRET_KEY"]) == ("aws:kms:abc", "Secret-of-the-store")
    assert "Secret-of-the-store" in config.secrets
    scanner, vault = config.servers["SCANNER"], config.servers["VAULT"]
    assert (scanner.type, scanner.password, scanner.max_connections, scanner.epsv) == ("ftps", "potato", 3, "off")
    assert (scanner.options["TLS"], scanner.options["TLS_VERIFY"]) == ("explicit", "false")
    assert vault.options["KEY_PASSPHRASE"] == "potato"
    assert vault.options["SSH_OPTIONS"] == "Ciphers=aes256-ctr,aes128-ctr MACs=hmac-sha2-256"
    assert "potato" in config.secrets
    (idle,) = [line for line in config.warnings if "without a meaning here" in line]
    assert "[vault] shell_type" in idle
    assert "[cloud] (type drive)" in idle
    assert "Tell-nobody" not in str(config.warnings)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("type=ftp\nhost=h\nuser=u\npass=Tell-nobody", "rclone.conf [a] pass: is not obscured"),
        ("type=ftp\nhost=h\nuser=u\nsocks_proxy=x:1", "rclone.conf [a] socks_proxy: proxies are not supported"),
        ("type=ftp\nhost=h\nuser=u\nhots=x", "rclone.conf [a] hots: unknown name for a remote of type ftp (nearest: h"),
        ("type=ftp\nhost=h\nuser=u\ntls=perhaps", "rclone.conf [a] tls: is not one of true, false"),
        ("type=sftp\nhost=h\nuser=u\nkey_pem=Tell-nobody", "rclone.conf [a] key_pem: put the key into a file"),
    ],
)
def test_what_is_wrong_in_rclone_conf_is_named(tmp_path: Path, text: str, says: str) -> None:
    told = complaint(tmp_path, RCLONE=f"[a]\n{text}\n")
    assert says in told
    assert "Tell-nobody" not in told


def test_an_encrypted_file_of_rclone_is_refused(tmp_path: Path) -> None:
    text = "# Encrypted rclone configuration File\n\nRCLONE_ENCRYPT_V0:\nabc=\n"
    assert "rclone.conf: is encrypted" in complaint(tmp_path, RCLONE=text)


# --- the page -------------------------------------------------------------------------------------------------


def cells(*columns: object) -> str:
    return "| " + " | ".join(str(column) for column in columns) + " |"


def here(key: pooler.Key) -> str:
    return f"`{key.ours}`" if key.ours else "refused" if key.is_refused else "nothing"


def test_the_page_shows_every_name_and_no_other() -> None:
    rows = [
        cells(section, f"`{name}`", key.default, here(key), key.says)
        for section, keys in pooler.CONFIG.items()
        for name, key in keys.items()
    ]
    rows += [cells(f"`{name}`", here(key), key.says) for name, key in pooler.CONNECTIONS.items()]
    rows += [
        cells(kind, f"`{name}`", here(key), key.says)
        for kind, keys in pooler.RCLONE.items()
        for name, key in keys.items()
    ]
    shown = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ") and "`" in line]
    assert [re.sub(r" +", " ", row) for row in shown] == [re.sub(r" +", " ", row) for row in rows]


def test_every_name_stands_for_one_that_there_is() -> None:
    known = {*SERVER_PROPERTIES, *(name for spec in PROTOCOLS.values() for name in spec.settings)}
    for keys in pooler.CONFIG.values():
        for key in keys.values():
            assert not key.ours or key.ours in SETTINGS or key.ours.removeprefix("{NAME}_") in known, key
    of_servers = [*pooler.CONNECTIONS.values(), *(key for keys in pooler.RCLONE.values() for key in keys.values())]
    assert {key.ours for key in of_servers} - {""} <= known
