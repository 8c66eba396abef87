"""Logs as data: one JSON object a line (readable text on a terminal), the job bound, secrets masked."""

import json
import logging
import sys
from contextlib import suppress
from typing import Any, TextIO

import structlog
from structlog.typing import Processor

from worker.platform import redact_event


def _shared_processors() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]


def configure(level: str | int = "INFO", *, as_text: bool | None = None) -> None:
    """Send the project's logs and everybody else's through the same processors to standard error.

    `as_text`: readable lines instead of JSON; None: when standard error is a terminal.
    """
    readable = sys.stderr.isatty() if as_text is None else as_text
    renderer: Processor = (
        structlog.dev.ConsoleRenderer() if readable else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared_processors(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    final: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        _plain_message,
        redact_event,
        *([_harmless_on_a_terminal] if readable else []),
        renderer,
    ]
    handler = _Handler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_shared_processors(), processors=final)
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # A request's URL is not for our logs.
    for noisy in ("httpx", "httpcore", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


class _Handler(logging.StreamHandler[TextIO]):
    """Does not show a record that it cannot write: Python's own way is to print all of it, as it came."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say so, and where it came from."""
        why = getattr(sys.exc_info()[0], "__name__", "")
        told = {"event": "log line not written", "at": f"{record.name}:{record.lineno}", "why": why}
        with suppress(OSError, ValueError):
            self.stream.write(json.dumps(told) + "\n")


def _harmless_on_a_terminal(_logger: Any, _name: str, event: Any) -> Any:
    """Texts on one line without what a terminal obeys; a traceback keeps its lines."""
    return {key: _harmless(value, key) if isinstance(value, str) else value for key, value in event.items()}


def _harmless(text: str, key: str) -> str:
    kept = "\n" if key in ("exception", "stack") else ""
    return "".join(
        character if character.isprintable() or character in kept else ascii(character)[1:-1]
        for character in text
    )


def _plain_message(_logger: Any, _name: str, event: Any) -> Any:
    """Celery hands over message objects of its own; the fields of `extra` stay out."""
    event["event"] = str(event.get("event", ""))
    return event
