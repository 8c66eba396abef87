"""Logs as data: one JSON object a line (readable text on a terminal), the job bound, secrets masked."""

import logging
import sys
from typing import Any

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
        renderer,
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_shared_processors(), processors=final)
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # A request's URL is not for our logs.
    for noisy in ("httpx", "httpcore", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _plain_message(_logger: Any, _name: str, event: Any) -> Any:
    """Celery hands over message objects of its own; the fields of `extra` stay out."""
    event["event"] = str(event.get("event", ""))
    return event
