"""What the product is made of: locked with hashes, told in the image, and asked about."""

from __future__ import annotations

import ast
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.unit

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKER, KAFKA = REPOSITORY / "docker", REPOSITORY / "kafka"
LOCKS = sorted(DOCKER.glob("*.lock"))
JARS = [line.split() for line in (KAFKA / "libs.lock").read_text().splitlines()]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DOCKER / script), *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_locked_package_has_hashes_and_none_an_address(lock: Path) -> None:
    """Pip takes only what was locked, from wherever it is configured to."""
    text = lock.read_text()
    blocks = re.split(r"\n(?=[\w.-]+==)", text)[1:]
    assert blocks
    assert all("--hash=sha256:" in block for block in blocks)
    assert not re.search(r"https?:|--(extra-)?index-url|--find-links", text)


def test_the_lock_of_a_clone_fits_its_requirements_and_the_image() -> None:
    """Tests run on the versions that the image has; `make lock` makes them anew."""

    def pinned(name: str) -> dict[str, str]:
        found = re.findall(r"^([\w.-]+)==([\w.]+)", (DOCKER / name).read_text(), re.MULTILINE)
        return {canonicalize_name(each): version for each, version in found}

    clone, image = pinned("requirements-dev.lock"), pinned("requirements.lock")
    for file in ("requirements.txt", "requirements-dev.txt"):
        for line in (REPOSITORY / file).read_text().splitlines():
            if line and not line.startswith("-r"):
                wanted = Requirement(line.partition("#")[0].strip())
                assert wanted.specifier.contains(clone[canonicalize_name(wanted.name)]), line
    assert {name: clone[name] for name in image if name in clone} == {
        name: version for name, version in image.items() if name in clone
    }


def test_nothing_is_installed_that_is_not_locked() -> None:
    """Neither in a clone nor in the image; Maven takes no file whose checksum is wrong or missing."""
    for file in (DOCKER / "bootstrap.sh", DOCKER / "Dockerfile"):
        text = file.read_text().replace("\\\n", " ")
        calls = re.findall(r"(?:pip install|^.*\binstall --).*", text, re.MULTILINE)
        calls = [call for call in calls if "apt-get" not in call and "dnf" not in call and "install()" not in call]
        assert calls
        assert [call for call in calls if "--require-hashes" not in call and "--no-deps" not in call] == []
        assert "mvn -" not in text
    assert "--strict-checksums" in (KAFKA / "fetch.sh").read_text()


def test_the_locked_jars_are_those_of_the_pom() -> None:
    """Each once, with a SHA-256; the versions that the pom names, and none of what it must not bring."""
    assert all(re.fullmatch(r"[0-9a-f]{64}", sha256) for sha256, _ in JARS)
    locked = {coordinates.rpartition(":")[0]: coordinates.rpartition(":")[2] for _, coordinates in JARS}
    assert len(locked) == len(JARS) > 30
    pom = (KAFKA / "pom.xml").read_text()
    for name, artifact in (("kafka", "org.apache.kafka:kafka_2.13"), ("log4j", "org.apache.logging.log4j:log4j-core"),
                           ("snappy", "org.xerial.snappy:snappy-java")):  # fmt: skip
        assert f"<{name}.version>{locked[artifact]}</{name}.version>" in pom
    assert not [name for name in locked if name.startswith(("org.lz4:", "commons-beanutils:", "commons-collections:"))]
    assert "at.yawk.lz4:lz4-java" in locked


def test_the_jars_in_use_are_the_locked_ones() -> None:
    """As `make bootstrap` left them."""
    libs = Path(os.environ.get("KAFKA_LIBS") or REPOSITORY / "build" / "kafka" / "libs")
    names = {f"{artifact}-{version}.jar" for _, artifact, version in (each.split(":") for _, each in JARS)}
    assert {path.name for path in libs.glob("*.jar")} == names


