"""Celery's tracer, so that a message over which it stumbles ends there.

What the tracer itself raises, not the task, is lost in a pool of threads: nobody acknowledges the message,
and its slot is gone for good. As many such messages as there are slots stop a worker.
"""

from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.app.trace import TraceInfo, trace_ok_t
from celery.exceptions import Reject
from celery.states import FAILURE
from kombu.utils.json import dumps

from worker.broker.refusals import RefusedMessage, keep
from worker.broker.task_message import FOLLOWING

Trace = Callable[..., Any]


def unfailing(name: str, trace: Trace) -> Trace:
    """`trace` of the task `name`; a message that makes it raise is kept with the reason."""

    def trace_or_keep(uuid: str, args: Any, kwargs: Any, request: Any = None) -> Any:
        try:
            return trace(uuid, args, kwargs, request)
        except Exception as error:
            reason = f"cannot be run: {type(error).__name__}"
        body = dumps([args, kwargs, {part: (request or {}).get(part) for part in FOLLOWING}])
        kept = keep(None, RefusedMessage(name, body, reason, uuid, kwargs))
        return _failed(RuntimeError(reason) if kept else Reject(reason, requeue=True))

    return trace_or_keep


def _failed(error: Exception) -> Any:
    """What Celery takes for the outcome of a task that raised `error`."""
    try:
        raise error
    except Exception:
        return trace_ok_t(ExceptionInfo(), TraceInfo(FAILURE, error), 0.0, None)
