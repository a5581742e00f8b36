"""Settings and servers: what is accepted, and that everything wrong is reported at once, by name, without secrets."""

from __future__ import annotations

import dataclasses
import importlib
import string
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl import config
from etl.config import (
    PROTOCOLS,
    SETTINGS,
    ConfigLoader,
    ProtocolSpec,
    ServerConfig,
    Settings,
    TransferSettings,
    get_config,
)
from etl.errors import SettingsError, UnknownServer

pytestmark = pytest.mark.unit

FTP = {"SRC_TYPE": "ftp", "SRC_HOST": "127.0.0.1", "SRC_USER": "reader", "SRC_PASS": "s3cret-word"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    importlib.import_module("etl.transfer")  # before the registry is touched: what is registered stays
    monkeypatch.setitem(
        PROTOCOLS, "vault", ProtocolSpec(default_port=4000, settings={"KEY_TYPE": "sort of key", "API_TOKEN": "secret"})
    )


def load(*environs, **names) -> ConfigLoader:
    environ = {}
    for given_environ in environs:
        environ.update(given_environ)
    return ConfigLoader(environ={**environ, **names})


def complaint(*environs, **names) -> str:
    with pytest.raises(SettingsError) as caught:
        load(*environs, **names)
    return str(caught.value)


def test_an_empty_environment_gives_the_defaults():
    """Nothing needs to be set to start."""
    loader = load()
    assert loader.settings == Settings()
    assert loader.servers == {}
    assert loader.warnings == []
    assert loader.settings.transfer == TransferSettings()
    assert (loader.get_dlq_topic("t"), loader.get_result_topic("t"), loader.get_retry_topic("t")) == (
        "t-dlq",
        "t-results",
        "t-retry",
    )


def test_every_field_of_the_settings_is_a_row_of_the_table():
    """No setting can be added without a name, a kind and a line of help."""
    fields = {field.name for field in dataclasses.fields(Settings)} - {"instance_id_is_set"}
    assert {row.field for row in SETTINGS.values()} == fields
    assert all(row.help and row.kind.says for row in SETTINGS.values())


def test_every_default_in_the_table_parses_to_the_default_of_its_field():
    """What the table shows as default is what an empty environment gives."""
    for row in SETTINGS.values():
        if row.default:
            assert row.kind.parse(row.default) == getattr(Settings(), row.field), row.name


def test_defaults_of_a_server_in_the_table_are_those_of_its_dataclass():
    """MAX_CONNECTIONS and PARTIAL_PATTERN are shown as they are."""
    server = ServerConfig(hostname="A", type="ftp")
    assert config.SERVER_PROPERTIES["MAX_CONNECTIONS"].default == str(server.max_connections)
    assert config.SERVER_PROPERTIES["PARTIAL_PATTERN"].default == server.partial_pattern


def test_an_empty_value_of_a_setting_is_an_unset_one():
    """`docker run -e ETL_WORKERS=` and compose's `${ETL_WORKERS:-}` set nothing."""
    empty = {name: "" for name in SETTINGS if not name.endswith("_SUFFIX")}
    assert load(empty).settings == Settings()


def test_overrides_win_over_the_environment_and_that_over_the_file(tmp_path):
    """Command line over environment over file over default; an empty value hides none below it."""
    file = tmp_path / "my.env"
    file.write_text("ETL_TOPIC=of-file\nETL_GROUP_ID=of-file\nETL_WORKERS=3\nETL_NUM_PARTITIONS=4\n")
    loader = ConfigLoader(
        file,
        {"ETL_TOPIC": "of-env", "ETL_GROUP_ID": "of-env", "ETL_NUM_PARTITIONS": ""},
        {"ETL_TOPIC": "of-command"},
    )
    settings = loader.settings
    assert (settings.topic, settings.group_id, settings.workers) == ("of-command", "of-env", 3)
    assert settings.num_partitions == 4


def test_a_server_is_read_whole():
    """Every common property arrives in its field, with the type it should have."""
    loader = load(
        FTP,
        SRC_PORT="2121",
        SRC_MAX_CONNECTIONS="3",
        SRC_PASSIVE="off",
        SRC_ENCODING="euc-kr",
        SRC_BASE_PATH="/in",
        SRC_PARTIAL_PATTERN="tmp-{id}",
    )
    assert loader.get_server_config("src") == ServerConfig(
        hostname="SRC",
        type="ftp",
        host="127.0.0.1",
        port=2121,
        username="reader",
        password="s3cret-word",
        max_connections=3,
        passive=False,
        encoding="euc-kr",
        base_path="/in",
        partial_pattern="tmp-{id}",
    )


def test_names_of_servers_and_their_types_are_case_insensitive():
    """`src_type=FTP` is SRC_TYPE=ftp, and a job may say `Src`."""
    loader = load({name.lower(): value for name, value in FTP.items()}, src_type="FTP")
    assert loader.get_server_config("Src").type == "ftp"


def test_the_port_defaults_to_that_of_the_protocol():
    """21 for ftp; 0, none, for local."""
    loader = load(FTP, A_TYPE="local", A_BASE_PATH="/srv")
    assert (loader.servers["SRC"].port, loader.servers["A"].port) == (21, 0)


def test_a_local_server_needs_neither_host_nor_login():
    """A folder is enough."""
    expected = ServerConfig(hostname="DISK", type="local", base_path="/srv")
    assert load(DISK_TYPE="local", DISK_BASE_PATH="/srv").servers == {"DISK": expected}


def test_a_local_server_needs_a_base_path():
    """Without one, whoever may send jobs would read and write the whole machine."""
    assert "DISK_BASE_PATH: is missing (/ is the whole machine)" in complaint(DISK_TYPE="local")


@pytest.mark.parametrize("base", ["/", "//", "/etc", "/etc/ssl/", "/proc", "/srv/../sys", "/dev/shm"])
def test_a_base_path_among_the_files_of_the_machine_is_warned_of(base):
    """It may be meant, so it is allowed."""
    (warning,) = load(DISK_TYPE="local", DISK_BASE_PATH=base).warnings
    assert warning.startswith("DISK_BASE_PATH is /")
    assert "whoever may send jobs" in warning


@pytest.mark.parametrize("place", ["kafka", "kafka/logs", ".", "link"])
def test_a_folder_that_holds_what_is_ours_is_warned_of(tmp_path, place):
    """The broker's data, files with passwords: jobs would read and overwrite them."""
    (tmp_path / "kafka/logs").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "kafka")
    values = {"HERE_TYPE": "local", "HERE_BASE_PATH": str(tmp_path / place), "KAFKA_DATA_DIR": str(tmp_path / "kafka")}
    (warning,) = load(values).warnings
    assert warning.startswith("HERE_BASE_PATH holds, or lies in, the broker's data")
    assert load(values, HERE_BASE_PATH=str(tmp_path / "kafkaesque")).warnings == []


