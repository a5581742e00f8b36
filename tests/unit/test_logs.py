"""Log lines: readable or JSON, from every logger, and never with a password in them."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import threading
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from etl import logs
from etl.errors import SettingsError

pytestmark = pytest.mark.unit

log = structlog.get_logger("etl.test")
SECRET = 'p"w/ö d\\%+'


def configured(log_format: str = "json", level: str = "INFO", secrets=()) -> io.StringIO:
    stream = io.StringIO()
    logs.configure(log_format, level, secrets, stream)
    return stream


def objects(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_is_one_object_a_line_with_time_level_and_event():
    """`time` is ISO 8601 in UTC; other fields keep their types."""
    stream = configured()
    log.info("job done", job_id="j1", bytes=3, share=0.5, ok=True, nothing=None, path="/한글\n")
    (line,) = objects(stream)
    assert list(line)[:3] == ["time", "level", "event"]
    assert abs((datetime.now(UTC) - datetime.fromisoformat(line.pop("time"))).total_seconds()) < 60
    assert line == {
        "level": "info",
        "event": "job done",
        "job_id": "j1",
        "bytes": 3,
        "share": 0.5,
        "ok": True,
        "nothing": None,
        "path": "/한글\n",
    }


def test_text_is_time_level_event_and_pairs():
    """Values with blanks are quoted, so that a line can be read back."""
    stream = configured("text")
    log.warning("session discarded", server="SRC", path="/a b", n=3, empty="", pair="a=b", items=[1, "x"])
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING session discarded"
        r' server=SRC path="/a b" n=3 empty="" pair="a=b" items=\[1, "x"\]\n',
        stream.getvalue(),
    )


@pytest.mark.parametrize("log_format", logs.FORMATS)
def test_no_value_breaks_a_line_or_drives_a_terminal(log_format):
    """File names come from strangers: line breaks and escape sequences are shown, not obeyed."""
    stream = configured(log_format)
    log.info("read\n2025 INFO forged \x1b[31m", path="/a\r\nb\x1b[2J\x9b", **{"ke\ny": 1})
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert "\x1b" not in text


INVISIBLE = ["\u202e", "\u2066", "\u200b", "\u00ad", "\ufeff", "\u3164", "\ufe0f", "\u2800", "\U000e0041", "\u00a0"]


@pytest.mark.parametrize(
    "control", ["\x00", "\x1b", "\x7f", "\x80", "\x85", "\x9b", "\x9f", "\u2028", "\u2029", *INVISIBLE]
)
def test_json_escapes_every_control_character(control):
    """A CSI of one character (U+009B) drives a terminal as ESC [ does."""
    stream = configured()
    log.info("read", path=f"/ö{control}2J", **{f"k{control}": control})
    assert control not in stream.getvalue()
    assert "/ö" in stream.getvalue()
    (line,) = objects(stream)
    assert (line["path"], line[f"k{control}"]) == (f"/ö{control}2J", control)
    log.info("read", path=f"/o{control}")
    assert control not in stream.getvalue()


def test_below_the_level_nothing_is_written():
    """DEBUG is silent at INFO, in whatever case the level is written."""
    stream = configured(level="info")
    log.debug("quiet")
    log.info("heard")
    assert [line["event"] for line in objects(stream)] == ["heard"]
    stream = configured(level="DEBUG")
    log.debug("heard")
    assert [line["level"] for line in objects(stream)] == ["debug"]


@pytest.mark.parametrize(("log_format", "level"), [("xml", "INFO"), ("text", "LOUD"), ("text", ""), ("", "INFO")])
def test_unknown_formats_and_levels_are_refused_by_the_name_of_their_setting(log_format, level):
    """Nothing is guessed."""
    with pytest.raises(SettingsError, match="ETL_LOG_"):
        logs.configure(log_format, level)


def test_other_libraries_are_heard_from_warning_up_through_the_same_renderer():
    """kafka-python's own loggers, with their name and arguments."""
    stream = configured(level="DEBUG", secrets=[SECRET])
    logging.getLogger("kafka.conn").info("quiet")
    logging.getLogger("kafka.conn").warning("lost %s after %d s", SECRET, 3)
    (line,) = objects(stream)
    assert (line["level"], line["event"], line["logger"]) == ("warning", "lost *** after 3 s", "kafka.conn")


def test_wrong_arguments_of_another_librarys_call_raise_nothing():
    """Its text is written as it stands."""
    stream = configured()
    record = logging.LogRecord("other", logging.ERROR, "file", 1, "%d lost", ("x",), None)
    logging.getLogger().handlers[-1].handle(record)
    assert "%d lost" in objects(stream)[0]["event"]


def test_configuring_twice_writes_each_line_once():
    """The handler of the first time is gone."""
    first, second = configured(), configured()
    logging.getLogger("other").warning("once")
    log.info("once")
    assert (len(objects(first)), len(objects(second))) == (0, 2)


def test_a_field_never_hides_time_or_level():
    """It gets an underscore."""
    stream = configured()
    log.info("x", level="mine", time="mine")
    (line,) = objects(stream)
    assert (line["level"], line["level_"], line["time_"]) == ("info", "mine", "mine")


@pytest.mark.parametrize("log_format", logs.FORMATS)
def test_a_traceback_is_written_without_secrets(log_format):
    """Chained errors too: the message, the source line, the `repr`."""
    stream = configured(log_format, secrets=["hunter2-word"])
    try:
        try:
            raise ValueError("login hunter2-word refused")
        except ValueError as error:
            raise RuntimeError({"password": "hunter2-word"}) from error
    except RuntimeError:
        log.exception("job failed")
        logging.getLogger("other").exception("job failed")
    text = stream.getvalue()
    assert text.count("RuntimeError: ") == 2
    assert text.count("ValueError: ") == 2
    assert "hunter2" not in text


def test_an_exception_may_be_given_as_such():
    """`exc_info=error`, or none at all where there is none."""
    stream = configured()
    log.error("failed", exc_info=OSError("late"))
    log.error("failed", exc_info=True)  # noqa: LOG014 - that is the claim
    with_error, without = objects(stream)
    assert with_error["exception"].endswith("OSError: late")
    assert "exception" not in without


def forms_of(secret: str) -> list[str]:
    """The ways in which a secret might get into a text."""
    data = secret.encode()
    return [
        secret,
        quote(secret, safe=""),
        quote(secret),
        base64.b64encode(data).decode(),
        base64.urlsafe_b64encode(data).decode().rstrip("="),
        json.dumps(secret),
        json.dumps(secret, ensure_ascii=False),
        json.dumps(json.dumps({"p": secret})),
        repr(secret),
        repr(data),
    ]


@pytest.mark.parametrize("log_format", logs.FORMATS)
@given(
    secret=st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=4, max_size=30).filter(
        lambda secret: not re.search(r"[a-z0-9 *:.=,{}\[\]]", secret)
    ),
    before=st.text("xyz", max_size=3),
)
def test_a_secret_is_in_no_line_in_any_form(log_format, secret, before):
    """As event, value, key, within lists, objects, paths, errors: the line holds none of its forms."""
    stream = configured(log_format, secrets=["another-one", secret])
    for form in forms_of(secret):
        event = f"{before}{form}"
        log.info(
            event,
            plain=form,
            url=f"ftp://u:{form}@host",
            nested=[{"k": (form, {form})}],
            path=Path("x") / form.replace("\x00", ""),
            error=ValueError(form),
            exc_info=ValueError(form),
            **{f"key{form}": 1},
        )
    text = stream.getvalue()
    for form in forms_of(secret)[:8]:
        assert form not in text
    if log_format == "json":
        assert len(objects(stream)) == len(forms_of(secret))


