"""Environments as they are found: a desktop, a pod, linked containers, CI. None of them trips the settings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.config import ConfigLoader, Settings
from etl.errors import SettingsError

pytestmark = pytest.mark.unit

DESKTOP = {
    "XDG_SESSION_TYPE": "x11",
    "XDG_SESSION_CLASS": "user",
    "TERM_TYPE": "xterm",
    "TERM": "xterm-256color",
    "LS_COLORS": "rs=0:di=01;34:ln=01;36",
    "DISPLAY": ":0",
    "OSTYPE": "linux-gnu",
    "MACHTYPE": "x86_64",
    "HOSTNAME": "laptop",
    "HOST": "laptop",
    "USER": "me",
    "PORT": "3000",
    "TYPE": "x",
    "LANG": "ko_KR.UTF-8",
    "http_proxy": "http://proxy:3128",
    "HTTP_PROXY": "http://proxy:3128",
    "DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/user/1000/bus",
    "BASH_FUNC_module%%": "() {  eval $(modulecmd bash $*)\n}",
    "SSH_AUTH_SOCK": "/run/agent",
    "LESSOPEN": "| /usr/bin/lesspipe %s",
    "_": "/usr/bin/python3",
}


def service(name: str, port: int = 80, address: str = "10.96.0.7") -> dict[str, str]:
    """What Kubernetes tells a pod of a service."""
    url = f"tcp://{address}:{port}"
    return {
        f"{name}_SERVICE_HOST": address,
        f"{name}_SERVICE_PORT": str(port),
        f"{name}_SERVICE_PORT_HTTP": str(port),
        f"{name}_PORT": url,
        f"{name}_PORT_{port}_TCP": url,
        f"{name}_PORT_{port}_TCP_PROTO": "tcp",
        f"{name}_PORT_{port}_TCP_PORT": str(port),
        f"{name}_PORT_{port}_TCP_ADDR": address,
    }


def link(name: str, port: int = 21) -> dict[str, str]:
    """What Docker tells a container of one that it is linked to."""
    url = f"tcp://172.17.0.5:{port}"
    return {
        f"{name}_NAME": f"/etl/{name.lower()}",
        f"{name}_PORT": url,
        f"{name}_PORT_{port}_TCP": url,
        f"{name}_PORT_{port}_TCP_PROTO": "tcp",
        f"{name}_PORT_{port}_TCP_PORT": str(port),
        f"{name}_PORT_{port}_TCP_ADDR": "172.17.0.5",
        f"{name}_ENV_FTP_TYPE": "ftp",
        f"{name}_ENV_FTP_PASS": "of-the-other",
    }


POD = {
    **service("KUBERNETES", 443),
    **service("FOO"),
    **service("KAFKA_UI"),
    **service("ETL"),
    **service("ETL_TOPIC"),
    **service("ETL_WORKERS_API", 8080),
    "KUBERNETES_TYPE": "ftp",
    "POD_NAME": "etl-0",
    "HOSTNAME": "etl-0",
}
CI = {
    "CI": "true",
    "GITHUB_REF_TYPE": "branch",
    "GITHUB_ACTIONS": "true",
    "RUNNER_OS": "Linux",
    "CI_REGISTRY_USER": "ci",
    "CI_SERVER_HOST": "git.example",
    "CI_SERVER_PORT": "443",
    "CI_JOB_STATUS": "running",
    "PYTEST_CURRENT_TEST": "x",
}
ENVIRONMENTS = {
    "nothing": {},
    "desktop": DESKTOP,
    "pod": POD,
    "links": {**link("DB", 5432), **link("FTP")},
    "linked container called etl": link("ETL"),
    "ci": CI,
    "all": {**DESKTOP, **POD, **link("DB"), **CI},
}
SERVER = {"SRC_FTP_TYPE": "ftp", "SRC_FTP_HOST": "src-ftp", "SRC_FTP_USER": "u", "SRC_FTP_PASS": "p"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("environ", ENVIRONMENTS.values(), ids=ENVIRONMENTS.keys())
def test_an_environment_as_found_trips_nothing(environ):
    """No server, no error, no warning, and every setting at its default."""
    loader = ConfigLoader(environ=environ)
    assert (loader.servers, loader.warnings, loader.settings) == ({}, [], Settings())


@pytest.mark.parametrize("environ", ENVIRONMENTS.values(), ids=ENVIRONMENTS.keys())
def test_a_server_of_ours_is_the_same_in_every_environment(environ):
    """What surrounds it changes nothing of it."""
    assert ConfigLoader(environ={**environ, **SERVER}).servers == ConfigLoader(environ=SERVER).servers


def test_the_environment_of_this_process_trips_nothing():
    """Wherever these tests run."""
    ConfigLoader()


@pytest.mark.parametrize("around", [service("SRC_FTP", 21), link("SRC_FTP")], ids=["service", "link"])
def test_a_service_called_like_a_server_sets_nothing_of_it(around):
    """SRC_FTP_PORT=tcp://... is no port: the default is used, and said; a PORT of the file holds."""
    loader = ConfigLoader(environ={**around, **SERVER})
    assert loader.servers["SRC_FTP"].port == 21
    assert loader.warnings == ["SRC_FTP_PORT is a service link, not a port number: 21 is used"]


