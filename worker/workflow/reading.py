"""Reading a message that anybody may have written: what it says, or what is wrong with it."""

from typing import Any

import structlog
from pydantic import TypeAdapter, ValidationError

from shared.messages import DeployMessage, Job, Tenant, ToTaskMessage
from worker.platform import clean
from worker.plugins import PluginError, PluginStore

log = structlog.get_logger(__name__)

MOST_MISTAKES = 20
LONGEST_NAME = 100
"""Of what is wrong with a message, which may have a hundred thousand wrong keys of any length."""


class RefusedMessageError(ValueError):
    """A message that cannot be accepted; the text says why, without what the message holds."""


def parse(
    model: type[DeployMessage] | type[ToTaskMessage], args: tuple[Any, ...], kwargs: Any, store: PluginStore
) -> DeployMessage | ToTaskMessage:
    """Check a message and that its release and action exist; raises `RefusedMessageError`."""
    if args:
        raise RefusedMessageError("arguments must be sent by name")
    try:
        message = model.model_validate(kwargs)
    except ValidationError as error:
        raise RefusedMessageError(mistakes(error)) from None
    try:
        store.get(message.plugin).action(message.action)
    except PluginError as error:
        raise RefusedMessageError(clean(str(error))) from None
    except OSError:
        raise  # The store is away, which says nothing about the message.
    except Exception as error:
        log.error("release not read", plugin=message.plugin, exc_info=True)
        raise RefusedMessageError(clean(f"{type(error).__name__}: {error}")) from None
    return message


def mistakes(error: ValidationError) -> str:
    """Where and what is wrong, in one line, without what the message holds."""
    found = error.errors(include_input=False, include_url=False, include_context=False)
    lines = []
    for mistake in found[:MOST_MISTAKES]:
        where = ".".join(str(part)[:LONGEST_NAME] for part in mistake["loc"])
        what = mistake["msg"].removeprefix("Value error, ")
        lines.append(f"{where}: {what}" if where else what)
    if len(found) > MOST_MISTAKES:
        lines.append(f"and {len(found) - MOST_MISTAKES} more")
    return clean("; ".join(lines))[:2000]


_JOB: TypeAdapter[str] = TypeAdapter(Job)
_TENANT: TypeAdapter[str] = TypeAdapter(Tenant)


def readable_job(kwargs: Any) -> str | None:
    """The job of a message that is otherwise wrong."""
    try:
        return str(_JOB.validate_python(kwargs.get("job")))
    except ValidationError:
        return None


def readable_tenant(kwargs: Any) -> str | None:
    """The tenant of a message that is otherwise wrong."""
    try:
        return _TENANT.validate_python(kwargs.get("tenant"))
    except ValidationError:
        return None