def test_a_folder_with_a_password_file_is_warned_of(tmp_path):
    """Whoever may send jobs could copy it."""
    (tmp_path / "password").write_text("secret")
    (warning,) = load(FTP, SRC_PASS="", SRC_PASS_FILE=str(tmp_path / "password"), HERE_TYPE="local",
                      HERE_BASE_PATH=str(tmp_path)).warnings  # fmt: skip
    assert warning.startswith("HERE_BASE_PATH holds")


@pytest.mark.parametrize("base", ["/srv", "/etcetera", "/data/etc"])
def test_other_base_paths_are_not_warned_of(base):
    """Nor is the root folder of an FTP server."""
    assert load(FTP, SRC_BASE_PATH="/etc", DISK_TYPE="local", DISK_BASE_PATH=base).warnings == []


def test_a_password_may_be_empty_but_not_absent():
    """Anonymous FTP has an empty password; a forgotten one is an error."""
    assert load(FTP, SRC_PASS="").servers["SRC"].password == ""
    without = {name: value for name, value in FTP.items() if name != "SRC_PASS"}
    assert "SRC_PASS: is missing (or SRC_PASS_FILE)" in complaint(without)


def test_a_password_keeps_its_blanks():
    """A blank at its end may be part of a password in the environment."""
    assert load(FTP, SRC_PASS=" pass word ").servers["SRC"].password == " pass word "


