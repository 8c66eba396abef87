"""The contract's table of messages."""

from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from kombu.utils.json import dumps, loads
from pydantic import ValidationError

from shared import DeployMessage, Message, StopMessage, TailLogsMessage, ToTaskMessage
from shared.messages import ToTaskParams

DEPLOY: dict[str, Any] = {"job": 1, "plugin": "digits@1.0.0", "agent": 1}
PARAMS: dict[str, Any] = {"name": "n", "project": 1, "agent": 1, "target_specification_name": "s"}
TO_TASK: dict[str, Any] = {"job": 1, "plugin": "digits@1.0.0", "params": PARAMS}
TAIL: dict[str, Any] = {"job": 1, "ray_job": "raysubmit_1"}
INFERENCE = {"name": "n", "project": 1, "agent": 1, "method": "inference", "pre_processor": 3, "model": 4}


@pytest.mark.parametrize(
    ("message", "task", "queue"),
    [
        (DeployMessage, "deploy", "deploy"),
        (ToTaskMessage, "to_task", "to_task"),
        (TailLogsMessage, "tail_logs", "logs"),
        (StopMessage, "stop", "control"),
    ],
)
def test_tasks_and_queues_are_the_contracts(message: type[Message], task: str, queue: str) -> None:
    assert (message.task, message.queue) == (task, queue)


@pytest.mark.parametrize(
    ("job", "held"),
    [(42, "42"), ("42", "42"), ("a.b_c-D", "a.b_c-D"), ("x" * 100, "x" * 100), (0, "0")],
)
def test_job_is_an_integer_or_text(job: object, held: str) -> None:
    assert StopMessage.model_validate({"job": job}).job == held


@pytest.mark.parametrize(
    "job",
    [
        "",
        "x" * 101,
        "a b",
        "a/b",
        "a:b",
        "{42}",
        "42\n",
        "42 ",
        "ü",
        "4\x002",
        True,
        False,
        None,
        1.0,
        4.2,
        [1],
        {"a": 1},
        b"42",
        10**101,
        -1,
    ],
)
def test_other_jobs_are_rejected(job: object) -> None:
    if job == -1:
        # `-` is one of the characters; the backend's business.
        assert StopMessage.model_validate({"job": job}).job == "-1"
        return
    with pytest.raises(ValidationError):
        StopMessage.model_validate({"job": job})


@pytest.mark.parametrize("plugin", ["digits@1.0.0", "my-plugin@2.0.0-rc.1", "a_b@1.0.0+cu121", "A@1"])
def test_plugin_is_code_and_version(plugin: str) -> None:
    assert DeployMessage.model_validate({**DEPLOY, "plugin": plugin}).plugin == plugin


@pytest.mark.parametrize(
    "plugin",
    [
        "digits",
        "@1",
        "digits@",
        "a@b@c",
        "../digits@1",
        "digits@..",
        "a..b@1",
        "a/b@1",
        "a@1/2",
        "/etc@1",
        ".a@1",
        "a@.1",
        "http://x@1",
        "a@1 ",
        " a@1",
        "a@1\n",
        "a\\b@1",
        "",
        1,
        None,
        "x" * 200 + "@1",
    ],
)
def test_other_plugins_are_rejected(plugin: object) -> None:
    with pytest.raises(ValidationError):
        DeployMessage.model_validate({**DEPLOY, "plugin": plugin})


def test_defaults_of_deploy_are_the_contracts() -> None:
    message = DeployMessage.model_validate(DEPLOY)

    assert (message.action, message.language, message.tenant) == ("deployment", "en", None)
    assert set(message.params.model_dump().values()) == {None}


def test_defaults_of_to_task_are_the_contracts() -> None:
    message = ToTaskMessage.model_validate(TO_TASK)

    assert (message.action, message.language, message.tenant) == ("to_task", "en", None)
    assert message.params.model_dump(by_alias=True) == {
        **PARAMS,
        "description": None,
        "task_filters": {},
        "method": "file",
        "pre_processor": None,
        "model": None,
        "pre_processor_params": {},
        "batch_size": 1,
        "schema": "dm_schema_v1",
    }


