"""Commands on a job of which something is known already: refused, running, over, stopped before it came."""

import pytest

from shared.channels import job_key
from shared.statuses import JobStatus
from tests.unit.cli.conftest import Terminal
from worker.runs.model import End

DEPLOY = ("deploy", "7", "digits@1.0.0", "--agent", "1")


@pytest.mark.parametrize(
    "command",
    [
        ("status", "7"),
        ("logs", "7"),
        ("logs", "7", "--follow"),
        ("watch", "7"),
        DEPLOY,
        (*DEPLOY, "--follow"),
    ],
)
def test_a_refused_job_is_told_with_its_reason_and_what_to_do(
    terminal: Terminal, command: tuple[str, ...]
) -> None:
    # Given a job whose message was refused
    letter = terminal.given_refusal("7", "there is no release late@1")

    # When somebody asks for it, or publishes it again
    said = terminal.run(*command, code=1)

    # Then the reason is there, how to replay it, and nothing was published
    assert "the message was rejected: there is no release late@1" in said
    assert f"dead-letters replay {letter}" in said
    assert terminal.published == []


@pytest.mark.parametrize("follow", [[], ["--follow"]])
def test_a_job_that_has_ended_is_not_published_again(terminal: Terminal, follow: list[str]) -> None:
    terminal.given_end("7", JobStatus.SUCCEEDED)

    said = terminal.run(*DEPLOY, *follow, code=1)

    assert "job 7 has already ended: SUCCEEDED, 20" in said
    assert "nothing is started" in said
    assert terminal.published == []


def test_a_job_that_runs_is_followed_and_not_published_again(terminal: Terminal) -> None:
    # Given a run that ends while it is followed
    terminal.given_run("7")
    waited = terminal.redis.pubsub

    def ends(*_: object, **options: object) -> object:
        terminal.runs.store.finish("7", End(JobStatus.SUCCEEDED, {}))
        terminal.runs.events.log.close_if_complete("7")
        return waited(**options)

    terminal.redis.pubsub = ends  # type: ignore[method-assign]

    # When it is published again
    said = terminal.run(*DEPLOY, "--follow")

    # Then that run is shown
    assert said.startswith("job 7 runs already: following that run")
    assert said.endswith("SUCCEEDED")
    assert terminal.published == []


def test_a_job_that_runs_is_told_when_nobody_follows(terminal: Terminal) -> None:
    terminal.given_run("7")

    assert terminal.run(*DEPLOY) == "job 7 runs already: nothing is started"


def test_a_stop_that_came_before_its_job_is_told_when_the_job_is_published(terminal: Terminal) -> None:
    terminal.runs.store.remember_stop("7")

    said = terminal.run(*DEPLOY)

    assert said == (
        "deploy published: job 7 a stop of job 7 came before and is remembered: its run ends at once"
    )


def test_a_run_that_found_its_job_over_is_no_success(terminal: Terminal) -> None:
    # Given a run that started nothing, as its job had ended in the backend
    terminal.redis.hset(job_key("7"), mapping={"status": "SUCCEEDED", "overall": "0", "error": ""})
    terminal.redis.xadd(f"{job_key('7')}:logs:history", {"seq": "1", "type": "end", "reason": "ended"})

    said = terminal.run("watch", "7", code=1)

    assert "job 7 had already ended in the backend: SUCCEEDED; nothing was started" in said


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ("ended", "stop published: job 7 job 7 has already ended: SUCCEEDED"),
        ("running", "stop published: job 7"),
        (
            "nothing",
            "stop published: job 7 no run of job 7 is known yet; the stop is remembered for a day",
        ),
    ],
)
def test_a_stop_is_always_published_and_says_what_it_met(terminal: Terminal, known: str, said: str) -> None:
    if known == "ended":
        terminal.given_end("7", JobStatus.SUCCEEDED)
    elif known == "running":
        terminal.given_run("7")

    assert terminal.run("stop", "7") == said
    assert [message.job for message in terminal.published] == ["7"]


@pytest.mark.parametrize("command", [("watch", "77"), ("logs", "77", "--follow")])
def test_whoever_waits_for_an_unknown_job_is_told_within_about_a_second(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    # Given a wait that is given up after two seconds
    waited = []

    def pause(seconds: float) -> None:
        waited.append(seconds)
        if sum(waited) > 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("worker.cli.follow.time.monotonic", lambda: sum(waited))
    monkeypatch.setattr("worker.cli.follow.time.sleep", pause)

    # When a job of which nothing is known is followed, then that is said
    assert "no run of job 77 yet; waiting for a worker" in terminal.run(*command, code=130)


def test_ctrl_c_says_how_to_go_on(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a run that is interrupted while it is followed
    terminal.given_run("7")
    monkeypatch.setattr("worker.cli.follow.watch_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))

    assert terminal.run("watch", "7", code=130) == (
        "the run goes on: `synapse-worker watch 7` shows it, `synapse-worker stop 7` ends it"
    )