def test_one_pair_of_quotes_that_docker_left_is_stripped():
    """With --env-file docker hands `"a b"` on with its quotes."""
    assert load(FTP, SRC_PASS='"a b"', ETL_WORKERS="'3'").servers["SRC"].password == "a b"


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("SRC_PASS", '"a b"', "a b"),
        ("SRC_USER", "'me'", "me"),
        ("SRC_BASE_PATH", '"inbox"', "inbox"),
        ("ETL_KAFKA_PASSWORD", '"secret"', "secret"),
    ],
)
def test_quotes_that_may_belong_to_a_value_are_told(name, value, read):
    """They are taken off, and a warning names the variable and the way to keep them; it shows no value."""
    (warning,) = load(FTP, **{name: value}).warnings
    assert warning.startswith(f"{name}: the quotes")
    assert read not in warning.split()
    kept = load(FTP, **{name: f"'{value}'"})
    assert kept.warnings == []
    server = kept.servers["SRC"]
    assert value in {server.password, server.username, server.base_path, kept.settings.kafka_password}


def test_quotes_that_cannot_belong_to_a_value_are_no_news():
    """Of numbers, words, hosts, absolute paths, and what is nobody's: no warning at each start."""
    more = {"ETL_WORKERS": "'3'", "SRC_BASE_PATH": "'/data/b'", "SRC_HOST": '"h"', "OTHER_PASS": '"x"', "PS1": '"$ "'}
    assert load(FTP, **more).warnings == []


@pytest.mark.parametrize(
    ("content", "password"), [(b"pw\n", "pw"), (b"pw\r\n", "pw"), (b"pw", "pw"), (b"p w \n", "p w ")]
)
def test_a_mounted_secret_loses_only_its_last_line_break(tmp_path, content, password):
    """PASS_FILE is read as it is."""
    (tmp_path / "secret").write_bytes(content)
    loader = load(FTP, SRC_PASS="", SRC_PASS_FILE=str(tmp_path / "secret"))
    assert loader.servers["SRC"].password == password


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe", b"two\nlines\n", b"x" * 70000])
def test_a_mounted_secret_that_cannot_be_used_is_named_by_its_setting(tmp_path, content):
    """Missing, empty, not UTF-8, with a line break in it, too large: SRC_PASS_FILE, and neither path nor content."""
    path = tmp_path / "hunter2"
    if content is not None:
        path.write_bytes(content)
    text = complaint(FTP, SRC_PASS="", SRC_PASS_FILE=str(path))
    assert "SRC_PASS_FILE: " in text
    assert "hunter2" not in text
    assert "lines" not in text


def test_a_folder_or_an_impossible_name_as_mounted_secret_is_an_error(tmp_path):
    """Nothing but SettingsError comes out."""
    for path in (str(tmp_path), "nul\x00byte", "x" * 5000):
        assert "SRC_PASS_FILE: the file cannot be read" in complaint(FTP, SRC_PASS="", SRC_PASS_FILE=path)


