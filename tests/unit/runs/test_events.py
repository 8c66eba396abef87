"""Messages for users: in order, masked, each sent at most once."""

import pytest
from fakeredis import FakeRedis

from shared.channels import events_channel, logs_history
from shared.messages import DeployMessage
from shared.statuses import JobStatus
from tests.harness.in_process_worker import RecordingPublisher, RecordingReports
from tests.unit.runs.example_workflow import finals, report
from worker.platform import (
    ClientConnectionError,
    ClientTimeoutError,
    register_secrets,
)
from worker.plugins.output import OutputEntry, PluginOutput
from worker.runs.keys import messages_key, progress_key
from worker.runs.model import End, Run
from worker.runs.runs import Runs
from worker.testing import FakeBackend


def test_messages_are_sent_in_order_before_the_end(runs: Runs, run: Run, backend: FakeBackend) -> None:
    for number in range(250):
        runs.events.message("42", str(number), step="deploy")
    runs.finish("42", End(JobStatus.FAILED, {"error": "x"}))
    sent_before_the_end: list[str] = []
    backend.after_patch = lambda: sent_before_the_end.extend(e["data"]["content"] for e in backend.logs)

    report("42", runs, backend)

    assert sent_before_the_end == [str(number) for number in range(250)]
    assert len(backend.logs) == 250


def test_message_is_an_entry_to_the_letter(runs: Runs, run: Run, backend: FakeBackend) -> None:
    runs.events.message("42", "half", step="deploy", level="warning")

    report("42", runs, backend)

    entry = backend.logs[0]
    assert {key: entry[key] for key in entry.keys() - {"datetime"}} == {
        "event": "message",
        "data": {"content": "half"},
        "job": 42,
        "step": "deploy",
        "level": "warning",
    }


def test_message_of_an_unknown_run_is_not_kept(
    runs: Runs, redis: FakeRedis, publisher: RecordingPublisher
) -> None:
    runs.events.message("nobody", "hello")

    assert redis.keys("*") == []
    assert publisher.published == []


def test_message_gets_a_report_of_its_own(
    runs: Runs, run: Run, backend: FakeBackend, reports: RecordingReports
) -> None:
    runs.events.message("42", "hello")
    report("42", runs, backend)

    assert reports == [("42", 1.0)]
    assert (len(backend.logs), backend.patches) == (1, [])


def test_message_that_comes_during_a_report_is_sent_after_it(
    runs: Runs, run: Run, backend: FakeBackend
) -> None:
    runs.mark_running(run)
    backend.after_patch = lambda: runs.events.message("42", "hello")

    assert report("42", runs, backend) == 1.0


def test_messages_that_were_not_delivered_keep_their_order(
    runs: Runs, run: Run, backend: FakeBackend
) -> None:
    for text in ("one", "two"):
        runs.events.message("42", text)
    backend.faults.fail("create_logs", ClientConnectionError())
    with pytest.raises(ClientConnectionError):
        report("42", runs, backend)
    runs.events.message("42", "three")
    backend.faults.recover("create_logs")

    report("42", runs, backend)

    assert [entry["data"]["content"] for entry in backend.logs] == ["one", "two", "three"]


def test_message_whose_answer_was_lost_is_not_sent_twice(runs: Runs, run: Run, backend: FakeBackend) -> None:
    runs.events.message("42", "one")
    backend.faults.fail("create_logs", ClientTimeoutError())

    report("42", runs, backend)
    backend.faults.recover("create_logs")
    runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    report("42", runs, backend)

    assert backend.faults.calls["create_logs"] == 1
    assert len(finals(backend)) == 1


def test_secret_in_a_message_is_masked(runs: Runs, run: Run, backend: FakeBackend, redis: FakeRedis) -> None:
    runs.events.message("42", "Authorization: Token 0123456789abcdef")

    assert "0123456789abcdef" not in str(redis.lrange(messages_key("42"), 0, -1))


def test_text_ids_stay_text_in_log_entries(runs: Runs, backend: FakeBackend) -> None:
    message = DeployMessage.model_validate({"job": "007", "plugin": "a@1", "agent": 1})
    runs.store.accept(message, "deploy")
    runs.events.message("007", "hello")

    report("007", runs, backend)

    assert backend.logs[0]["job"] == "007"


def test_plugin_entries_are_lines_of_the_log_and_reported(
    runs: Runs, run: Run, backend: FakeBackend, redis: FakeRedis
) -> None:
    # Given what a plugin said, a secret among it
    register_secrets(["hush-hush-hush"])
    metric = OutputEntry(event="metric", data={"key": "loss", "token": "hush-hush-hush"}, step="train")
    message = OutputEntry(event="message", data={"content": "half of hush-hush-hush", "key": "HALF"})

    # When it is taken over
    runs.add_plugin_output("42", PluginOutput(entries=[metric, message]))

    # Then both are lines of the log, in order, and entries for the backend, without the secret
    lines = [fields["line"] for _, fields in redis.xrange(logs_history("42"))]
    assert lines[0].startswith('metric {"key": "loss"')
    assert lines[1].startswith("half of ")
    report("42", runs, backend)
    assert [(entry["event"], entry.get("step")) for entry in backend.logs] == [
        ("metric", "train"),
        ("message", None),
    ]
    assert backend.logs[1]["data"]["key"] == "HALF"
    assert "hush-hush" not in f"{lines}{backend.logs}"


def test_names_that_a_plugin_gives_show_no_secret(
    runs: Runs, run: Run, backend: FakeBackend, redis: FakeRedis
) -> None:
    # Given a plugin that names things by a secret
    register_secrets(["hush-hush-hush"])
    secret = "a hush-hush-hush"
    entry = OutputEntry(event=secret, data={}, step=secret)
    listener = redis.pubsub(ignore_subscribe_messages=True)
    listener.subscribe(events_channel("42"))
    listener.get_message()

    # When it is taken over
    runs.add_plugin_output(
        "42", PluginOutput(entries=[entry], progress={secret: 1.0}, metrics={secret: {secret: 2.0}})
    )

    # Then neither listeners, nor Redis, nor the backend get to know it
    heard = [message["data"] for message in iter(listener.get_message, None)]
    stored = [redis.hgetall(progress_key("42")), redis.lrange(messages_key("42"), 0, -1)]
    report("42", runs, backend)
    assert len(heard) == 3
    assert "hush" not in f"{heard}{stored}{backend.logs}"