def test_json_stays_json_whatever_the_secret_is():
    """A password of digits, or one that is a word of JSON, breaks no line."""
    stream = configured(secrets=["1234", "true", "null", "event", "level"])
    log.info("the event of 1234", bytes=1234, more=112345, ok=True, none=None)
    (line,) = objects(stream)
    assert line["event"] == "the *** of ***"
    assert (line["bytes"], line["more"], line["none"]) == ("***", "1***5", None)


def test_a_short_secret_is_hidden_only_as_a_whole_value():
    """A password `abc` or `a` must not make every line unreadable."""
    stream = configured(secrets=["abc", "a"])
    log.info("abc", value="abc", within="xabcx", items=["a", "ab"])
    (line,) = objects(stream)
    assert (line["event"], line["value"], line["within"], line["items"]) == ("***", "***", "xabcx", ["***", "ab"])


def test_empty_secrets_hide_nothing():
    """An anonymous login has an empty password."""
    stream = configured(secrets=["", ""])
    log.info("plain", value="")
    assert objects(stream)[0]["value"] == ""


def test_the_longer_of_two_secrets_is_hidden_whole():
    """`word` within `password-two` leaves no rest."""
    stream = configured(secrets=["word", "password-two"])
    log.info("x", value="password-two word")
    assert objects(stream)[0]["value"] == "*** ***"