@pytest.mark.parametrize("harm", ["nothing", "changed", "one more", "missing"])
def test_a_jar_that_is_not_the_locked_one_is_refused(tmp_path: Path, harm: str) -> None:
    """Whatever Maven brings: `mvn` here brings the jars in use, one of them harmed."""
    libs = Path(os.environ.get("KAFKA_LIBS") or REPOSITORY / "build" / "kafka" / "libs")
    victim = '"$KAFKA_LIBS"/snappy-java-*.jar'
    harms = {"nothing": "true", "changed": f"for f in {victim}; do rm $f; echo x >$f; done", "missing": f"rm {victim}",
             "one more": 'echo x >"$KAFKA_LIBS/more.jar"'}  # fmt: skip
    mvn = tmp_path / "bin" / "mvn"
    mvn.parent.mkdir()
    mvn.write_text(f'#!/bin/sh\nmkdir -p "$KAFKA_LIBS"\ncp -s {libs}/*.jar "$KAFKA_LIBS"\n{harms[harm]}\n')
    mvn.chmod(0o755)
    done = subprocess.run(
        [str(KAFKA / "fetch.sh")],
        env=os.environ | {"PATH": f"{mvn.parent}:{os.environ['PATH']}", "KAFKA_LIBS": str(tmp_path / "libs")},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == (0 if harm == "nothing" else 1), done.stderr
    assert ("fetch: " in done.stderr) == (harm != "nothing")


def test_the_document_of_the_image_names_every_jar_and_package() -> None:
    """CycloneDX 1.5, by package URLs that are unique; jars with their hashes."""
    told = json.loads(run("sbom.py", "1.2.3").stdout)
    assert (told["bomFormat"], told["specVersion"]) == ("CycloneDX", "1.5")
    assert told["metadata"]["component"]["version"] == "1.2.3"
    purls = [component["purl"] for component in told["components"]]
    assert len(set(purls)) == len(purls)
    jars = [component for component in told["components"] if component["purl"].startswith("pkg:maven/")]
    assert {component["hashes"][0]["content"] for component in jars} == {sha256 for sha256, _ in JARS}
    assert "pkg:pypi/kafka-python@3.0.12" in purls
    assert len(purls) - len(jars) == (DOCKER / "requirements.lock").read_text().count("==")


@pytest.fixture
def osv() -> Iterator[Callable[[Callable[[list[str]], Any]], str]]:
    """Start a service that answers by a function of the package URLs; return its address."""
    servers: list[tuple[http.server.ThreadingHTTPServer, threading.Thread]] = []

    def start(answer: Callable[[list[str]], Any]) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = answer([query["package"]["purl"] for query in asked["queries"]])
                self.send_response(200 if self.path == "/v1/querybatch" and reply is not None else 500)
                self.end_headers()
                self.wfile.write(json.dumps(reply).encode())

            def log_message(self, *_arguments: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}/"

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


def test_without_a_service_nothing_is_asked_and_all_of_it_is_said() -> None:
    """Exit code 3; what is never asked is said as well."""
    done = run("osv.py")
    assert done.returncode == 3
    assert done.stdout.count("not asked: ") > len(JARS)
    assert "0 of " in done.stdout
    assert "never asked here: packages of the operating system" in done.stdout


def test_what_a_service_knows_is_told(osv: Callable[..., str]) -> None:
    """Exit code 1 and the ids; 0 when it knows nothing of any."""
    known = osv(lambda purls: {"results": [{"vulns": [{"id": "CVE-1"}]} if "/jose4j@" in p else {} for p in purls]})
    done = run("osv.py", "--endpoint", known)
    assert done.returncode == 1, done.stderr
    assert re.search(r"^pkg:maven/org.bitbucket.b_c/jose4j@[\d.]+: CVE-1$", done.stdout, re.MULTILINE)
    assert "not asked:" not in done.stdout
    assert run("osv.py", "--endpoint", osv(lambda purls: {"results": [{} for _ in purls]})).returncode == 0


@pytest.mark.parametrize(
    "answer",
    [
        lambda _purls: None,
        lambda _purls: {"results": []},
        lambda _purls: ["x"],
        lambda purls: {"results": [{"next_page_token": "x"} for _ in purls]},
    ],
)
def test_what_could_not_be_asked_is_said(osv: Callable[..., str], answer: Callable[[list[str]], Any]) -> None:
    """An error, an answer of another kind, an answer that is not all: exit code 3, never "nothing known" alone."""
    done = run("osv.py", "--endpoint", osv(answer))
    assert done.returncode == 3, done.stderr
    assert "0 of " in done.stdout


def test_nothing_that_is_read_is_ever_run() -> None:
    """No message, setting or file can become code: none of the modules and calls that would do so is used.

    Of PyYAML, which could, the one loader that makes plain values alone is used, in one place.
    """
    reads_yaml = REPOSITORY / "src" / "etl" / "config" / "sections.py"
    for path in (REPOSITORY / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            imported = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            if isinstance(node, ast.ImportFrom):
                imported = {str(node.module)}
            assert not imported & {"pickle", "marshal", "shelve", "dill", "code"}, path
            assert path == reads_yaml or "yaml" not in imported, path
            if isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else ""
                assert called not in {"eval", "exec", "compile", "__import__"}, path
                assert not any(word.arg == "shell" for word in node.keywords), path
                if path == reads_yaml and ast.unparse(node.func).startswith("yaml.load"):
                    assert ast.unparse(node.func) == "yaml.load", path
                    assert [ast.unparse(word) for word in node.keywords] == ["Loader=_Loader"], path
            if path == reads_yaml and isinstance(node, ast.ClassDef) and node.name == "_Loader":
                assert [ast.unparse(base) for base in node.bases] == ["yaml.SafeLoader"], path


def test_supervisord_listens_on_no_port() -> None:
    """Its socket is in the run folder, for its user alone."""
    conf = (REPOSITORY / "docker" / "supervisord.conf").read_text(encoding="utf-8")
    assert "inet_http_server" not in conf
    assert re.search(r"^\[unix_http_server\]\nfile=%\(ENV_APPLIANCE_RUN_DIR\)s/\S+\nchmod=0700$", conf, re.MULTILINE), (
        conf
    )
