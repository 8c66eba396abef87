"""What a run's parameters are checked against."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from shared.messages import ToTaskMethod
from tests.unit.to_task.world import World
from worker.platform import NotFoundError, ServerError
from worker.plugins import PluginCallError
from worker.pool import pool
from worker.pre_processor.waitlist import DETECT
from worker.runs.model import Continue, RunFailedError
from worker.to_task.prepare import check_project, prepare
from worker.to_task.steps import FETCH_TASKS
from worker.whole_run.run import SUBMIT

Make = Callable[..., World]


def test_a_run_by_file_goes_on_to_its_tasks(make_world: Make) -> None:
    world = make_world(1)

    assert prepare(world.run, world.services) == Continue(FETCH_TASKS)


def test_a_run_by_inference_goes_on_to_its_pre_processor(by_inference: Make) -> None:
    world = by_inference(1)

    assert prepare(world.run, world.services) == Continue(DETECT)
    assert world.backend.faults.calls["get_data_collection"] == 0


def test_the_plugin_is_loaded_before_the_first_chunk(by_inference: Make) -> None:
    world = by_inference(1)

    prepare(world.run, world.services)

    assert (world.host.warm_ups, world.host.batches) == (1, [])


@pytest.mark.parametrize(("queues", "warm_ups"), [("to_task,annotate", 1), ("to_task,control", 0)])
def test_only_a_worker_that_gets_chunks_loads_the_plugin(
    make_world: Make, monkeypatch: pytest.MonkeyPatch, queues: str, warm_ups: int
) -> None:
    app = Celery(set_as_current=False)
    app.amqp.queues.select(queues.split(","))
    monkeypatch.setattr(pool, "worker", SimpleNamespace(app=app))
    world = make_world(1)

    prepare(world.run, world.services)

    assert world.host.warm_ups == warm_ups


def test_an_action_with_steps_of_its_own_runs_whole(make_world: Make) -> None:
    # Given an action that the worker's steps would not do justice
    world = make_world(1)
    world.host.whole_run = {"methods": ["setup_steps"], "runner": "sdk"}

    # Then it runs whole, and nothing else is done
    assert prepare(world.run, world.services) == Continue(SUBMIT)
    assert world.run.state.whole_run == world.host.whole_run
    assert world.backend.faults.calls["get_project"] == 0


def test_parameters_rejected_by_the_plugin_end_the_run(make_world: Make) -> None:
    world = make_world(1)
    world.host.faults.fail("check_params", PluginCallError("ParamsError", "unknown parameter 'colour'"))

    with pytest.raises(
        RunFailedError, match=r"^The plugin refuses the parameters: unknown parameter 'colour'$"
    ):
        prepare(world.run, world.services)


def test_a_release_without_own_parameters_is_asked_once(make_world: Make) -> None:
    # Given a release that declares no parameters beside the message's own
    world = make_world(1)
    keys = ["agent", "name", "project", "target_specification_name"]
    world.host.checked = {"ok": True, "keys": keys}

    prepare(world.run, world.services)
    assert prepare(world.run, world.services) == Continue(FETCH_TASKS)

    # Then its answer counts for all runs of this content, and a key that nobody declares is named
    assert world.host.calls == ["check_params"]
    release, request = world.services.action_of(world.run)
    declared = world.services.declared_params
    assert declared.get((release.checksum, request.entrypoint)) == frozenset(keys)
    declared[release.checksum, request.entrypoint] = frozenset(keys) - {"agent"}
    with pytest.raises(RunFailedError, match=r"refuses the parameters: unknown parameter 'agent' \(known: n"):
        prepare(world.run, world.services)


def test_a_plugin_that_cannot_be_imported_says_so(make_world: Make) -> None:
    world = make_world(1)
    world.host.faults.fail("check_params", PluginCallError("ModuleNotFoundError", "No module named 'torch'"))

    with pytest.raises(RunFailedError, match=r"^The plugin cannot be used: ModuleNotFoundError: No module"):
        prepare(world.run, world.services)


def test_a_project_that_is_not_there_ends_the_run(make_world: Make) -> None:
    world = make_world(1)
    world.backend.faults.fail("get_project", NotFoundError(), key=1)

    with pytest.raises(RunFailedError, match=r"^Project 1 does not exist$"):
        prepare(world.run, world.services)


def test_a_project_without_a_data_collection_has_no_files(make_world: Make) -> None:
    world = make_world(1)
    world.backend.project = {"id": 1, "data_collection": None}

    with pytest.raises(RunFailedError, match=r"^Project 1 has no data collection$"):
        prepare(world.run, world.services)


def test_a_missing_specification_is_answered_with_known_ones(make_world: Make) -> None:
    world = make_world(1, target_specification_name="mask")

    expected = "Data collection 7 has no file specification 'mask'; it has: image, label"
    with pytest.raises(RunFailedError, match=rf"^{expected}$"):
        prepare(world.run, world.services)


def test_a_backend_that_is_away_is_no_mistake_of_the_run(make_world: Make) -> None:
    world = make_world(1)
    world.backend.faults.unavailable = ServerError()

    with pytest.raises(ServerError):
        prepare(world.run, world.services)


@pytest.mark.parametrize("found", [5, True, 1.5, "label_1", {"name": "label_1"}, [["name"]], [None], None])
def test_specifications_that_are_no_list_of_objects_are_none(found: object) -> None:
    backend: Any = SimpleNamespace(
        get_project=lambda _id: {"data_collection": 5},
        get_data_collection=lambda _id: {"file_specifications": found},
    )
    params: Any = SimpleNamespace(project=1, method=ToTaskMethod.FILE, target_specification_name="label_1")

    with pytest.raises(RunFailedError, match="has no file specification 'label_1'; it has: none"):
        check_project(backend, params)