def test_redact_serves_what_leaves_by_other_ways():
    """Error texts of dead letters and results."""
    configured(secrets=["hunter2-word"])
    assert logs.redact("530 hunter2-word refused") == "530 *** refused"


class Awkward:
    def __str__(self):
        raise RuntimeError("no text")


def test_a_value_that_cannot_be_shown_ends_nothing():
    """A line says so instead."""
    stream = configured()
    log.info("x", value=Awkward())
    round_trip = {}
    round_trip["self"] = round_trip
    log.info("x", value=round_trip)
    log.info("x", value=[float("nan"), datetime(2025, 1, 2, tzinfo=UTC), b"\xff", Path("/x")])
    lines = objects(stream)
    assert [line["event"] for line in lines] == ["log line failed", "log line failed", "x"]
    assert lines[2]["value"] == ["nan", "2025-01-02T00:00:00+00:00", "b'\\xff'", "/x"]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_the_stream_cannot_encode_are_escaped(encoding):
    """Undecodable bytes of a local file name (surrogates), Korean letters on an ASCII terminal."""
    raw = io.BytesIO()
    logs.configure("json", "INFO", (), io.TextIOWrapper(raw, encoding=encoding))
    log.info("x", path="/\udcff한é")
    line = json.loads(raw.getvalue().decode(encoding))
    assert line["path"] == "/\udcff한é"


def test_a_closed_stream_ends_nothing():
    """Nobody reads the pipe any more: the transfers go on."""
    stream = configured()
    stream.close()
    log.info("x")
    logging.getLogger("other").warning("x")


def test_lines_of_many_threads_are_whole():
    """One writer at a time."""
    stream = configured()

    def write() -> None:
        for number in range(50):
            log.info("x" * 200, number=number)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(objects(stream)) == 400


def test_a_line_may_tell_when_it_was():
    """`at`, of the wall clock: for what is told later than it was."""
    stream = configured()
    log.info("job done", job_id="j1", at=1_700_000_000.5)
    assert objects(stream) == [
        {"time": "2023-11-14T22:13:20.500Z", "level": "info", "event": "job done", "job_id": "j1"}
    ]


def test_lines_written_together_leave_in_one_piece_and_hold_up_nobody_elses():
    """Of that thread alone, also when it ends with an error; afterwards each goes by itself again."""
    stream = configured()

    def gather() -> None:
        with logs.together():
            log.info("one")
            log.info("two")
            thread = threading.Thread(target=lambda: log.info("beside"))
            thread.start()
            thread.join()
            assert [line["event"] for line in objects(stream)] == ["beside"]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        gather()
    assert [line["event"] for line in objects(stream)] == ["beside", "one", "two"]
    log.info("after")
    assert objects(stream)[-1]["event"] == "after"


def test_of_many_secrets_each_is_hidden_and_the_longest_of_those_at_one_place():
    """Also where one begins as another does."""
    secrets = [f"{first}{number:03d}-word" for first in "ab+" for number in range(100)] + ["a000-word-and-more"]
    stream = configured(secrets=secrets)
    for secret in secrets:
        log.info("x", path=f"/<{secret}>/y")
    assert {line["path"] for line in objects(stream)} == {"/<***>/y"}


@given(st.text("abc", max_size=20), st.lists(st.text("abc", min_size=1, max_size=8), max_size=4))
def test_a_secret_is_shown_only_within_a_word_that_was_told(text, told):
    """A shorter word uncovers nothing of it."""
    secret = "abcab"
    shown = logs.Redactor([secret]).text(text, told)
    longer = [word for word in told if secret in word]
    if secret in shown:
        assert any(word in text for word in longer)
    if not longer:
        assert shown == logs.Redactor([secret]).text(text)
