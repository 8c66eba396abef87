"""The four messages that the worker accepts, validated (contract: "Work comes in as Celery messages").

Unknown keys are rejected. A model's `ValidationError` never shows what the message holds, because its text is
logged.
"""

import re
from collections.abc import Mapping
from datetime import date, time
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

JsonObject = dict[str, Any]
"""A JSON object whose keys someone else decides: a filter, an answer of the platform, a plugin's result."""


def as_json(value: Any) -> Any:
    """Write what kombu revives from JSON as JSON: a publisher that sends a UUID means its text.

    Args:
        value: What kombu has read. It marks UUIDs, dates, times and decimals in JSON, and makes them again.

    Returns:
        The same with UUIDs, dates and times as texts and decimals as numbers.
    """
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_json(item) for item in value]
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value.as_tuple().exponent == 0 else float(value)
    return str(value) if isinstance(value, UUID) else value


def _text_form(name: str, pattern: str, requirement: str) -> AfterValidator:
    """Check a text against `pattern`; the error says `requirement`, because few people read patterns."""
    form = re.compile(pattern)

    def check(value: str) -> str:
        if not form.fullmatch(value):
            raise PydanticCustomError(f"{name}_form", requirement)
        return value

    return AfterValidator(check)


def _job_as_text(value: object) -> object:
    """An integer id and its decimal text are the same job."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Job = Annotated[
    str,
    BeforeValidator(_job_as_text),
    StringConstraints(strict=True, max_length=100),
    # An id of dots alone would be another path in the backend's addresses.
    _text_form(
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
    _text_form(
        "plugin",
        rf"(?!.*\.\.){_RELEASE_PART}@{_RELEASE_PART}",
        "must be code@version, for example digits@1.0.0",
    ),
]
"""A release in the worker's plugin store, `code@version`: never a path, a module or a URL."""

ResourceAmount = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]
"""How many CPUs or GPUs: a number, fractions included, but neither a text nor true or false."""

CapacityWait = Annotated[float, Field(ge=0, le=86_400, strict=True, allow_inf_nan=False)]
"""Seconds, at most a day, after which a deployment is hardly wanted any more."""

Tenant = Annotated[
    str,
    StringConstraints(strict=True, max_length=200),
    _text_form("tenant", r"[!-~]([ -~]*[!-~])?", "must be printable ASCII without spaces around it"),
]
"""Sent as an HTTP header, which can only hold printable ASCII."""

PositiveId = Annotated[StrictInt, Field(gt=0)]
NonEmpty = Annotated[str, StringConstraints(strict=True, min_length=1)]


class _StrictModel(BaseModel):
    # hide_input_in_errors: what a message holds is not shown in logs, and an error's text is logged.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


RESOURCE_KEYS: Mapping[str, tuple[str, ...]] = {
    "num_cpus": ("required_cpu_count", "num_cpus"),
    "num_gpus": ("required_gpu_count", "num_gpus"),
    "memory": ("memory", "memory_bytes"),
    "num_replicas": ("num_replicas",),
}
"""By parameter of `deploy`, the keys of config.yaml's `required_resources`; the first declared one counts
(seeds: "Required Resources Payload")."""

DISPATCH_DEFAULTS: Mapping[str, float] = {"num_cpus": 1, "num_gpus": 0.1}
"""What a deployment is dispatched with for a release that declares no such resource (seeds: the same)."""


class DeployParams(BaseModel):
    """`params` of `deploy`: the resources of one replica, the number of replicas, the wait for capacity.

    Other keys are kept: a plugin's own params model may declare them. A value that is None is taken from the
    release's `required_resources`, else from Ray Serve's defaults.

    Attributes:
        num_cpus: CPUs of one replica.
        num_gpus: GPUs of one replica.
        memory: Memory of one replica in bytes.
        num_replicas: Replicas; it takes precedence over the release's `serve_options`.
        wait_for_capacity: Seconds, at most a day, to wait where the capacity gate says no; None for
            no wait.
    """

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True)

    num_cpus: ResourceAmount | None = None
    num_gpus: ResourceAmount | None = None
    memory: Annotated[StrictInt, Field(ge=0)] | None = Field(default=None, description="bytes")
    num_replicas: Annotated[StrictInt, Field(ge=1)] | None = None
    wait_for_capacity: CapacityWait | None = None


class ToTaskMethod(StrEnum):
    """Where the annotation of a task comes from (seeds: pre-annotation actions)."""

    FILE = "file"
    INFERENCE = "inference"


