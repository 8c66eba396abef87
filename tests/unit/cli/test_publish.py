"""`deploy`, `retry` and `stop`: jobs that are known already, and what of a message is sent."""

import json

import pytest

from shared.messages import StopMessage, ToTaskMessage
from shared.statuses import JobStatus
from tests.harness.recorded_spans import PARENT, RecordedSpans, context_of, parent_of
from tests.unit.cli.command_line import CommandLine
from tests.unit.shared.test_publisher import taken
from tests.unit.workflow.failed_tasks import PARAMS, add_failed_run, expire_run
from worker.cli.console import publish
from worker.platform import redact
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


def test_params_that_no_reader_of_json_takes_are_an_error(cli: CommandLine) -> None:
    for params in ("{", "[" * 100_000):
        output = cli.run("to-task", "7", "digits@1.0.0", "--params", params, code=1)
        assert "--params is not JSON" in output
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


def given_failed_tasks(cli: CommandLine, job: str, *failed: int) -> None:
    add_failed_run(cli.redis, cli.runs, job, *failed)


def test_retry_publishes_the_message_for_the_failed_tasks(cli: CommandLine) -> None:
    # Given an ended run with failed tasks, whose own keys have expired
    given_failed_tasks(cli, "7", 5, 6)
    expire_run(cli.redis, "7")

    # When it is retried as another job
    output = cli.run("retry", "7", "--new-job", "8", "--skip-annotated")

    # Then its message is published again, with the options of this command alone
    assert output == "to_task published: job 8"
    [message] = cli.published
    assert message.model_dump(mode="json", exclude_unset=True) == {
        "job": "8",
        "plugin": "digits@1.0.0",
        "params": PARAMS,
        "tenant": "acme",
        "only_failed_of": "7",
        "skip_annotated": True,
    }


def test_retry_takes_another_release(cli: CommandLine) -> None:
    given_failed_tasks(cli, "7", 5)

    cli.run("retry", "7", "--new-job", "8", "--plugin", "digits@1.0.1", "--dry-run")

    [message] = cli.published
    assert isinstance(message, ToTaskMessage)
    assert (message.plugin, message.dry_run) == ("digits@1.0.1", True)


def test_retry_of_what_cannot_be_retried_says_why(cli: CommandLine) -> None:
    # Given a live run, one of deploy, and one without failed tasks
    cli.given_run("live")
    cli.given_ended_run("deployed", JobStatus.SUCCEEDED)
    given_failed_tasks(cli, "fine")

    # Then nothing of them is published
    said = {job: cli.run("retry", job, "--new-job", "8", code=1) for job in ("live", "deployed", "fine", "x")}
    assert "has not ended: it is RUNNING" in said["live"]
    assert "is one of deploy, which has no tasks" in said["deployed"]
    assert "no task of job fine has failed" in said["fine"]
    assert "no ended run of job x is known" in said["x"]
    assert cli.published == []


def test_retry_as_a_job_that_has_ended_starts_nothing(cli: CommandLine) -> None:
    given_failed_tasks(cli, "7", 5)

    assert "job 7 has already ended" in cli.run("retry", "7", "--new-job", "7", code=1)


def test_options_of_a_message_are_sent_where_they_are_given(cli: CommandLine) -> None:
    cli.run(*DEPLOY)
    cli.run("deploy", "8", "digits@1.0.0", "--agent", "1", "--force")
    cli.run("to-task", "9", "digits@1.0.0", "--params", json.dumps(PARAMS), "--dry-run", "--skip-annotated")

    sent = [message.model_fields_set - {"job", "plugin", "agent", "params"} for message in cli.published]
    assert sent == [set(), {"force"}, {"dry_run", "skip_annotated"}]


@pytest.mark.parametrize("caller", [None, PARENT])
def test_message_begins_a_trace_or_carries_on_the_callers(
    spans: RecordedSpans, monkeypatch: pytest.MonkeyPatch, caller: str | None
) -> None:
    # Given a receiver of traces, and perhaps a caller with a span
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    if caller is not None:
        monkeypatch.setenv("TRACEPARENT", caller)

    # When a command publishes
    publish(StopMessage(job="7"), "memory://", "redis://127.0.0.1:9/0")

    # Then the message carries the context of the command's span
    sent = spans.only()
    assert (sent.name, parent_of(sent)) == ("send stop", caller)
    assert taken("control")[0]["traceparent"] == context_of(sent)


def test_message_has_no_context_without_a_receiver() -> None:
    publish(StopMessage(job="7"), "memory://", "redis://127.0.0.1:9/0")

    assert "traceparent" not in taken("control")[0]


def test_token_for_the_receiver_of_traces_is_masked(
    spans: RecordedSpans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20tok3n-of-traces,x=1")

    publish(StopMessage(job="7"), "memory://", "redis://127.0.0.1:9/0")

    assert taken("control")
    assert redact("it said: tok3n-of-traces") == "it said: ***"


def test_wrong_address_for_traces_keeps_nothing_from_being_sent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")

    publish(StopMessage(job="7"), "memory://", "redis://127.0.0.1:9/0")

    assert "traceparent" not in taken("control")[0]
    assert "warning: OTEL_EXPORTER_OTLP_ENDPOINT must start with http://" in capsys.readouterr().err


def test_password_of_the_queue_is_masked() -> None:
    publish(StopMessage(job="7"), "memory://user:p4ss-of-queue@host//", "redis://127.0.0.1:9/0")

    assert taken("control")
    assert redact("it said: p4ss-of-queue") == "it said: ***"
