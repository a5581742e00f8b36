"""The .env file: it means the same to --env-file, docker --env-file and compose, or there is a warning."""

from __future__ import annotations

import os
import re
from contextlib import suppress

import dotenv
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.config import ConfigLoader, read_env_file, sources
from etl.errors import SettingsError

pytestmark = pytest.mark.unit

SERVER = "SRC_TYPE=ftp\nSRC_HOST=127.0.0.1\nSRC_USER=reader\n"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def env_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("env")

    def write(content: str | bytes):
        path = folder / "my.env"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_a_file_that_does_not_exist_is_an_error(tmp_path):
    """A typing error after --env-file must not start a consumer without servers."""
    with pytest.raises(SettingsError, match=r"env file: .*missing\.env: cannot be read: No such file"):
        ConfigLoader(tmp_path / "missing.env", {})


def test_a_file_that_cannot_be_read_is_reported_beside_what_else_is_wrong(tmp_path):
    """A folder instead of a file, and a wrong setting."""
    with pytest.raises(SettingsError) as caught:
        ConfigLoader(tmp_path, {"ETL_WORKERS": "x"})
    assert "2 settings are wrong" in str(caught.value)
    assert "cannot be read" in str(caught.value)


def test_a_file_that_is_not_utf8_is_an_error_with_its_line(env_file):
    """UTF-16, as some editors save, or a legacy encoding."""
    with pytest.raises(SettingsError, match="line 2 is not UTF-8"):
        ConfigLoader(env_file(b"A_B=1\nC_D=\xc7\xd1\n"), {})
    with pytest.raises(SettingsError, match="line 1 is not UTF-8"):
        ConfigLoader(env_file("ETL_TOPIC=x\n".encode("utf-16")), {})


def test_without_a_name_the_env_of_the_folder_is_read_if_there(tmp_path):
    """`.env` beside where one stands; none is fine."""
    assert ConfigLoader(environ={}).settings.workers == 8
    (tmp_path / ".env").write_text("ETL_WORKERS=2\n")
    assert ConfigLoader(environ={}).settings.workers == 2


@pytest.mark.parametrize("how", ["writable", "another's", "in a writable folder", "in another's folder"])
def test_a_file_that_another_user_could_have_written_is_only_read_if_it_is_named(tmp_path, how):
    """In whatever folder one stands: it could send a password that is set elsewhere to a stranger's broker."""
    path = tmp_path / ".env"
    path.write_text("ETL_BOOTSTRAP_SERVERS=stranger:9092\n")
    if "writable" in how:
        (tmp_path if "folder" in how else path).chmod(0o777)
    elif os.geteuid() == 0:
        os.chown(tmp_path if "folder" in how else path, 65534, 65534)
    else:
        pytest.skip("only root can give a file away")
    with pytest.raises(SettingsError, match=r"/\.env: it or its folder belongs to another user, or every user may"):
        ConfigLoader(environ={})
    assert ConfigLoader(path, environ={}).settings.bootstrap_servers == "stranger:9092"


def test_a_file_in_the_folder_for_temporary_files_is_ours_alone(tmp_path):
    """It is sticky: nobody else can replace what is in it."""
    (tmp_path / ".env").write_text("ETL_WORKERS=2\n")
    tmp_path.chmod(0o1777)
    assert ConfigLoader(environ={}).settings.workers == 2


def test_passwords_that_every_user_may_read_are_warned_of(tmp_path):
    """But no other settings, and no file that is for us to read only."""
    path = tmp_path / "my.env"
    path.write_text("SRC_TYPE=ftp\nSRC_HOST=x\nSRC_USER=u\nSRC_PASS=p\n")
    assert ConfigLoader(path, {}).warnings == []
    path.chmod(0o644)
    (warning,) = ConfigLoader(path, {}).warnings
    assert warning == f"env file {path}: every user may read its passwords: chmod 600 {path}"
    path.write_text("ETL_WORKERS=2\n")
    assert ConfigLoader(path, {}).warnings == []


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfETL_WORKERS=2\r\nETL_TOPIC=x\r\n", b"ETL_WORKERS=2\nETL_TOPIC=x"])
def test_windows_line_ends_and_a_byte_order_mark_change_nothing(env_file, content):
    """As Notepad saves it, and without a last line end."""
    loader = ConfigLoader(env_file(content), {})
    assert (loader.settings.workers, loader.settings.topic, loader.warnings) == (2, "x", [])


