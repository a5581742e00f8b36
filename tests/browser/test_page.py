from __future__ import annotations

import pytest
from apiwork import bury
from workbench import job
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


def test_try(scene, visit):
    for n in range(30):
        scene.put(f"/lot/{n}.tif", 20_000 + n)
    scene.submit(*[job(f"INBOX:/lot/{n}.tif", f"ARCHIVE:/lot/{n}.tif", job_id=f"lot-{n}") for n in range(30)])
    scene.submit(*[job(f"INBOX:/missing/{n}.tif", f"ARCHIVE:/missing/{n}.tif", job_id=f"missing-{n}") for n in range(12)])
    scene.submit_slow("big.bin", 6_000_000)
    v = visit("operator")
    page = v.page
    expect(page.locator("#flight ~ table tbody tr")).to_have_count(1)
    expect(page.locator("h1")).to_contain_text("1 thing needs you")
    page.screenshot(path="/tmp/page-shots/now.png", full_page=True)
    v.go("/letters"); page.locator("#list").wait_for(); page.screenshot(path="/tmp/page-shots/letters.png", full_page=True)
    v.go("/find?q=lot-1"); page.locator("#found").wait_for(); page.screenshot(path="/tmp/page-shots/find.png", full_page=True)
    page.locator("#found ~ table a").first.click(); page.locator("#story").wait_for(); page.screenshot(path="/tmp/page-shots/job.png", full_page=True)
    v.go("/servers/SLOW"); page.locator("#errors").wait_for(); page.screenshot(path="/tmp/page-shots/server.png", full_page=True)
    v.go("/audit"); page.locator("#acts").wait_for(); page.screenshot(path="/tmp/page-shots/audit.png", full_page=True)
