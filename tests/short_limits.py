"""The real command, with less patience for the broker: its sessions end after 6 s, the least that Kafka grants."""

import sys

from etl.broker import admin, connection, group, member, producer
from etl.cli import main

NAMES = {
    "SESSION_TIMEOUT_SECONDS",
    "HEARTBEAT_SECONDS",
    "LATE_HEARTBEAT_SECONDS",
    "TRANSACTION_TIMEOUT_SECONDS",
    "REQUEST_TIMEOUT_SECONDS",
    "REQUEST_TIMEOUT_MS",
    "SILENCE_SECONDS",
    "OBSTACLE_SECONDS",
}
PART = 6.0 / member.SESSION_TIMEOUT_SECONDS
for module in (admin, connection, group, member, producer):
    for name in NAMES & vars(module).keys():
        value = getattr(module, name)
        setattr(module, name, type(value)(PART * value))
if sys.argv[1:] == ["api"]:
    from etl.api import services
    from etl.api.views import following

    services.STALE_SECONDS *= PART
    following.LOOK_SECONDS *= PART
sys.exit(main(prog_name="python -m etl.main"))
