"""Every command of the README's chapter on containers, as it stands there, in order."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import containers
import pytest

import stack

pytestmark = [pytest.mark.container, pytest.mark.timeout(1500)]

NAMES = ("etl", "etl-broker", "etl-consumers")


def _commands() -> str:
    readme = (stack.REPOSITORY / "README.md").read_text(encoding="utf-8")
    chapter = readme.partition("\n## In a container\n")[2].partition("\n## ")[0]
    return "\n".join(line[4:] for line in chapter.splitlines() if line.startswith("    ")) + "\n"


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Path]:
    """What the commands need of the repository, in a folder of their own (they write `.env`)."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("docker", "kafka", "src"):
        shutil.copytree(stack.REPOSITORY / name, folder / name, symlinks=True)
    for name in ("docker-compose.parallel.yml", "docker-compose.test.yml", ".dockerignore", "pyproject.toml", "LICENSE",
                 "requirements.txt"):  # fmt: skip
        shutil.copy(stack.REPOSITORY / name, folder / name)
    yield folder
    containers.docker("rm", "--force", "--volumes", *NAMES, check=False)
    for file in ("docker-compose.parallel.yml", "docker-compose.test.yml"):
        containers.docker("compose", "--file", str(folder / file), "down", "--volumes", "--timeout", "2", check=False)


def test_every_command_of_the_chapter_works(copy: Path, image: str, ftp_image: str, base_image: str) -> None:
    """The first one that fails ends it. Both images are built already: the two builds take a second each."""
    commands = _commands()
    assert commands.count("docker ") > 20
    environment = {key: value for key, value in containers.ENVIRONMENT.items() if not key.endswith("IMAGE")}
    done = subprocess.run(
        ["bash", "-x", "-euo", "pipefail", "-c", commands],
        cwd=copy,
        env=environment | {"BASE_IMAGE": base_image},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert re.findall(r"^hello$", done.stdout, re.MULTILINE) == ["hello", "hello"]