def test_pass_and_pass_file_exclude_each_other(tmp_path):
    """Which one counts must not be a guess."""
    assert "only one of SRC_PASS and SRC_PASS_FILE may be set" in complaint(FTP, SRC_PASS_FILE=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SRC_PORT", "0"),
        ("SRC_PORT", "65536"),
        ("SRC_PORT", "ftp"),
        ("SRC_PORT", "21.0"),
        ("SRC_PORT", "2\u0661"),
        ("SRC_HOST", "ftp://example"),
        ("SRC_HOST", "example:21"),
        ("SRC_HOST", "exa mple"),
        ("SRC_HOST", "example\r\nDELE x"),
        ("SRC_USER", "a\r\nb"),
        ("SRC_PASS", "a\nb"),
        ("SRC_BASE_PATH", "a\x00b"),
        ("SRC_MAX_CONNECTIONS", "0"),
        ("SRC_PREWARM", "9"),
        ("SRC_BANDWIDTH_LIMIT", "20MB"),
        ("SRC_BANDWIDTH_LIMIT", "0"),
        ("SRC_BANDWIDTH_LIMIT", "8:00-18:00 20M"),
        ("SRC_PASSIVE", "maybe"),
        ("SRC_ENCODING", "klingon"),
        ("SRC_ENCODING", "utf-16"),
        ("SRC_ENCODING", "rot13"),
        ("SRC_ENCODING", "base64"),
        *[("SRC_ENCODING", odd) for odd in ("idna", "punycode", "utf-7", "hz", "iso2022_jp", "raw_unicode_escape")],
        ("SRC_ACCESS", "read,execute"),
        ("SRC_ACCESS", "none"),
        ("ETL_ALLOWED_PAIRS", "SRC"),
        ("ETL_ALLOWED_PAIRS", "SRC:"),
        ("ETL_ALLOWED_PAIRS", "SRC:SRC:SRC"),
        ("ETL_ALLOWED_PAIRS", "SRC:ELSEWHERE"),
        ("ETL_MAX_FILE_BYTES", "-1"),
        ("SRC_MIN_FREE", "1"),
        ("SRC_PARTIAL_PATTERN", "fixed"),
        ("SRC_PARTIAL_PATTERN", "a/{id}"),
        ("SRC_PARTIAL_PATTERN", "{id}{id}"),
        ("SRC_TYPE", "fpt"),
        ("SRC_PASSWORD", "x"),
        ("ETL_WORKERS", "0"),
        ("ETL_WORKERS", "many"),
        ("ETL_WORKERS", "1_0"),
        ("ETL_WORKERS", "9" * 5000),
        ("ETL_CONNECT_TIMEOUT_SECONDS", "nan"),
        ("ETL_CONNECT_TIMEOUT_SECONDS", "inf"),
        ("ETL_CONNECT_TIMEOUT_SECONDS", "0"),
        ("ETL_TRANSFER_TIMEOUT_SECONDS", "-1"),
        ("ETL_RETRY_BACKOFF_SECONDS", "301"),
        ("ETL_BOOTSTRAP_SERVERS", "a:1,,b:2"),
        ("ETL_BOOTSTRAP_SERVERS", "a:70000"),
        ("ETL_INSTANCE_ID", "a b"),
        ("ETL_SLOT", "-1"),
        ("ETL_GROUP_ID", "a\nb"),
        ("ETL_LOG_FORMAT", "xml"),
        ("ETL_LOG_LEVEL", "LOUD"),
        ("ETL_PLUGINS", "no-module"),
        ("ETL_PLUGINS", "module_that_is_not_there"),
        ("FTP_PASSIVE_MODE", "perhaps"),
        ("ETL_TOPIC", "."),
        ("ETL_TOPIC", ".."),
        ("ETL_TOPIC", "a b"),
        ("ETL_TOPIC", "작업"),
        ("ETL_TOPIC", "t" * 250),
        ("RESULT_TOPIC", "a/b"),
        ("DLQ_TOPIC_SUFFIX", ""),
        ("RETRY_TOPIC_SUFFIX", " "),
        ("RESULT_TOPIC_SUFFIX", "/x"),
        ("ETL_WROKERS", "3"),
    ],
)
def test_a_wrong_value_is_reported_by_the_name_of_its_setting(name, value):
    """Each wrong setting is one line of the message, and the only one."""
    lines = complaint(FTP, {name: value}).splitlines()
    assert lines[0] == "1 setting is wrong:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [name]


def test_the_smallest_number_that_is_accepted_is_shown_exactly():
    """4.1943e+06 would itself be too small."""
    assert "ETL_RESUME_FROM_BYTES: '0' is not a whole number from 4194304 to" in complaint(ETL_RESUME_FROM_BYTES="0")


