"""Whose failure an error is, and what follows: the one table that decides it (docs/architecture.md).

An error that is raised while one task is annotated may be the task's own, while the same error in a step that
works for the whole run may be the run's, and in an entry task the message's. So each row has three answers.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from kombu.exceptions import OperationalError
from redis.exceptions import (
    AskError,
    ClusterDownError,
    DataError,
    ExecAbortError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from worker.platform import (
    AuthenticationError,
    ClientConnectionError,
    ClientError,
    ClientTimeoutError,
    HTTPError,
    MalformedResponseError,
    NotFoundError,
    ResponseTooLargeError,
    ServerError,
    UntrustedLinkError,
)
from worker.platform.retries import LATER_STATUSES
from worker.plugins import (
    PluginError,
    PluginHostBusyError,
    PluginHostUnavailableError,
    ReleaseInvalidError,
    ReleaseNotFoundError,
)

MAX_RETRY_AFTER_SECONDS = 300.0
"""A service that asks for a longer wait is called after this one."""

INFRASTRUCTURE_ERRORS: tuple[type[Exception], ...] = (RedisError, OperationalError)
"""Redis or the broker is unavailable, full or read-only, or rejects a command: nothing is recorded, and the
message is retried. The table says for how long."""

_PASSING_ERRORS = (
    AskError,
    ClusterDownError,
    ExecAbortError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    TryAgainError,
)
_PASSING_CODES = re.compile(
    r"(?:^|[-\s])(?:BUSY|CLUSTERDOWN|FAILOVER|LOADING|MASTERDOWN|MISCONF|NOREPLICAS|NOSCRIPT|OOM|READONLY"
    r"|TRYAGAIN|UNKILLABLE)\b"
)
"""In the text of an error for which Redis's client has no class, or that a script raises before Redis 7."""


class TaskFailedError(Exception):
    """The task cannot be annotated; the message becomes its failure record."""


class RejectedMessageError(ValueError):
    """A message that cannot be accepted; the text says why, without what the message holds."""


class Owner(StrEnum):
    """Whose failure it is."""

    MESSAGE = "message"
    TASK = "task"
    RUN = "run"
    DEPENDENCY = "dependency"
    HOST = "host"
    """This machine or process, with the Redis and the broker that it works on."""


class Retries(StrEnum):
    """How often it is tried again before the message, the task or the run has failed."""

    NONE = "none"
    ONE = "one"
    FEW = "few"
    HOUR = "hour"
    """For about an hour of growing countdowns."""
    UNLIMITED = "unlimited"
    """For as long as it takes; such an attempt counts against nothing."""


MAX_ATTEMPTS = {Retries.NONE: 1, Retries.ONE: 2, Retries.FEW: 5}
"""Counted attempts at a task, after which it has failed."""


@dataclass(frozen=True)
class Blame:
    """The owner of a failure, and how often it is tried again."""

    owner: Owner
    retries: Retries


@dataclass(frozen=True)
class Row:
    """A kind of failure, and whose it is: while a task is annotated, in a step of a run, in an entry task."""

    failure: str
    matches: Callable[[BaseException], bool]
    in_task: Blame
    in_step: Blame
    in_message: Blame
    in_inference: Blame | None = None
    """Where the call for a task's inference differs from its other requests."""


def _is(*types: type[BaseException]) -> Callable[[BaseException], bool]:
    return lambda error: isinstance(error, types)


def _asks_for_later(error: BaseException) -> bool:
    return isinstance(error, HTTPError) and error.status_code in LATER_STATUSES


def _redirects(error: BaseException) -> bool:
    return isinstance(error, HTTPError) and 300 <= error.status_code < 400


def _redirects_for_good(error: BaseException) -> bool:
    return isinstance(error, HTTPError) and error.status_code in (301, 308)


def _is_rejected_by_redis(error: BaseException) -> bool:
    if isinstance(error, ResponseError):
        return not isinstance(error, _PASSING_ERRORS) and _PASSING_CODES.search(str(error)) is None
    return isinstance(error, DataError)


def _is_cut_off(error: BaseException) -> bool:
    return isinstance(error, MalformedResponseError) and error.cut_off


