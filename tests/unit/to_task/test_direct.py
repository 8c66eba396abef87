"""`ToTaskAction.execute()` in a plain process: the same rules, no Redis."""

from typing import Any

import pytest

from shared.statuses import ToTaskResult
from worker.actions import ToTaskAction
from worker.actions.base import RuntimeContext
from worker.platform import ClientConnectionError, ServerError
from worker.testing import FakeBackend
from worker.to_task import direct


def make_client(tasks: Any = ()) -> FakeBackend:
    """The blocking client of a project with these tasks, whose pre-processor runs."""
    client = FakeBackend(tasks)
    client.release = {"id": 5, "version": "2.0.0", "config": {"code": "pre", "actions": {}}}
    client.add_application(job=1, data={})
    client.inference_answer = lambda params: {"digit": 7}
    return client


class Naming(ToTaskAction):
    def convert_data_from_file(
        self,
        primary_file_url: str,
        primary_file_name: str | None,
        data_file_url: str,
        data_file_name: str | None,
        task_data: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        if data_file_name == "3.json":
            raise ValueError("no digit in it")
        return {"from": data_file_name}


def action(client: Any, **params: Any) -> Naming:
    given = {"name": "n", "project": 1, "agent": 3, "target_specification_name": "label", **params}
    return Naming(given, RuntimeContext(client=client))


def test_a_run_by_file_annotates_and_counts() -> None:
    client = make_client(range(1, 251))

    result = action(client).execute()

    assert isinstance(result, ToTaskResult)
    assert (result.status, result.message) == ("SUCCEEDED", "Annotated 249 of 250 tasks, 1 failed")
    assert [(each.task_id, each.error) for each in result.failures] == [(3, "ValueError: no digit in it")]
    assert sorted(client.annotated) == [n for n in range(1, 251) if n != 3]


def test_a_run_by_inference_asks_the_pre_processor() -> None:
    client = make_client([1])

    result = action(client, method="inference", pre_processor=5, model=9).execute()

    assert (result.success_count, client.annotations) == (1, [(1, {"digit": 7}, "dm_schema_v1")])


def test_no_tasks_is_a_failed_result() -> None:
    result = action(make_client()).execute()

    assert (result.status, result.message) == ("FAILED", "No tasks found to annotate")


def test_a_wrong_specification_is_a_runtime_error() -> None:
    with pytest.raises(RuntimeError, match="has no file specification 'mask'; it has: image, label"):
        action(make_client([1]), target_specification_name="mask").execute()


def test_without_a_client_it_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="no backend client"):
        action(None).execute()


def test_what_fails_for_now_is_tried_again_after_a_pause() -> None:
    client = make_client([1, 2])
    client.faults.fail("annotate_task_data", ServerError(), key=1, times=1)
    pauses: list[float] = []

    result = direct.run(action(client), sleep=pauses.append)

    assert (result.success_count, pauses) == (2, [2.0, 0.0])


def test_a_backend_that_goes_away_is_raised() -> None:
    # Given a backend that is away once the tasks are listed
    client = make_client([1])
    listed = client.list_tasks

    def last_answer(*args: Any, **kwargs: Any) -> Any:
        answer = listed(*args, **kwargs)
        client.faults.unavailable = ClientConnectionError()
        return answer

    client.list_tasks = last_answer  # type: ignore[method-assign]

    with pytest.raises(ClientConnectionError):
        action(client).execute()
