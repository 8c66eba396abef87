"""Following a run: rejected messages, unknown jobs, a lost Redis, Ctrl-C."""

import threading

import fakeredis
import pytest

from shared.channels import job_key
from tests.unit.cli.command_line import CommandLine, run_failing

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
def test_rejected_job_is_shown_with_reason_and_remedy(cli: CommandLine, command: tuple[str, ...]) -> None:
    # Given a job whose message was rejected
    letter = cli.given_rejected_job("7", "there is no release late@1")

    # When it is shown or published again
    output = cli.run(*command, code=1)

    # Then the reason and the command for a replay are shown, and nothing is published
    assert "the message was rejected: there is no release late@1" in output
    assert f"dead-letters replay {letter}" in output
    assert cli.published == []


def test_run_of_an_ended_job_is_no_success(cli: CommandLine) -> None:
    # Given a run that did nothing, because its job had ended in the backend
    cli.redis.hset(job_key("7"), mapping={"status": "SUCCEEDED", "overall": "0", "error": ""})
    cli.redis.xadd(f"{job_key('7')}:logs:history", {"seq": "1", "type": "end", "reason": "ended"})

    output = cli.run("watch", "7", code=1)

    assert "job 7 had already ended in the backend: SUCCEEDED; nothing was started" in output


@pytest.mark.parametrize("command", [("watch", "77"), ("logs", "77", "--follow")])
def test_waiting_for_an_unknown_job_prints_a_hint(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    # Given a wait that is interrupted after two seconds
    waited = []

    def pause(seconds: float) -> None:
        waited.append(seconds)
        if sum(waited) > 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("worker.cli.follow.time.monotonic", lambda: sum(waited))
    monkeypatch.setattr("worker.cli.follow.time.sleep", pause)

    # When an unknown job is followed, then a hint is shown before
    assert "no run of job 77 yet; waiting for a worker" in cli.run(*command, code=130)


def test_ctrl_c_says_how_to_continue(cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a run that is interrupted while it is followed
    cli.given_run("7")
    monkeypatch.setattr("worker.cli.follow.watch_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))

    assert cli.run("watch", "7", code=130) == (
        "the run goes on: `synapse-worker watch 7` shows it, `synapse-worker stop 7` ends it"
    )


@pytest.mark.parametrize("command", [("watch", "5"), ("logs", "5", "--follow")])
@pytest.mark.parametrize("running", [True, False])
def test_redis_lost_while_following_is_an_error(
    redis_server: fakeredis.FakeServer,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    running: bool,
) -> None:
    monkeypatch.setattr("shared.follower.MAX_UNAVAILABLE_SECONDS", 0.5)
    if running:
        redis = fakeredis.FakeRedis(server=redis_server, decode_responses=True)
        redis.hset(job_key("5"), mapping={"status": "RUNNING"})
    timer = threading.Timer(0.5, lambda: setattr(redis_server, "connected", False))
    timer.start()

    output = run_failing(*command)

    timer.join()
    assert output.startswith("error: Redis does not answer any more (ConnectionError)")
