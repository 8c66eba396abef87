"""What a backend service imports to publish work for synapse-worker and to follow it.

Needs neither Ray nor the worker. A service that does not want this dependency publishes with a bare
``send_task``: the README shows how.
"""

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
from shared.publisher import Publisher
from shared.statuses import JobStatus, ServeApplicationStatus, TaskFailure, ToTaskResult

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
