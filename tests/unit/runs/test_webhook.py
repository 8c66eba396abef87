"""The webhook hears of each end, again until it has it, and nothing waits for that."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import httpx
import pytest
from fakeredis import FakeRedis
from redis.exceptions import ConnectionError as RedisConnectionError
from structlog.testing import capture_logs

from shared.messages import DeployMessage, ToTaskMessage
from shared.statuses import JobStatus
from shared.webhooks import signing_keys, verify_event
from tests.harness.in_process_worker import RecordingPublisher, RecordingReports
from tests.unit.conftest import Clock
from tests.unit.runs.example_workflow import VISIBILITY_TIMEOUT, finals, report
from tests.unit.shared.test_webhooks import SECRET
from worker.platform import AuthorizationError, register_secrets
from worker.runs.keys import RunField, lock_key, rejected_end_key, run_key, webhooks_key
from worker.runs.model import STOPPED, End
from worker.runs.reports import webhook
from worker.runs.reports.reporter import give_up_rejected_end
from worker.runs.reports.webhook import Webhooks, WebhookSender, send_end
from worker.runs.reports.webhook_client import WebhookClient
from worker.runs.runs import Runs, Timing
from worker.testing import FakeBackend

URL = "https://receiver.example/hooks/?channel=7"
SUCCEEDED = End(JobStatus.SUCCEEDED, {"serve_application": 7})
Eventually = Callable[[Callable[[], object]], None]


@dataclass(frozen=True)
class Answer:
    status: int = 204
    headers: Mapping[str, str] = field(default_factory=dict)
    breaks: bool = False
    """The connection is lost amid the body."""

    def response(self) -> httpx.Response:
        def body() -> Iterator[bytes]:
            yield b"{}"
            if self.breaks:
                raise httpx.ReadError("lost")

        return httpx.Response(self.status, headers=self.headers, content=body())


class Receiver:
    """Answers with the next of `answers`, the last one for ever; an error is raised."""

    def __init__(self) -> None:
        self.answers: list[Answer | Exception] = [Answer()]
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer.response()

    @property
    def events(self) -> list[dict[str, object]]:
        return [json.loads(request.content) for request in self.requests]

    @property
    def ids(self) -> list[str]:
        return [request.headers["webhook-id"] for request in self.requests]


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def client(receiver: Receiver) -> WebhookClient:
    return WebhookClient(URL, signing_keys(SECRET), httpx.MockTransport(receiver))


@pytest.fixture
def due() -> list[str]:
    """The jobs whose ends this process is to send."""
    return []


@pytest.fixture
def runs(redis: FakeRedis, publisher: RecordingPublisher, reports: RecordingReports, due: list[str]) -> Runs:
    return Runs(redis, publisher, Timing(VISIBILITY_TIMEOUT), reports, due.append)


@pytest.fixture
def webhooks(redis: FakeRedis) -> Webhooks:
    return Webhooks(redis)


@pytest.fixture
def send(runs: Runs, webhooks: Webhooks, client: WebhookClient) -> Callable[..., float | None]:
    """Send an end once; the backend has it by then."""

    def send(attempt: int = 0, job: str = "42") -> float | None:
        if not runs.store.is_reported(job):
            runs.store.mark_reported(job)
        return send_end(job, attempt, runs, webhooks, client)

    return send


Send = Callable[..., float | None]


def waiting(redis: FakeRedis) -> list[str]:
    return list(redis.zrange(webhooks_key(), 0, -1))


def test_an_end_is_posted_with_what_it_was(
    runs: Runs, deploy: DeployMessage, send: Send, receiver: Receiver, redis: FakeRedis, clock: Clock
) -> None:
    runs.store.accept(deploy.model_copy(update={"tenant": "acme"}), "deploy")
    runs.finish("42", SUCCEEDED)

    assert send() is None

    (event,) = receiver.events
    assert event["type"] == "run.succeeded"
    assert str(event["timestamp"]).endswith("Z")
    assert event["data"] == {
        "job": "42",
        "action": "deployment",
        "plugin": "digits@1.0.0",
        "tenant": "acme",
        "status": "SUCCEEDED",
        "result": {"serve_application": 7},
    }
    assert waiting(redis) == []


def test_the_url_is_posted_to_as_it_is(runs: Runs, run: object, send: Send, receiver: Receiver) -> None:
    runs.finish("42", SUCCEEDED)
    send()

    (request,) = receiver.requests
    assert (request.method, str(request.url)) == ("POST", URL)


def test_a_receiver_can_verify_an_event(runs: Runs, run: object, send: Send, receiver: Receiver) -> None:
    runs.finish("42", SUCCEEDED)
    send()

    (request,) = receiver.requests
    assert verify_event(request.content, request.headers, SECRET)["type"] == "run.succeeded"


def test_an_end_is_posted_by_the_process_that_reported_it(
    runs: Runs, run: object, due: list[str], backend: FakeBackend
) -> None:
    runs.finish("42", SUCCEEDED)
    assert due == []

    report("42", runs, backend)
    report("42", runs, backend)

    assert due == ["42"]


def test_an_end_is_posted_once(runs: Runs, run: object, send: Send, receiver: Receiver) -> None:
    runs.finish("42", SUCCEEDED)
    send()
    send()
    runs.ensure_end_reported("42")
    send()

    assert len(receiver.events) == 1


def test_a_run_that_was_stopped_before_it_began_is_posted(
    runs: Runs, to_task: ToTaskMessage, send: Send, receiver: Receiver, due: list[str]
) -> None:
    # Given a stop that came before its job's message, which ends as it is accepted
    runs.store.remember_stop("42")
    runs.store.accept(to_task, "to_task")
    runs.ensure_end_reported("42")
    runs.mark_reported("42")

    send()

    assert due == ["42"]
    assert receiver.events[0]["type"] == "run.stopped"


def test_a_stopped_run_says_how_far_it_came(
    runs: Runs, to_task: ToTaskMessage, send: Send, receiver: Receiver, redis: FakeRedis
) -> None:
    runs.store.accept(to_task, "to_task")
    redis.hset("synapse:jobs:{42}", mapping={"total": 9, "success": 5, "failed": 1})
    runs.finish("42", STOPPED)

    send()

    result = receiver.events[0]["data"]["result"]  # type: ignore[index]
    assert (result["total_tasks"], result["success_count"], result["error"]) == (9, 5, "stopped")
    assert "failures" not in result


def test_failures_and_large_results_stay_at_the_backend(
    runs: Runs, deploy: DeployMessage, send: Send, receiver: Receiver
) -> None:
    for job, result in ("1", {"failed_count": 2, "failures": ["x", "y"]}), ("2", {"text": "x" * 20_000}):
        runs.store.accept(deploy.model_copy(update={"job": job}), "deploy")
        runs.finish(job, End(JobStatus.SUCCEEDED, result))
        send(job=job)

    assert [event["data"]["result"] for event in receiver.events] == [{"failed_count": 2}, None]  # type: ignore[index]


def test_an_event_shows_no_secret(runs: Runs, run: object, send: Send, receiver: Receiver) -> None:
    register_secrets(["hush-hush-hush"])
    runs.finish("42", End(JobStatus.FAILED, {"error": "no access with hush-hush-hush"}))

    send()

    assert receiver.events[0]["data"]["result"] == {"error": "no access with ***"}  # type: ignore[index]


@pytest.mark.parametrize(
    "answer",
    [
        *(Answer(status) for status in (301, 408, 409, 425, 429, 500, 502, 503)),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
    ],
    ids=lambda answer: str(getattr(answer, "status", type(answer).__name__)),
)
def test_what_may_pass_is_tried_again_as_the_same_event(
    runs: Runs,
    run: object,
    send: Send,
    receiver: Receiver,
    redis: FakeRedis,
    answer: Answer | Exception,
) -> None:
    receiver.answers = [answer, Answer(200)]
    runs.finish("42", SUCCEEDED)

    assert send() == 0.5
    assert waiting(redis) == ["42"]
    assert send(1) is None

    assert waiting(redis) == []
    assert len(set(receiver.ids)) == 1
    assert receiver.events[0] == receiver.events[1]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 413, 422])
def test_what_the_receiver_rejects_is_given_up(
    runs: Runs, run: object, send: Send, receiver: Receiver, redis: FakeRedis, status: int
) -> None:
    receiver.answers = [Answer(status)]
    runs.finish("42", SUCCEEDED)

    assert send() is None
    assert waiting(redis) == []


def test_a_redirect_is_not_followed(runs: Runs, run: object, send: Send, receiver: Receiver) -> None:
    receiver.answers = [Answer(307, {"location": "https://elsewhere.example/"})]
    runs.finish("42", SUCCEEDED)

    send()

    assert [request.url.host for request in receiver.requests] == ["receiver.example"]


def test_an_answer_that_cannot_be_read_is_an_answer(
    runs: Runs, run: object, send: Send, receiver: Receiver, redis: FakeRedis
) -> None:
    receiver.answers = [Answer(200, {"content-encoding": "br"}, breaks=True)]
    runs.finish("42", SUCCEEDED)

    assert send() is None
    assert waiting(redis) == []


def test_pauses_grow_to_minutes_unless_asked_for(
    runs: Runs, run: object, send: Send, receiver: Receiver, redis: FakeRedis
) -> None:
    receiver.answers = [Answer(503)]
    runs.finish("42", SUCCEEDED)

    assert [send(attempt) for attempt in (0, 1, 2, 9, 50)] == [0.5, 1, 2, 256, 300]
    receiver.answers = [Answer(429, {"retry-after": "77"})]
    assert send() == 77


def test_an_end_is_given_up_before_its_run_is_gone(
    runs: Runs,
    run: object,
    send: Send,
    receiver: Receiver,
    redis: FakeRedis,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a receiver that has been away for nearly a day since the end was reported
    counted: list[str] = []
    monkeypatch.setattr("worker.metrics.count_webhook", counted.append)
    receiver.answers = [Answer(503)]
    runs.finish("42", SUCCEEDED)
    send()
    clock.forward(86_000)
    assert send(9) is not None

    # When the next attempt would find nothing of the run any more
    clock.forward(200)
    assert send(10) is None

    # Then it is given up, and that is counted
    assert waiting(redis) == []
    assert counted == ["retried", "retried", "given_up"]


def test_another_worker_sends_what_a_dead_one_left(
    runs: Runs, run: object, webhooks: Webhooks, clock: Clock
) -> None:
    # Given a worker that dies amid its attempt
    runs.finish("42", SUCCEEDED)
    runs.mark_reported("42")
    assert webhooks.claim("42", "dead") is not None
    clock.forward(20)
    assert webhooks.take_over() == []
    assert webhooks.claim("42", "other") is None

    # When as long has passed as an attempt can take
    clock.forward(11)

    # Then another one has it
    assert webhooks.take_over() == ["42"]
    assert webhooks.claim("42", "other") is not None


def test_an_attempt_that_is_scheduled_is_no_others(
    runs: Runs, run: object, send: Send, receiver: Receiver, webhooks: Webhooks, clock: Clock
) -> None:
    receiver.answers = [Answer(429, {"retry-after": "100"})]
    runs.finish("42", SUCCEEDED)
    send()
    clock.forward(100)

    assert webhooks.take_over() == []
    clock.forward(6)
    assert webhooks.take_over() == ["42"]


def test_what_a_stopping_worker_has_is_left_to_others(
    runs: Runs, run: object, webhooks: Webhooks, client: WebhookClient, clock: Clock
) -> None:
    sender = WebhookSender(runs, webhooks, client)
    sender.add("42", 60)
    sender.add("43", 60)  # another worker has sent it meanwhile
    runs.finish("42", SUCCEEDED)
    runs.mark_reported("42")

    sender.hand_over()
    clock.forward(61)

    assert webhooks.take_over() == ["42"]


def test_a_run_whose_keys_are_gone_is_dropped(
    runs: Runs, run: object, send: Send, receiver: Receiver, redis: FakeRedis
) -> None:
    runs.finish("42", SUCCEEDED)
    redis.delete(run_key("42"))

    assert send() is None
    assert (receiver.requests, waiting(redis)) == ([], [])


def test_a_webhook_that_is_away_delays_no_report(
    runs: Runs, run: object, send: Send, receiver: Receiver, backend: FakeBackend, redis: FakeRedis
) -> None:
    # Given a claim of the webhook that does not end
    receiver.answers = [httpx.ConnectError("refused")]
    runs.finish("42", SUCCEEDED)
    redis.set(lock_key("42", "webhook"), "hanging")

    # When the end is reported, then the backend has it, and the webhook is still to hear it
    assert report("42", runs, backend) is None
    assert len(finals(backend)) == 1
    assert waiting(redis) == ["42"]


def test_the_webhook_hears_of_no_end_before_the_backend_has_it(
    runs: Runs,
    run: object,
    webhooks: Webhooks,
    client: WebhookClient,
    receiver: Receiver,
    backend: FakeBackend,
    clock: Clock,
) -> None:
    # Given an end that the backend does not have, and that any worker might send for long
    runs.finish("42", SUCCEEDED)
    clock.forward(3600)
    assert webhooks.take_over() == ["42"]

    # When it is to be sent, then that waits
    assert send_end("42", 0, runs, webhooks, client) is None
    assert receiver.requests == []
    assert webhooks.take_over() == []

    # When the backend has it and the process dies, then any worker sends it within seconds
    report("42", runs, backend)
    clock.forward(6)
    assert webhooks.take_over() == ["42"]
    assert send_end("42", 0, runs, webhooks, client) is None
    assert len(receiver.events) == 1


def test_an_end_that_the_backend_does_not_have_is_not_logged(
    runs: Runs,
    run: object,
    webhooks: Webhooks,
    client: WebhookClient,
    redis: FakeRedis,
    clock: Clock,
    eventually: Eventually,
) -> None:
    # Given an end that the backend does not take for minutes
    sender = WebhookSender(runs, webhooks, client)
    runs.finish("42", SUCCEEDED)

    # When the webhook's list is looked at, minute by minute
    with capture_logs() as lines:
        for _ in range(3):
            clock.forward(61)
            sender.take_over()
            # An end that is not to be sent yet is entered for a minute, one that is taken over for seconds.
            eventually(lambda: redis.zscore(webhooks_key(), "42") > redis.time()[0] + 30)

    # Then the log has nothing of it
    assert lines == []


def test_an_end_that_an_older_worker_reports_is_sent_later(
    runs: Runs, run: object, webhooks: Webhooks, redis: FakeRedis, clock: Clock
) -> None:
    # Given an end that a worker of the previous release reports, which says nothing of the webhook
    runs.finish("42", SUCCEEDED)
    redis.hset(run_key("42"), RunField.REPORTED, 1)
    redis.expire(run_key("42"), 86_400)
    assert webhooks.take_over() == []

    # When a minute has passed
    clock.forward(61)

    # Then it is sent
    assert webhooks.take_over() == ["42"]
    assert webhooks.claim("42", "token") is not None


def test_an_end_that_the_backend_rejects_for_good_is_posted(
    runs: Runs, run: object, due: list[str], clock: Clock
) -> None:
    runs.finish("42", SUCCEEDED)
    clock.forward(86_401)

    assert give_up_rejected_end("42", AuthorizationError("no"), runs)

    assert due == ["42"]


def test_a_late_attempt_does_not_end_the_next_one(
    runs: Runs, run: object, webhooks: Webhooks, redis: FakeRedis, clock: Clock
) -> None:
    # Given an attempt whose lock has expired, and another one that is under way
    runs.finish("42", SUCCEEDED)
    runs.mark_reported("42")
    assert webhooks.claim("42", "late") is not None
    clock.forward(31)
    assert webhooks.claim("42", "other") is not None

    # When the first one ends
    webhooks.end_attempt("42", "late", None)

    # Then the other one still decides
    assert waiting(redis) == ["42"]
    webhooks.end_attempt("42", "other", None)
    assert waiting(redis) == []


def test_without_a_webhook_nothing_is_kept(
    redis: FakeRedis, publisher: RecordingPublisher, deploy: DeployMessage
) -> None:
    runs = Runs(redis, publisher, Timing(VISIBILITY_TIMEOUT))
    runs.store.accept(deploy, "deploy")
    runs.finish("42", SUCCEEDED)
    runs.send_rejected_end("43", SUCCEEDED, None)

    assert waiting(redis) == []
    assert not redis.exists(rejected_end_key("43"))


def test_the_sender_survives_any_error(
    runs: Runs,
    run: object,
    webhooks: Webhooks,
    client: WebhookClient,
    receiver: Receiver,
    redis: FakeRedis,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a Redis that is away at first, and an end of another run that cannot be read
    runs.finish("42", SUCCEEDED)
    runs.store.mark_reported("42")
    redis.zadd(webhooks_key(), {"damaged": 0})
    redis.hset(run_key("damaged"), mapping={"end": "rubbish", "message": "{}"})
    claim, calls = webhooks.claim, []

    def away_once(job: str, token: str) -> object:
        calls.append(job)
        if calls == ["damaged", "42"]:
            raise RedisConnectionError("away")
        return claim(job, token)

    monkeypatch.setattr(webhooks, "claim", away_once)
    monkeypatch.setattr(webhook, "MAX_THREADS", 1)
    monkeypatch.setattr(webhook, "INFRASTRUCTURE_RETRY_SECONDS", 0.01)
    sender = WebhookSender(runs, webhooks, client)

    # When both are added
    sender.add("damaged")
    sender.add("42")

    # Then the one that can be read is sent
    eventually(lambda: receiver.requests)
    assert [event["data"]["job"] for event in receiver.events] == ["42"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("end", "rubbish"),
        ("end", "[]"),
        ("end", '{"status": "FAILED"}'),
        ("message", "{}"),
        ("message", b"\xff"),
    ],
)
def test_a_damaged_run_is_posted_as_far_as_it_is_known(
    runs: Runs, run: object, send: Send, receiver: Receiver, redis: FakeRedis, field: str, text: str | bytes
) -> None:
    # Given an end whose record is damaged
    runs.finish("42", End(JobStatus.FAILED, {"error": "no room"}))
    redis.hset(run_key("42"), field, text)

    # When it is due
    send()

    # Then what is left of it is posted, once
    results = [event["data"]["result"] for event in receiver.events]  # type: ignore[index]
    assert results == [{"error": "no room"}]
    assert waiting(redis) == []


@pytest.mark.parametrize("text", ["rubbish", "nan", "1e999"])
def test_an_end_at_an_illegible_time_is_posted(
    runs: Runs, run: object, send: Send, receiver: Receiver, redis: FakeRedis, text: str
) -> None:
    runs.finish("42", SUCCEEDED)
    redis.hset("synapse:jobs:{42}", "updated", text)

    send()

    assert len(receiver.events) == 1
    assert waiting(redis) == []


def test_an_end_of_which_nothing_is_legible_is_dropped_once(
    runs: Runs,
    run: object,
    send: Send,
    webhooks: Webhooks,
    redis: FakeRedis,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given an end whose record and whose public record are damaged
    counted: list[str] = []
    monkeypatch.setattr("worker.metrics.count_webhook", counted.append)
    runs.finish("42", SUCCEEDED)
    redis.hset(run_key("42"), "end", "rubbish")
    redis.hset("synapse:jobs:{42}", "status", "rubbish")

    # When it is due
    assert send() is None

    # Then it is counted, and never due again
    assert counted == ["damaged"]
    clock.forward(60)
    assert webhooks.take_over() == []
    assert webhooks.claim("42", "other") is None


def test_the_end_of_a_rejected_message_is_posted(
    runs: Runs, send: Send, receiver: Receiver, due: list[str], clock: Clock
) -> None:
    # Given a message that could not be accepted, whose job has no run; its end is entered twice
    receiver.answers = [Answer(503), Answer(200)]
    end = End(JobStatus.FAILED, {"error": "there is no release digits@9.9.9"})
    runs.send_rejected_end("42", end, "acme")
    assert send() is not None
    clock.forward(10)
    runs.send_rejected_end("42", end, "acme")

    assert send() is None

    assert due == ["42", "42"]
    assert receiver.events[1]["type"] == "run.failed"
    assert receiver.events[1]["data"]["result"] == end.result  # type: ignore[index]
    assert receiver.events[1]["data"]["tenant"] == "acme"  # type: ignore[index]
    assert len(set(receiver.ids)) == 1


def test_a_replayed_job_is_another_event(
    runs: Runs, deploy: DeployMessage, send: Send, receiver: Receiver, clock: Clock
) -> None:
    # Given a job whose message was rejected
    runs.send_rejected_end("42", End(JobStatus.FAILED, {"error": "x"}), None)
    send()

    # When its message is replayed and accepted, and its run ends
    clock.forward(60)
    runs.store.accept(deploy, "deploy")
    runs.finish("42", SUCCEEDED)
    send()

    assert [event["type"] for event in receiver.events] == ["run.failed", "run.succeeded"]
    assert len(set(receiver.ids)) == 2


def test_what_nobody_sends_any_more_is_forgotten(
    runs: Runs, run: object, webhooks: Webhooks, redis: FakeRedis, clock: Clock
) -> None:
    # Given an end that is to be sent, after which the webhook is taken off the settings
    runs.finish("42", SUCCEEDED)
    runs.send_rejected_end("43", SUCCEEDED, None)
    assert waiting(redis) == ["43", "42"]

    # When a month has passed
    clock.forward(31 * 86_400)

    # Then nothing of it is left
    assert waiting(redis) == []


def test_what_is_looked_at_is_not_forgotten(
    runs: Runs, run: object, webhooks: Webhooks, redis: FakeRedis, clock: Clock
) -> None:
    # Given an end that the backend does not have for weeks
    runs.finish("42", SUCCEEDED)
    for _ in range(5):
        clock.forward(20 * 86_400)
        assert webhooks.claim("42", "token") is None

    # Then it is still to be sent
    assert waiting(redis) == ["42"]
