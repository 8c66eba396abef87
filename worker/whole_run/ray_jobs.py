"""The Ray jobs of actions that run whole, each under its release's environment, and what they leave."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from shared.messages import RESOURCE_KEYS, JsonObject
from worker.platform import clean, mask_secrets, shorten
from worker.plugins.errors import PluginCallError, PluginHostUnavailableError, RayDriverError
from worker.plugins.output import PluginOutput, read_output
from worker.plugins.package import Packages, runtime_env
from worker.plugins.ray_driver import RayConnection, jobs
from worker.plugins.requests import ActionRequest
from worker.plugins.runner import OUTPUT_END, OUTPUT_START, RESULT_END, RESULT_START
from worker.plugins.store import Release

SDK_PROGRAM: Final = "synapse_sdk.plugins.entrypoint"
PROGRAM: Final = "worker.actions.entrypoint"
REQUEST_VARIABLE: Final = "SYNAPSE_ACTION_REQUEST"
"""Of our program, which reads nothing else."""

MAX_VARIABLE_BYTES: Final = 120_000
"""Of an environment variable, of which Linux takes no more than 128 KB."""
MAX_RESULT_BYTES: Final = 1024 * 1024
LOG_WINDOW_BYTES: Final = 12 * MAX_RESULT_BYTES
"""Of the end of a job's log, in which its result is looked for. Quotes and backslashes take several times
their length there."""
CALL_SECONDS: Final = 30.0
HANG_MARGIN_SECONDS: Final = 15.0

TRACEBACK: Final = "Traceback (most recent call last):"
LAST_LINES: Final = 6
MAX_TRACEBACK_CHARS: Final = 100_000
MAX_ESCAPE_CHARS: Final = 12
"""Of one escaped character in JSON."""
MAX_ERROR_CHARS: Final = 2_000
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class JobState:
    """What Ray says of a job: its `status`, and a `message` that may show secrets."""

    status: str
    message: str = ""


@dataclass(frozen=True)
class JobOutput:
    """What a job has left in its log: its result, or why there is none, its error, and what its action said."""

    result: JsonObject | None = None
    problem: str = ""
    error: str = ""
    said: PluginOutput | None = None


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
        return read_job_output(str(self._call(jobs.end_of_log, id, LOG_WINDOW_BYTES)))

    def _call(
        self, function: Callable[..., Any], *arguments: Any, undo: Callable[[Any], Any] | None = None
    ) -> Any:
        timeout = CALL_SECONDS + HANG_MARGIN_SECONDS
        try:
            return self._connection.call(function, *arguments, CALL_SECONDS, timeout=timeout, undo=undo)
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
    if request.action != "to_task":
        return {}
    declared = request.required_resources
    found = {}
    for name in ("num_cpus", "num_gpus", "memory"):
        value = next((declared[key] for key in RESOURCE_KEYS[name] if declared.get(key) is not None), None)
        if value is not None:
            found[f"entrypoint_{name}"] = value
    return found


def read_job_output(log: str) -> JobOutput:
    """Read the end of a log, which is escaped as in JSON, with the end of that JSON."""
    said = _between(log, OUTPUT_START, OUTPUT_END)
    output = JobOutput(error=error_in(_last_text(log)), said=read_output(_parse(said)) if said else None)
    text = _between(log, RESULT_START, RESULT_END)
    if text is None:
        left = "more than can be read" if RESULT_END in log else "no result"
        return replace(output, problem=f"its job has left {left}")
    if len(text) > MAX_RESULT_BYTES:
        problem = f"its result has {len(text) / MAX_RESULT_BYTES:.1f} MB, and 1 MB is allowed"
        return replace(output, problem=problem)
    result = _parse(text)
    if not isinstance(result, dict):
        return replace(output, problem="its result is no JSON object")
    return replace(output, result=mask_secrets(result))


def _last_text(log: str) -> str:
    """The last lines; the first of them may be cut, also amid an escaped character."""
    content = log.rstrip().removesuffix("}").rstrip().removesuffix('"')[-MAX_TRACEBACK_CHARS:]
    for start in range(MAX_ESCAPE_CHARS):
        try:
            return str(json.loads(f'"{content[start:]}"'))
        except ValueError:
            continue
    return ""


def _between(log: str, start: str, end: str) -> str | None:
    """The lines between the last two markers; None without them."""
    last = log.rfind(end)
    first = log.rfind(start, 0, last) if last >= 0 else -1
    if first < 0:
        return None
    try:
        text = json.loads(f'"{log[first + len(start) : last]}"')
    except ValueError:
        return None
    return str(text).strip()


def _parse(text: str) -> Any:
    """The JSON; None for what is none, also for NaN and infinities, which Python writes and JSON lacks."""

    def reject(name: str) -> float:
        raise ValueError(name)

    try:
        return json.loads(text, parse_constant=reject, parse_float=_finite)
    except (ValueError, RecursionError):
        return None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def error_in(text: str) -> str:
    """The author's error in the end of a log: what follows the frames of the last traceback, cleaned.

    Without a traceback the last lines are what there is.
    """
    lines = _ANSI.sub("", text).rstrip().splitlines()
    begins = [number for number, line in enumerate(lines) if TRACEBACK in line]
    shown = lines[-LAST_LINES:]
    if begins:
        after = lines[begins[-1] + 1 :]
        first = next((number for number, line in enumerate(after) if line and line[0] not in " \t"), None)
        shown = shown if first is None else after[first:]
    return shorten(clean("\n".join(shown).strip()), MAX_ERROR_CHARS)