def test_values_are_taken_as_they_stand(env_file):
    """No interpolation, no escapes; a # inside a word and an = are part of the value."""
    values, warnings, _ = read_env_file(env_file("A_B=a=b#c\nA_C='$HOME #x'\nA_D=\"한 글\"\nA_E=\n# A_F=1\n\n   # x\n"))
    assert values == {"A_B": "a=b#c", "A_C": "$HOME #x", "A_D": "한 글", "A_E": ""}
    assert warnings == []


@pytest.mark.parametrize(
    ("line", "value", "why"),
    [
        ("A_B=pa$$word", "pa$$word", "$"),
        ('A_B="pa$word"', "pa$word", "$"),
        ("A_B=5 # lanes", "5 # lanes", "#"),
        ("A_B=#5", "#5", "#"),
        ("A_B=5 ", "5", "blanks around its value"),
        ("A_B= 5", "5", "blanks around its value"),
        ("A_B =5", "5", "before its ="),
        ("export A_B=5", "5", "export"),
        ('A_B="open', '"open', "quote"),
        ('A_B="a" # b', '"a" # b', "quote"),
        (r'A_B="a\nb"', r"a\nb", "backslashes"),
        ("A_B=a\rb", "a\rb", "carriage return"),
        ("A_B='it's'", "it's", "quotes"),
        ("A_B='\"x\"'", '"x"', "quotes"),
    ],
)
def test_what_the_three_would_read_differently_is_a_warning(env_file, line, value, why):
    """The value is taken as docker does; the warning names key and line, never the value."""
    values, warnings, _ = read_env_file(env_file(f"# first\n{line}\n"))
    assert values == {"A_B": value}
    assert len(warnings) == 1
    assert "line 2: A_B " in warnings[0]
    assert why in warnings[0]


@pytest.mark.parametrize("line", ["hunter2", "A_PORT hunter2", "hunt er2=x", "=hunter2", "hunter2: x", "한글=hunter2"])
def test_a_line_that_is_no_setting_is_an_error_that_does_not_repeat_it(env_file, line):
    """It may be the second line of a secret; beside it stands what else is wrong."""
    path = env_file(f"ETL_WORKERS=0\n{line}\n")
    assert read_env_file(path)[0] == {"ETL_WORKERS": "0"}
    with pytest.raises(SettingsError) as caught:
        ConfigLoader(path, {})
    said = str(caught.value)
    assert said.startswith(f"2 settings are wrong:\n  env file {path}, line 2: is not NAME=value\n  ETL_WORKERS: ")
    assert "hunt" not in said


def test_a_key_given_twice_is_a_warning_and_the_last_one_holds(env_file):
    """As with docker and compose."""
    values, warnings, _ = read_env_file(env_file("A_B=1\nA_B=2\n"))
    assert values == {"A_B": "2"}
    assert "A_B is set twice" in warnings[0]


def test_a_key_of_the_file_that_belongs_to_nothing_is_a_warning(env_file):
    """A property of a server without a type, another program's key, a global name with a typing error."""
    path = env_file(
        "DST_USER=someone\nTOOL_TYPE=fpt\nTOOL_USER=me\nDLQ_TOPIC_SUFIX=-x\nKAFKA_ADVERTISED_HOST=me\nETL_WORKERS=1\n"
        + SERVER
        + "SRC_PASS=x\n"
    )
    loader = ConfigLoader(path, {"UNRELATED": "x"})
    assert [warning.split(": ", 1)[1] for warning in loader.warnings] == [
        "DST_USER belongs to no setting and no server (DST_TYPE is not set)",
        "TOOL_TYPE belongs to no setting and no server (TOOL_TYPE is not a known protocol, and TOOL_HOST is not set)",
        "TOOL_USER belongs to no setting and no server (TOOL_TYPE is not a known protocol, and TOOL_HOST is not set)",
        "DLQ_TOPIC_SUFIX belongs to no setting and no server (nearest: DLQ_TOPIC_SUFFIX)",
    ]


