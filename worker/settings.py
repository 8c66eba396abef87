"""The environment, checked once at start: every mistake is one clear line."""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

KB = 1024
MB = 1024 * KB


class SettingsError(Exception):
    """The environment is wrong; the message has one line a mistake and says which variable to set."""


def _http_url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("must start with http:// or https://")
    return value.rstrip("/")


HttpUrl = Annotated[str, AfterValidator(_http_url)]
Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseSettings):
    """All settings; the README's table is made from these fields (tests hold the two together)."""

    model_config = SettingsConfigDict(
        frozen=True, extra="ignore", hide_input_in_errors=True, env_ignore_empty=True
    )

    synapse_host: HttpUrl = Field(description="Base URL of the platform's backend.")
    synapse_access_token: SecretStr = Field(description="The worker's access token at the backend.")
    synapse_tenant: str | None = Field(None, description="Tenant sent to the backend and the agents.")
    synapse_agent_url: HttpUrl | None = Field(
        None, description="Base URL of the agent; without it the agent is looked up in the backend by its id."
    )
    synapse_agent_token: SecretStr | None = Field(None, description="Token for the agent.")
    redis_url: str = Field("redis://127.0.0.1:6379/0", description="Redis: runs, waiting rooms, pub/sub.")
    celery_broker_url: str | None = Field(
        None, description="The message queue; default `REDIS_URL`. RabbitMQ works too."
    )
    plugins_dir: Path = Field(
        description="Folder of plugin releases, each a folder or .zip named `code@version`."
    )
    ray_address: str | None = Field(
        None, description="Address of the Ray cluster (`host:port`). Without it a `deploy` ends FAILED."
    )

    worker_plugin_host: Literal["ray", "process"] = Field("ray", description="Where plugin code runs.")
    worker_plugin_access_token: SecretStr | None = Field(
        None, description="The lesser token that plugin code's own clients use; without it they are None."
    )
    worker_plugin_timeout_seconds: Seconds = Field(300, description="Longest call of plugin code.")
    worker_plugin_max_mb: Annotated[int, Field(ge=1)] = Field(
        512, description="Largest release, unpacked, in MB; a larger archive is refused."
    )
    worker_package_store: str | None = Field(
        None,
        description="Durable place for releases' packages: a folder that all nodes see. Default: Ray's own store.",
    )
    worker_agent: Annotated[int, Field(gt=0)] | None = Field(
        None, description="Id of the one agent that this worker serves; deploys for another are passed on."
    )
    worker_pre_processor_timeout_seconds: Seconds = Field(
        180, description="Longest wait for a pre-processor."
    )
    worker_pre_processor_poll_seconds: Seconds = Field(
        10, description="Ceiling of the growing interval between two polls of a pre-processor."
    )
    worker_deploy_timeout_seconds: Seconds = Field(600, description="Longest wait for a deployment to run.")
    worker_annotate_concurrency: Annotated[int, Field(ge=1, le=1000)] = Field(
        64, description="Requests of annotation in flight, a process."
    )
    worker_annotate_chunk: Annotated[int, Field(ge=1, le=10_000)] = Field(
        100, description="Tasks in a chunk."
    )
    worker_visibility_timeout_seconds: Annotated[float, Field(ge=10)] = Field(
        60, description="After this long a message that a dead worker held is delivered again; 10 or more."
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

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: str) -> str:
        if not value.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return value

    @field_validator("plugins_dir")
    @classmethod
    def _is_folder(cls, value: Path) -> Path:
        if not value.is_dir():
            raise ValueError("is not a folder")
        return value.resolve()

    @model_validator(mode="after")
    def _token_needs_url(self) -> "Settings":
        if self.synapse_agent_token is not None and self.synapse_agent_url is None:
            raise ValueError("SYNAPSE_AGENT_TOKEN is set but SYNAPSE_AGENT_URL is not")
        return self

    @property
    def broker_url(self) -> str:
        """Where the queues are."""
        return self.celery_broker_url or self.redis_url

    @property
    def longest_countdown(self) -> float:
        """Seconds. A countdown just above the visibility timeout multiplies a task; half of it is safe."""
        return self.worker_visibility_timeout_seconds / 2

    def secrets(self) -> list[str]:
        """Every secret value, to be masked wherever text leaves the process."""
        held = (self.synapse_access_token, self.synapse_agent_token, self.worker_plugin_access_token)
        tokens = [token.get_secret_value() for token in held if token is not None]
        passwords = [password for url in (self.redis_url, self.broker_url) if (password := _password(url))]
        return [secret for secret in tokens + passwords if secret]


def _password(url: str) -> str | None:
    from urllib.parse import unquote, urlsplit

    password = urlsplit(url).password
    return unquote(password) if password else None


def load() -> Settings:
    """Read the environment; raise `SettingsError` with one line a mistake."""
    try:
        return Settings()  # type: ignore[call-arg]  # the required fields come from the environment
    except ValidationError as error:
        raise SettingsError("\n".join(_line(mistake) for mistake in error.errors())) from None


def _line(mistake: object) -> str:
    assert isinstance(mistake, dict)
    name = ".".join(str(part) for part in mistake["loc"]).upper()
    if mistake["type"] == "missing":
        return f"{name} is not set: {Settings.model_fields[name.lower()].description}"
    message = mistake["msg"].removeprefix("Value error, ")
    return f"{name} {message}" if name else message


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The process's settings, read once."""
    return load()
