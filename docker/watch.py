"""Event listener of supervisord: kills a consumer that hangs, and ends the appliance where starting again is no help.

A consumer notes the time whenever its main thread comes round (etl.identity). One that has not for
APPLIANCE_POLL_LIMIT_SECONDS (60) is killed; supervisord starts it again. A program that ends with an exit code that
says "wrong settings" (exitcodes in supervisord.conf) ends the appliance with that code.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault

from supervisor import childutils
from supervisor.states import ProcessStates
from supervisor.xmlrpc import Faults

from etl import identity

POLL_LIMIT_SECONDS = float(os.environ.get("APPLIANCE_POLL_LIMIT_SECONDS") or 60)
CONSUMERS = "etl-consumer"  # their group in supervisord.conf
EXIT_CODE_FILE = Path(os.environ["APPLIANCE_RUN_DIR"]) / "exit-code"


def main() -> None:
    """Answer supervisord's events until it ends."""
    supervisor = childutils.getRPCInterface(os.environ).supervisor
    while True:
        headers, payload = childutils.listener.wait(sys.stdin, sys.stdout)
        try:
            if headers["eventname"] == "PROCESS_STATE_EXITED":
                end_if_no_use(supervisor, childutils.get_headers(payload))
            else:
                kill_hung(supervisor)
        except Fault as fault:
            if fault.faultCode != Faults.SHUTDOWN_STATE:  # supervisord is ending: there is nothing to watch any more
                raise
        childutils.listener.ok(sys.stdout)


def kill_hung(supervisor: Any) -> None:
    """Kill the consumers that have not come round for too long. SIGTERM would need the very thread that hangs."""
    beats = identity.beats()
    for process in supervisor.getAllProcessInfo():
        if process["group"] != CONSUMERS or process["state"] != ProcessStates.RUNNING:
            continue
        age = time.time() - process["start"]
        if beat := beats.get(process["pid"]):
            age = min(age, beat.age)
        if age > POLL_LIMIT_SECONDS:
            say(f"{process['name']} has not polled for {age:.0f} s; killing it")
            supervisor.signalProcess(f"{CONSUMERS}:{process['name']}", "KILL")


def end_if_no_use(supervisor: Any, event: dict[str, str]) -> None:
    """End the appliance when a program ended with one of its `exitcodes`: the settings are wrong."""
    if event["expected"] != "1" or event["groupname"] == "watch":
        return
    code = supervisor.getProcessInfo(f"{event['groupname']}:{event['processname']}")["exitstatus"]
    say(f"{event['processname']} ended with exit code {code}, which starting again does not mend; stopping")
    EXIT_CODE_FILE.write_text(str(code))
    supervisor.shutdown()


def say(what: str) -> None:
    """Print a line among the others' (standard output is for supervisord)."""
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} watch {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
