"""What a dispatch asks the backend for, from what the pre-processor's release declares, and its answer."""

import sys
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic import ValidationError as NotAJobError

from shared.messages import Job
from worker.platform import MalformedResponseError, holds_secret
from worker.pre_processor.target import PreProcessor

DEFAULT_CPUS = 1
DEFAULT_GPUS = 0.1

_JOB: TypeAdapter[str] = TypeAdapter(Job)


def dispatch_body(target: PreProcessor) -> dict[str, Any]:
    """The body of `POST plugins/{code}/run/` that deploys `target`. Nothing undeclared, nothing null."""
    return {
        "agent": target.agent,
        "action": "deployment",
        "params": dispatch_params(target.config),
        "version": target.version,
    }


def dispatch_params(config: Mapping[str, Any]) -> dict[str, Any]:
    """`num_cpus` and `num_gpus`, and `num_replicas` and `memory` where the release declares them.

    Raises `RuntimeError` for values that no cluster could give.
    """
    declared = _required_resources(config)
    memory = _whole(declared, 0, "memory", "memory_bytes")
    replicas = _whole(declared, 1, "num_replicas")
    cpus = _number(declared, "required_cpu_count", "num_cpus")
    gpus = _number(declared, "required_gpu_count", "num_gpus")
    params: dict[str, Any] = {
        "num_cpus": DEFAULT_CPUS if cpus is None else cpus,
        "num_gpus": DEFAULT_GPUS if gpus is None else gpus,
    }
    if replicas is not None:
        params["num_replicas"] = replicas
    if memory is not None:
        params["memory"] = memory
    return params


def dispatched_job(answer: object) -> str:
    """The job in a dispatch's answer, `id` or `job_id`; raises `MalformedResponseError`."""
    given = None
    if isinstance(answer, dict):
        given = answer["id"] if answer.get("id") is not None else answer.get("job_id")
    try:
        job = _JOB.validate_python(given)
        if not holds_secret(job):
            return job
    except NotAJobError:
        pass
    raise MalformedResponseError("malformed answer: no job")


def _required_resources(config: Mapping[str, Any]) -> Mapping[str, Any]:
    actions = config.get("actions")
    inference = actions.get("inference") if isinstance(actions, Mapping) else None
    declared = inference.get("required_resources") if isinstance(inference, Mapping) else None
    if declared is None:
        return {}
    if not isinstance(declared, Mapping):
        raise RuntimeError("The pre-processor's required_resources is not a mapping")
    return declared


def _number(declared: Mapping[str, Any], *names: str) -> int | float | None:
    """The first of `names` that is declared."""
    for name in names:
        value = declared.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _refused(name, "is not a number")
        # Not math.isfinite, which a whole number of 400 digits overflows.
        if not 0 <= value <= sys.float_info.max:
            raise _refused(name, "must be a number from 0 up")
        return value
    return None


def _whole(declared: Mapping[str, Any], least: int, *names: str) -> int | None:
    for name in names:
        value = _number(declared, name)
        if value is None:
            continue
        if value != int(value) or value < least:
            raise _refused(name, f"must be a whole number from {least} up")
        return int(value)
    return None


def _refused(name: str, why: str) -> RuntimeError:
    return RuntimeError(f"The pre-processor's required_resources: {name} {why}")
