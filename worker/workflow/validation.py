"""Reads messages that anybody may have written: what they say, or what is wrong with them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from shared.messages import DeployMessage, Job, Tenant, ToTaskMessage, as_json
from shared.statuses import JobStatus
from shared.validation import describe_validation_error
from worker.blame import Owner, RejectedMessageError, in_message
from worker.platform import MalformedResponseError, clean
from worker.plugins import PluginError, PluginStore

log = structlog.get_logger(__name__)

MAX_CHARS = 2_000
"""Of the text that says what is wrong with a message."""


ModelT = TypeVar("ModelT", bound=BaseModel)


def parse_message(model: type[ModelT], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ModelT:
    """Validate the arguments of a message; raises `RejectedMessageError`."""
    if args:
        raise RejectedMessageError("arguments must be sent by name")
    try:
        return model.model_validate(kwargs)
    except ValidationError as error:
        raise RejectedMessageError(mistakes(error)) from None


def parse(
    model: type[DeployMessage] | type[ToTaskMessage], args: tuple[Any, ...], kwargs: Any, store: PluginStore
) -> DeployMessage | ToTaskMessage:
    """Validate a message and check that its release and action exist; raises `RejectedMessageError`.

    What is wrong with this machine or a service says nothing about the message, and leaves as it is.
    """
    message = parse_message(model, args, kwargs)
    try:
        store.get(message.plugin).action(message.action)
    except Exception as error:
        if in_message(error).owner in (Owner.HOST, Owner.DEPENDENCY):
            raise
        if isinstance(error, PluginError):
            raise RejectedMessageError(clean(str(error))) from None
        log.error("release not read", plugin=message.plugin, exc_info=True)
        raise RejectedMessageError(clean(f"{type(error).__name__}: {error}")) from None
    return message


def mistakes(error: ValidationError) -> str:
    """Where and what is wrong, in one line, without what the message holds."""
    return clean(describe_validation_error(error))[:MAX_CHARS]


_JOB: TypeAdapter[str] = TypeAdapter(Job)
_TENANT: TypeAdapter[str] = TypeAdapter(Tenant)


def readable_job(kwargs: Any, args: Sequence[Any] = ()) -> str | None:
    """The job of a message that is otherwise wrong, in whatever form it can be read.

    Some publishers send the arguments by position, the first of which is the job, or as one object.
    """
    first = args[0] if args else None
    if isinstance(first, dict) and first and not kwargs:
        kwargs = first
    value = kwargs.get("job", first) if isinstance(kwargs, dict) else first
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    value = value.strip() if isinstance(value, str) else as_json(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    try:
        return str(_JOB.validate_python(value))
    except ValidationError:
        return None


def readable_tenant(kwargs: Any, args: Sequence[Any] = ()) -> str | None:
    """The tenant of a message that is otherwise wrong, in the same forms except by position."""
    if args and not kwargs:
        kwargs = args[0]
    try:
        return _TENANT.validate_python(kwargs.get("tenant") if isinstance(kwargs, dict) else None)
    except ValidationError:
        return None


Count = Annotated[int, Field(ge=0)]


class Arguments(BaseModel):
    """No others than a step names."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)


class StepArguments(Arguments):
    """What every step of a run understands besides, see `worker.workflow.task`; the rest it leaves alone."""

    model_config = ConfigDict(extra="allow")

    generation: Count = 0
    attempt: Count = 0
    redelivered: bool = False


def arguments_of(function: Callable[..., Any]) -> type[Arguments] | None:
    """A model of the keyword arguments; None for entry tasks, which validate their own arguments."""
    parameters = inspect.signature(function).parameters.values()
    kinds = {each.kind for each in parameters}
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return None
    fields: dict[str, Any] = {
        each.name: (each.annotation, ... if each.default is each.empty else each.default)
        for each in parameters
        if each.kind is not each.VAR_KEYWORD
    }
    base = StepArguments if inspect.Parameter.VAR_KEYWORD in kinds else Arguments
    return create_model(f"{base.__name__}Of", __base__=base, **fields)


def status_of(job: Mapping[str, Any]) -> JobStatus | None:
    """The status in the backend's answer; None for a word that is not known here, which is no end."""
    status = job.get("status")
    if not isinstance(status, str):
        raise MalformedResponseError("malformed answer: a job without a status")
    return JobStatus(status) if status in set(JobStatus) else None
