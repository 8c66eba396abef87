"""What Ray Serve, agents and file names say reaches users without secrets and breaks nothing."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from pydantic import SecretStr

from worker.actions.serve_state import interpret_serve_status
from worker.blame import TaskFailedError
from worker.platform import (
    MalformedResponseError,
    clean,
    mask_partial_secret,
    mask_secrets,
    redact,
    register_secrets,
)
from worker.platform import register_settings as register
from worker.platform.responses import HttpResponse, response_error
from worker.platform.streams.lines import truncate_line
from worker.plugins.runner import MAX_MESSAGE_CHARS, describe_error
from worker.pre_processor.serve_application import counts_as_failed, find_pre_processor, snapshot_of
from worker.runs.publisher import RedactedRequest
from worker.services import Services
from worker.settings import Settings
from worker.to_task.methods import MAX_TICKET_CHARS, PreProcessor, request_inference
from worker.workflow.dead_letters import DeadLetters

OURS = "hush-ours-5521"
CONFESSION = (
    f"could not reach https://u:hush-userinfo@db/x?key=hush-query with token=hush-named,"
    f' headers {{"Authorization": "Bearer hush-bearer-12345678", "X": "{OURS[:4]}\x1b[0m{OURS[4:]}"}}'
)


@pytest.fixture(autouse=True)
def _known() -> None:
    register_secrets([OURS])


@pytest.mark.parametrize("status", ["DEPLOY_FAILED", "DEPLOYING", "UNHEALTHY"])
@pytest.mark.parametrize("where", ["application", "deployment"])
def test_serves_explanation_of_a_failure_has_no_secret(status: str, where: str) -> None:
    message = (
        "Traceback (most recent call last):\n"
        '  File "/tmp/ray/plugin/actions.py", line 3, in __init__\n'
        f"    connect(password='hush-source-line')\nValueError: {CONFESSION}\n"
    )
    details: dict[str, Any] = {"status": status, "message": "", "deployments": {"a": {"message": ""}}}
    if where == "application":
        details["message"] = message
    else:
        details["deployments"]["a"]["message"] = message

    _, _, reason = interpret_serve_status(details)

    assert "hush" not in reason
    if where == "deployment" or status != "DEPLOYING":
        assert "ValueError: could not reach <url>" in reason


def test_a_task_event_has_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    request = RedactedRequest.__new__(RedactedRequest)
    monkeypatch.setattr(
        "celery.worker.request.Request.send_event", lambda _self, type, **fields: sent.append(fields)
    )

    request.send_event(
        "task-failed", exception=repr(ValueError(CONFESSION.replace("\x1b[0m", ""))), runtime=1.5
    )

    assert sent[0]["runtime"] == 1.5
    assert "hush" not in sent[0]["exception"].replace("hush-query", "")


def test_values_of_secret_settings_alone_are_masked() -> None:
    register({"HF_TOKEN": "hush-hf-token", "DB_PASSWORD": "hush-db-password", "MODE": "production"})

    assert redact("hush-hf-token hush-db-password production") == "*** *** production"


def test_only_the_own_secrets_of_a_value_are_masked() -> None:
    value = {"tokenizer": "bert", "api_key": "theirs", "note": [f"{OURS}!", 5, None], OURS: 1.5}

    assert mask_secrets(value) == {
        "tokenizer": "bert",
        "api_key": "theirs",
        "note": ["***!", 5, None],
        "***": 1.5,
    }


@pytest.mark.parametrize("text", ["caf\udce9.json", "\ud800", "ok \udfff\ud800"])
def test_half_a_character_can_be_reported(text: str, redis: Any) -> None:
    assert clean(text).encode()
    assert redact(text).encode()
    DeadLetters(redis).add(text, [[], {text: text}], text)
    [letter] = DeadLetters(redis).all()
    assert json.loads(letter.body) == [[], {text: text}]


@pytest.mark.parametrize(
    ("url", "token"),
    [
        ("http://user:hush-pass@127.0.0.1:1/", "x"),
        ("ftp://127.0.0.1", "x"),
        ("127.0.0.1:80", "x"),
        ("http://127.0.0.1", "two\nlines"),
        ("http://127.0.0.1", 5),
        (["http://127.0.0.1"], "x"),
        ({"url": 1}, "x"),
    ],
)
def test_an_agent_whose_record_is_odd_is_a_malformed_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: Any, token: Any
) -> None:
    found = SimpleNamespace(get_agent=lambda _id: {"id": 1, "url": url, "token": token})
    settings = Settings(
        synapse_host="http://backend",
        synapse_access_token=SecretStr("hush-worker"),
        plugins_dir=tmp_path,
    )
    services = Services(settings, Celery(set_as_current=False))
    monkeypatch.setattr(services, "backend", lambda _tenant: found)

    with pytest.raises(MalformedResponseError) as caught:
        services.agent(1)

    assert str(caught.value) == "malformed answer: the agent's address or token cannot be used"
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize("left", range(1, len(OURS)))
def test_a_secret_that_is_cut_shows_no_part_of_itself(left: int) -> None:
    # Given a remote's error, a job's line and a plugin's error, each cut in the middle of a secret
    body = b"x" + b" " * (4095 - left) + OURS.encode() + b" and more"
    mark = f"… [cut: {5000 + len(OURS)} bytes]"
    line = f"{'-' * (1024 - len(mark.encode()) - left)}{OURS}".ljust(5000 + len(OURS), "-")
    text = f"{'-' * (MAX_MESSAGE_CHARS - left - 1)} {OURS} and more"

    # When they are shown
    shown = [
        str(response_error(HttpResponse(500, {}, body))),
        redact(truncate_line(line, 1024)),
        describe_error(ValueError(text), Path("/nowhere"))["message"],
    ]

    # Then nothing of it is
    assert truncate_line(line, 1024).endswith(mark)
    assert [each for each in shown if "hush" in each] == []


def test_the_end_of_a_text_that_is_no_secrets_beginning_is_left() -> None:
    assert mask_partial_secret("hush, hus") == "hush, hus"
    assert mask_partial_secret(f"it is {OURS[:8]}") == "it is ***"


@pytest.mark.parametrize("ticket", [OURS, f"t-{OURS}", "x" * (MAX_TICKET_CHARS + 1), 10**MAX_TICKET_CHARS])
def test_a_ticket_with_a_token_or_without_a_limit_is_rejected(ticket: object) -> None:
    async def run_plugin(*_: Any) -> Any:
        return {"__synapse_deferred__": True, "status": "pending", "ticket": ticket}

    target = PreProcessor("pre", "1.0.0", 3, {})

    with pytest.raises(TaskFailedError, match="not understood"):
        asyncio.run(request_inference(SimpleNamespace(run_plugin=run_plugin), target, {}))  # type: ignore[arg-type]


def test_what_is_kept_of_application_records_has_no_secret() -> None:
    # Given a backend whose record says what it was sent, and more than anybody wants to know
    record = {"id": f"Token {OURS}", "status": f"{CONFESSION} {'x' * 10_000}"}

    # When it is kept, then without that; and it still counts as what it was
    kept = snapshot_of([record])
    assert "hush" not in json.dumps(kept).replace("hush-query", "")
    assert len(json.dumps(kept)) < 300
    assert not counts_as_failed(record, None, kept)
    assert counts_as_failed({**record, "status": "UNHEALTHY"}, None, kept)


def test_a_stored_config_lacks_what_its_author_hides() -> None:
    config = {
        "code": "pre",
        "env": {"HF_TOKEN": "hush-hf-token", "MODE": "fast"},
        "actions": {"inference": {"required_resources": {"num_cpus": 2}, "runtime_env": {"api_key": "hush"}}},
    }
    backend: Any = SimpleNamespace(get_plugin_release=lambda _id: {"version": "1.0.0", "config": config})

    kept = find_pre_processor(backend, 1, 3).to_json()

    assert "hush" not in json.dumps(kept)
    assert kept["config"]["env"]["MODE"] == "fast"
    assert kept["config"]["actions"]["inference"]["required_resources"] == {"num_cpus": 2}