@pytest.mark.parametrize("missing", ["HOST", "USER"])
def test_a_missing_host_or_user_is_an_error(missing):
    """A server of type ftp cannot do without."""
    assert f"SRC_{missing}: is missing" in complaint({**FTP, f"SRC_{missing}": ""})


@pytest.mark.parametrize("value", ["1G", "-1", "1.5", "9" * 30])
def test_what_must_stay_free_is_a_number_of_bytes(value):
    """Of a local server only: others tell nothing of their disks."""
    assert "HERE_MIN_FREE: is no whole number" in complaint(
        HERE_TYPE="local", HERE_BASE_PATH="/in", HERE_MIN_FREE=value
    )


def test_the_base_of_a_local_server_is_absolute():
    """It would depend on where each process was started."""
    assert "HERE_BASE_PATH: must begin with / for a server of type local" in complaint(
        HERE_TYPE="local", HERE_BASE_PATH="inbox"
    )


def test_an_unknown_type_with_a_host_is_an_error_with_the_known_ones():
    """`fpt` was meant to be `ftp`; what else is wrong with that server is said, too."""
    text = complaint(FTP, SRC_TYPE="fpt", SRC_PORT="x")
    assert "SRC_TYPE: 'fpt' is not a known protocol (known: " in text
    assert "SRC_PORT" in text


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("SRC_PASSWROD", "SRC_PASS"),
        ("SRC_HOSTNAME", "SRC_HOST"),
        ("SRC_USERNAME", "SRC_USER"),
        ("SRC_PORTS", "SRC_PORT"),
    ],
)
def test_an_unknown_property_is_an_error_with_the_nearest_known_one(wrong, near):
    """A typing error is never ignored; its value, perhaps a password, is not repeated."""
    text = complaint(FTP, {wrong: "tell-nobody"})
    assert f"{wrong}: unknown property for a server of type ftp (nearest: {near})" in text
    assert "tell-nobody" not in text


def test_a_property_of_another_protocol_is_unknown():
    """KEY_TYPE is the vault's; ftp does not know it."""
    assert "SRC_KEY_TYPE: unknown property" in complaint(FTP, SRC_KEY_TYPE="rsa")


def test_a_protocols_own_properties_become_options():
    """And one that ends in _TYPE makes no server of its own; its secrets are known as such."""
    vault = {**FTP, "SRC_TYPE": "vault", "SRC_KEY_TYPE": "rsa", "SRC_API_TOKEN": "t0ken-word"}
    loader = load(vault)
    assert set(loader.servers) == {"SRC"}
    assert loader.servers["SRC"].options == {"KEY_TYPE": "rsa", "API_TOKEN": "t0ken-word"}
    assert loader.secrets == ("s3cret-word", "t0ken-word")
    assert "word" not in repr(loader.servers)


@pytest.mark.parametrize(("wrong", "near"), [("ETL_WROKERS", "ETL_WORKERS"), ("etl_topics", "ETL_TOPIC")])
def test_an_unknown_etl_name_is_an_error_with_the_nearest_known_one(wrong, near):
    """Also in small letters."""
    assert f"{wrong.upper()}: unknown setting (nearest: {near})" in complaint({wrong: "3"})


def test_names_that_are_never_servers():
    """What other programs have under KAFKA_ and KUBERNETES_ is none, nor is a type without a name."""
    environ = {"KAFKA_UI_TYPE": "ftp", "KUBERNETES_X_TYPE": "web", "KUBERNETES_X_HOST": "x", "_TYPE": "ftp"}
    assert load(environ).servers == {}


