"""`deploy` and `stop` of a job that is known already: rejected, running, ended, or stopped before."""

import pytest

from shared.statuses import JobStatus
from tests.unit.cli.command_line import CommandLine
from worker.runs.model import End

DEPLOY = ("deploy", "7", "digits@1.0.0", "--agent", "1")


@pytest.mark.parametrize("follow", [[], ["--follow"]])
def test_ended_job_is_not_published_again(cli: CommandLine, follow: list[str]) -> None:
    cli.given_ended_run("7", JobStatus.SUCCEEDED)

    output = cli.run(*DEPLOY, *follow, code=1)

    assert "job 7 has already ended: SUCCEEDED, 20" in output
    assert "nothing is started" in output
    assert cli.published == []


def test_running_job_is_followed_and_not_published_again(cli: CommandLine) -> None:
    # Given a run that ends while it is followed
    cli.given_run("7")
    waited = cli.redis.pubsub

    def ends(*_: object, **options: object) -> object:
        cli.runs.store.finish("7", End(JobStatus.SUCCEEDED, {}))
        cli.runs.events.log.close_if_complete("7")
        return waited(**options)

    cli.redis.pubsub = ends  # type: ignore[method-assign]

    # When it is published again
    output = cli.run(*DEPLOY, "--follow")

    # Then that run is shown
    assert output.startswith("job 7 runs already: following that run")
    assert output.endswith("SUCCEEDED")
    assert cli.published == []


def test_running_job_is_reported_without_follow(cli: CommandLine) -> None:
    cli.given_run("7")

    assert cli.run(*DEPLOY) == "job 7 runs already: nothing is started"


def test_stop_published_before_its_job_is_reported(cli: CommandLine) -> None:
    cli.runs.store.remember_stop("7")

    output = cli.run(*DEPLOY)

    assert output == (
        "deploy published: job 7 a stop of job 7 came before and is remembered: its run ends at once"
    )


@pytest.mark.parametrize(
    ("known", "output"),
    [
        ("ended", "stop published: job 7 job 7 has already ended: SUCCEEDED"),
        ("running", "stop published: job 7"),
        (
            "nothing",
            "stop published: job 7 no run of job 7 is known yet; the stop is remembered for a day",
        ),
    ],
)
def test_stop_is_always_published(cli: CommandLine, known: str, output: str) -> None:
    if known == "ended":
        cli.given_ended_run("7", JobStatus.SUCCEEDED)
    elif known == "running":
        cli.given_run("7")

    assert cli.run("stop", "7") == output
    assert [message.job for message in cli.published] == ["7"]


@pytest.mark.parametrize(("options", "priority"), [(["--priority", "6"], 6), ([], None)])
def test_a_run_is_published_with_its_priority(
    cli: CommandLine, options: list[str], priority: int | None
) -> None:
    cli.run(*DEPLOY, *options)

    assert cli.priorities == [priority]


def test_a_priority_that_redis_does_not_know_is_rejected(cli: CommandLine) -> None:
    cli.run(*DEPLOY, "--priority", "10", code=2)

    assert cli.published == []
