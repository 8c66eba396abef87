"""The settings from the environment, checked once at start (contract: "Settings")."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from shared.channels import DEFAULT_PREFIX
from shared.redis_url import is_redis_url
from shared.validation import mistake_parts
from shared.webhooks import SECRET_PREFIX, signing_keys
from worker.per_process import once_per_process
from worker.setting_values import (
    FILE_SUFFIX,
    HttpUrl,
    RayAddress,
    Seconds,
    SigningSecret,
    TenantHeader,
    Token,
    WebhookUrl,
    header_secrets,
    setting_text,
    split_url,
    stripped,
    texts_in_files,
    url_passwords,
    usable_redis,
)

KB = 1024
MB = 1024 * KB


class SettingsError(Exception):
    """The environment is wrong; the message has one line for each mistake and names the variable to set."""


BROKER_SCHEMES = ("redis", "rediss", "unix", "redis+socket", "sentinel", "amqp", "amqps", "pyamqp", "memory")


class Settings(BaseSettings):
    """All settings. The README's table has the same names and descriptions, which a test compares."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", hide_input_in_errors=True, env_ignore_empty=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the overridden method's parameters
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment, and the files that it names."""
        texts = texts_in_files(name.upper() for name in settings_cls.model_fields)
        files = InitSettingsSource(settings_cls, {name.lower(): text for name, text in texts.items()})
        return init_settings, files, env_settings

    synapse_host: HttpUrl = Field(repr=False, description="Base URL of the platform's backend.")
    synapse_access_token: Token = Field(description="The worker's access token at the backend.")
    synapse_tenant: TenantHeader | None = Field(
        None, description="Tenant sent to the backend and the agents."
    )
    synapse_agent_url: HttpUrl | None = Field(
        None,
        repr=False,
        description="Base URL of the agent, with `WORKER_AGENT` of that one alone; "
        "without it the agent is looked up in the backend by its id.",
    )
    synapse_agent_token: Token | None = Field(None, description="Token for the agent.")
    redis_url: Annotated[str, BeforeValidator(stripped)] = Field(
        "redis://127.0.0.1:6379/0",
        repr=False,
        description="Redis: runs, waiting lists, pub/sub; `redis://`, `rediss://`, `unix://` or `sentinel://`.",
    )
    celery_broker_url: Annotated[str | None, BeforeValidator(stripped)] = Field(
        None, repr=False, description="The message queue; default `REDIS_URL`. RabbitMQ works too."
    )
    plugins_dir: Path = Field(
        description="Folder of plugin releases, each a folder or .zip named `code@version`."
    )
    ray_address: RayAddress | None = Field(
        None,
        description="Address of the Ray cluster: `host:port` where the worker runs on a node of it, "
        "`ray://host:port` elsewhere. Without it a `deploy` ends FAILED.",
    )

    worker_plugin_host: Literal["ray", "process"] = Field(
        "ray",
        description="Where plugin code runs: `ray`, or `process`, in child processes of the worker,"
        " which needs no Ray for `to_task`.",
    )
    worker_plugin_access_token: Token | None = Field(
        None,
        description="The token of lesser rights for plugin code's own clients; without it they are None.",
    )
    worker_plugin_timeout_seconds: Seconds = Field(300, description="Timeout of a call of plugin code.")
    worker_plugin_max_failures_in_row: Annotated[int, Field(ge=1)] = Field(
        10,
        description="So many tasks in a row on which the plugin hangs or dies end the run FAILED.",
    )
    worker_plugin_max_mb: Annotated[int, Field(ge=1)] = Field(
        512, description="Largest release, unpacked, in MB; a larger one is rejected."
    )
    worker_package_store: str | None = Field(
        None,
        description="Durable store of releases' packages: a folder that all nodes can read. "
        "Default: Ray's own store.",
    )
    worker_agent: Annotated[int, Field(gt=0)] | None = Field(
        None, description="Id of the one agent that this worker serves; deploys for another are passed on."
    )
    worker_pre_processor_timeout_seconds: Seconds = Field(
        180, description="Timeout of the wait for a pre-processor."
    )
    worker_pre_processor_poll_seconds: Seconds = Field(
        10, description="Longest interval between two polls of a pre-processor, which grows from a second."
    )
    worker_deploy_timeout_seconds: Seconds = Field(
        600, description="Timeout of the wait for a deployment to run."
    )
    worker_annotate_concurrency: Annotated[int, Field(ge=1, le=1000)] = Field(
        64, description="Annotation requests in flight in each process."
    )
    worker_annotate_chunk: Annotated[int, Field(ge=1, le=10_000)] = Field(
        100, description="Tasks in a chunk, at least; a chunk by inference has up to 1,000."
    )
    worker_tenant_chunks: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Chunks of one tenant that all workers work on at once, at most; without it any number.",
    )
    worker_tenant_runs: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Runs of `to_task` of one tenant under way at once, at most; further ones wait."
    )
    worker_max_answer_mb: Annotated[int, Field(ge=1, le=1024)] = Field(
        16, description="Largest answer of a service, unpacked, in MB; a task with a larger one fails alone."
    )
    worker_visibility_timeout_seconds: Annotated[float, Field(ge=10, allow_inf_nan=False)] = Field(
        60, description="Seconds after which a message that a dead worker held is redelivered; at least 10."
    )
    worker_redis_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,100}$")] = Field(
        DEFAULT_PREFIX, description="Begins every Redis key and channel; `shared` reads it, too."
    )
    worker_stream_max_messages: Annotated[int, Field(ge=1)] = Field(
        10_000, description="Log stream: most messages."
    )
    worker_stream_max_lines: Annotated[int, Field(ge=1)] = Field(
        50_000, description="Log stream: most lines."
    )
    worker_stream_max_bytes: Annotated[int, Field(ge=1)] = Field(
        50 * MB, description="Log stream: most bytes."
    )
    worker_stream_max_message_bytes: Annotated[int, Field(ge=1)] = Field(
        10 * KB, description="Log stream: longest line in bytes; a longer one is cut and marked."
    )
    worker_stream_queue: Annotated[int, Field(ge=1)] = Field(
        1_000, description="Log stream: most lines queued."
    )
    worker_log_patience_seconds: Seconds = Field(
        120, description="How long a log may be unavailable before it is no longer followed."
    )

    worker_ended_logs_max_mb: Annotated[int, Field(ge=1)] = Field(
        1_024, description="Logs of ended jobs in Redis: most MB in all; the oldest are removed."
    )
    worker_ended_logs_max_age_seconds: Annotated[float, Field(gt=0, le=24 * 60 * 60)] = Field(
        24 * 60 * 60, description="Log of an ended job: removed after so many seconds, a day at most."
    )
    worker_ended_runs_max_mb: Annotated[int, Field(ge=1)] = Field(
        256, description="What is kept of ended runs in Redis: most MB in all; the oldest are forgotten."
    )
    worker_ended_runs_max_age_seconds: Seconds = Field(
        7 * 24 * 60 * 60,
        description="Ended run: may be listed and retried for so many seconds, by default a week.",
    )
    worker_dead_letters_max_mb: Annotated[int, Field(ge=1)] = Field(
        256, description="Dead letters in Redis: most MB in all; the oldest are removed."
    )
    worker_dead_letters_max_age_seconds: Seconds = Field(
        30 * 24 * 60 * 60, description="Dead letter: removed after so many seconds, by default 30 days."
    )

    worker_webhook_url: WebhookUrl | None = Field(
        None, repr=False, description="Where the end of each run is posted, beside the report to the backend."
    )
    worker_webhook_secret: SigningSecret | None = Field(
        None,
        repr=False,
        description="Signs what is posted: `whsec_` and 24 to 64 random bytes in base64; "
        "while it is exchanged two, separated by a space.",
    )

    worker_http_port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        None,
        description="Port of `/metrics`, `/live` and `/ready`, for all workers of a host; without it none.",
    )
    worker_http_host: str = Field(
        "127.0.0.1", description="Address on which that port is opened; `0.0.0.0` for all."
    )

    worker_console_token: Token | None = Field(
        None,
        description="Token for `synapse-worker console`, of at least 16 characters; needed where other "
        "machines reach it.",
    )

    otel_exporter_otlp_endpoint: HttpUrl | None = Field(
        None,
        repr=False,
        description="Base URL of the OTLP receiver (HTTP, usually port 4318) to which traces are sent; "
        "without it there are none.",
    )
    otel_exporter_otlp_headers: Token | None = Field(
        None, description="Headers for that receiver, such as its key: `name=value`, separated by commas."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_readable(cls, value: object) -> object:
        if isinstance(value, ValueError):  # of a file
            raise value
        # Docker's --env-file, unlike a shell, takes the quotes for a part of the value.
        text = value.strip() if isinstance(value, str) else ""
        if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
            raise ValueError("begins and ends with a quotation mark, a part of its value: write it without")
        return value

    @field_validator("otel_exporter_otlp_endpoint", "otel_exporter_otlp_headers", mode="wrap")
    @classmethod
    def _is_ignored_where_wrong(cls, value: object, validate: ValidatorFunctionWrapHandler) -> object:
        """OpenTelemetry's variables may be there for other programs: `trace_mistakes` says what is wrong."""
        try:
            return validate(value)
        except ValueError:
            return None

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: str) -> str:
        if not is_redis_url(value):
            raise ValueError("must start with redis://, rediss://, unix:// or sentinel://")
        return usable_redis(value)

    @field_validator("celery_broker_url")
    @classmethod
    def _is_broker(cls, value: str | None) -> str | None:
        if value is not None and is_redis_url(value):
            return usable_redis(value)
        for url in (value or "").split(";"):
            if value is not None and split_url(url).scheme not in BROKER_SCHEMES:
                raise ValueError(f"must start with one of {', '.join(BROKER_SCHEMES)} and ://")
        return value

    @field_validator("plugins_dir")
    @classmethod
    def _is_folder(cls, value: Path) -> Path:
        if not value.is_dir():
            raise ValueError("must be a folder")
        return value.absolute()  # a link may be swapped to another tree while the worker runs

    @model_validator(mode="after")
    def _token_needs_url(self) -> "Settings":
        if self.synapse_agent_token is not None and self.synapse_agent_url is None:
            raise ValueError("SYNAPSE_AGENT_TOKEN is set but SYNAPSE_AGENT_URL is not")
        return self

    @model_validator(mode="after")
    def _webhook_is_signed(self) -> "Settings":
        if (self.worker_webhook_url is None) != (self.worker_webhook_secret is None):
            raise ValueError("of WORKER_WEBHOOK_URL and WORKER_WEBHOOK_SECRET only one is set")
        return self

    @property
    def broker_url(self) -> str:
        """The URL of the queues' broker."""
        return self.redis_url if self.celery_broker_url is None else self.celery_broker_url

    @property
    def webhook_signing_keys(self) -> list[bytes]:
        """What the events for the webhook are signed with."""
        secret = self.worker_webhook_secret
        return signing_keys(secret.get_secret_value()) if secret else []

    def secrets(self) -> list[str]:
        """Every secret value, to be masked in all text that leaves the process."""
        held = (
            self.synapse_access_token,
            self.synapse_agent_token,
            self.worker_plugin_access_token,
            self.worker_console_token,
        )
        tokens = [token.get_secret_value() for token in held if token is not None]
        if self.otel_exporter_otlp_headers is not None:
            tokens += header_secrets(self.otel_exporter_otlp_headers.get_secret_value())
        if self.worker_webhook_secret is not None:
            given = self.worker_webhook_secret.get_secret_value().split()
            # The receiver may show the key without its prefix.
            tokens += given + [each.removeprefix(SECRET_PREFIX) for each in given]
        urls = [*self.redis_url.split(";"), *self.broker_url.split(";")]
        return tokens + [password for url in urls for password in url_passwords(url)]