@pytest.mark.parametrize(
    ("name", "place"),
    [("KAFKA", "HOST"), ("KAFKA_STORE", "HOST"), ("KUBERNETES_X", "BASE_PATH"), ("ETL", "HOST"), ("ETL_FOO", "PORT")],
)
def test_a_server_whose_name_is_taken_is_one_error(name, place):
    """It would vanish, or each of its variables be an unknown setting with a useless hint."""
    text = complaint({f"{name}_TYPE": "ftp", f"{name}_{place}": "21", f"{name}_USER": "u", f"{name}_PASS": "p"})
    prefix = name.split("_")[0] + "_"
    said = f"{name}_TYPE: {name} cannot be a server's name: variables that begin with {prefix} are reserved"
    assert text.splitlines() == ["1 setting is wrong:", f"  {said}"]


def test_a_server_called_ftp_does_not_own_the_global_settings():
    """FTP_PASSIVE_MODE and DLQ_TOPIC_SUFFIX stay what they are."""
    server = {name.replace("SRC", "FTP"): value for name, value in FTP.items()}
    loader = load(server, FTP_PASSIVE_MODE="false")
    assert set(loader.servers) == {"FTP"}
    assert loader.ftp_passive_mode is False


def test_the_longest_name_of_a_server_wins():
    """SRC and SRC_FTP are two servers: SRC_FTP_HOST is the HOST of the second."""
    other = {name.replace("SRC", "SRC_FTP"): value for name, value in FTP.items()}
    loader = load(FTP, other, SRC_FTP_HOST="other", SRC_FTP_MAX_CONNECTIONS="2")
    assert (loader.servers["SRC"].host, loader.servers["SRC_FTP"].host) == ("127.0.0.1", "other")
    assert loader.servers["SRC_FTP"].max_connections == 2


PARTS = st.sampled_from(["A", "FTP", "SRC", "TYPE", "HOST", "1", "PASS"])
NAMES = st.lists(PARTS, min_size=1, max_size=4).map("_".join)


@given(st.sets(NAMES, min_size=1, max_size=6))
def test_any_set_of_names_is_told_apart(names):
    """However the names of servers contain one another, each gets its own host."""
    settings = {}
    for name in names:
        settings |= {f"{name}_BASE_PATH": f"/{name}", f"{name}_MAX_CONNECTIONS": "2"}
    # A name such as A_TYPE makes A_TYPE_TYPE, and A_TYPE itself is then no property of A unless A is a server.
    types = {f"{name}_TYPE": "local" for name in names}
    loader = load(settings, types)
    assert {name: server.base_path for name, server in loader.servers.items()} == {name: f"/{name}" for name in names}


def test_two_names_of_one_address_may_have_different_passwords():
    """Only the user tells their pools apart."""
    other = {name.replace("SRC", "TWO"): value for name, value in FTP.items()}
    loader = load(FTP, other, TWO_PASS="else", TWO_HOST="127.0.0.1", SRC_HOST="127.0.0.1")
    assert loader.servers["SRC"].address == loader.servers["TWO"].address == ("ftp", "127.0.0.1", 21, "reader")


def test_an_address_ignores_the_case_of_the_host():
    """Host names are case-insensitive (RFC 4343)."""
    assert ServerConfig("A", "ftp", "FTP.Example", 21, "u").address == ("ftp", "ftp.example", 21, "u")


def test_an_ipv6_address_is_a_host():
    """With or without brackets."""
    assert {load(FTP, SRC_HOST=host).servers["SRC"].host for host in ("[::1]", "::1")} == {"::1"}


def test_an_unknown_server_is_refused_with_the_nearest_names():
    """UnknownServer is a ValueError."""
    loader = load({name.replace("SRC", "SRC_FTP_SERVER1"): value for name, value in FTP.items()})
    with pytest.raises(UnknownServer, match=r"'SRC_FTP_SERVER2' \(nearest: SRC_FTP_SERVER1\)") as caught:
        loader.get_server_config("SRC_FTP_SERVER2")
    assert isinstance(caught.value, ValueError)


