"""What the message of a step may carry, by the signature of the step's own function.

Steps are published by workers alone, and yet their queues are open: what somebody else puts there, or a
worker of another version, is kept as a dead letter like any message that cannot be accepted.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from worker.workflow.reading import RefusedMessageError, mistakes

Count = Annotated[int, Field(ge=0)]


class Arguments(BaseModel):
    """No others than a step names."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)


class StepArguments(Arguments):
    """What every step of a run understands besides, see `worker.runs.step_task`; the rest it leaves alone."""

    model_config = ConfigDict(extra="allow")

    generation: Count = 0
    attempt: Count = 0
    redelivered: bool = False


def arguments_of(function: Callable[..., Any]) -> type[Arguments] | None:
    """A model of the arguments by name; None for a door, which takes what comes and refuses it itself."""
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


def check(model: type[Arguments], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raises `RefusedMessageError` when they are not those of the step."""
    if args:
        raise RefusedMessageError("arguments must be sent by name")
    try:
        model.model_validate(kwargs)
    except ValidationError as error:
        raise RefusedMessageError(mistakes(error)) from None