def test_defaults_of_tail_logs_are_the_contracts() -> None:
    message = TailLogsMessage.model_validate(TAIL)

    assert (message.agent, message.protocol) == (None, "auto")


@pytest.mark.parametrize(
    ("model", "message"),
    [(DeployMessage, DEPLOY), (ToTaskMessage, TO_TASK), (TailLogsMessage, TAIL), (StopMessage, {"job": 1})],
)
def test_other_keys_are_rejected(model: type[Message], message: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        model.model_validate({**message, "entrypoint": "os.system"})


@pytest.mark.parametrize(
    ("model", "message"),
    [(DeployMessage, DEPLOY), (ToTaskMessage, TO_TASK), (TailLogsMessage, TAIL), (StopMessage, {"job": 1})],
)
def test_required_keys_are_required(model: type[Message], message: dict[str, Any]) -> None:
    for key in message:
        with pytest.raises(ValidationError):
            model.model_validate({name: value for name, value in message.items() if name != key})


@pytest.mark.parametrize("value", ["1", True, 1.0, 0, -1, None, [1]])
@pytest.mark.parametrize("field", ["project", "agent"])
def test_ids_are_integers(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        ToTaskMessage.model_validate({**TO_TASK, "params": {**PARAMS, field: value}})


@pytest.mark.parametrize("value", ["1", True, 1.0, 0, -1, None])
def test_agent_of_deploy_is_an_integer(value: object) -> None:
    with pytest.raises(ValidationError):
        DeployMessage.model_validate({**DEPLOY, "agent": value})


@pytest.mark.parametrize("value", ["1", True, 1.0])
@pytest.mark.parametrize("field", ["pre_processor", "model"])
def test_ids_of_inference_are_integers(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        ToTaskMessage.model_validate({**TO_TASK, "params": {**INFERENCE, field: value}})


def test_file_needs_its_specification() -> None:
    params = {key: value for key, value in PARAMS.items() if key != "target_specification_name"}

    with pytest.raises(ValidationError, match="requires target_specification_name"):
        ToTaskMessage.model_validate({**TO_TASK, "params": params})


@pytest.mark.parametrize("missing", ["pre_processor", "model"])
def test_inference_needs_its_pre_processor_and_model(missing: str) -> None:
    params = {key: value for key, value in INFERENCE.items() if key != missing}

    with pytest.raises(ValidationError, match=f"requires {missing}"):
        ToTaskMessage.model_validate({**TO_TASK, "params": params})


def test_inference_needs_no_specification() -> None:
    message = ToTaskMessage.model_validate({**TO_TASK, "params": INFERENCE})

    assert message.params.target_specification_name is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": 1},
        {"method": "magic"},
        {"batch_size": 0},
        {"batch_size": "1"},
        {"batch_size": True},
        {"schema": "v2"},
        {"task_filters": []},
        {"pre_processor_params": None},
        {"target_specification_name": ""},
    ],
)
def test_wrong_params_of_to_task_are_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ToTaskMessage.model_validate({**TO_TASK, "params": {**PARAMS, **wrong}})


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_cpus": -1},
        {"num_gpus": "one"},
        {"memory": 1.5},
        {"memory": -1},
        {"num_replicas": 0},
        {"num_cpus": True},
        {"num_replicas": True},
        {"num_replicas": "2"},
        {"memory": "1"},
        {"num_cpus": "1"},
        {"num_cpus": float("nan")},
        {"num_gpus": float("inf")},
        {"wait_for_capacity": -1},
        {"wait_for_capacity": 86_401},
        {"wait_for_capacity": "60"},
        {"wait_for_capacity": True},
        {"wait_for_capacity": float("inf")},
    ],
)
def test_wrong_params_of_deploy_are_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DeployMessage.model_validate({**DEPLOY, "params": wrong})


