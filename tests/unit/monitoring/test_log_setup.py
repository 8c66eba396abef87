"""Logs: a JSON object a line, the job bound, secrets masked."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from worker.monitoring import log_setup
from worker.platform import redaction, register_secrets

SECRET = "hush-hush-hush"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    noisy = {name: logging.getLogger(name).level for name in ("httpx", "httpcore", "urllib3")}
    monkeypatch.setattr(redaction, "_registry", redaction.SecretRegistry())
    register_secrets([SECRET])
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    log_setup.configure("INFO", as_text=False)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in noisy.items():
        logging.getLogger(name).setLevel(before)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(written: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.getvalue().splitlines()]


def test_line_is_a_json_object(written: io.StringIO) -> None:
    structlog.get_logger("worker.x").info("run ended", status="FAILED", count=2)

    (line,) = lines(written)
    assert line.pop("timestamp")
    assert line == {
        "event": "run ended",
        "status": "FAILED",
        "count": 2,
        "level": "info",
        "logger": "worker.x",
    }


def test_foreign_line_is_a_json_object_too(written: io.StringIO) -> None:
    logging.getLogger("celery.worker").warning("lost %s", "it")

    (line,) = lines(written)
    assert (line["event"], line["level"], line["logger"]) == ("lost it", "warning", "celery.worker")


def test_job_is_bound(written: io.StringIO) -> None:
    with structlog.contextvars.bound_contextvars(job="42", step="deploy.register"):
        structlog.get_logger("worker.x").info("own")
        logging.getLogger("celery").info("foreign")

    assert [(line["job"], line["step"]) for line in lines(written)] == [("42", "deploy.register")] * 2


def test_level_is_heeded(written: io.StringIO) -> None:
    structlog.get_logger("worker.x").debug("quiet")

    assert lines(written) == []


def test_secret_in_the_event_is_masked(written: io.StringIO) -> None:
    structlog.get_logger("worker.x").info(f"got {SECRET}")
    logging.getLogger("celery").info("got %s", SECRET)

    assert SECRET not in written.getvalue()
    assert len(lines(written)) == 2


@pytest.mark.parametrize(
    "value",
    [SECRET, [SECRET], {"a": {"b": SECRET}}, (1, SECRET), ValueError(SECRET), {SECRET: 1}, SECRET.encode()],
)
def test_secret_in_a_field_is_masked(written: io.StringIO, value: object) -> None:
    structlog.get_logger("worker.x").info("event", field=value)

    assert SECRET not in written.getvalue()
    assert len(lines(written)) == 1


def test_secret_in_an_exception_is_masked(written: io.StringIO) -> None:
    try:
        raise ValueError(f"call with {SECRET}")
    except ValueError:
        structlog.get_logger("worker.x").exception("failed")
        logging.getLogger("celery").exception("failed")
        structlog.get_logger("worker.x").error("failed", exc_info=True)

    assert SECRET not in written.getvalue()
    assert ["ValueError: call with" in line["exception"] for line in lines(written)] == [True] * 3


def test_secret_in_the_cause_of_an_exception_is_masked(written: io.StringIO) -> None:
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as cause:
            raise RuntimeError("outer") from cause
    except RuntimeError:
        structlog.get_logger("worker.x").exception("failed")

    assert SECRET not in written.getvalue()


def test_header_is_masked_although_nobody_registered_it(written: io.StringIO) -> None:
    logging.getLogger("x").info("Authorization: Token 0123456789abcdef")

    assert "0123456789abcdef" not in written.getvalue()


def test_extra_of_foreign_lines_stays_out(written: io.StringIO) -> None:
    logging.getLogger("celery").info("received", extra={"data": {"kwargs": SECRET}})

    assert "kwargs" not in written.getvalue()


def test_message_objects_become_text(written: io.StringIO) -> None:
    class Message:
        def __str__(self) -> str:
            return "said"

    logging.getLogger("celery").info(Message())

    assert lines(written)[0]["event"] == "said"


def test_requests_of_http_clients_are_not_logged(written: io.StringIO) -> None:
    logging.getLogger("httpx").info("HTTP Request: GET https://x/?token=abc")

    assert written.getvalue() == ""


def test_text_is_for_terminals(written: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", written)
    log_setup.configure("INFO", as_text=True)

    logging.getLogger("celery").info("got %s", SECRET)

    assert "got ***" in written.getvalue()
    assert not written.getvalue().startswith("{")


def test_secret_in_an_exception_as_text_is_masked(
    written: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", written)
    log_setup.configure("INFO", as_text=True)
    try:
        raise ValueError(SECRET)
    except ValueError:
        logging.getLogger("celery").exception("failed")

    assert "ValueError" in written.getvalue()
    assert SECRET not in written.getvalue()


def test_a_line_that_cannot_be_written_is_not_shown_as_it_came(written: io.StringIO) -> None:
    # Given a line whose text does not fit its values (pytest's own handlers would raise, so it goes to ours)
    [handler] = [each for each in logging.getLogger().handlers if isinstance(each, log_setup._Handler)]

    handler.handle(
        logging.LogRecord("celery", logging.INFO, "x.py", 5, "%s and %s", (f"hush {SECRET}",), None)
    )

    assert lines(written) == [{"event": "log line not written", "at": "celery:5", "why": "TypeError"}]


def test_a_terminal_obeys_no_text_of_others(written: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given readable lines
    monkeypatch.setattr(sys, "stderr", written)
    log_setup.configure("INFO", as_text=True)

    # When somebody's text clears the screen, turns the line around and begins a new one
    text = "a\x1b[2J\x9b2J\u202e\r\nb"
    structlog.get_logger("worker.x").info("refused", task=text)
    logging.getLogger("celery").info("Task %s", text)
    try:
        raise ValueError("é\x1b[2J")
    except ValueError:
        structlog.get_logger("worker.x").exception("failed")

    # Then the characters are spelt out; a traceback keeps its lines
    shown = written.getvalue()
    assert not {"\x9b", "\u202e", "\r"} & set(shown)
    assert "\x1b[2J" not in shown
    assert shown.count(r"a\x1b[2J\x9b2J\u202e\r\nb") == 2
    assert "\nTraceback (most recent call last):\n" in shown
    assert r"ValueError: é\x1b[2J" in shown