def load_settings() -> Settings:
    """Read the environment; raises `SettingsError` with one line for each mistake."""
    try:
        return Settings()  # type: ignore[call-arg]  # the required fields come from the environment
    except ValidationError as error:
        raise SettingsError(
            "\n".join(_mistake_line(mistake) for mistake in error.errors(include_url=False))
        ) from None


def environment_setting(name: str) -> Any:
    """One setting, for a process that is no worker and has not all of them; raises `SettingsError`."""
    field = Settings.model_fields[name]
    try:
        text = setting_text(name.upper())
    except ValueError as error:
        raise SettingsError(f"{name.upper()} {error}") from None
    if not text:
        return field.get_default(call_default_factory=True)
    # Without what is said of the field for a model alone, such as that its value is not shown.
    type_: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    adapter: TypeAdapter[Any] = TypeAdapter(type_)
    try:
        return adapter.validate_python(text)
    except ValidationError as error:
        [(_, what)] = [mistake_parts(mistake) for mistake in error.errors(include_url=False)][:1]
    raise SettingsError(f"{name.upper()} {what}")


def trace_mistakes() -> list[str]:
    """A line for each of OpenTelemetry's variables that is ignored, as its specification asks for."""
    found = []
    for name in ("otel_exporter_otlp_endpoint", "otel_exporter_otlp_headers"):
        try:
            environment_setting(name)
        except SettingsError as error:
            found.append(f"{error}: traces need an OTLP receiver over HTTP, such as http://collector:4318")
    return found


_MAY_BE_SHOWN = ("plugins_dir", "worker_plugin_host")
"""Settings whose wrong value is shown; a value of any other might be a secret, also one set by mistake."""


def _mistake_line(details: ErrorDetails) -> str:
    where, what = mistake_parts(details)
    name = where.upper()
    if details["type"] == "missing":
        return f"{name} is not set: {Settings.model_fields[where].description}"
    shown = where in _MAY_BE_SHOWN and isinstance(details["input"], str)
    value = f", not {details['input'][:100]!r}" if shown else ""
    return f"{name} {what}{value}" if name else what


def unknown_variables(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Variables named WORKER_* that are no setting, each with the setting that may be meant."""
    names = [name.upper() for name in Settings.model_fields]
    known = [*names, *(name + FILE_SUFFIX for name in names)]
    strange = sorted(name for name in environ if name.startswith("WORKER_") and name not in known)
    return {name: next(iter(get_close_matches(name, known, n=1, cutoff=0.8)), None) for name in strange}


@once_per_process
def settings() -> Settings:
    """The settings of this process, read once."""
    return load_settings()
