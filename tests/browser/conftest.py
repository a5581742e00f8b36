"""One stack for all tests of the page: broker, servers, two consumers, the API, a browser."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest
from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

import stack
from apiwork import TOKENS, Api
from browser.chromium import Chromium
from chaos.processes import Consumer
from etl.broker import Admin, Writer
from workbench import SETTINGS, SOURCES, folder, job, login

PAGE_MS = 15_000  # a page waits that long for what a test expects
SLOW_BYTES_PER_SECOND = 400_000


class SlowFtpd(stack.Ftpd):
    """A server whose files come slowly: a transfer can be watched."""

    def start(self) -> SlowFtpd:
        script = Path(__file__).with_name("slow_ftpd.py")
        account = (self.username, self.password, str(SLOW_BYTES_PER_SECOND))
        command = [sys.executable, str(script), str(self.root), str(self.port), *account]
        self._launch(command, {"COVERAGE_PROCESS_CONFIG": ""}, lambda process: stack.listens(process, self.port))
        return self


class Scene:
    """What the page shows: the API, its consumers, and the folders of their servers INBOX, ARCHIVE and SLOW."""

    def __init__(self, broker: stack.Broker, home: Path) -> None:
        self.broker, self.home = broker, home
        self.topic = "page-jobs"
        self.slow = SlowFtpd(home / "slow", {"slow-user": "Slow-secret"})
        self.inbox, self.archive = home / "inbox", home / "archive"
        self.servers = (
            folder("INBOX", self.inbox)
            | folder("ARCHIVE", self.archive)
            | login("SLOW", self.slow)
            | {"NIGHT_TYPE": "ftp", "NIGHT_HOST": "127.0.0.1", "NIGHT_PORT": "1", "NIGHT_USER": "n", "NIGHT_PASS": "n"}
        )
        settings = SETTINGS | self.servers
        settings |= {"ETL_BOOTSTRAP_SERVERS": broker.bootstrap_servers, "ETL_TOPIC": self.topic, "ETL_GROUP_ID": "page"}
        settings |= {"PYTHONPATH": str(SOURCES), "ETL_INSTANCE_ID": "lasting"}
        self.consumer = Consumer("lasting", home, settings)
        # Alone in its group, on a topic of its own: when it is killed, nobody else waits for its sessions to end.
        self.victim_topic = "page-victim"
        victim = {"ETL_TOPIC": self.victim_topic, "ETL_GROUP_ID": "page-victim", "ETL_INSTANCE_ID": "victim"}
        self.victim = Consumer("victim", home, settings | victim, measured=False)
        self.api = Api(home, broker.bootstrap_servers, self.topic, **self.servers)

    def start(self) -> None:
        admin = Admin(self.broker.bootstrap_servers)
        for topic in (self.topic, self.victim_topic):
            for name, count in ((topic, 2), (f"{topic}-results", 2), (f"{topic}-dlq", 2), (f"{topic}-retry", 8)):
                admin.create(name, count, {"message.timestamp.type": "LogAppendTime"})
        self.slow.start()
        self.api.start()
        self.consumer.start()
        self.victim.start()
        self.api.wait_ready()

        def speak() -> bool:
            assert self.consumer.running, self.consumer.log.read_text()
            assert self.victim.running, self.victim.log.read_text()
            told = self.api.get("/api/v1/pool/processes").json()["items"]
            return [one["state"] for one in told if one["kind"] == "consumer"].count("running") == 2

        stack.wait_until(speak, 60, "both consumers running")

    def stop(self) -> None:
        for consumer in (self.consumer, self.victim):
            if consumer.running:
                consumer.terminate()
                consumer.wait(30)
        self.api.close()
        self.slow.kill()

    def put(self, path: str, size: int = 1000) -> None:
        """Make a file on INBOX."""
        file = self.inbox / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(size))

    def submit(self, *jobs: dict[str, Any], topic: str | None = None) -> None:
        """Send jobs."""
        with Writer(self.broker.bootstrap_servers) as writer:
            told = [writer.send(topic or self.topic, b"key", json.dumps(one).encode()) for one in jobs]
            for delivery in told:
                delivery.result()

    def submit_slow(self, name: str, size: int, topic: str | None = None) -> None:
        """Begin a transfer that takes a while."""
        file = self.slow.root / "in" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(os.urandom(size))
        self.submit(job(f"SLOW:/in/{name}", f"ARCHIVE:/out/{name}", job_id=name), topic=topic)

    def lasting(self) -> str:
        """Return the id of the consumer that lasts."""
        told = self.ask("/pool/processes")["items"]
        return str(next(one["id"] for one in told if (one["kind"], one["topic"]) == ("consumer", self.topic)))

    def ask(self, path: str, /, **query: Any) -> Any:
        """Return what the API answers to a viewer."""
        # A connection of its own: none is left behind.
        headers = {"Authorization": f"Bearer {TOKENS['viewer']}"}
        return httpx.get(f"{self.api.url}/api/v1{path}", params=query, headers=headers, timeout=30).json()


@pytest.fixture(scope="module")
def scene(broker: stack.Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(broker, tmp_path_factory.mktemp("scene"))
    lasting = (made.slow, made.api)
    stack.Server.lasting.update(lasting)
    try:
        made.start()
        yield made
    finally:
        stack.Server.lasting.difference_update(lasting)
        made.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with Chromium(tmp_path_factory.mktemp("chromium")).for_the_session() as chromium, sync_playwright() as driver:
        expect.set_options(timeout=PAGE_MS)
        yield driver.chromium.connect_over_cdp(chromium.url)


class Visitor:
    """Somebody with a browser of their own: `page`, and what went wrong on it."""

    def __init__(self, context: BrowserContext, origin: str) -> None:
        self.context, self.origin = context, origin
        self.wrong: list[str] = []
        context.set_default_timeout(PAGE_MS)
        context.on("request", self._request)
        context.on("console", self._console)
        self.page: Page = context.new_page()
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))

    def _request(self, request: Request) -> None:
        told = urlsplit(request.url)
        if f"{told.scheme}://{told.netloc}" != self.origin and told.scheme not in ("data", "about"):
            self.wrong.append(f"request to {request.url}")

    def _console(self, message: ConsoleMessage) -> None:
        # What the policy forbids is told here; that an answer was a refusal, too, which some tests want.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.wrong.append(f"console: {message.text}")

    def go(self, path: str) -> Page:
        """Go to a page of the page."""
        self.page.goto(f"{self.origin}/ui/#{path}")
        return self.page

    def enter(self, token: str) -> Page:
        """Log in by the link."""
        self.page.goto(f"{self.origin}/login?token={token}")
        self.page.get_by_role("navigation").wait_for()
        return self.page


@contextlib.contextmanager
def visiting(browser: Any, scene: Scene) -> Iterator[Callable[..., Visitor]]:
    """Let visitors come: `visit("operator", locale="ko-KR")`; what went wrong on their pages is raised at the end."""
    made: list[Visitor] = []

    def come(role: str | None = "operator", **options: Any) -> Visitor:
        usual = {"locale": "en-US", "timezone_id": "Asia/Seoul", "viewport": {"width": 1280, "height": 800}}
        visitor = Visitor(browser.new_context(**{**usual, **options}), scene.api.url)
        made.append(visitor)
        if role is not None:
            visitor.enter(TOKENS[role])
        return visitor

    try:
        yield come
    finally:
        for visitor in made:
            visitor.context.close()
    assert [wrong for visitor in made for wrong in visitor.wrong] == []


@pytest.fixture
def visit(browser: Any, scene: Scene) -> Iterator[Callable[..., Visitor]]:
    """Visitors; a request of theirs to another origin fails the test, as an error of a script does."""
    with visiting(browser, scene) as come:
        yield come
