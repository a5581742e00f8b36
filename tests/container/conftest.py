"""Fixtures of the container tests: Docker Engine, the image built on this machine's base image, a world to use up."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import containers
import pytest

import stack


@pytest.fixture(scope="session")
def base_image() -> str:
    """The base image, with the engine running; a machine on which it cannot start fails every test with the reason."""
    done = subprocess.run(
        [str(stack.REPOSITORY / "docker" / "engine.sh")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"docker/engine.sh: exit code {done.returncode}\n{done.stderr}", pytrace=False)
    return done.stdout.strip()


@pytest.fixture(scope="session")
def image(base_image: str) -> str:
    """The image of the appliance, built from this tree."""
    containers.build("docker/Dockerfile", containers.IMAGE, base_image)
    return containers.IMAGE


@pytest.fixture(scope="session")
def ftp_image(base_image: str) -> str:
    """The image of the FTP servers of the tests (vsftpd)."""
    containers.build("docker/ftp/Dockerfile", containers.FTP_IMAGE, base_image)
    return containers.FTP_IMAGE


@pytest.fixture
def world(image: str) -> Iterator[containers.World]:
    """A world of a test's own."""
    made = containers.World()
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared_world(image: str) -> Iterator[containers.World]:
    """A world for the tests of one file."""
    made = containers.World()
    yield made
    made.close()
