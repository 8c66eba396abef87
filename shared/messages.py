"""The four messages that the worker accepts, validated. Unknown keys are refused."""

import re
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError


def _form(name: str, pattern: str, words: str) -> AfterValidator:
    """A text of this form; who wrote another one reads `words`, and no pattern."""
    form = re.compile(pattern)

    def check(value: str) -> str:
        if not form.fullmatch(value):
            raise PydanticCustomError(f"{name}_form", words)
        return value

    return AfterValidator(check)


def _job_as_text(value: object) -> object:
    """An integer id and its decimal text are the same job."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Job = Annotated[
    str,
    BeforeValidator(_job_as_text),
    StringConstraints(strict=True, max_length=100),
    # Dots alone would be another path in the backend's addresses.
    _form(
        "job",
        r"[A-Za-z0-9_.-]*[A-Za-z0-9_-][.]*",
        "must be an id of letters, digits, '_', '-' and '.', for example 42",
    ),
]
"""The backend's id of a job: an integer or `[A-Za-z0-9_.-]`, at most 100 characters; held as text."""

_RELEASE_PART = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}"

PluginName = Annotated[
    str,
    StringConstraints(strict=True),
    _form(
        "plugin",
        rf"(?!.*\.\.){_RELEASE_PART}@{_RELEASE_PART}",
        "must be code@version, for example digits@1.0.0",
    ),
]
"""A release in the worker's plugin store, `code@version`: never a path, a module or a URL."""

Amount = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]
"""How many CPUs or GPUs: a number, also a fraction, but neither a text nor true or false."""

Tenant = Annotated[
    str,
    StringConstraints(strict=True, max_length=200),
    _form("tenant", r"[!-~]([ -~]*[!-~])?", "must be printable ASCII without spaces around it"),
]
"""Goes out as an HTTP header, which holds printable ASCII."""

PositiveId = Annotated[StrictInt, Field(gt=0)]
NonEmpty = Annotated[str, StringConstraints(strict=True, min_length=1)]


class _Strict(BaseModel):
    # hide_input_in_errors: what a message holds is not shown in logs, and an error's text is logged.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class DeployParams(BaseModel):
    """Resources of one replica and how many; a plugin's own params model may declare more keys."""

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True)

    num_cpus: Amount | None = None
    num_gpus: Amount | None = None
    memory: Annotated[StrictInt, Field(ge=0)] | None = Field(default=None, description="bytes")
    num_replicas: Annotated[StrictInt, Field(ge=1)] | None = None


class ToTaskMethod(StrEnum):
    """Where the annotation of a task comes from."""

    FILE = "file"
    INFERENCE = "inference"


class ToTaskParams(BaseModel):
    """What to pre-annotate and how; a plugin's own params model may declare more keys."""

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True)

    name: NonEmpty
    description: str | None = None
    project: PositiveId
    agent: PositiveId
    task_filters: dict[str, Any] = Field(default_factory=dict)
    method: ToTaskMethod = ToTaskMethod.FILE
    target_specification_name: NonEmpty | None = None
    pre_processor: PositiveId | None = None
    model: PositiveId | None = None
    pre_processor_params: dict[str, Any] = Field(default_factory=dict)
    batch_size: Annotated[StrictInt, Field(ge=1)] = 1
    # `schema` is a method of pydantic's models.
    data_schema: Literal["dm_schema_v1", "any"] = Field(default="dm_schema_v1", alias="schema")

    @model_validator(mode="after")
    def _method_has_what_it_needs(self) -> "ToTaskParams":
        if self.method is ToTaskMethod.FILE:
            needed: dict[str, object] = {"target_specification_name": self.target_specification_name}
        else:
            needed = {"pre_processor": self.pre_processor, "model": self.model}
        missing = [name for name, value in needed.items() if value is None]
        if missing:
            raise ValueError(f"method {self.method.value!r} requires {', '.join(missing)}")
        return self


class Message(_Strict):
    """One piece of work. `task` and `queue` are where it goes."""

    task: ClassVar[str]
    queue: ClassVar[str]

    job: Job

    @model_validator(mode="after")
    def _can_be_stored(self) -> "Message":
        try:
            self.model_dump_json()
        except ValueError:
            # JSON can spell halves of characters (`"\\ud800"`) that no encoding can carry further.
            raise ValueError("holds text that cannot be encoded") from None
        return self


class _RunMessage(Message):
    plugin: PluginName
    language: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=35)] = "en"
    tenant: Tenant | None = None


class DeployMessage(_RunMessage):
    """Put a plugin's model online on Ray Serve."""

    task: ClassVar[str] = "deploy"
    queue: ClassVar[str] = "deploy"

    agent: PositiveId
    params: DeployParams = Field(default_factory=DeployParams)
    action: NonEmpty = "deployment"

    @classmethod
    def agent_queue(cls, agent: int) -> str:
        """The queue of the workers that serve one agent; other workers pass its messages on to it."""
        return f"{cls.queue}.{agent}"


class ToTaskMessage(_RunMessage):
    """Pre-annotate the tasks of a project."""

    task: ClassVar[str] = "to_task"
    queue: ClassVar[str] = "to_task"

    params: ToTaskParams
    action: NonEmpty = "to_task"


class TailLogsMessage(Message):
    """Follow the log of a Ray job on the run's log channel."""

    task: ClassVar[str] = "tail_logs"
    queue: ClassVar[str] = "logs"

    ray_job: Annotated[
        str,
        StringConstraints(strict=True),
        _form(
            "ray_job", r"[A-Za-z0-9_-]{1,100}", "must be an id of letters, digits, '_' and '-', at most 100"
        ),
    ]
    agent: PositiveId | None = None
    protocol: Literal["auto", "websocket", "stream"] = "auto"


class StopMessage(Message):
    """End a run, also one whose message has not been read yet."""

    task: ClassVar[str] = "stop"
    queue: ClassVar[str] = "control"
