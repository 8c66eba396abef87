"""What a dispatch asks for."""

from typing import Any

import pytest

from worker.platform import MalformedResponseError
from worker.pre_processor import dispatch_body, dispatch_params
from worker.pre_processor.dispatch import dispatched_job
from worker.pre_processor.serve_application import PreProcessor


def config(resources: Any) -> dict[str, Any]:
    return {"actions": {"inference": {"required_resources": resources}}}


@pytest.mark.parametrize(
    ("declared", "params"),
    [
        ({}, {"num_cpus": 1, "num_gpus": 0.1}),
        ({"required_cpu_count": 2, "num_cpus": 3}, {"num_cpus": 2, "num_gpus": 0.1}),
        ({"num_cpus": 3}, {"num_cpus": 3, "num_gpus": 0.1}),
        ({"required_gpu_count": 0, "num_gpus": 1}, {"num_cpus": 1, "num_gpus": 0}),
        ({"num_gpus": 0.5}, {"num_cpus": 1, "num_gpus": 0.5}),
        ({"num_replicas": 2}, {"num_cpus": 1, "num_gpus": 0.1, "num_replicas": 2}),
        ({"memory": 4294967296, "memory_bytes": 1}, {"num_cpus": 1, "num_gpus": 0.1, "memory": 4294967296}),
        ({"memory_bytes": 1024.0}, {"num_cpus": 1, "num_gpus": 0.1, "memory": 1024}),
        (
            {"num_replicas": None, "memory": None, "required_cpu_count": None},
            {"num_cpus": 1, "num_gpus": 0.1},
        ),
        ({"anything": "else"}, {"num_cpus": 1, "num_gpus": 0.1}),
    ],
)
def test_the_four_keys_of_the_table_and_nothing_else(
    declared: dict[str, Any], params: dict[str, Any]
) -> None:
    assert dispatch_params(config(declared)) == params


@pytest.mark.parametrize("odd", [{}, {"actions": None}, {"actions": {"inference": None}}, config(None)])
def test_a_release_that_declares_nothing_gets_the_defaults(odd: dict[str, Any]) -> None:
    assert dispatch_params(odd) == {"num_cpus": 1, "num_gpus": 0.1}


@pytest.mark.parametrize(
    "declared",
    [
        {"num_cpus": "2"},
        {"num_cpus": -1},
        {"num_cpus": True},
        {"num_gpus": float("nan")},
        {"num_gpus": float("inf")},
        {"num_replicas": 0},
        {"num_replicas": 1.5},
        {"num_replicas": "auto"},
        {"memory": -1},
        {"memory": 10**400},
        {"num_cpus": 10**400},
        {"memory_bytes": 0.5},
        {"memory": []},
        "all of it",
    ],
)
def test_values_that_no_cluster_could_give_are_refused(declared: Any) -> None:
    with pytest.raises(RuntimeError, match="required_resources"):
        dispatch_params(config(declared))


def test_the_body_names_agent_action_and_version() -> None:
    target = PreProcessor("digits", "1.0.0", config({"num_cpus": 2}), 4)
    assert dispatch_body(target) == {
        "agent": 4,
        "action": "deployment",
        "params": {"num_cpus": 2, "num_gpus": 0.1},
        "version": "1.0.0",
    }


@pytest.mark.parametrize("answer", [{"id": 5}, {"job_id": 5}, {"id": None, "job_id": "5"}, {"id": "5"}])
def test_the_job_of_a_dispatch(answer: dict[str, Any]) -> None:
    assert dispatched_job(answer) == "5"


@pytest.mark.parametrize("answer", [None, [], {}, {"id": None}, {"id": True}, {"id": {}}, {"id": "a/b"}, 5])
def test_an_answer_without_a_job_is_malformed(answer: Any) -> None:
    with pytest.raises(MalformedResponseError):
        dispatched_job(answer)