@pytest.mark.parametrize(
    "right",
    [{"num_cpus": 1}, {"num_cpus": 0.5}, {"num_gpus": 0}, {"memory": 1024}, {"wait_for_capacity": 600}],
)
def test_numbers_of_deploy_are_numbers(right: dict[str, Any]) -> None:
    message = DeployMessage.model_validate({**DEPLOY, "params": right})

    assert message.params.model_dump(exclude_unset=True) == right


def test_params_may_hold_what_the_plugin_declares() -> None:
    deploy = DeployMessage.model_validate({**DEPLOY, "params": {"warm_up": [1, 2]}})
    to_task = ToTaskMessage.model_validate({**TO_TASK, "params": {**PARAMS, "threshold": 0.5}})

    assert deploy.params.model_dump(exclude_unset=True) == {"warm_up": [1, 2]}
    assert to_task.params.model_dump(exclude_unset=True)["threshold"] == 0.5


def test_schema_is_sent_under_its_own_name() -> None:
    message = ToTaskMessage.model_validate({**TO_TASK, "params": {**PARAMS, "schema": "any"}})

    assert message.model_dump(mode="json", exclude_unset=True, by_alias=True)["params"]["schema"] == "any"


def test_error_does_not_show_what_the_message_holds() -> None:
    with pytest.raises(ValidationError) as caught:
        DeployMessage.model_validate({**DEPLOY, "agent": "hush-hush", "params": {"num_cpus": "hush-hush"}})

    assert "hush" not in str(caught.value)


def revived(value: object) -> Any:
    """What a worker's kombu makes of a value that a publisher's kombu has written."""
    return loads(dumps(value))


@pytest.mark.parametrize(
    ("job", "held"),
    [
        (UUID("930249c8-7a76-4d40-a016-e8f499593cac"), "930249c8-7a76-4d40-a016-e8f499593cac"),
        (Decimal(42), "42"),
        (date(2026, 11, 28), "2026-11-28"),
    ],
)
def test_job_that_kombu_revives_is_its_text(job: object, held: str) -> None:
    assert StopMessage.model_validate(revived({"job": job})).job == held


def test_values_that_kombu_revives_are_those_of_json() -> None:
    # Given what an ORM has in its fields
    moment = datetime(2026, 11, 28, 9, 30, tzinfo=UTC)
    filters = {"from": moment, "at": time(9, 30), "batch": UUID(int=1), "in": [Decimal(3), Decimal("0.5")]}
    deploy = {
        **DEPLOY,
        "agent": Decimal(1),
        "params": {"num_cpus": Decimal("0.5"), "threshold": Decimal("0.1")},
    }

    # When it was sent
    to_task = ToTaskMessage.model_validate(
        revived({**TO_TASK, "params": {**PARAMS, "task_filters": filters}})
    )
    deployed = DeployMessage.model_validate(revived(deploy))

    # Then dates and UUIDs are texts, decimals numbers
    assert to_task.params.task_filters == {
        "from": "2026-11-28T09:30:00+00:00",
        "at": "09:30:00",
        "batch": str(UUID(int=1)),
        "in": [3, 0.5],
    }
    assert deployed.agent == 1
    assert deployed.params.model_dump(exclude_unset=True) == {"num_cpus": 0.5, "threshold": 0.1}


def test_decimal_that_is_no_number_is_rejected() -> None:
    with pytest.raises(ValidationError):
        DeployMessage.model_validate(revived({**DEPLOY, "params": {"num_cpus": Decimal("NaN")}}))


def test_the_schema_has_its_name_of_the_message() -> None:
    params = ToTaskParams.model_validate(
        {"name": "n", "project": 1, "agent": 1, "target_specification_name": "l", "schema": "any"}
    )

    assert params.schema == params.data_schema == "any"
