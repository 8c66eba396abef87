"""The Ray jobs of actions that run whole, each under its release's environment."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from shared.messages import RESOURCE_KEYS, JsonObject
from worker.platform import clean
from worker.plugins.errors import PluginCallError, PluginHostUnavailableError, RayDriverError
from worker.plugins.package import Packages, runtime_env
from worker.plugins.ray_driver import RayConnection, job_logs, jobs
from worker.plugins.requests import ActionRequest
from worker.plugins.store import Release
from worker.whole_run.job_output import LOG_WINDOW_BYTES, JobOutput, read_job_output

SDK_PROGRAM: Final = "synapse_sdk.plugins.entrypoint"
PROGRAM: Final = "worker.whole_run.entrypoint"
REQUEST_VARIABLE: Final = "SYNAPSE_ACTION_REQUEST"
"""Of our program, which reads nothing else."""

MAX_VARIABLE_BYTES: Final = 120_000
"""Of an environment variable, of which Linux takes no more than 128 KB."""
CALL_SECONDS, HUNG_SECONDS = 30.0, 45.0


@dataclass(frozen=True)
class JobState:
    """What Ray says of a job: its `status`, and a `message` that may show secrets."""

    status: str
    message: str = ""


class Jobs(Protocol):
    """All calls raise `PluginHostUnavailableError` when the cluster does not answer."""

    def submit(self, id: str, release: Release, request: ActionRequest, *, by_sdk: bool) -> None:
        """Submit the job, unless there is one of this id: then that one is the run's.

        Raises `PluginCallError` when Ray rejects it.
        """

    def state(self, id: str) -> JobState | None:
        """What Ray says of the job; None when it does not know it."""

    def stop(self, id: str) -> bool:
        """Stop the job, which ends some seconds later; false when it has ended."""

    def output(self, id: str) -> JobOutput:
        """What the job has left; read once it has ended."""


class RayJobs:
    """The jobs of the cluster of `connection`."""

    def __init__(self, connection: RayConnection, packages: Packages) -> None:
        self._connection = connection
        self._packages = packages

    def submit(self, id: str, release: Release, request: ActionRequest, *, by_sdk: bool) -> None:
        """See `Jobs.submit`."""
        self._connection.connect()
        package = self._packages.ensure(release)
        request = replace(request, runtime_env=runtime_env(release, package, request.env))
        variables = sdk_variables(request) if by_sdk else own_variables(request)
        submission = {
            "entrypoint": f"python -m {SDK_PROGRAM if by_sdk else PROGRAM}",
            "submission_id": id,
            "runtime_env": runtime_env(release, package, {**request.env, **variables}),
            "metadata": {"synapse_job": request.job or ""},
            **_resources(request),
        }
        answer = self._call(jobs.submit_job, submission, undo=jobs.undo_submission)
        if answer["status"] == jobs.OK or self.state(id) is not None:
            return
        text = clean(f"Ray does not take its job ({answer['status']}): {answer['text']}")
        if answer["status"] < 500:
            raise PluginCallError("JobRejected", text)
        raise PluginHostUnavailableError(text)

    def state(self, id: str) -> JobState | None:
        """See `Jobs.state`."""
        self._connection.connect()
        found = self._call(jobs.job_state, id)
        return None if found is None else JobState(str(found["status"]), str(found["message"]))

    def stop(self, id: str) -> bool:
        """See `Jobs.stop`."""
        self._connection.connect()
        return bool(self._call(jobs.stop_job, id))

    def output(self, id: str) -> JobOutput:
        """See `Jobs.output`."""
        self._connection.connect()
        return read_job_output(str(self._call(job_logs.end_of_log, id, LOG_WINDOW_BYTES)))

    def _call(
        self, function: Callable[..., Any], *arguments: Any, undo: Callable[[Any], Any] | None = None
    ) -> Any:
        arguments = *arguments, CALL_SECONDS
        try:
            return self._connection.call(function, *arguments, timeout=HUNG_SECONDS, undo=undo)
        except RayDriverError as error:
            raise PluginHostUnavailableError(f"Ray's jobs cannot be reached ({error})") from None


def sdk_variables(request: ActionRequest) -> dict[str, str]:
    """What the program of the published SDK reads; its token is the lesser one, or empty."""
    access = request.clients
    token = (access.token if access else None) or ""
    found = {
        "SYNAPSE_ACTION_ENTRYPOINT": request.entrypoint.replace(":", "."),
        "SYNAPSE_ACTION_PARAMS": _variable(json.dumps(request.params)),
        "SYNAPSE_JOB_ID": request.job or "",
        "SYNAPSE_LANGUAGE": request.language,
        "SYNAPSE_ACCESS_TOKEN": token,
    }
    if access and token and access.tenant:
        found["SYNAPSE_PLUGIN_RUN_TENANT"] = access.tenant
    if access and token and access.agent_url:
        found |= {"SYNAPSE_AGENT_URL": access.agent_url, "SYNAPSE_AGENT_TOKEN": token}
    return found


def own_variables(request: ActionRequest) -> dict[str, str]:
    """What our own program reads."""
    return {REQUEST_VARIABLE: _variable(request.to_json())}


def _variable(text: str) -> str:
    if len(text) > MAX_VARIABLE_BYTES:
        raise PluginCallError(
            "ParamsError",
            f"the parameters have {len(text):,} bytes, and an action that runs whole takes"
            f" {MAX_VARIABLE_BYTES:,}",
        )
    return text


def _resources(request: ActionRequest) -> JsonObject:
    """What the job's own process needs; what a deployment declares is for its replicas."""
    declared = request.required_resources if request.action == "to_task" else {}
    keys = {name: RESOURCE_KEYS[name] for name in ("num_cpus", "num_gpus", "memory")}
    found = {name: [declared[key] for key in keys[name] if declared.get(key) is not None] for name in keys}
    return {f"entrypoint_{name}": values[0] for name, values in found.items() if values}
