"""The real Docker Engine as tests use it: containers, networks and volumes with names of their own, and compose.

Knows no fixture and no code of the product.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import stack

IMAGE = "etl-file-sync:test"
FTP_IMAGE = "etl-file-sync-ftp:test"
REPOSITORY = stack.REPOSITORY
LABEL = "etl-file-sync.test"
# The packaged client before any other; nothing of who runs the tests reaches compose.
ENVIRONMENT = {
    "PATH": "/usr/bin:/usr/sbin:/bin:/sbin:/usr/local/bin",
    "HOME": os.environ.get("HOME", "/root"),
    "DOCKER_BUILDKIT": "1",
    "IMAGE": IMAGE,
    "FTP_IMAGE": FTP_IMAGE,
}


class DockerError(Exception):
    """Raised when a command of Docker failed; holds all that it printed."""


def docker(
    *arguments: str,
    limit: float = 120.0,
    check: bool = True,
    stdin: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `docker …`, return what it printed; raise if it failed."""
    done = subprocess.run(
        ["docker", *arguments],
        env=ENVIRONMENT | dict(environment or {}),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    if check and done.returncode != 0:
        raise DockerError(f"docker {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def build(dockerfile: str, tag: str, base_image: str) -> None:
    """Build an image on the base image of this machine. Workers take turns: others find what the first one built."""
    stack.BUILD.mkdir(exist_ok=True)
    with (stack.BUILD / ".image.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        docker(
            "build", "--progress=plain", "--file", dockerfile, "--tag", tag, "--build-arg", f"BASE_IMAGE={base_image}",
            str(REPOSITORY), limit=1500,
        )  # fmt: skip


class Container:
    """One container: started by `World.run`, removed with its world."""

    def __init__(self, name: str) -> None:
        self.name = name

    def exec(self, *command: str, limit: float = 60.0, check: bool = True, user: str | None = None) -> str:
        """Run a command inside, return what it printed on standard output."""
        options = ["--user", user] if user else []
        try:
            return docker("exec", *options, self.name, *command, limit=limit, check=check).stdout
        except (DockerError, subprocess.TimeoutExpired) as error:
            error.add_note(self.logs()[-6000:])
            raise

    def try_exec(self, *command: str, limit: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command inside that may fail."""
        return docker("exec", self.name, *command, limit=limit, check=False)

    def write(self, path: str, content: bytes | str) -> None:
        """Write a file inside, as the container's user."""
        text = content if isinstance(content, str) else content.decode("latin-1")
        folder = str(Path(path).parent)
        docker("exec", "-i", self.name, "sh", "-c", f"mkdir -p '{folder}' && cat >'{path}'", stdin=text)

    def state(self) -> dict[str, Any]:
        """What the engine says of its state."""
        found: dict[str, Any] = json.loads(docker("inspect", self.name).stdout)[0]["State"]
        return found

    def logs(self) -> str:
        """All it has printed, both streams."""
        done = docker("logs", self.name)
        return done.stdout + done.stderr

    def wait_for(self, text: str, limit: float = 60.0, count: int = 1) -> None:
        """Wait until its log holds `text` so many times."""
        try:
            stack.wait_until(lambda: self.logs().count(text) >= count, limit, f"{text!r} in the log of {self.name}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.logs()[-4000:]}") from None

    def wait_healthy(self, limit: float = 90.0) -> None:
        """Wait until the health check passes. Asked directly: the engine asks only every few seconds."""
        deadline = time.monotonic() + limit
        while True:
            done = self.try_exec("/opt/etl/.venv/bin/python", "/opt/etl/docker/health.py")
            if done.returncode == 0:
                return
            if time.monotonic() > deadline or not self.state()["Running"]:
                raise TimeoutError(f"{self.name} is not well: {done.stdout}{done.stderr}\n{self.logs()[-4000:]}")
            time.sleep(0.2)

    def wait_until_consuming(self, count: int = 2, limit: float = 90.0) -> None:
        """Wait until so many consumers have started."""
        self.wait_for("consumer started", limit, count)

    def stop(self) -> float:
        """Stop it as a user does; return the seconds that took."""
        began = time.monotonic()
        docker("stop", self.name)
        return time.monotonic() - began

    def kill(self) -> None:
        """Kill it."""
        docker("kill", self.name)

    def start(self) -> None:
        """Start it again."""
        docker("start", self.name)

    def processes(self) -> list[tuple[str, int, str]]:
        """Return (user, process id inside, command line) of its processes."""
        script = (
            "import os,glob\n"
            "for p in glob.glob('/proc/[0-9]*'):\n"
            "  try: line = open(p+'/cmdline').read()[:4000].replace(chr(0),' ').replace(chr(10),' ')\n"
            "  except OSError: continue\n"
            "  if int(p[6:]) != os.getpid(): print(os.stat(p).st_uid, p[6:], line, sep='|')\n"
        )
        rows = self.exec("/opt/etl/.venv/bin/python", "-c", script).splitlines()
        return [(user, int(pid), command) for user, pid, command in (row.split("|", 2) for row in rows)]

    def signal(self, pid: int, name: str) -> None:
        """Send a signal to a process inside (`kill` is a word of the shell, not a program there)."""
        self.exec("sh", "-c", f"kill -{name} {pid}")

    def consumers(self) -> dict[int, int]:
        """Return the consumers' process ids by their slot, of those that run."""
        found: dict[int, int] = {}
        for _user, pid, command in self.processes():
            if "-m etl.main" in command and "etl.main api" not in command:
                environment = self.exec("cat", f"/proc/{pid}/environ", check=False)
                slots = [part for part in environment.split("\0") if part.startswith("ETL_SLOT=")]
                if slots:
                    found[int(slots[0].partition("=")[2])] = pid
        return found


class World:
    """What one test brings into being: its containers, networks and volumes are removed at its end."""

    def __init__(self) -> None:
        self.id = f"etl-{uuid.uuid4().hex[:8]}"
        self._count = 0
        self._containers: list[str] = []
        self._networks: list[str] = []
        self._volumes: list[str] = []

    def name(self, kind: str) -> str:
        """Return a name that nobody has."""
        self._count += 1
        return f"{self.id}-{kind}{self._count}"

    def run(
        self,
        *arguments: str,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        image: str = IMAGE,
        name: str | None = None,
    ) -> Container:
        """`docker run -d`; `arguments` come after the image's name."""
        name = name or self.name("c")
        self._containers.append(name)
        settings = [part for pair in (env or {}).items() for part in ("--env", "=".join(pair))]
        docker("run", "--detach", "--name", name, "--label", LABEL, *settings, *options, image, *arguments)
        return Container(name)

    def network(self) -> str:
        """Make a network."""
        name = self.name("net")
        docker("network", "create", "--label", LABEL, name)
        self._networks.append(name)
        return name

    def volume(self) -> str:
        """Make a volume."""
        name = self.name("vol")
        docker("volume", "create", "--label", LABEL, name)
        self._volumes.append(name)
        return name

    def close(self) -> None:
        """Remove everything."""
        if self._containers:
            docker("rm", "--force", "--volumes", *self._containers, check=False)
        if self._networks:
            docker("network", "rm", *self._networks, check=False)
        if self._volumes:
            docker("volume", "rm", "--force", *self._volumes, check=False)


def run_once(
    *arguments: str, options: Sequence[str] = (), env: Mapping[str, str] | None = None, limit: float = 90.0
) -> subprocess.CompletedProcess[str]:
    """`docker run --rm` in the foreground; may fail."""
    settings = [part for pair in (env or {}).items() for part in ("--env", "=".join(pair))]
    return docker("run", "--rm", "--label", LABEL, *settings, *options, IMAGE, *arguments, limit=limit, check=False)


class Compose:
    """One project of a compose file, with a name of its own."""

    def __init__(self, *files: str, environment: Mapping[str, str] | None = None) -> None:
        self.project = f"etl{uuid.uuid4().hex[:8]}"
        self._files = [part for file in files for part in ("--file", str(REPOSITORY / file))]
        self.environment = {"ETL_TEST_NAME": f"{self.project}-broker"} | dict(environment or {})

    def __call__(self, *arguments: str, limit: float = 180.0, check: bool = True, stdin: str | None = None) -> str:
        """Run `docker compose …` on the project."""
        command = ["compose", "--project-name", self.project, *self._files, *arguments]
        return docker(*command, limit=limit, check=check, stdin=stdin, environment=self.environment).stdout

    def containers(self, service: str) -> list[Container]:
        """Return the running containers of a service."""
        return [Container(name) for name in self("ps", "--quiet", service).split()]

    def down(self) -> None:
        """Remove everything of the project."""
        self("down", "--volumes", "--remove-orphans", "--timeout", "3", check=False)


@contextlib.contextmanager
def compose_up(
    *files: str, scale: Mapping[str, int] | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Compose]:
    """Bring a project up and wait until all of it is well; remove it at the end."""
    compose = Compose(*files, environment=environment)
    scales = [part for service, count in (scale or {}).items() for part in ("--scale", f"{service}={count}")]
    try:
        try:
            compose("up", "--detach", "--wait", "--wait-timeout", "170", *scales, limit=240)
        except DockerError as error:
            raise DockerError(f"{error}\n{compose('logs', '--tail', '50', check=False)}") from None
        yield compose
    except BaseException:
        kept = stack.BUILD / "container-logs" / f"{compose.project}.log"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(compose("logs", "--timestamps", "--no-color", check=False))
        raise
    finally:
        compose.down()


def eventually(check: Callable[[], object], limit: float, what: str) -> None:
    """Wait for something that costs a command each time it is asked."""
    deadline = time.monotonic() + limit
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {limit:g} s")
        time.sleep(0.5)
