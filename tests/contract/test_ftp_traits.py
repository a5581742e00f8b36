"""What a session tells of its server beside files: `etl servers check --write` shows it."""

from __future__ import annotations

import pytest

from servers.fake import HOST

pytestmark = pytest.mark.contract


def test_a_usual_server_has_nothing_to_hide(fake, session) -> None:
    """Each thing is asked for, and works."""
    assert session(fake()).traits() == {
        "working folder": "/",
        "binary mode": "works",
        "EPSV": "works",
        "PASV": "works",
        "commands": "many in one write, answers in order",
        "checksums": "none",
    }


def test_what_is_refused_is_told_in_the_servers_words(fake, session) -> None:
    """So that whoever runs it can be asked about it."""
    told = session(fake(answers={"PWD": "550 no", "EPSV": "500 what?"})).traits()
    assert told["working folder"] == "not told: 550 no"
    assert told["EPSV"] == "does not work: 500 what?"
    assert told["PASV"] == "works"


def test_a_port_that_cannot_be_reached_is_told(fake, session) -> None:
    """A firewall lets the reply through, and not the connection."""
    numbers = HOST.replace(".", ",")
    told = session(fake(answers={"PASV": f"227 Entering ({numbers},0,1)"})).traits()
    assert told["PASV"].startswith("names a port that cannot be reached: ")


def test_a_server_that_wants_its_commands_one_by_one_is_told(fake, session) -> None:
    """As it is slower."""
    server = fake()
    ftp = session(server)
    ftp.link.control.pipelining.slow_down()
    assert ftp.traits()["commands"] == "one by one, as it confuses those of one write: slower"