def test_all_that_is_wrong_is_one_message():
    """Nobody wants to start eight times to learn of eight errors."""
    text = complaint(
        FTP, SRC_PORT="x", SRC_HOST="", ETL_WORKERS="x", ETL_NONSENSE="1", DLQ_TOPIC_SUFFIX="", A_TYPE="b", A_HOST="c"
    )
    assert text.splitlines()[0] == "6 settings are wrong:"
    for name in ("SRC_PORT", "SRC_HOST", "ETL_WORKERS", "ETL_NONSENSE", "DLQ_TOPIC_SUFFIX", "A_TYPE"):
        assert f"\n  {name}: " in text


@given(st.text(alphabet=string.ascii_letters + string.digits + "!#%&;", min_size=8, max_size=20))
def test_a_password_in_the_wrong_place_is_not_repeated(password):
    """Not even when it was put into the port, the type, a number or an unknown name."""
    names = ("SRC_PORT", "SRC_TYPE", "ETL_WORKERS", "ETL_UNKNOWN_NAME", "ETL_TOPIC", "SRC_PASSS", "SRC_ENCODING")
    secret = f"#{password}#"
    assert secret not in complaint(FTP, {"SRC_PASS": secret}, dict.fromkeys(names, secret))
    assert secret not in complaint(FTP, {"SRC_PASS": secret, "SRC_HOST": f"ftp://u:{secret}@host", "SRC_PORT": "x"})


@pytest.mark.parametrize(
    ("environ", "wrong"),
    [
        ({"DLQ_TOPIC_SUFFIX": "-retry"}, "RETRY_TOPIC_SUFFIX"),
        ({"DLQ_TOPIC_SUFFIX": "-results"}, "RESULT_TOPIC_SUFFIX"),
        ({"DLQ_TOPIC_SUFFIX": ".x", "RETRY_TOPIC_SUFFIX": "_x"}, "RETRY_TOPIC_SUFFIX"),
        ({"RESULT_TOPIC": "file-transfer-jobs"}, "RESULT_TOPIC"),
        ({"FAIL_TOPIC": "file-transfer-jobs-dlq"}, "FAIL_TOPIC"),
        ({"FAIL_TOPIC": "file-transfer-jobs-retry"}, "FAIL_TOPIC"),
        ({"ETL_TOPIC": "t" * 245}, "RESULT_TOPIC_SUFFIX"),
        ({"ETL_TOPIC": "t" * 200, "DLQ_TOPIC_SUFFIX": "s" * 50}, "DLQ_TOPIC_SUFFIX"),
    ],
)
def test_topics_that_collide_or_become_too_long_are_errors(environ, wrong):
    """Five topics, five names that Kafka takes and tells apart (it folds . and _)."""
    text = complaint(environ)
    assert f"\n  {wrong}: makes " in text


@pytest.mark.parametrize(
    "environ",
    [
        {"ETL_TOPIC": "t" * 241},
        {"ETL_TOPIC": "t" * 241, "DLQ_TOPIC_SUFFIX": "s" * 8},
        {"RESULT_TOPIC": "done", "FAIL_TOPIC": "done"},
        {"RESULT_TOPIC": "file-transfer-jobs-results"},
    ],
)
def test_topics_at_the_limit_are_accepted(environ):
    """249 characters with the suffix; one topic for both kinds of results is the reader's choice."""
    load(environ)


