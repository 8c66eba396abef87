"""What a backend service imports to publish work for synapse-worker and to follow it.

Needs neither Ray nor the worker. A service that does not want this dependency publishes with a bare
``send_task``: docs/messages.md shows how.
"""

from typing import TYPE_CHECKING, Any

from shared.messages import (
    DeployMessage,
    DeployParams,
    Job,
    Message,
    StopMessage,
    TailLogsMessage,
    ToTaskMessage,
    ToTaskMethod,
    ToTaskParams,
)
from shared.statuses import JobStatus, ServeApplicationStatus, TaskFailure, ToTaskResult

if TYPE_CHECKING:
    from shared.publisher import Publisher
else:

    def __getattr__(name: str) -> Any:
        # On its use, for it brings Celery and Redis with it, which the processes of Ray do not need.
        if name == "Publisher":
            from shared.publisher import Publisher

            return Publisher
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [  # noqa: RUF022 - grouped by topic
    # publish
    "Publisher",
    "Message",
    "DeployMessage",
    "DeployParams",
    "ToTaskMessage",
    "ToTaskParams",
    "ToTaskMethod",
    "TailLogsMessage",
    "StopMessage",
    "Job",
    # understand
    "JobStatus",
    "ServeApplicationStatus",
    "ToTaskResult",
    "TaskFailure",
]