def test_a_port_of_the_file_holds_beside_a_service_of_that_name(tmp_path):
    """The link hides nothing."""
    file = tmp_path / "my.env"
    file.write_text("SRC_FTP_PORT=2121\n")
    loader = ConfigLoader(file, {**service("SRC_FTP", 21), **SERVER})
    assert (loader.servers["SRC_FTP"].port, loader.warnings) == (2121, [])


def test_a_port_that_a_pod_sets_itself_holds_beside_a_service_of_that_name():
    """A pod's own `env` wins over the link; the rest of the link is still none of ours."""
    loader = ConfigLoader(environ={**service("SRC_FTP", 21), **SERVER, "SRC_FTP_PORT": "2121"})
    assert (loader.servers["SRC_FTP"].port, loader.warnings) == (2121, [])


def test_a_server_may_be_called_service_beside_a_service():
    """FILE_SERVICE_HOST belongs to the server FILE_SERVICE when that has a type, not to a service called FILE."""
    server = {name.replace("SRC_FTP", "FILE_SERVICE"): value for name, value in SERVER.items()}
    loader = ConfigLoader(environ={**service("FILE"), **server})
    assert loader.servers["FILE_SERVICE"].host == "src-ftp"


@pytest.mark.parametrize("name", ["SRC_FTP_ENV_X", "SRC_FTP_NAME", "SRC_FTP_SERVICE_HOST"])
def test_what_looks_like_a_link_without_one_is_an_unknown_property(name):
    """Only a service that is there makes its names none of ours."""
    with pytest.raises(SettingsError, match=f"{name}: unknown property"):
        ConfigLoader(environ={**SERVER, name: "x"})


def test_an_etl_name_with_a_typing_error_is_found_in_any_environment():
    """The links of a service called etl do not hide it."""
    with pytest.raises(
        SettingsError, match=r"ETL_SHUTDOWN_GRACE: unknown setting \(nearest: ETL_SHUTDOWN_GRACE_SECONDS\)"
    ):
        ConfigLoader(environ={**ENVIRONMENTS["all"], "ETL_SHUTDOWN_GRACE": "5"})


SERVICE_NAMES = st.lists(
    st.sampled_from(["ETL", "SRC", "FTP", "TOPIC", "API", "SERVICE", "PORT", "KAFKA", "A1"]), min_size=1, max_size=3
).map("_".join)


@given(st.lists(st.tuples(SERVICE_NAMES, st.sampled_from([service, link])), max_size=5))
def test_services_of_any_names_trip_nothing(neighbours):
    """Whatever else runs in the namespace."""
    around = {}
    for name, kind in neighbours:
        around |= kind(name)
    loader = ConfigLoader(environ={**around, **SERVER})
    assert set(loader.servers) == {"SRC_FTP"}
    assert loader.servers["SRC_FTP"].host == "src-ftp"
