"""The page in a real browser, with real consumers behind it: one stack for all, jobs of its own for each test."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

import stack
from apiwork import TOKENS, bury
from browser.conftest import Scene, Visitor
from etl.api.app import STATIC
from etl.broker import Reader
from workbench import job

pytestmark = pytest.mark.browser

PAGES = ("/now", "/letters", "/find?range=all", "/servers/INBOX", "/audit")
PICTURES: dict[str, dict[str, Any]] = {  # to be looked at, in the test's folder
    "phone": {"viewport": {"width": 360, "height": 740}},
    "korean": {"locale": "ko-KR", "color_scheme": "dark"},
}
Visit = Callable[..., Visitor]


def loaded(page: Page) -> None:
    """Wait until a page shows what it asked for."""
    expect(page.locator("main h1")).to_be_visible()
    expect(page.locator("main section").first).to_be_visible()


def row(page: Page, section: str, text: str) -> Locator:
    return page.locator(f"section[aria-labelledby={section}] tbody tr", has_text=text)


def causes(scene: Scene, path: str) -> int:
    return int(scene.ask("/dead-letters/causes", path=path)["total"])


def copy(path: str) -> dict[str, Any]:
    return job(f"INBOX:{path}", f"ARCHIVE:{path}", job_id=path[1:])


def fail(scene: Scene, folder: str, count: int) -> None:
    """Let jobs fail, as their files are not there; wait until the API knows their dead letters."""
    scene.submit(*(copy(f"{folder}/{n}.tif") for n in range(count)))
    stack.wait_until(lambda: causes(scene, f"{folder}/*") == count, 30, f"the dead letters of {folder}")


def test_one_logs_in_by_the_link_and_stays_so(visit: Visit) -> None:
    """Claim: the link opens a session; a wrong token is told; a viewer may not press buttons, and sees why."""
    visitor = visit(None)
    page = visitor.go("/now")
    page.get_by_label("Token").fill("no-such-token-no-such-token")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_be_visible()
    visitor.enter(TOKENS["viewer"])
    assert "token" not in page.url
    page.reload()
    loaded(page)
    visitor.go("/servers/INBOX")
    hold = page.get_by_role("button", name="Hold")
    expect(hold).to_be_disabled()
    expect(hold).to_have_attribute("title", "This needs the role operator")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Token")).to_be_visible()


def test_the_bar_of_a_running_transfer_moves(scene: Scene, visit: Visit) -> None:
    """Claim: a transfer has a bar that grows, a rate and the time that is left; it goes when it is done."""
    page = visit("viewer").page
    scene.submit_slow("moving.bin", 3_500_000)
    moving = row(page, "flight", "moving.bin")
    bar = moving.get_by_role("progressbar")
    expect(moving).to_contain_text(re.compile(r"[\d.]+\s[kM]B/s"))
    expect(moving).to_contain_text("3.5 MB")
    first = float(bar.get_attribute("value") or 0)
    stack.wait_until(lambda: float(bar.get_attribute("value") or 0) > first > 0, 10, "the bar moving")
    expect(moving).to_have_count(0, timeout=30_000)
    page.goto(page.url.replace("/now", "") + "#/find?q=moving.bin")
    expect(row(page, "found", "moving.bin")).to_contain_text("done")


def test_a_filtered_set_is_replayed_with_a_canary(scene: Scene, visit: Visit) -> None:
    """Claim: what is filtered is counted, and replayed: five first, then the rest; what is not filtered stays."""
    fail(scene, "/late", 12)
    fail(scene, "/never", 3)
    for n in range(12):
        scene.put(f"/late/{n}.tif")
    page = visit("operator").go("/letters")
    page.get_by_label("Path or pattern").fill("/late/*")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator("main h1")).to_have_text(re.compile("12$"))
    page.get_by_role("button", name="Replay", exact=True).click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Replay 12 dead letters")
    expect(dialog.get_by_role("checkbox")).to_be_checked()
    dialog.get_by_label("Reason").fill("the lot came late")
    dialog.get_by_role("button", name="Replay 12").click()
    expect(dialog).to_have_count(0)
    expect(row(page, "operations", "the lot came late")).to_contain_text("12 of 12 done", timeout=30_000)
    stack.wait_until(lambda: causes(scene, "/late/*") == 0, 20, "no dead letter of it waits")
    assert causes(scene, "/never/*") == 3
    done = lambda: [one["state"] for one in scene.ask("/jobs", path="/late/*", state="done")["items"]]  # noqa: E731
    stack.wait_until(lambda: len(done()) == 12, 20, "all of it done")
    assert sorted(path.name for path in (scene.archive / "late").iterdir()) == sorted(f"{n}.tif" for n in range(12))


def test_one_is_discarded_with_a_reason(scene: Scene, visit: Visit) -> None:
    """Claim: a selected letter is discarded, only with a reason; its page and the audit tell it."""
    fail(scene, "/trash", 2)
    page = visit("operator").go("/letters?path=/trash/*")
    page.get_by_role("checkbox", name=re.compile("Select [0-9]")).first.check()
    expect(page.get_by_text("1 selected")).to_be_visible()
    page.get_by_role("button", name="Discard").click()
    dialog = page.get_by_role("dialog")
    submit = dialog.get_by_role("button", name="Discard 1")
    expect(submit).to_be_disabled()
    dialog.get_by_label("Reason (needed)").fill("not wanted")
    submit.click()
    expect(dialog).to_have_count(0)
    stack.wait_until(lambda: causes(scene, "/trash/*") == 1, 20, "one discarded")
    page.goto(page.url.split("#")[0] + "#/audit?action=discard")
    expect(row(page, "acts", "not wanted").first).to_contain_text("operator-1")


def test_two_operators_replay_the_same_at_once(scene: Scene, visit: Visit) -> None:
    """Claim: each letter is sent once, whoever else asks; the one who comes late is told."""
    source, destination = ({"hostname": name, "path": "/twice/a"} for name in ("INBOX", "ARCHIVE"))
    scene.put("/twice/a")  # so that none of them dies again, and is there to be replayed again
    bury(scene.broker, scene.topic, 40, first=1000, source=source, destination=destination)
    stack.wait_until(lambda: causes(scene, "/twice/*") == 40, 30, "the dead letters")
    pages = [visit("operator").go("/letters?path=/twice/*"), visit("admin").go("/letters?path=/twice/*")]
    for page in pages:
        page.get_by_role("button", name="Replay", exact=True).click()
        page.get_by_role("dialog").get_by_role("checkbox").uncheck()
        expect(page.get_by_role("dialog").get_by_role("button", name="Replay 40")).to_be_enabled()
    for page in pages:
        page.get_by_role("button", name="Replay 40").click(no_wait_after=True)

    def over() -> bool:
        mine = [one for one in scene.ask("/operations")["items"] if one["filter"].get("path") == "/twice/*"]
        return bool(mine) and all(one["state"] == "done" for one in mine) and sum(one["done"] for one in mine) == 40

    stack.wait_until(over, 30, "both operations")
    with Reader(scene.broker.bootstrap_servers, scene.topic) as reader:
        ids = Counter(json.loads(record.value or b"{}")["job_id"] for record in reader.scan())
    assert {ids[f"j{n}"] for n in range(1000, 1040)} == {1}


def test_a_server_is_held_and_released(scene: Scene, visit: Visit) -> None:
    """Claim: its jobs wait while everybody sees why, and run once it is released."""
    scene.put("/held/a.tif")
    page = visit("operator").go("/servers/INBOX")
    page.get_by_role("button", name="Hold").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason (needed)").fill("disk swap")
    dialog.get_by_label("Ends").select_option("1h")
    dialog.get_by_role("button", name="Hold").click()
    expect(page.get_by_text("On hold by operator-1: disk swap")).to_be_visible()
    other = visit("viewer").page
    expect(other.locator("section[aria-labelledby=needs]")).to_contain_text("server INBOX is on hold")
    held = lambda: any(one["held_by"] for one in scene.ask("/pool/servers")["items"])  # noqa: E731
    stack.wait_until(held, 20, "the consumer's word")
    scene.submit(copy("/held/a.tif"))
    state = lambda: [one["state"] for one in scene.ask("/jobs", job_id="held/a.tif")["items"]]  # noqa: E731
    stack.wait_until(lambda: state() in (["waiting"], ["queued"]), 20, "the job waiting")
    page.get_by_role("button", name="Release").click()
    stack.wait_until(lambda: state() == ["done"], 30, "the job done")
    expect(page.get_by_role("button", name="Hold")).to_be_visible()
    page.get_by_role("button", name="Check").click()
    expect(page.locator(".checked")).to_contain_text("works")


def test_a_topic_is_held_and_released_from_the_first_page(scene: Scene, visit: Visit) -> None:
    """Claim: its consumers begin nothing while it is held; the hold stands among the needs, with a button to end it."""
    page = visit("operator").page
    row(page, "backlog", scene.topic).get_by_role("button", name="Hold").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Reason (needed)").fill("upgrade")
    dialog.get_by_role("button", name="Hold").click()
    need = page.locator("section[aria-labelledby=needs] li", has_text=f"topic {scene.topic} is on hold")
    expect(need).to_contain_text("operator-1: upgrade")
    expect(page.locator(f"[data-process='{scene.lasting()}']")).to_contain_text("on hold")
    need.get_by_role("button", name="Release").click()
    expect(need).to_have_count(0)
    expect(page.locator(f"[data-process='{scene.lasting()}']")).not_to_contain_text("on hold")


def test_names_of_strangers_are_text(scene: Scene, visit: Visit) -> None:
    """Claim: HTML stays text, and what cannot be seen is shown: direction marks, Hangul fillers, zero-width ones."""
    evil = "/evil/\u202egnp.<img src=x onerror=alert(1)>\u3164\u200b.tif"
    scene.submit(job(f"INBOX:{evil}", "ARCHIVE:/evil/x", job_id="<script>alert(1)</script>"))
    stack.wait_until(lambda: causes(scene, "/evil/*") == 1, 30, "the dead letter")
    page = visit("viewer").go("/letters?path=/evil/*")
    shown = row(page, "list", "gnp.<img src=x onerror=alert(1)>")
    expect(shown).to_contain_text("\\u{202E}")
    expect(shown).to_contain_text("\\u{3164}\\u{200B}.tif")
    expect(shown.locator(".unseen").first).to_have_attribute("title", "invisible character U+202E")
    shown.get_by_role("link", name="<script>").click()
    expect(page.locator("main h1")).to_contain_text("<script>alert(1)</script>")
    expect(page.locator("main img, main script")).to_have_count(0)


def test_the_policy_keeps_other_origins_out(visit: Visit) -> None:
    """Claim: the page cannot be made to ask elsewhere, and these tests would notice that it tried."""
    visitor = visit("viewer")
    failed = visitor.page.evaluate("fetch('http://127.0.0.1:1/').then(() => false, () => true)")
    assert failed
    stack.wait_until(lambda: visitor.page.wait_for_timeout(50) or visitor.wrong, 5, "the refusal")
    assert "Content Security Policy" in visitor.wrong[0]
    visitor.wrong.clear()


def test_both_languages(scene: Scene, visit: Visit) -> None:
    """Claim: a Korean browser gets Korean, on each page and without English rests; the choice is kept."""
    table = re.findall(r'^  "?[\w-]+"?: \[\s*"([^"{]{8,})",', (STATIC / "texts.js").read_text(), re.MULTILINE)
    visitor = visit("operator", locale="ko-KR")
    page = visitor.page
    for path in PAGES:
        visitor.go(path)
        loaded(page)
        text = page.locator("body").inner_text().replace("operator-1", "")  # a name
        assert [english for english in table if english in text] == [], path
        assert re.search("[가-힣]", page.locator("main h1").inner_text()), path
    assert page.evaluate("document.documentElement.lang") == "ko"
    page.get_by_role("button", name="English").click()
    expect(page.locator("main h1")).to_have_text("Audit")
    page.reload()
    expect(page.locator("main h1")).to_have_text("Audit")


def test_somebody_sees_to_it(scene: Scene, visit: Visit) -> None:
    """Claim: what somebody sees to is known to all others, with name and reason, until more of it comes."""
    fail(scene, "/seen", 1)
    page = visit("operator").page
    need = page.locator("section[aria-labelledby=needs] li", has_text="Dead letters")
    need.get_by_role("button", name="I see to it").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Dead letters")
    dialog.get_by_label("Reason (needed)").fill("lot 7 <b>is late</b>")
    dialog.get_by_role("button", name="I see to it").click()
    expect(dialog).to_have_count(0)
    other = visit("viewer").page.locator("section[aria-labelledby=needs] li", has_text="Dead letters")
    expect(other).to_contain_text("operator-1 sees to it: lot 7 <b>is late</b>")
    expect(other.get_by_role("button", name="Give back")).to_be_disabled()
    need.get_by_role("button", name="Give back").click()
    expect(need.get_by_role("button", name="I see to it")).to_be_visible()
    need.get_by_role("button", name="I see to it").click()
    dialog.get_by_label("Reason (needed)").fill("again")
    dialog.get_by_role("button", name="I see to it").click()
    expect(other).to_contain_text("operator-1 sees to it: again")
    fail(scene, "/unseen", 1)
    expect(other).not_to_contain_text("sees to it")


def test_dead_letters_are_exported_as_filtered(scene: Scene, visit: Visit) -> None:
    """Claim: the link gives a table of what is filtered, in which no path is a formula."""
    fail(scene, "/table", 2)
    page = visit("viewer").go("/letters?path=/table/*")
    link = page.get_by_role("link", name="Export as CSV")
    text = page.evaluate("async (url) => (await fetch(url)).text()", link.get_attribute("href"))
    rows = list(csv.DictReader(io.StringIO(text.lstrip("\ufeff"), newline="")))
    assert sorted(row["source_path"] for row in rows) == ["/table/0.tif", "/table/1.tif"]


def test_a_server_has_its_hour(scene: Scene, visit: Visit) -> None:
    """Claim: four graphs of the last hour, with their highest values in words, and the numbers as a table."""
    scene.put("/hour.tif")
    scene.submit(copy("/hour.tif"))
    stack.wait_until(lambda: scene.ask("/pool/servers/INBOX/hour")["items"], 20, "the hour")
    page = visit("viewer").go("/servers/INBOX")
    graphs = page.locator("section[aria-labelledby=hour] svg")
    expect(graphs).to_have_count(4)
    expect(graphs.first).to_have_attribute("aria-label", re.compile("Jobs a minute: at most [0-9]"))
    page.get_by_text("as a table").first.click()
    expect(page.locator("section[aria-labelledby=hour] tbody tr").first).to_be_visible()


WIDE = f"/wide/{'a-name-that-does-not-end' * 35}.tif"


def test_a_phone_is_wide_enough(scene: Scene, visit: Visit) -> None:
    """Claim: at 320 pixels nothing is cut off or needs scrolling sideways, in both languages, with endless paths."""
    scene.submit(job(f"INBOX:{WIDE}", f"ARCHIVE:{WIDE}", job_id="wide" * 200))
    stack.wait_until(lambda: causes(scene, "/wide/*") == 1, 30, "the dead letter")
    (letter,) = scene.ask("/dead-letters", path="/wide/*")["items"]
    page = visit("viewer").go("/letters?path=/wide/*")
    long = row(page, "list", "a-name-that")
    expect(long).to_contain_text("…")
    box = long.bounding_box()
    assert box
    assert box["height"] < 200, "one of them does not fill the page"
    page.goto(f"{page.url.split('#')[0]}#/letters/{letter['place']}")
    expect(page.locator(".facts")).to_contain_text(WIDE)
    pages = (*PAGES, "/letters?path=/wide/*", f"/letters/{letter['place']}", f"/jobs/{letter['job']}", "/no-such-page")
    for locale in ("en-US", "ko-KR"):
        visitor = visit("operator", locale=locale, viewport={"width": 320, "height": 640})
        page = visitor.page
        for path in pages:
            visitor.go(path)
            page.locator("main h1, main .empty").first.wait_for()
            if path != "/no-such-page":
                loaded(page)
            assert widest(page) <= 320, (locale, path)
        opens = {
            "/letters?path=/wide/*": "다시 실행" if locale == "ko-KR" else "Replay",
            "/servers/INBOX": "보류" if locale == "ko-KR" else "Hold",
        }
        for path, button in opens.items():
            visitor.go(path)
            page.get_by_role("button", name=button, exact=True).first.click()
            expect(page.get_by_role("dialog").locator("h2")).to_be_visible()
            expect(page.get_by_role("dialog").locator("h2")).not_to_contain_text("…")  # it is counted
            assert widest(page) <= 320, (locale, path, "dialog")
            box = page.get_by_role("dialog").bounding_box()
            assert box
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 320
            page.keyboard.press("Escape")


def widest(page: Page) -> int:
    """Return how wide the page is, and whatever in it would have to be scrolled sideways."""
    return int(
        page.evaluate(
            "Math.max(document.documentElement.scrollWidth,"
            "...[...document.querySelectorAll('main *, header *, dialog *')]"
            ".filter((one) => one.getClientRects().length && !one.closest('svg, .unseen-caption, thead'))"
            ".map((one) => one.getBoundingClientRect().right))"
        )
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(visit: Visit, scheme: str) -> None:
    """Claim: axe-core knows no violation, on any page, in a dialog and at the login."""
    visitor = visit("operator", color_scheme=scheme)
    page = visitor.page
    pages = PAGES if scheme == "light" else ("/now",)  # in the dark only the colours are others
    for path in (*pages, "/letters?path=/never/*"):
        visitor.go(path)
        loaded(page)
        no_violations(page, path)
    page.get_by_role("button", name="Replay", exact=True).click()
    expect(page.get_by_role("dialog")).to_contain_text("dead letter")
    no_violations(page, "dialog")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Token")).to_be_visible()
    no_violations(page, "login")


def no_violations(page: Page, where: str) -> None:
    found = Axe().run(page).response["violations"]
    told = [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in found]
    assert told == [], where


def test_the_keyboard_is_enough(visit: Visit) -> None:
    """Claim: `/` finds, `g d` goes to the dead letters, the first Tab skips to the content."""
    page = visit("viewer").page
    loaded(page)
    page.keyboard.press("g")
    page.keyboard.press("d")
    expect(page.locator("main h1")).to_contain_text("Dead letters")
    page.keyboard.press("/")
    expect(page.locator("#find-field")).to_be_focused()
    page.keyboard.type("moving.bin")
    page.keyboard.press("Enter")
    expect(row(page, "found", "moving.bin")).to_be_visible()


def test_old_numbers_do_not_look_fresh(scene: Scene, visit: Visit) -> None:
    """Claim: when the API says nothing any more the page turns grey and says since when; then it is live again."""
    visitor = visit("viewer")
    page = visitor.page
    page.clock.install()
    page.reload()
    loaded(page)
    expect(page.locator("body.stale")).to_have_count(0)
    scene.api.freeze()
    try:
        page.clock.fast_forward(16_000)  # instead of waiting for it
        expect(page.locator("body.stale")).to_be_visible()
        expect(page.locator("header")).to_contain_text("stale since")
        expect(page.locator("main h1")).to_contain_text("Not known")
    finally:
        scene.api.thaw()
    expect(page.locator("body.stale")).to_have_count(0)


def test_the_picture_of_the_readme(scene: Scene, visit: Visit, tmp_path: Path) -> None:
    """Claim: the page can be looked at, as the README shows it; WRITE_SCREENSHOTS=1 (`make screenshot`) keeps it."""
    for n in range(60):
        scene.put(f"/erp/orders_{n:03}.csv", 20_000 + 997 * n)
    scene.submit(*(copy(f"/erp/orders_{n:03}.csv") for n in range(60)))
    for n, name in enumerate(("lot-4711.tar", "lot-4712.tar")):
        scene.submit_slow(name, 6_000_000 + n * 3_000_000)
    page = visit("operator", viewport={"width": 1280, "height": 900}).page
    expect(row(page, "flight", "lot-4712.tar")).to_contain_text(re.compile(r"[1-9][\d.]*\s[kM]B/s"))
    is_kept = bool(os.environ.get("WRITE_SCREENSHOTS"))
    folder = stack.REPOSITORY / "docs" / "images" if is_kept else tmp_path
    folder.mkdir(exist_ok=True)
    (folder / "page.png").write_bytes(page.screenshot())  # given a path, it would leave a thread
    assert (folder / "page.png").stat().st_size > 20_000
    for name, options in PICTURES.items() if is_kept else ():
        visitor = visit("operator", **options)
        for path in PAGES:
            visitor.go(path)
            loaded(visitor.page)
            file = tmp_path / f"{name}-{path.split('/')[1].split('?')[0]}.png"
            file.write_bytes(visitor.page.screenshot(full_page=True))


def test_a_killed_process_is_silent_within_three_intervals(scene: Scene, visit: Visit) -> None:
    """Claim: a process that is killed in the middle of a transfer is told as silent, and its transfer as old."""
    page = visit("viewer").page
    scene.submit_slow("doomed.bin", 30_000_000, topic=scene.victim_topic)
    expect(row(page, "flight", "doomed.bin")).to_contain_text("/s")
    (told,) = [one for one in scene.ask("/pool/processes")["items"] if one["topic"] == scene.victim_topic]
    tile = page.locator(f"[data-process='{told['id']}']")
    expect(tile).to_have_attribute("data-state", "running")
    scene.victim.kill()
    killed = time.monotonic()
    expect(tile).to_have_attribute("data-state", "silent", timeout=3 * told["interval_seconds"] * 1000 + 4000)
    assert time.monotonic() - killed > told["interval_seconds"]
    expect(tile).to_contain_text("silent for")
    expect(row(page, "flight", "doomed.bin")).to_have_class("silent")
    expect(page.locator("section[aria-labelledby=needs]")).to_contain_text(f"Process {told['id']} is silent")


def test_many_windows_share_one_stream(scene: Scene, visit: Visit) -> None:
    """Claim: the windows of a browser have one stream, and all of them are live: browsers open six connections."""
    visitor = visit("viewer")
    streams: list[Any] = []
    visitor.context.on("request", lambda request: "/events" in request.url and streams.append(request))
    pages = [visitor.context.new_page() for _ in range(3)]
    for page in pages:
        page.goto(f"{scene.api.url}/ui/#/now")
    for page in pages:
        expect(page.locator("header")).to_contain_text("live")
        loaded(page)
    assert len(streams) <= 1


@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.long)])
@pytest.mark.timeout(600)
def test_very_many_dead_letters_come_a_page_at_a_time(scene: Scene, visit: Visit, count: int) -> None:
    """Claim: the first page is there in a second, the browser holds what was asked for, the API stays small."""
    bury(scene.broker, scene.topic, count, first=1_000_000, source={"hostname": "INBOX", "path": f"/many/{count}"})
    stack.wait_until(lambda: causes(scene, f"/many/{count}") == count, 300, "all of them")
    page = visit("operator").go("/find")
    loaded(page)
    took = page.evaluate(
        """async () => {
            const begun = performance.now();
            location.hash = "/letters?newer_than=1d";
            while (document.querySelectorAll("section[aria-labelledby=list] tbody tr").length < 50)
                await new Promise(requestAnimationFrame);
            return performance.now() - begun;
        }"""
    )
    for n in range(2, 6):
        page.get_by_role("button", name="Go on").click()
        expect(page.locator("section[aria-labelledby=list] tbody tr")).to_have_count(50 * n)
    page.get_by_role("button", name="Discard").first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_label(re.compile("More than 1,000"))).to_be_visible(timeout=30_000)
    expect(dialog.get_by_role("button", name="Discard")).to_be_disabled()
    page.keyboard.press("Escape")
    memory = psutil.Process(scene.api.pid).memory_info().rss
    heap = page.evaluate("performance.memory.usedJSHeapSize")
    print(f"{count}: first page after {took:.0f} ms; API {memory / 1e6:.0f} MB; page {heap / 1e6:.1f} MB")
    assert took < 1000
    assert memory < 200 << 20
    assert heap < 50 << 20


def test_what_is_refused_can_be_mended(visit: Visit) -> None:
    """Claim: a filter that the API refuses is told, and stays in its field; put right it finds."""
    page = visit("viewer").go("/letters")
    field = page.get_by_label("Newer than")
    field.fill("yesterday")
    page.get_by_role("button", name="Apply").click()
    expect(page.get_by_role("alert")).to_contain_text("newer_than is neither a time nor an age")
    expect(field).to_have_value("yesterday")
    field.fill("1d")
    page.get_by_role("button", name="Apply").click()
    expect(page.locator("section[aria-labelledby=list]")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_a_session_that_ends_in_a_dialog_leads_to_the_login(scene: Scene, visit: Visit) -> None:
    """Claim: whoever presses a button after the session has ended is told so, and nothing is done."""
    page = visit("operator").go("/servers/NIGHT")
    page.get_by_role("button", name="Hold").click()
    page.get_by_role("dialog").get_by_label("Reason (needed)").fill("too late")
    admin = {"Authorization": f"Bearer {TOKENS['admin']}"}
    url = f"{scene.api.url}/api/v1/sessions"
    for one in httpx.get(url, headers=admin).json():
        assert httpx.delete(f"{url}/{one['id']}", headers=admin).status_code == 204
    page.get_by_role("dialog").get_by_role("button", name="Hold").click()
    expect(page.get_by_role("status")).to_contain_text("The session has ended")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert scene.ask("/holds")["items"] == []
    page.get_by_label("Token").fill(TOKENS["operator"])
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("button", name="Hold")).to_be_enabled()
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_message_of_several_files_is_shown_with_its_jobs(scene: Scene, visit: Visit) -> None:
    """Claim: by its place one finds how far it is, and each of its jobs; each job leads back to it."""
    scene.put("/several/1.tif")
    files = [{name: copy(f"/several/{n}.tif")[name] for name in ("source", "destination")} for n in (1, 2)]
    scene.submit({"message_version": "2.0", "job_id": "several", "files": files})
    stack.wait_until(lambda: causes(scene, "/several/*") == 1, 30, "the dead letter of the file that is not there")
    failed, done = (scene.ask("/jobs", job_id=f"several.{n}")["items"][0] for n in (2, 1))
    stack.wait_until(lambda: scene.ask(f"/groups/{failed['group']}")["finished_at"], 20, "the end of both")
    assert done["group"] == failed["group"]
    page = visit("viewer").go(f"/jobs/{failed['group']}")
    expect(page.locator("main h1")).to_have_text("Message several: 2 files")
    expect(page.locator("main")).to_contain_text(re.compile("done 1 · . failed 1"))
    expect(row(page, "found", "several.1")).to_contain_text("done")
    row(page, "found", "several.2").get_by_role("link", name="several.2").click()
    expect(page.locator("main h1")).to_have_text("Job several.2")
    page.locator(".facts").get_by_role("link", name=failed["group"]).click()
    expect(page.locator("main h1")).to_have_text("Message several: 2 files")


def test_an_outage_is_a_bar_on_the_axis_of_the_day(scene: Scene, visit: Visit) -> None:
    """Claim: below the last day on the first page, and on the page of the server, in words, as a bar and as a table."""
    scene.submit(job("NIGHT:/x", "ARCHIVE:/x", job_id="in-the-dark"))
    page = visit("operator", viewport={"width": 320, "height": 640}).page
    bar = page.locator("section[aria-labelledby=night] .outages li", has_text="NIGHT")
    expect(bar).to_contain_text(re.compile("1 outage, .* in all"), timeout=30_000)
    expect(bar.locator("rect")).to_have_count(1)
    no_violations(page, "now")
    assert widest(page) <= 320
    bar.get_by_role("link", name="NIGHT").click()
    section = page.locator("section[aria-labelledby=outages]")
    expect(section.locator("svg rect")).to_have_count(1)
    section.get_by_text("as a table").click()
    expect(section.locator("tbody tr")).to_have_count(1)
    assert widest(page) <= 320


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_broker_may_go_away_below_the_page(scene: Scene, visit: Visit) -> None:
    """Claim: without Kafka the page says so and shows what was known; acts are refused; then it is live again."""
    page = visit("operator").go("/servers/NIGHT")
    loaded(page)
    scene.broker.freeze()
    try:
        expect(page.locator("header")).to_contain_text("Kafka does not answer", timeout=60_000)
        expect(page.locator("body.stale")).to_be_visible()
        page.get_by_role("button", name="Hold").click()
        page.get_by_role("dialog").get_by_label("Reason (needed)").fill("nobody hears it")
        page.get_by_role("dialog").get_by_role("button", name="Hold").click()
        expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("nothing is written until Kafka")
    finally:
        scene.broker.thaw()
    expect(page.locator("body.stale")).to_have_count(0, timeout=60_000)
    page.get_by_role("dialog").get_by_role("button", name="Hold").click()
    expect(page.get_by_role("dialog")).to_have_count(0, timeout=30_000)
    page.get_by_role("button", name="Release").click()
    expect(page.get_by_role("button", name="Hold")).to_be_visible()
