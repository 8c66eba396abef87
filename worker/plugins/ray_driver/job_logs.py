"""The logs of Ray's jobs, called in the driver process as `worker.plugins.ray_driver.jobs`."""

from typing import Final
from urllib.parse import quote

from worker.plugins.ray_driver.jobs import MAX_ERROR_CHARS, NOT_FOUND, OK, call_dashboard, job_path, object_of

LOG_PATH: Final = "/logs/job-driver-{}.log"
"""On the agent of the node that has run the job, which answers with the range that is asked for."""
PARTIAL, EMPTY_RANGE = 206, 416
"""The second of a log in which nothing stands."""


def end_of_log(id: str, max_bytes: int, seconds: float) -> str:
    """The last bytes of the job's log, read where it lies, by the agent of the node that has run the job.

    Ray's own answer is the whole log as one JSON text: of several GB it takes minutes and the node's memory.
    A job that never began has no log, and neither has one whose file Ray has removed: the answer is empty,
    as Ray's own would be.
    """
    status, text = call_dashboard(seconds, "GET", job_path(id))
    address = None if status == NOT_FOUND else object_of(status, text).get("driver_agent_http_address")
    if not address:
        return ""
    status, text = call_dashboard(
        seconds, "GET", f"{address}{LOG_PATH.format(quote(id, safe=''))}", max_bytes=max_bytes
    )
    if status not in (OK, PARTIAL, NOT_FOUND, EMPTY_RANGE):
        raise OSError(f"the agent of the job's node answered {status}: {text[-MAX_ERROR_CHARS:]}")
    return text if status in (OK, PARTIAL) else ""
