"""What the image is made of, as far as that can be said without building it."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from etl import cli

pytestmark = pytest.mark.unit

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKER = REPOSITORY / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
LOCK = (DOCKER / "requirements.lock").read_text()


def pinned() -> dict[str, str]:
    return {
        canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==([\w.]+)", LOCK, re.MULTILINE)
    }


def test_the_lock_fits_the_requirements() -> None:
    """Each is there in a version that it allows; `make lock` makes it anew."""
    for line in (REPOSITORY / "requirements.txt").read_text().splitlines():
        wanted = Requirement(line.partition("#")[0].strip())
        assert wanted.specifier.contains(pinned()[canonicalize_name(wanted.name)]), line
        for extra in wanted.extras:
            library = {"snappy": "python-snappy", "zstd": "zstandard"}.get(extra, extra)
            assert library in pinned()


def test_the_entrypoint_knows_every_command() -> None:
    """A first word that is a command's name is the command."""
    listed = re.search(r"^ +(consume[^)]*)\)", (DOCKER / "entrypoint.sh").read_text(), re.MULTILINE)
    assert listed
    words = {word.strip() for word in listed[1].split("|")}
    assert words == {*cli.COMMANDS, "-h", "--help", "--version"}


def test_what_the_image_runs_is_in_it_and_can_be_run() -> None:
    """Every file that appliance.py and the entrypoint name is copied; scripts are executable."""
    copied = set(re.findall(r"docker/([\w.-]+\.(?:py|sh|conf))", DOCKERFILE.partition("COPY LICENSE")[2]))
    named = set(re.findall(r"""["']docker["'] / ["']([\w.-]+\.\w+)""", (DOCKER / "appliance.py").read_text()))
    assert {"backoff.sh", "watch.py", "supervise.py", "supervisord.conf"} <= named
    named |= set(re.findall(r"docker/([\w.-]+\.\w+)\"", (DOCKER / "entrypoint.sh").read_text()))
    assert named - {"appliance.py"} <= copied
    for script in DOCKER.glob("*.sh"):
        assert script.stat().st_mode & stat.S_IXUSR, script


def test_the_dockerfile_is_one_that_docker_20_reads_and_names_no_registry() -> None:
    """No syntax line, no heredoc, no --link; the base image is the only name of an image."""
    assert not re.search(r"^# *syntax=|<<-?['\"]?\w|--link|--network", DOCKERFILE, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"${BASE_IMAGE}", "system"}
    assert not re.search(r"https?://", DOCKERFILE)


def test_the_kafka_commands_of_the_image_exist() -> None:
    """Each link to docker/inside.sh has a command behind it."""
    linked = DOCKERFILE.partition("for name in ")[2].partition(";")[0].split()
    assert len(linked) == 5
    assert all((REPOSITORY / "kafka" / "bin" / f"kafka-{name}.sh").exists() for name in linked)


def test_nothing_is_published_beyond_this_host_unless_a_variable_says_so() -> None:
    """In the compose files, and in the commands that the documents tell."""
    published = []
    for file in REPOSITORY.glob("docker-compose*.yml"):
        ports = [service.get("ports", []) for service in yaml.safe_load(file.read_text())["services"].values()]
        published += [str(port) for some in ports for port in some]
    assert published
    documents = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md"), *REPOSITORY.glob("*.md")]
    for document in documents:
        published += re.findall(r"(?:-p|--publish) (\S+)", "".join(re.findall(r"docker run.*", document.read_text())))
    narrow = ("127.0.0.1:", "${KAFKA_PUBLISH_ADDRESS:-127.0.0.1}:", "${API_PUBLISH_ADDRESS:-127.0.0.1}:")
    assert [port for port in published if not port.startswith(narrow)] == []


def test_the_hardened_compose_file_is_for_every_service() -> None:
    """None is left without a login, or without limits."""
    services, hardened = (
        yaml.safe_load((REPOSITORY / f"docker-compose.{name}.yml").read_text())["services"]
        for name in ("parallel", "secure")
    )
    assert set(hardened) == set(services)
    for name, service in hardened.items():
        assert {"mem_limit", "pids_limit"} <= set(service)
        assert "SASL_SSL" in service["environment"].values()
        assert services[name]["read_only"]
        assert (services[name]["cap_drop"], services[name]["security_opt"]) == (["ALL"], ["no-new-privileges:true"])


def test_the_listener_for_other_containers_is_off_unless_it_is_asked_for() -> None:
    """Neither the image nor its entrypoint sets it; every network has neighbours."""
    assert "KAFKA_NETWORK_HOST" not in DOCKERFILE + (DOCKER / "entrypoint.sh").read_text()


def test_no_settings_and_no_history_are_in_the_context_of_the_image() -> None:
    """What may come is listed, and nothing else does: neither a `.env` nor `.git`."""
    lines = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    listed = {line[1:] for line in lines if line.startswith("!")}
    assert listed == {"LICENSE", "pyproject.toml", "requirements.txt", "src", "kafka", "docker"}
    for folder in ("src", "kafka", "docker"):
        assert not list((REPOSITORY / folder).rglob(".env")), folder
