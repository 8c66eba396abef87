"""What cannot be accepted is kept whole and answered; the command shows, replays and drops it."""

import json
import re
from typing import Any

import pytest

from tests.integration.safety.site import ECHO, Site
from worker.sandbox.servers import RedisServer

OBEYED = {"\x1b", "\x9b", "\u202e"}
"""Characters that a terminal does not show but does what they say."""


def letter_of(site: Site, mark: str) -> dict[str, Any]:
    def found() -> list[dict[str, Any]]:
        return [letter for letter in site.letters() if mark in letter["body"]]

    site.wait(lambda: bool(found()), f"a letter with {mark}")
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
def test_an_unacceptable_message_is_kept_and_its_job_fails(
    site: Site, task: str, queue: str, change: dict[str, Any], reason: str
) -> None:
    # Given a message with one mistake
    job, mark = site.new_job(), f"mark-{site.new_job()}"
    params: Any = site.params(site.project(1)) if task == "to_task" else {}
    message = {"job": int(job), "plugin": "echo@1.0.0", "params": {**params, "note": mark}}
    if "params" in change:
        change = {"params": {"note": mark}}

    # When it is published by whoever
    site.bare(task, queue, {**message, **change})

    # Then the job fails with the reason, the letter has the whole message, and no log line has any of it
    end = site.end_of(job)
    letter = letter_of(site, mark)
    assert end["status"] == "FAILED"
    assert reason in end["result"]["error"]
    assert letter["reason"] == end["result"]["error"]
    assert letter["task"] == task
    assert json.loads(letter["body"])[1] == {**message, **change}
    assert mark not in site.log()


def test_a_replay_opens_the_job_that_the_letter_had_failed(site: Site) -> None:
    # Given a job that failed because its plugin was not in the store
    project = site.project(3)
    job = site.to_task(project, "late@1.0.0")
    assert site.end_of(job)["status"] == "FAILED"
    [letter] = [each for each in site.letters() if "late@1.0.0" in each["body"]]
    site.wait(site.quiet, "the refusal was reported")

    # When the plugin is there and the letter is replayed
    site.install("late", ECHO)
    code, said = site.command("dead-letters", "replay", letter["id"])

    # Then the job runs to its end, and the letter is gone
    assert code == 0
    assert said.splitlines() == [
        f"published again: to_task, job {job}",
        f"`synapse-worker watch {job}` shows what becomes of it",
    ]
    site.wait(lambda: site.job(job)["status"] == "SUCCEEDED", "the replayed run succeeds")
    assert site.writes(project) == [1, 1, 1]
    assert letter["id"] not in [each["id"] for each in site.letters()]
    # And a second replay of it is rejected
    code, said = site.command("dead-letters", "replay", letter["id"])
    assert code == 1
    assert "there is no dead letter" in said


def test_a_replay_does_not_open_a_job_that_ended_otherwise(site: Site) -> None:
    # Given a job that was over before its bad message came
    job = site.new_job(status="FAILED", result={"error": "out of money"})
    site.bare(
        "to_task", "to_task", {"job": int(job), "plugin": "soon@1.0.0", "params": {"name": "mark-over"}}
    )
    site.bare(
        "to_task",
        "to_task",
        {"job": int(job), "plugin": "soon@1.0.0", "params": site.params(site.project(1), name="mark-over-2")},
    )
    letters = [letter_of(site, "mark-over-2"), letter_of(site, '"mark-over"')]
    site.wait(site.quiet, "the refusal was reported")

    # When they are replayed, then that is rejected in a line
    code, said = site.command("dead-letters", "replay", letters[0]["id"])
    assert code == 1
    assert f"job {job} was not set FAILED because of this message" in said
    code, said = site.command("dead-letters", "replay", letters[1]["id"])
    assert code == 1
    assert "would be rejected again (params.agent, params.project" in said
    assert site.job(job)["result"] == {"error": "out of money"}


def test_what_is_no_task_message_is_shown_but_not_replayed(site: Site) -> None:
    # Given rubbish, and a message whose task has a name that a terminal would obey
    site.redis.lpush("to_task", "mark-rubbish [/red] {} %s")
    site.bare("[/b]\x1b[2J\x9b2J\u202e{}%s", "to_task", {"mark": "mark-markup \x9b2J\u202e😀"})
    rubbish, markup = letter_of(site, "mark-rubbish"), letter_of(site, "mark-markup")

    # When they are listed, shown and replayed
    code, listed = site.command("dead-letters", "list")
    assert code == 0
    assert not OBEYED & set(listed)
    for letter in (rubbish, markup):
        assert letter["id"] in listed
        code, shown = site.command("dead-letters", "show", letter["id"])
        assert not OBEYED & set(shown)
        reported = json.loads(shown)
        body = reported["body"] if isinstance(reported["body"], str) else json.dumps(reported["body"])
        assert {**reported, "body": body} == {key: value for key, value in letter.items() if key != "id"}
        code, said = site.command("dead-letters", "replay", letter["id"])
        assert code == 1
        assert "cannot be replayed: its task is none of deploy, to_task" in said

    # And when one is dropped, then it is gone
    code, said = site.command("dead-letters", "drop", rubbish["id"])
    assert (code, said.strip()) == (0, f"dropped {rubbish['id']}")
    assert rubbish["id"] not in [letter["id"] for letter in site.letters()]


@pytest.mark.parametrize("action", ["show", "replay", "drop"])
@pytest.mark.parametrize("id_", ["1-1", "1", "nonsense", "[/b]", "{}", "%s", "+", "9" * 40 + "-1"])
def test_an_unknown_id_is_one_clear_line(site: Site, action: str, id_: str) -> None:
    code, said = site.command("dead-letters", action, id_)

    assert code == 1
    assert re.sub(r"\s+", " ", said).startswith(f"error: there is no dead letter {id_} `synapse-worker")


def test_no_letters_are_said_to_be_none(tmp_path: Any, site: Site) -> None:
    server = RedisServer(tmp_path / "redis")
    server.start()
    try:
        assert site.command("dead-letters", "list", "--redis-url", server.url) == (0, "no dead letters\n")
    finally:
        server.stop()
