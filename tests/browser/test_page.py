from __future__ import annotations

import contextlib, io, time, traceback
from pathlib import Path
import pytest
from apiwork import bury
from workbench import job
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


@pytest.mark.timeout(850)
def test_try(scene, visit):
    env = {"scene": scene, "visit": visit, "expect": expect, "job": job, "bury": bury, "time": time}
    cmd = Path("/tmp/page-cmd")
    (cmd / "ready").write_text("1")
    end = time.time() + 800
    while time.time() < end and not (cmd / "stop").exists():
        for f in sorted(cmd.glob("*.py")):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                try:
                    exec(f.read_text(), env)
                except BaseException:
                    out.write(traceback.format_exc())
            f.with_suffix(".out").write_text(out.getvalue())
            f.unlink()
        time.sleep(0.2)
