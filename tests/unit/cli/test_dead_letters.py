"""The commands `dead-letters …`."""

import json
import re
from typing import Any

import fakeredis
import pytest
from redis.exceptions import ConnectionError as LostConnectionError
from redis.exceptions import ResponseError
from typer.testing import CliRunner

from tests.unit.cli.command_line import UNREACHABLE_REDIS, CommandLine, run_failing
from worker.cli.main import app
from worker.workflow.dead_letters import DeadLetters


def test_list_cuts_neither_times_nor_reasons(cli: CommandLine) -> None:
    # Given a dead letter with a long reason
    reason = "there is no release late@1 in the plugin store, which has digits@1.0.0 and upper@1.0.0 " * 3
    id_ = cli.given_rejected_job("job-7", reason)

    # When it is listed on 80 columns
    listed = cli.run("dead-letters", "list")

    # Then its job, its time to the second and every word of the reason are there
    assert re.search(rf"{id_} \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d +deploy +job-7", listed)
    assert "…" not in listed
    letters = "".join(listed.split())
    assert all(letters.count(word) >= 3 for word in ("release", "digits@1.0.0"))


def test_body_is_shown_as_json(cli: CommandLine) -> None:
    id_ = cli.given_rejected_job("7", "no")

    shown = json.loads(cli.run("dead-letters", "show", id_))

    assert shown["body"] == [[], {"job": "7", "plugin": "late@1", "agent": 1}, {}]


def test_body_that_parsing_would_change_is_shown_as_text(cli: CommandLine) -> None:
    body = '[[], {"job": 1, "job": 2}, {}]'
    DeadLetters(cli.redis).add("deploy", body, "no")
    (letter,) = DeadLetters(cli.redis).all()

    assert json.loads(cli.run("dead-letters", "show", letter.id))["body"] == body


KEYS = [
    "sk-abcdefghijklmnop1234",
    "ghp_abcdefghijklmnopqrst12",
    "AKIAABCDEFGHIJKLMNOP",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2ln",
    "Authorization: Token 0123456789abcdef",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
]


@pytest.mark.parametrize(
    "params",
    [*({"note": f"use {key} please"} for key in KEYS), {"api_key": "17abc"}, {"deep": [{"password": "x y"}]}],
)
def test_what_looks_like_a_key_is_masked(cli: CommandLine, params: dict[str, Any]) -> None:
    # Given a message with a key in it
    body = json.dumps([[], {"job": 7, "params": {**params, "name": "tokens of a task"}}, {}])
    DeadLetters(cli.redis).add("deploy", body, "no")
    (letter,) = DeadLetters(cli.redis).all()

    # When it is shown
    done = CliRunner().invoke(app, ["dead-letters", "show", letter.id])

    # Then the key is masked, which is said, and nothing else is
    shown = json.loads(done.stdout)["body"][1]
    assert "what looks like a key is masked" in done.stderr
    assert "***" in json.dumps(shown)
    assert not any(part in done.stdout for part in (*KEYS, "MIIEow", "0123456789abcdef", "17abc", "x y"))
    assert (shown["job"], shown["params"]["name"]) == (7, "tokens of a task")
    # And on demand it is there
    assert json.loads(cli.run("dead-letters", "show", letter.id, "--unmasked"))["body"] == json.loads(body)


def test_body_without_a_key_is_shown_whole(cli: CommandLine) -> None:
    body = {"job": 7, "note": "skip-level token count: 17, key=value", "deep": [[[[[[[[[["x"]]]]]]]]]]}
    DeadLetters(cli.redis).add("deploy", json.dumps(body), "no")
    (letter,) = DeadLetters(cli.redis).all()

    assert json.loads(cli.run("dead-letters", "show", letter.id))["body"] == body


def test_key_in_a_body_that_is_no_json_is_masked(cli: CommandLine) -> None:
    DeadLetters(cli.redis).add("deploy", f"job=7 token={KEYS[0]}", "no")
    (letter,) = DeadLetters(cli.redis).all()

    assert KEYS[0] not in cli.run("dead-letters", "show", letter.id)


def test_control_codes_of_a_body_stay_escaped(cli: CommandLine) -> None:
    # Given a body with control codes
    body = {"note": "\x1b[2J\x9b2J\u202e"}
    DeadLetters(cli.redis).add("deploy", body, "no")
    (letter,) = DeadLetters(cli.redis).all()

    # When it is shown, then the codes are escaped, and nothing is lost
    shown = cli.run("dead-letters", "show", letter.id)
    assert shown.isprintable()
    assert json.loads(shown)["body"] == body


def test_replay_says_how_to_follow_the_run(cli: CommandLine) -> None:
    id_ = cli.given_rejected_job("7", "no")

    output = cli.run("dead-letters", "replay", id_)

    assert output == "published again: deploy, job 7 `synapse-worker watch 7` shows what becomes of it"


def test_watch_shows_that_a_replay_is_rejected_again(cli: CommandLine) -> None:
    # Given a dead letter that was replayed
    cli.run("dead-letters", "replay", cli.given_rejected_job("7", "no such release"))
    letters = DeadLetters(cli.redis)
    assert letters.is_replayed("7")

    # When a worker rejects its message again
    letters.add("deploy", [[], {"job": "7"}, {}], "still no such release", message_id="2", job="7")

    # Then watch shows that, and the dead letter can be replayed again
    assert "the message was rejected: still no such release" in cli.run("watch", "7", code=1)
    assert letters.replay("7")


def test_second_delivery_does_not_revoke_a_replay(cli: CommandLine) -> None:
    letters = DeadLetters(cli.redis)
    letters.add("deploy", [[], {"job": "7"}, {}], "no", message_id="1", job="7")
    letters.mark_rejected("7")
    letters.replay("7")

    letters.add("deploy", [[], {"job": "7"}, {}], "no", message_id="1", job="7")

    assert letters.is_replayed("7")


@pytest.mark.parametrize("id_", ["99999999999999999999-0", "1-18446744073709551616", "x", "1", "-1-1"])
@pytest.mark.parametrize("command", ["show", "drop", "replay"])
def test_invalid_id_is_unknown(redis_server: fakeredis.FakeServer, command: str, id_: str) -> None:
    assert f"error: there is no dead letter {id_}" in run_failing("dead-letters", command, "--", id_)


@pytest.mark.parametrize("error", [LostConnectionError("gone"), ResponseError("OOM"), None])
def test_replay_that_is_not_published_opens_no_job(
    redis_server: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    # Given a job that is FAILED because of a dead letter
    letters = DeadLetters(fakeredis.FakeRedis(server=redis_server, decode_responses=True))
    letters.add("deploy", [[], {"job": "5", "plugin": "a@1", "agent": 1}, {}], "unknown plugin")
    letters.start_rejecting("5")
    letters.mark_rejected("5")
    (letter,) = letters.all()

    # When the replay cannot be published
    if error is not None:
        monkeypatch.setattr("shared.Publisher.publish", lambda *_: (_ for _ in ()).throw(error))
    broker = UNREACHABLE_REDIS if error else "amqp://h:abc//"
    run_failing("dead-letters", "replay", letter.id, "--broker-url", broker)

    # Then the job stays closed, and the dead letter is still there
    assert not letters.is_replayed("5")
    assert letters.get(letter.id) is not None
