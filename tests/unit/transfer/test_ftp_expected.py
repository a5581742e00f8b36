"""Which reply can be whose."""

from __future__ import annotations

import pytest

from etl.transfer.ftp.expected import can_answer, is_of_the_session

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("command", "usual", "impossible"),
    [
        ("SIZE", (213,), (200, 226, 229, 250, 257, 350)),
        ("MDTM", (213, 253), (226, 227, 229, 257, 350)),
        ("MFMT", (213, 200, 253), (226, 229, 257, 350)),
        ("EPSV", (229, 227), (200, 213, 226, 250, 257, 350)),
        ("PASV", (227, 229), (200, 213, 226, 250, 257, 350)),
        ("RNFR", (350,), (200, 213, 226, 229, 250)),
        ("RNTO", (250, 200), (213, 226, 227, 229, 257, 350)),
        ("DELE", (250, 200), (213, 226, 229, 257, 350)),
        ("CWD", (250, 200), (213, 226, 229, 257, 350)),
        ("MKD", (257, 250), (213, 226, 229, 350)),
        ("PWD", (257,), (213, 226, 229, 350)),
        ("STOR", (226, 250), (213, 229, 257, 350)),
        ("RETR", (226, 250), (213, 229, 257, 350)),
        ("NOOP", (200,), (213, 226, 229, 257, 331)),
    ],
)
def test_a_success_is_known_by_its_code(command: str, usual: tuple[int, ...], impossible: tuple[int, ...]) -> None:
    """213 to SIZE, 229 to EPSV, 350 to RNFR: what is another command's cannot be this one's."""
    assert [code for code in usual if not can_answer(command, code)] == []
    assert [code for code in impossible if can_answer(command, code)] == []
    assert can_answer(command, 550)


def test_some_refusals_speak_of_the_session() -> None:
    """A login that was forgotten, a sequence that nobody began; but RNTO may come too soon, and a password be wrong."""
    assert all(is_of_the_session(command, code) for command in ("DELE", "RETR", "CWD", "NOOP") for code in (530, 532))
    assert is_of_the_session("SIZE", 503)
    assert not is_of_the_session("RNTO", 503)
    assert not is_of_the_session("PASS", 530)
    assert not is_of_the_session("DELE", 550)
