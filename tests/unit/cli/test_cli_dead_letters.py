"""`dead-letters` as people read it."""

import json
import re

from tests.unit.cli.conftest import Terminal
from worker.workflow.dead_letters import DeadLetters


def test_the_list_names_jobs_and_cuts_neither_times_nor_reasons(terminal: Terminal) -> None:
    # Given a letter with a long reason
    reason = "there is no release late@1 in the plugin store, which has digits@1.0.0 and upper@1.0.0 " * 3
    id_ = terminal.given_refusal("job-7", reason)

    # When it is listed on 80 columns
    listed = terminal.run("dead-letters", "list")

    # Then its job, its time to the second and every word of the reason are there
    assert re.search(rf"{id_} \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d +deploy +job-7", listed)
    assert "…" not in listed
    letters = "".join(listed.split())
    assert all(letters.count(word) >= 3 for word in ("release", "digits@1.0.0"))


def test_a_body_is_shown_as_the_json_that_it_is(terminal: Terminal) -> None:
    id_ = terminal.given_refusal("7", "no")

    shown = json.loads(terminal.run("dead-letters", "show", id_))

    assert shown["body"] == [[], {"job": "7", "plugin": "late@1", "agent": 1}, {}]


def test_a_body_that_json_would_change_is_shown_as_it_came(terminal: Terminal) -> None:
    body = '[[], {"job": 1, "job": 2}, {}]'
    DeadLetters(terminal.redis).add("deploy", body, "no")
    (letter,) = DeadLetters(terminal.redis).all()

    assert json.loads(terminal.run("dead-letters", "show", letter.id))["body"] == body


def test_a_terminal_obeys_nothing_of_a_body(terminal: Terminal) -> None:
    # Given a body with codes for the terminal
    body = {"note": "\x1b[2J\x9b2J\u202e"}
    DeadLetters(terminal.redis).add("deploy", body, "no")
    (letter,) = DeadLetters(terminal.redis).all()

    # When it is shown, then they stay escaped, and nothing is lost
    shown = terminal.run("dead-letters", "show", letter.id)
    assert shown.isprintable()
    assert json.loads(shown)["body"] == body


def test_a_replay_says_that_the_message_was_published_and_how_to_follow_it(terminal: Terminal) -> None:
    id_ = terminal.given_refusal("7", "no")

    said = terminal.run("dead-letters", "replay", id_)

    assert said == "published again: deploy, job 7 `synapse-worker watch 7` shows what becomes of it"


def test_a_replay_that_is_refused_again_is_told_to_whoever_watches(terminal: Terminal) -> None:
    # Given a dead letter that was replayed
    terminal.run("dead-letters", "replay", terminal.given_refusal("7", "no such release"))
    letters = DeadLetters(terminal.redis)
    assert letters.is_replayed("7")

    # When a worker refuses its message again
    letters.add("deploy", [[], {"job": "7"}, {}], "still no such release", message_id="2", job="7")

    # Then that is said, and it can be replayed once more
    assert "the message was rejected: still no such release" in terminal.run("watch", "7", code=1)
    assert letters.replay("7")


def test_a_second_delivery_of_what_was_refused_before_does_not_take_a_replay_back(terminal: Terminal) -> None:
    letters = DeadLetters(terminal.redis)
    letters.add("deploy", [[], {"job": "7"}, {}], "no", message_id="1", job="7")
    letters.mark_rejected("7")
    letters.replay("7")

    letters.add("deploy", [[], {"job": "7"}, {}], "no", message_id="1", job="7")

    assert letters.is_replayed("7")
