"""The table of failures, row by row: whose each is, and how often it is tried again."""

from typing import NamedTuple

import pytest
from kombu.exceptions import OperationalError
from redis.exceptions import AuthenticationError as RedisAuthenticationError
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    DataError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from worker import blame
from worker.blame import RejectedMessageError, TaskFailedError
from worker.platform import (
    AuthenticationError,
    AuthorizationError,
    ClientConnectionError,
    ClientTimeoutError,
    HTTPError,
    MalformedResponseError,
    NotFoundError,
    RateLimitError,
    ResponseTooLargeError,
    ServerError,
    UntrustedLinkError,
    ValidationError,
)
from worker.platform.retries import LATER_STATUSES
from worker.plugins import (
    PluginCallError,
    PluginHostBusyError,
    PluginHostUnavailableError,
    PluginTimeoutError,
    ReleaseInvalidError,
    ReleaseNotFoundError,
)
from worker.runs.model import RunFailedError


class Expected(NamedTuple):
    """Owner and retries of a row's errors, in a task, a step and a message."""

    errors: tuple[BaseException, ...]
    in_task: str
    in_step: str
    in_message: str


ROWS = {
    "Redis rejects a command, and waiting alone does not mend that": Expected(
        (
            ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
            ResponseError("unknown command 'LMOVE', with args beginning with: "),
            NoPermissionError("User w has no permissions to run the 'xadd' command"),
            DataError("Invalid input of type: 'NoneType'"),
        ),
        "host hour", "host hour", "host hour",
    ),
    "Redis or the broker cannot be used": Expected(
        (
            RedisError(), RedisConnectionError(), RedisTimeoutError(), OperationalError(),
            ReadOnlyError(), BusyLoadingError(), OutOfMemoryError(), NoScriptError(), MasterDownError(""),
            ClusterDownError(""), TryAgainError(), MovedError("1 127.0.0.1:1"), RedisAuthenticationError(),
            ResponseError("BUSY Redis is busy running a script."),
            ResponseError("NOREPLICAS Not enough good replicas to write."),
            ResponseError("MISCONF Redis is configured to save RDB snapshots"),
            # Redis 6.2, from within a script.
            ResponseError("Error running script (call to f_1): @user_script:3: -OOM command not allowed"),
            ResponseError("Error running script (call to f_1): @user_script:3: -READONLY You can't write"),
        ),
        "host unlimited", "host unlimited", "host unlimited",
    ),
    "a service or its gateway answers 429, 502, 503, 504, 520 to 524 or 529": Expected(
        (RateLimitError(), *(ServerError("", code) for code in LATER_STATUSES - {429})),
        "dependency unlimited", "dependency unlimited", "dependency unlimited",
    ),
    "the plugin's process is busy": Expected(
        (PluginHostBusyError(),),
        "dependency unlimited", "dependency hour", "dependency unlimited",
    ),
    "a service cannot be reached or does not answer in time": Expected(
        (ClientConnectionError(), ClientTimeoutError()),
        "task few", "dependency unlimited", "dependency unlimited",
    ),
    "the connection is lost in the middle of an answer": Expected(
        (MalformedResponseError("cut off", cut_off=True),),
        "task few", "dependency hour", "dependency hour",
    ),
    "a service answers 500 or another 5xx": Expected(
        (ServerError(), ServerError("", 507)),
        "task one", "dependency hour", "dependency hour",
    ),
    "a service rejects the token": Expected(
        (AuthenticationError(),),
        "task few", "run none", "dependency hour",
    ),
    "a list leads out of its service": Expected(
        (UntrustedLinkError(),),
        "task none", "run none", "message none",
    ),
    "an answer is larger than the limit": Expected(
        (ResponseTooLargeError(),),
        "task none", "dependency hour", "dependency hour",
    ),
    "an answer is malformed": Expected(
        (MalformedResponseError(),),
        "task few", "dependency hour", "dependency hour",
    ),
    "a service redirects for good (301, 308)": Expected(
        (HTTPError("", 301), HTTPError("", 308)),
        "run none", "run none", "dependency hour",
    ),
    "a service redirects for now (another 3xx)": Expected(
        (HTTPError("", 302), HTTPError("", 303), HTTPError("", 307)),
        "dependency unlimited", "dependency hour", "dependency hour",
    ),
    "there is no such thing (404)": Expected(
        (NotFoundError(),),
        "task none", "run none", "message none",
    ),
    "a service refuses the request (another 4xx)": Expected(
        (ValidationError(), AuthorizationError(), HTTPError("", 409), HTTPError("", 413)),
        "task none", "run none", "message none",
    ),
    "the plugin host is unavailable": Expected(
        (PluginHostUnavailableError(),),
        "dependency hour", "dependency hour", "dependency hour",
    ),
    "the release does not exist or cannot be used": Expected(
        (ReleaseNotFoundError(), ReleaseInvalidError()),
        "run none", "run none", "message none",
    ),
    "the author's code raises, hangs or ends its process": Expected(
        (PluginCallError("ValueError", "no"), PluginTimeoutError()),
        "task none", "run none", "message none",
    ),
    "the task's own data cannot be used": Expected(
        (TaskFailedError("no files"),),
        "task none", "run none", "message none",
    ),
    "the message's own content cannot be accepted": Expected(
        (RejectedMessageError("no job"),),
        "run none", "run none", "message none",
    ),
    "the disk is full, or the memory, or the plugin store cannot be read": Expected(
        (OSError(28, "No space left on device"), FileNotFoundError(), MemoryError()),
        "host hour", "host hour", "host hour",
    ),
    "anything else": Expected(
        (RunFailedError("over"), RuntimeError(), KeyError()),
        "run none", "run none", "message none",
    ),
}  # fmt: skip


def said(found: blame.Blame) -> str:
    return f"{found.owner} {found.retries}"


def test_the_table_has_these_rows_in_this_order() -> None:
    assert [row.failure for row in blame.TABLE] == list(ROWS)


@pytest.mark.parametrize("failure", ROWS)
def test_each_row_says_whose_failure_it_is(failure: str) -> None:
    expected = ROWS[failure]
    for error in expected.errors:
        assert blame.row_of(error).failure == failure
        assert said(blame.in_task(error)) == expected.in_task
        assert said(blame.in_step(error)) == expected.in_step
        assert said(blame.in_message(error)) == expected.in_message


def test_a_404_of_an_inference_may_be_the_application() -> None:
    assert said(blame.in_inference(NotFoundError())) == "task few"
    assert said(blame.in_inference(ServerError())) == said(blame.in_task(ServerError()))


def test_only_the_task_has_counted_attempts() -> None:
    """Whatever is not the task's must not count against it."""
    counted = {row.in_task.retries for row in blame.TABLE if row.in_task.owner is blame.Owner.TASK}

    assert counted <= set(blame.MAX_ATTEMPTS)


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (RateLimitError(retry_after=30), 30),
        (ServerError("", 503, retry_after=86_400), 300),
        (RateLimitError(), None),
        (ClientConnectionError(), None),
    ],
)
def test_retry_after_is_believed_up_to_minutes(error: Exception, seconds: float | None) -> None:
    assert blame.retry_after_seconds(error) == seconds
