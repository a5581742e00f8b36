"""A machine with nothing but git and make: a fresh clone and `make demo` as root, and that is all."""

from __future__ import annotations

import pytest
from containers import DockerError, World, docker

import stack

pytestmark = [pytest.mark.container, pytest.mark.timeout(1500)]

BARE = "etl-file-sync-bare:test"
DOCKERFILE = """
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN apt-get -q update && apt-get -q -y install --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
"""


def test_make_demo_works_in_a_fresh_clone_on_a_bare_machine(base_image: str) -> None:
    """Everything else is installed by the demonstration itself; 200 files arrive and nothing is left running."""
    docker(
        "build", "--quiet", "--tag", BARE, "--build-arg", f"BASE_IMAGE={base_image}", "-", stdin=DOCKERFILE, limit=300
    )
    world = World()
    script = (
        "git config --global --add safe.directory '*' && git clone --quiet file:///source /clone "
        "&& cd /clone && make demo"
    )
    try:
        machine = world.run(
            "bash", "-c", script, image=BARE, options=["--init", "--volume", f"{stack.REPOSITORY}:/source:ro"]
        )
        code = docker("wait", machine.name, limit=1200).stdout.strip()
        log = machine.logs()
    except DockerError as error:
        pytest.fail(str(error))
    finally:
        world.close()
    assert code == "0", log[-6000:]
    assert "everything was stopped" in log
