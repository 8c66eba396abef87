"""Rejected messages become dead letters and fail their jobs; the command shows, replays and drops them."""

import json
import re
from typing import Any

import pytest

from tests.integration.safety.proxied_harness import ECHO, ProxiedHarness
from worker.sandbox.servers import RedisServer

CONTROL_CHARACTERS = {"\x1b", "\x9b", "\u202e"}
"""Characters that a terminal interprets and does not show."""


def dead_letter_with(harness: ProxiedHarness, mark: str) -> dict[str, Any]:
    def found() -> list[dict[str, Any]]:
        return [letter for letter in harness.dead_letters() if mark in letter["body"]]

    harness.wait_for(lambda: bool(found()), f"a dead letter with {mark}")
    [letter] = found()
    return letter


@pytest.mark.parametrize(
    ("task", "queue", "change", "reason"),
    [
        ("to_task", "to_task", {"colour": "red"}, "colour"),
        ("to_task", "to_task", {"params": {}}, "params.name"),
        ("to_task", "to_task", {"plugin": "nobody@1.0.0"}, "nobody@1.0.0"),
        ("to_task", "to_task", {"plugin": "../../etc/passwd"}, "plugin"),
        ("to_task", "to_task", {"plugin": "os.path:join"}, "plugin"),
        ("to_task", "to_task", {"action": "no-such-action"}, "no-such-action"),
        ("to_task", "to_task", {"tenant": "회사"}, "tenant"),
        ("to_task", "to_task", {"language": "\ud800"}, "language"),
        ("deploy", "deploy", {"agent": "1"}, "agent"),
        ("deploy", "deploy", {"self": 1, "agent": 1}, "self"),
    ],
)
def test_an_invalid_message_is_kept_and_its_job_fails(
    harness: ProxiedHarness, task: str, queue: str, change: dict[str, Any], reason: str
) -> None:
    # Given a message with one mistake
    job, mark = harness.new_job(), f"mark-{harness.new_job()}"
    params: Any = harness.to_task_params(harness.new_project(1)) if task == "to_task" else {}
    message = {"job": int(job), "plugin": "echo@1.0.0", "params": {**params, "note": mark}}
    if "params" in change:
        change = {"params": {"note": mark}}

    # When it is published with Celery alone
    harness.send_task(task, queue, {**message, **change})

    # Then the job fails with the reason, the dead letter has the whole message, and no log line has any of it
    end = harness.wait_for_end(job)
    letter = dead_letter_with(harness, mark)
    assert end["status"] == "FAILED"
    assert reason in end["result"]["error"]
    assert letter["reason"] == end["result"]["error"]
    assert letter["task"] == task
    assert json.loads(letter["body"])[1] == {**message, **change}
    assert mark not in harness.worker_log()


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"expires": -1}, "expired before it began"), ({"countdown": 2, "task_id": "mark-revoked"}, "revoked")],
)
def test_job_of_a_dropped_message_ends_stopped_with_the_reason(
    harness: ProxiedHarness, options: dict[str, Any], reason: str
) -> None:
    # Given a message that has expired, or is revoked while it waits
    project = harness.new_project(1)
    job = harness.new_job()
    message = {"job": int(job), "plugin": "echo@1.0.0", "params": harness.to_task_params(project)}
    harness.celery.send_task("to_task", kwargs=message, queue="to_task", **options)
    if "task_id" in options:
        harness.celery.control.revoke(options["task_id"])

    # When a worker meets it, then the job ends and the message is kept
    end = harness.wait_for_end(job)
    assert (end["status"], end["result"]) == ("STOPPED", {"error": reason})
    [letter] = [each for each in harness.dead_letters() if json.loads(each["body"])[1]["job"] == int(job)]
    assert letter["reason"] == reason


