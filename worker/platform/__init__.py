"""Clients of the platform's HTTP services, the backend and the agents; their errors; redaction of secrets."""

from typing import TYPE_CHECKING

from shared.messages import JsonObject
from worker import load_on_use
from worker.platform.errors import (
    AuthenticationError,
    AuthorizationError,
    ClientConnectionError,
    ClientError,
    ClientTimeoutError,
    HTTPError,
    MalformedResponseError,
    NotFoundError,
    RateLimitError,
    ResponseTooLargeError,
    ServerError,
    StreamError,
    StreamLimitExceededError,
    UntrustedLinkError,
    ValidationError,
    WebSocketError,
    clean_exception,
    error_type,
    shorten,
)
from worker.platform.redaction import (
    clean,
    clean_value,
    contains_secret,
    mask_partial_secret,
    mask_secrets,
    redact,
    redact_event,
    redact_value,
    register_secrets,
    register_settings,
)

if TYPE_CHECKING:
    from worker.platform.agent import AgentClient
    from worker.platform.async_backend import AsyncBackendClient
    from worker.platform.backend import BackendClient
    from worker.platform.client import BaseClient
    from worker.platform.ray_client import RayClientMixin
    from worker.platform.requests import Json
    from worker.platform.retries import RetryPolicy
    from worker.platform.streams import AsyncLogTail, StreamLimits, StreamProtocol
    from worker.platform.transport import limit_responses
else:
    # They bring httpx and aiohttp with them, which most processes of Ray never need.
    __getattr__ = load_on_use(
        __name__,
        {
            "AgentClient": "worker.platform.agent",
            "AsyncBackendClient": "worker.platform.async_backend",
            "BackendClient": "worker.platform.backend",
            "BaseClient": "worker.platform.client",
            "RayClientMixin": "worker.platform.ray_client",
            "Json": "worker.platform.requests",
            "RetryPolicy": "worker.platform.retries",
            "AsyncLogTail": "worker.platform.streams",
            "StreamLimits": "worker.platform.streams",
            "StreamProtocol": "worker.platform.streams",
            "limit_responses": "worker.platform.transport",
        },
    )


__all__ = [  # noqa: RUF022 - grouped by topic
    # clients
    "BaseClient",
    "BackendClient",
    "AsyncBackendClient",
    "AgentClient",
    "RayClientMixin",
    "RetryPolicy",
    "limit_responses",
    "Json",
    "JsonObject",
    # logs
    "StreamLimits",
    "StreamProtocol",
    "AsyncLogTail",
    # errors
    "ClientError",
    "ClientTimeoutError",
    "ClientConnectionError",
    "HTTPError",
    "AuthenticationError",
    "AuthorizationError",
    "NotFoundError",
    "ValidationError",
    "RateLimitError",
    "ServerError",
    "MalformedResponseError",
    "ResponseTooLargeError",
    "UntrustedLinkError",
    "StreamError",
    "StreamLimitExceededError",
    "WebSocketError",
    "error_type",
    "shorten",
    # secrets
    "register_secrets",
    "register_settings",
    "contains_secret",
    "mask_partial_secret",
    "mask_secrets",
    "redact",
    "redact_event",
    "redact_value",
    "clean",
    "clean_value",
    "clean_exception",
]