def test_plugins_are_imported_before_servers_are_validated(tmp_path, monkeypatch):
    """A protocol of one's own is known by the time its servers are looked at."""
    (tmp_path / "my_protocol_for_test.py").write_text(
        "from etl.config import PROTOCOLS, ProtocolSpec\n"
        "PROTOCOLS['mine'] = ProtocolSpec(99, settings={'COLOUR': 'of it'})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(PROTOCOLS, "mine", ProtocolSpec())
    loader = load(FTP, SRC_TYPE="mine", SRC_COLOUR="red", ETL_PLUGINS=" my_protocol_for_test ,")
    assert (loader.servers["SRC"].port, loader.servers["SRC"].options) == (99, {"COLOUR": "red"})


def test_a_plugin_that_fails_is_one_of_the_wrong_settings(tmp_path, monkeypatch):
    """With its error, beside what else is wrong."""
    (tmp_path / "broken_protocol_for_test.py").write_text("raise RuntimeError('no such luck')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    text = complaint(ETL_PLUGINS="broken_protocol_for_test", ETL_WORKERS="x")
    assert "ETL_PLUGINS: module 'broken_protocol_for_test' cannot be imported: RuntimeError: no such luck" in text
    assert "ETL_WORKERS" in text


def test_a_broken_entry_point_is_one_of_the_wrong_settings(monkeypatch):
    """An installed package whose protocol cannot be loaded is reported beside what else is wrong."""

    def broken(name: str) -> None:
        raise SettingsError(f"entry point x of {name}s: broken")

    monkeypatch.setattr(importlib, "import_module", broken)
    text = complaint(ETL_WORKERS="x")
    assert "etl.transfers: entry point x of etl.transfers: broken" in text
    assert "ETL_WORKERS" in text


def test_the_instance_is_known_to_be_set_or_not():
    """Static membership needs a chosen identity; the host name is only the default."""
    assert load().settings.instance_id
    assert not load().settings.instance_id_is_set
    chosen = load(ETL_INSTANCE_ID="node-1", ETL_SLOT="00").settings
    assert (chosen.instance_id, chosen.instance_id_is_set, chosen.slot) == ("node-1", True, 0)


def test_settings_reach_the_limits_of_a_session():
    """`settings.transfer` is what every transfer is given."""
    names = ("CONNECT", "LOGIN", "REPLY", "STALL")
    limits = {f"ETL_{name}_TIMEOUT_SECONDS": f"{n}.5" for n, name in enumerate(names, 1)}
    assert load(limits, FTP_PASSIVE_MODE="no").settings.transfer == TransferSettings(1.5, 2.5, 3.5, 4.5, passive=False)


@given(st.dictionaries(st.sampled_from(sorted(SETTINGS)), st.text(max_size=20), max_size=6))
def test_nothing_but_a_settings_error_comes_out_of_any_values(environ):
    """No value of any setting ends in a traceback."""
    environ.pop("ETL_PLUGINS", None)
    with suppress(SettingsError):
        load(environ)


@given(st.dictionaries(st.sampled_from(sorted(config.SERVER_PROPERTIES)), st.text(max_size=20), max_size=8))
def test_nothing_but_a_settings_error_comes_out_of_any_server(properties):
    """Nor any property of a server."""
    with suppress(SettingsError):
        load({"SRC_TYPE": "ftp", **{f"SRC_{name}": value for name, value in properties.items()}})


def test_get_config_loads_once(monkeypatch):
    """The process's settings, read from its environment."""
    get_config.cache_clear()
    monkeypatch.setenv("ETL_TOPIC", "of-the-process")
    try:
        assert get_config() is get_config()
        assert get_config().settings.topic == "of-the-process"
    finally:
        get_config.cache_clear()


def ftp(name: str, host: str = "lake", user: str = "etl", password: str = "right", port: str = "21") -> dict[str, str]:
    properties = {"TYPE": "ftp", "HOST": host, "USER": user, "PASS": password, "PORT": port}
    return {f"{name}_{key}": value for key, value in properties.items()}


def test_one_login_with_two_passwords_is_a_warning():
    """One of them is hardly right, and the two names share the wait after a refused login. No password is shown."""
    loader = load(ftp("IN"), ftp("OUT", host="LAKE", password="stale"), ftp("SAME"))
    assert loader.warnings == [
        "IN and OUT are one login, etl at LAKE:21, with two passwords: when one is refused, jobs of both names wait"
    ]
    assert set(loader.servers) == {"IN", "OUT", "SAME"}


@pytest.mark.parametrize("other", [{"host": "mill"}, {"user": "root"}, {"port": "2121"}], ids=["host", "user", "port"])
def test_other_logins_have_passwords_of_their_own(other):
    """Neither another server nor another user of the same one."""
    assert load(ftp("IN"), ftp("OUT", password="its own", **other)).warnings == []