def test_a_replay_runs_the_job_that_the_message_had_failed(harness: ProxiedHarness) -> None:
    # Given a job that failed because the plugin store did not have its release
    project = harness.new_project(3)
    job = harness.to_task(project, "late@1.0.0")
    assert harness.wait_for_end(job)["status"] == "FAILED"
    [letter] = [each for each in harness.dead_letters() if "late@1.0.0" in each["body"]]
    harness.wait_for(harness.has_no_messages, "the rejection was reported")

    # When the release is added and the dead letter is replayed
    harness.add_release("late", ECHO)
    code, output = harness.run_command("dead-letters", "replay", letter["id"])

    # Then the job succeeds, and the dead letter is removed
    assert code == 0
    assert output.splitlines() == [
        f"published again: to_task, job {job}",
        f"`synapse-worker watch {job}` shows what becomes of it",
    ]
    harness.wait_for(lambda: harness.job(job)["status"] == "SUCCEEDED", "the replayed run succeeds")
    assert harness.write_counts(project) == [1, 1, 1]
    assert letter["id"] not in [each["id"] for each in harness.dead_letters()]
    # And a second replay of it is rejected
    code, output = harness.run_command("dead-letters", "replay", letter["id"])
    assert code == 1
    assert "there is no dead letter" in output


def test_a_job_that_ended_otherwise_is_not_replayed(harness: ProxiedHarness) -> None:
    # Given a job that had ended when two invalid messages for it were published
    job = harness.new_job(status="FAILED", result={"error": "out of money"})
    harness.send_task(
        "to_task", "to_task", {"job": int(job), "plugin": "soon@1.0.0", "params": {"name": "mark-over"}}
    )
    harness.send_task(
        "to_task",
        "to_task",
        {
            "job": int(job),
            "plugin": "soon@1.0.0",
            "params": harness.to_task_params(harness.new_project(1), name="mark-over-2"),
        },
    )
    letters = [dead_letter_with(harness, "mark-over-2"), dead_letter_with(harness, '"mark-over"')]
    harness.wait_for(harness.has_no_messages, "the rejection was reported")

    # When they are replayed, then the command rejects it with a reason
    code, output = harness.run_command("dead-letters", "replay", letters[0]["id"])
    assert code == 1
    assert f"job {job} was not set FAILED because of this message" in output
    code, output = harness.run_command("dead-letters", "replay", letters[1]["id"])
    assert code == 1
    assert "would be rejected again (params.agent, params.project" in output
    assert harness.job(job)["result"] == {"error": "out of money"}


def test_a_letter_of_no_known_task_is_shown_but_not_replayed(harness: ProxiedHarness) -> None:
    # Given text that is no message, and a message whose task has a name with control characters and markup
    harness.queues.put("to_task", "mark-no-message [/red] {} %s")
    harness.send_task("[/b]\x1b[2J\x9b2J\u202e{}%s", "to_task", {"mark": "mark-markup \x9b2J\u202e😀"})
    no_message, markup = (
        dead_letter_with(harness, "mark-no-message"),
        dead_letter_with(harness, "mark-markup"),
    )

    # When they are listed, shown and replayed
    code, listed = harness.run_command("dead-letters", "list")
    assert code == 0
    assert not CONTROL_CHARACTERS & set(listed)
    for letter in (no_message, markup):
        assert letter["id"] in listed
        code, shown = harness.run_command("dead-letters", "show", letter["id"])
        assert not CONTROL_CHARACTERS & set(shown)
        reported = json.loads(shown)
        body = reported["body"] if isinstance(reported["body"], str) else json.dumps(reported["body"])
        assert {**reported, "body": body} == {key: value for key, value in letter.items() if key != "id"}
        code, output = harness.run_command("dead-letters", "replay", letter["id"])
        assert code == 1
        assert "cannot be replayed: its task is none of deploy, to_task" in output

    # And when one is dropped, then it is removed
    code, output = harness.run_command("dead-letters", "drop", no_message["id"])
    assert (code, output.strip()) == (0, f"dropped {no_message['id']}")
    assert no_message["id"] not in [letter["id"] for letter in harness.dead_letters()]


@pytest.mark.parametrize("action", ["show", "replay", "drop"])
@pytest.mark.parametrize("id_", ["1-1", "1", "nonsense", "[/b]", "{}", "%s", "+", "9" * 40 + "-1"])
def test_an_unknown_id_is_reported_in_one_line(harness: ProxiedHarness, action: str, id_: str) -> None:
    code, output = harness.run_command("dead-letters", action, id_)

    assert code == 1
    assert re.sub(r"\s+", " ", output).startswith(f"error: there is no dead letter {id_} `synapse-worker")


def test_an_empty_list_of_letters_is_reported(tmp_path: Any, harness: ProxiedHarness) -> None:
    server = RedisServer(tmp_path / "redis")
    server.start()
    try:
        assert harness.run_command("dead-letters", "list", "--redis-url", server.url) == (
            0,
            "no dead letters\n",
        )
    finally:
        server.stop()