_UNLIMITED_HOST = Blame(Owner.HOST, Retries.UNLIMITED)
_UNLIMITED_DEPENDENCY = Blame(Owner.DEPENDENCY, Retries.UNLIMITED)
_HOUR_OF_DEPENDENCY = Blame(Owner.DEPENDENCY, Retries.HOUR)
_HOUR_OF_HOST = Blame(Owner.HOST, Retries.HOUR)
_TASK_FAILS = Blame(Owner.TASK, Retries.NONE)
_RUN_FAILS = Blame(Owner.RUN, Retries.NONE)
_MESSAGE_FAILS = Blame(Owner.MESSAGE, Retries.NONE)

TABLE: tuple[Row, ...] = (
    Row(
        # A key of another type, a command that this server does not have, or a right that is missing.
        "Redis rejects a command, and waiting alone does not mend that",
        _is_rejected_by_redis,
        in_task=_HOUR_OF_HOST,
        in_step=_HOUR_OF_HOST,
        in_message=_HOUR_OF_HOST,
    ),
    Row(
        "Redis or the broker cannot be used",
        _is(*INFRASTRUCTURE_ERRORS),
        in_task=_UNLIMITED_HOST,
        in_step=_UNLIMITED_HOST,
        in_message=_UNLIMITED_HOST,
    ),
    Row(
        "a service or its gateway answers 429, 502, 503, 504, 520 to 524 or 529",
        _asks_for_later,
        in_task=_UNLIMITED_DEPENDENCY,
        in_step=_UNLIMITED_DEPENDENCY,
        in_message=_UNLIMITED_DEPENDENCY,
    ),
    Row(
        "the plugin's process is busy",
        _is(PluginHostBusyError),
        in_task=_UNLIMITED_DEPENDENCY,
        in_step=_HOUR_OF_DEPENDENCY,
        in_message=_UNLIMITED_DEPENDENCY,
    ),
    Row(
        # While the service answers others. When it answers nobody, the whole step waits for it (in_step).
        "a service cannot be reached or does not answer in time",
        _is(ClientConnectionError, ClientTimeoutError),
        in_task=Blame(Owner.TASK, Retries.FEW),
        in_step=_UNLIMITED_DEPENDENCY,
        in_message=_UNLIMITED_DEPENDENCY,
    ),
    Row(
        "the connection is lost in the middle of an answer",
        _is_cut_off,
        in_task=Blame(Owner.TASK, Retries.FEW),
        in_step=_HOUR_OF_DEPENDENCY,
        in_message=_HOUR_OF_DEPENDENCY,
    ),
    Row(
        "a service answers 500 or another 5xx",
        _is(ServerError),
        in_task=Blame(Owner.TASK, Retries.ONE),
        in_step=_HOUR_OF_DEPENDENCY,
        in_message=_HOUR_OF_DEPENDENCY,
    ),
    Row(
        # A 401 that the service repeats to a simple request concerns all tasks, and ends the run (in_step).
        "a service rejects the token",
        _is(AuthenticationError),
        in_task=Blame(Owner.TASK, Retries.FEW),
        in_step=_RUN_FAILS,
        in_message=_HOUR_OF_DEPENDENCY,
    ),
    Row(
        "a list leads out of its service",
        _is(UntrustedLinkError),
        in_task=_TASK_FAILS,
        in_step=_RUN_FAILS,
        in_message=_MESSAGE_FAILS,
    ),
    Row(
        # A task's own answer stays as large as it is; what a step asks for may be another the next time.
        "an answer is larger than the limit",
        _is(ResponseTooLargeError),
        in_task=_TASK_FAILS,
        in_step=_HOUR_OF_DEPENDENCY,
        in_message=_HOUR_OF_DEPENDENCY,
    ),
    Row(
        # A page of HTML may come from whatever stands before the service, and then for every task.
        "an answer is malformed",
        _is(MalformedResponseError),
        in_task=Blame(Owner.TASK, Retries.FEW),
        in_step=_HOUR_OF_DEPENDENCY,
        in_message=_HOUR_OF_DEPENDENCY,
    ),
    Row(
        # Such as to https, because the base URL is wrong: it concerns all tasks.
        "a service redirects for good (301, 308)",
        _redirects_for_good,
        in_task=_RUN_FAILS,
        in_step=_RUN_FAILS,
        in_message=_HOUR_OF_DEPENDENCY,
    ),
    Row(
        # Such as to a page about its maintenance, or to a login.
        "a service redirects for now (another 3xx)",
        _redirects,
        in_task=_UNLIMITED_DEPENDENCY,
        in_step=_HOUR_OF_DEPENDENCY,
        in_message=_HOUR_OF_DEPENDENCY,
    ),
    Row(
        # Of an inference it may mean the application itself, while it is replaced.
        "there is no such thing (404)",
        _is(NotFoundError),
        in_task=_TASK_FAILS,
        in_step=_RUN_FAILS,
        in_message=_MESSAGE_FAILS,
        in_inference=Blame(Owner.TASK, Retries.FEW),
    ),
    Row(
        "a service refuses the request (another 4xx)",
        _is(ClientError),
        in_task=_TASK_FAILS,
        in_step=_RUN_FAILS,
        in_message=_MESSAGE_FAILS,
    ),
    Row(
        "the plugin host is unavailable",
        _is(PluginHostUnavailableError),
        in_task=_HOUR_OF_DEPENDENCY,
        in_step=_HOUR_OF_DEPENDENCY,
        in_message=_HOUR_OF_DEPENDENCY,
    ),
    Row(
        "the release does not exist or cannot be used",
        _is(ReleaseNotFoundError, ReleaseInvalidError),
        in_task=_RUN_FAILS,
        in_step=_RUN_FAILS,
        in_message=_MESSAGE_FAILS,
    ),
    Row(
        "the author's code raises, hangs or ends its process",
        _is(PluginError),
        in_task=_TASK_FAILS,
        in_step=_RUN_FAILS,
        in_message=_MESSAGE_FAILS,
    ),
    Row(
        "the task's own data cannot be used",
        _is(TaskFailedError),
        in_task=_TASK_FAILS,
        in_step=_RUN_FAILS,
        in_message=_MESSAGE_FAILS,
    ),
    Row(
        "the message's own content cannot be accepted",
        _is(RejectedMessageError),
        in_task=_RUN_FAILS,
        in_step=_RUN_FAILS,
        in_message=_MESSAGE_FAILS,
    ),
    Row(
        "the disk is full, or the memory, or the plugin store cannot be read",
        _is(OSError, MemoryError),
        in_task=_HOUR_OF_HOST,
        in_step=_HOUR_OF_HOST,
        in_message=_HOUR_OF_HOST,
    ),
    Row(
        "anything else",
        _is(BaseException),
        in_task=_RUN_FAILS,
        in_step=_RUN_FAILS,
        in_message=_MESSAGE_FAILS,
    ),
)
"""The first row that matches decides."""


def row_of(error: BaseException) -> Row:
    """The row of an error."""
    return next(row for row in TABLE if row.matches(error))


def in_task(error: BaseException) -> Blame:
    """Whose failure an error is that was raised while one task was annotated."""
    return row_of(error).in_task


def in_inference(error: BaseException) -> Blame:
    """Whose failure an error is that the inference of one task ended with."""
    row = row_of(error)
    return row.in_inference or row.in_task


def in_step(error: BaseException) -> Blame:
    """Whose failure an error is that a step of a run raised."""
    return row_of(error).in_step


def in_message(error: BaseException) -> Blame:
    """Whose failure an error is that was raised while a message was accepted."""
    return row_of(error).in_message


def asks_for_later(error: BaseException) -> bool:
    """Whether a service asks to be called again later; such an attempt counts against nothing."""
    return _asks_for_later(error)


def retry_after_seconds(error: BaseException) -> float | None:
    """Seconds that the service asks to wait by `Retry-After`, at most five minutes; None without it."""
    seconds = error.retry_after if isinstance(error, HTTPError) else None
    return None if seconds is None else min(seconds, MAX_RETRY_AFTER_SECONDS)
