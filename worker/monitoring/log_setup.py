"""Sets up logging: one JSON object a line, or text on a terminal, with the job and without secrets."""

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
    """Write the logs of the project and of all libraries to standard error, through the same processors.

    With `as_text`, write readable lines instead of JSON; None means when standard error is a terminal.
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
    processors: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        _event_as_text,
        redact_event,
        *([_without_control_characters] if readable else []),
        renderer,
    ]
    handler = _Handler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_shared_processors(), processors=processors)
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # These log the URLs of requests, which may hold secrets.
    for library in ("httpx", "httpcore", "urllib3"):
        logging.getLogger(library).setLevel(logging.WARNING)


class _Handler(logging.StreamHandler[TextIO]):
    """Does not show a record that it cannot write; Python's own handler would print it unmasked."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Write that a record was lost, and where it was logged."""
        why = getattr(sys.exc_info()[0], "__name__", "")
        lost = {"event": "log line not written", "at": f"{record.name}:{record.lineno}", "why": why}
        with suppress(OSError, ValueError):
            self.stream.write(json.dumps(lost) + "\n")


def _without_control_characters(_logger: Any, _name: str, event: Any) -> Any:
    """Texts on one line and without control characters; a traceback keeps its lines."""
    return {key: _escaped(value, key) if isinstance(value, str) else value for key, value in event.items()}


def _escaped(text: str, key: str) -> str:
    kept = "\n" if key in ("exception", "stack") else ""
    return "".join(
        character if character.isprintable() or character in kept else ascii(character)[1:-1]
        for character in text
    )


def _event_as_text(_logger: Any, _name: str, event: Any) -> Any:
    """The event as text: Celery logs message objects of its own."""
    event["event"] = str(event.get("event", ""))
    return event