def test_warnings_stand_beside_what_is_wrong(env_file):
    """A misspelled name is the very reason why its setting is missing."""
    path = env_file("SRC_TYPE=ftp\nSCR_HOST=127.0.0.1\nSRC_USER=u\nSRC_USER=u\nSRC_PASS=p\n")
    with pytest.raises(SettingsError) as caught:
        ConfigLoader(path, {})
    assert str(caught.value).splitlines() == [
        "1 setting is wrong:",
        "  SRC_HOST: is missing",
        "warnings:",
        f"  env file {path}, line 4: SRC_USER is set twice; the last value is used",
        f"  env file {path}: SCR_HOST belongs to no setting and no server (SCR_TYPE is not set)",
    ]


def test_an_unknown_etl_name_of_the_file_is_an_error(env_file):
    """As in the environment."""
    with pytest.raises(SettingsError, match="ETL_WORKER: unknown setting"):
        ConfigLoader(env_file("ETL_WORKER=1\n"), {})


def test_warnings_hold_no_password(env_file):
    """Whatever is odd about the line of a password."""
    for password in ("hunter2$", "hunter2 #", '"hunter2', "hunter2 ", "'hunt'er2'"):
        loader = ConfigLoader(env_file(f"{SERVER}SRC_PASS={password}\n"), {})
        assert loader.warnings
        assert not re.search(r"hunt|er2", "".join(loader.warnings))


def test_the_reader_of_the_file_is_python_dotenv(env_file, monkeypatch):
    """It interpolates nothing, whatever stands in the environment."""
    monkeypatch.setenv("A_B", "from-the-environment")
    lines = ("A_B=1", "A_C='$A_B ${A_B}'", "A_D=${A_B}")
    assert read_env_file(env_file("\n".join(lines)))[0] == {"A_B": "1", "A_C": "$A_B ${A_B}", "A_D": "${A_B}"}
    assert sources.dotenv_values is dotenv.dotenv_values


def as_docker(text: str) -> dict[str, str]:
    """What `docker run --env-file` puts into the environment (docker/cli, kvfile): the text after the =, as it is."""
    lines = [line.removesuffix("\r").lstrip(" \t") for line in text.removeprefix("\ufeff").split("\n")]
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {name: value for name, value in pairs if name and not re.search(r"\s", name)}


def as_compose(text: str) -> dict[str, str]:
    """What compose puts there (compose-go, dotenv): quotes, escapes, comments and variables are worked on."""
    found = {}
    for raw in text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n"):
        line = raw.strip()
        if "=" not in line or line.startswith("#"):
            continue
        name, value = line.removeprefix("export ").split("=", 1)
        value = value.strip()
        quoted = re.fullmatch(r"""(["'])((?:\\.|(?!\1).)*)\1(\s+#.*)?""", value)
        if quoted:
            value = quoted[2]
            if quoted[1] == '"':
                value = re.sub(r"\\(.)", lambda c: {"n": "\n", "t": "\t"}.get(c[1], c[1]), value)
        else:
            value = value.split(" #")[0].rstrip()
        if not quoted or quoted[1] == '"':
            value = value.replace("$$", "\0").replace("\0", "$") if "$$" in value else re.sub(r"\$\{?\w*\}?", "", value)
        found[name.strip()] = value
    return found


@given(st.text(alphabet="ab \t\"'$#\\={}한\r", max_size=10))
def test_a_password_without_a_warning_means_the_same_to_all_three(env_file, password):
    """Read by --env-file, or put into the environment by docker or compose: the same password."""
    text = f"{SERVER}SRC_PASS={password}\n"
    try:
        loader = ConfigLoader(env_file(text), {})
    except SettingsError:
        return  # a line break within
    if not loader.warnings:
        by_docker, by_compose = ConfigLoader(environ=as_docker(text)), ConfigLoader(environ=as_compose(text))
        mine = loader.servers["SRC"].password
        assert by_docker.servers["SRC"].password == mine
        assert by_compose.servers["SRC"].password == mine


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_nothing_but_a_settings_error_comes_out_of_any_file(env_file, content):
    """No content ends in a traceback."""
    with suppress(SettingsError):
        ConfigLoader(env_file(content), {})