class ToTaskParams(BaseModel):
    """`params` of `to_task`: which tasks to pre-annotate and how (seeds: pre-annotation actions; contract).

    Other keys are kept: a plugin's own params model may declare them.

    Attributes:
        name: Name of the job.
        description: Description of the job.
        project: Id of the project whose tasks are annotated.
        agent: Id of the Ray cluster's agent.
        task_filters: Query parameters of the backend's list of tasks.
        method: `file` or `inference`.
        target_specification_name: Name of the file specification; required by `file`.
        pre_processor: Id of the pre-processor's release; required by `inference`.
        model: Id of the model; required by `inference`.
        pre_processor_params: Additional parameters of the inference call.
        batch_size: Requests that a pre-processor is sent at once, unless its release declares
            `serve_options.batch.max_batch_size`. Where it is not given, a pre-processor is sent as many as
            its `serve_options.max_ongoing_requests`, which is 5 unless the release says otherwise.
        data_schema: `schema` in the message. With `any` the backend does not check the data's schema.
    """

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True)

    name: NonEmpty
    description: str | None = None
    project: PositiveId
    agent: PositiveId
    task_filters: JsonObject = Field(default_factory=dict)
    method: ToTaskMethod = ToTaskMethod.FILE
    target_specification_name: NonEmpty | None = None
    pre_processor: PositiveId | None = None
    model: PositiveId | None = None
    pre_processor_params: JsonObject = Field(default_factory=dict)
    # Nobody can know the pre-processor here, so that 1 stands for a value that is not given.
    batch_size: Annotated[StrictInt, Field(ge=1)] = Field(
        default=1, json_schema_extra={"x-default": "the pre-processor's `max_ongoing_requests`, else 5"}
    )
    # An alias, because `schema` is a method of pydantic's models.
    data_schema: Literal["dm_schema_v1", "any"] = Field(default="dm_schema_v1", alias="schema")

    @property
    def schema(self) -> str:  # type: ignore[override]
        """The same as `data_schema`, under its name in the message and in the published SDK."""
        return self.data_schema

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


class Message(_StrictModel):
    """The base of the four messages.

    Attributes:
        task: The Celery task's name.
        queue: The queue that the message is sent to.
        job: The backend's job id. For `deploy` and `to_task` together it is the idempotency key.
    """

    task: ClassVar[str]
    queue: ClassVar[str]

    job: Job

    @model_validator(mode="before")
    @classmethod
    def _of_json_values(cls, values: Any) -> Any:
        try:
            return as_json(values)
        except RecursionError:
            raise ValueError("is nested too deeply") from None

    @model_validator(mode="after")
    def _can_be_stored(self) -> "Message":
        try:
            self.model_dump_json()
        except ValueError:
            # JSON can spell halves of surrogate pairs (`"\\ud800"`), which no encoding can carry.
            raise ValueError("holds text that cannot be encoded") from None
        return self


class _RunMessage(Message):
    """A message that starts a run.

    Attributes:
        plugin: The release, `code@version`.
        language: The language that plugin code may write its messages in, such as `en`.
        tenant: The tenant at the backend; None for the worker's own, SYNAPSE_TENANT.
    """

    plugin: PluginName
    language: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=35)] = "en"
    tenant: Tenant | None = None


class DeployMessage(_RunMessage):
    """Deploy a plugin's model on Ray Serve.

    Attributes:
        agent: Id of the Ray cluster's agent.
        params: Resources and the plugin's own parameters.
        action: The release's action.
        force: Whether to submit the application also when an identical one is on Serve already.
    """

    task: ClassVar[str] = "deploy"
    queue: ClassVar[str] = "deploy"

    agent: PositiveId
    params: DeployParams = Field(default_factory=DeployParams)
    action: NonEmpty = "deployment"
    force: StrictBool = False

    @classmethod
    def agent_queue(cls, agent: int) -> str:
        """Name the queue of the workers that serve one agent alone (contract: WORKER_AGENT).

        Args:
            agent: Id of the agent.

        Returns:
            `deploy.{agent}`, on which other workers pass the agent's messages on.
        """
        return f"{cls.queue}.{agent}"


class ToTaskMessage(_RunMessage):
    """Pre-annotate the tasks of a project.

    Attributes:
        params: Which tasks and how.
        action: The release's action.
        only_failed_of: An ended job of the same tenant and project: exactly its failed tasks are annotated,
            whatever `task_filters` say. None for the tasks of the filters.
        skip_annotated: Whether to leave a task alone whose `data` is not empty. It counts as annotated.
        dry_run: Whether to find out only what there is to do: the result says how many tasks and chunks, and
            what would be dispatched.
    """

    task: ClassVar[str] = "to_task"
    queue: ClassVar[str] = "to_task"

    params: ToTaskParams
    action: NonEmpty = "to_task"
    only_failed_of: Job | None = None
    skip_annotated: StrictBool = False
    dry_run: StrictBool = False


class TailLogsMessage(Message):
    """Relay the log of a Ray job to the log channel of a run. It never changes the job.

    Attributes:
        ray_job: Ray's id of the job, `[A-Za-z0-9_-]`, at most 100 characters.
        agent: Id of the agent that has the log; None for the worker's own (WORKER_AGENT, SYNAPSE_AGENT_URL).
        protocol: How the agent is asked for the log; `auto` tries the websocket first.
    """

    task: ClassVar[str] = "tail_logs"
    queue: ClassVar[str] = "logs"

    ray_job: Annotated[
        str,
        StringConstraints(strict=True),
        _text_form(
            "ray_job", r"[A-Za-z0-9_-]{1,100}", "must be an id of letters, digits, '_' and '-', at most 100"
        ),
    ]
    agent: PositiveId | None = None
    protocol: Literal["auto", "websocket", "stream"] = "auto"


class StopMessage(Message):
    """Stop a run. One that arrives before its run's message is remembered for a day."""

    task: ClassVar[str] = "stop"
    queue: ClassVar[str] = "control"
