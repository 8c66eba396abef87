"""Sends the end of each run to the webhook, beside its report to the backend and never in its way."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

import httpx
import structlog
from redis import Redis

from shared.channels import RETENTION_SECONDS, job_key, redis_prefix
from shared.messages import JsonObject
from shared.statuses import JobStatus
from shared.webhooks import ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, signature_of
from worker import metrics
from worker.blame import INFRASTRUCTURE_ERRORS, retry_after_seconds
from worker.platform import BaseClient, ClientError, clean
from worker.platform.deadlines import deadline
from worker.platform.responses import HttpResponse, response_error
from worker.platform.transport import MAX_ERROR_BYTES, transport_error
from worker.runs import keys
from worker.runs.bulkhead import backoff
from worker.runs.keys import run_key
from worker.runs.model import stopped_job_result
from worker.runs.reports.outbox import DueJobs
from worker.runs.reports.sender import (
    INFRASTRUCTURE_RETRY_SECONDS,
    JobSender,
    NextAttempt,
    PendingReport,
)
from worker.runs.runs import Runs
from worker.runs.store import hash_of

log = structlog.get_logger(__name__)

MAX_THREADS = 8
TIMEOUT = {"connect": 5.0, "read": 15.0, "total": 20.0}
"""Seconds of one attempt."""
LOCK_SECONDS = 30.0
"""Longer than an attempt, so that nobody else begins one meanwhile."""
MAX_COUNTDOWN_SECONDS = 300.0
"""The longest pause between two attempts: a receiver that was away hears of all ends within so long."""
MAX_AGE_SECONDS = RETENTION_SECONDS
"""After so long an end is not sent any more: soon after, nothing may be left of its run."""
MAX_RESULT_BYTES = 16 * 1024
"""Of the result in an event; a larger one is at the backend alone."""


class WebhookClient(BaseClient):
    """Posts events to one URL, over kept connections; threads may share it. It follows no redirect."""

    service = "webhook"

    def __init__(
        self, url: str, signing_keys: Sequence[bytes], transport: httpx.BaseTransport | None = None
    ) -> None:
        """`url`: as it is, also with a query; no error shows it. Each of the keys signs every event."""
        super().__init__(str(httpx.URL(url).copy_with(raw_path=b"/")), TIMEOUT, transport=transport)
        self._url = url
        self._signing_keys = tuple(signing_keys)

    def post(self, event_id: str, body: bytes) -> None:
        """Send an event once; raises `ClientError` for any answer but 2xx. A repetition has the same id."""
        timestamp = str(int(time.time()))
        signatures = [signature_of(key, event_id, timestamp, body) for key in self._signing_keys]
        headers = {
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            ID_HEADER: event_id,
            TIMESTAMP_HEADER: timestamp,
            SIGNATURE_HEADER: " ".join(signatures),
        }
        answer = self._exchange_event(headers, body)
        if not 200 <= answer.status < 300:
            raise response_error(answer, len(body))

    def post_test(self) -> None:
        """Send an event of the type `test`; raises as `post` does."""
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        event = {"type": "test", "timestamp": now, "data": {}}
        self.post(f"test_{uuid4().hex}", json.dumps(event, separators=(",", ":")).encode())

    def _exchange_event(self, headers: dict[str, str], body: bytes) -> HttpResponse:
        began, answer = time.monotonic(), None
        failure: Exception | None = None
        try:
            with (
                deadline(self._timeouts.total),
                self._http.stream("POST", self._url, content=body, headers=headers) as response,
            ):
                received = b""
                answer = HttpResponse(response.status_code, response.headers, received)
                for chunk in response.iter_raw():
                    received += chunk
                    if len(received) >= MAX_ERROR_BYTES:
                        break
                answer = HttpResponse(response.status_code, response.headers, received[:MAX_ERROR_BYTES])
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            failure = error
        metrics.observe_request(self.service, "POST", answer.status if answer else 0, began)
        # The status says whether the receiver has the event, also where the rest of its answer is lost.
        if answer is None and failure is not None:
            raise transport_error(failure)
        assert answer is not None
        return answer


@dataclass(frozen=True)
class DueEnd:
    """The end of a job that is to be sent, read when it was claimed."""

    age: float
    """Seconds since the end."""
    event_id: str
    body: bytes


class Webhooks(DueJobs):
    """The jobs whose end is to be sent. A run that ends enters its job (`RunStore.finish_all`)."""

    def __init__(self, redis: "Redis") -> None:
        super().__init__(redis, keys.webhooks_key())

    def claim(self, job: str, token: str) -> DueEnd | None:
        """Take the lock of the job's event and make it; None when nothing is to be sent, or another sends."""
        names = [run_key(job), job_key(job), self._lock(job), self._key, keys.rejected_end_key(job)]
        status, *found = self._scripts.run("claim_webhook", names, job, token, int(LOCK_SECONDS * 1000))
        if status != "claimed":
            return None
        now, message, end, record = found
        return _due_end(job, float(now), message, json.loads(end), hash_of(record))

    def end_attempt(self, job: str, token: str, retry_in: float | None) -> None:
        """Release the lock; the end is sent again in so many seconds, and with None never."""
        seconds = "" if retry_in is None else retry_in
        self._scripts.run("end_webhook_attempt", [self._lock(job), self._key], job, token, seconds)

    def _lock(self, job: str) -> str:
        return keys.lock_key(job, "webhook")


def _due_end(job: str, now: float, message: str, end: JsonObject, record: dict[str, str]) -> DueEnd:
    status, ended = JobStatus(end["status"]), int(float(record.get("updated") or now))
    sent: JsonObject = json.loads(message)
    result = end["result"]
    if status is JobStatus.STOPPED and record.get("status"):
        result = stopped_job_result(sent["task"], record)
    # The failures of single tasks are at the backend; their number is part of the result.
    result = {name: value for name, value in result.items() if name != "failures"}
    event = {
        "type": f"run.{status.lower()}",
        "timestamp": datetime.fromtimestamp(ended, UTC).isoformat().replace("+00:00", "Z"),
        "data": {
            "job": job,
            "action": record.get("action"),
            "plugin": record.get("plugin"),
            "tenant": sent["kwargs"].get("tenant"),
            "status": status,
            "result": result if len(json.dumps(result)) <= MAX_RESULT_BYTES else None,
        },
    }
    about = (redis_prefix(), job, status, record.get("started", ""), ended)
    digest = hashlib.sha256("\n".join(map(str, about)).encode()).hexdigest()
    return DueEnd(now - ended, f"run_{digest[:32]}", json.dumps(event, separators=(",", ":")).encode())


def send_end(job: str, attempt: int, runs: Runs, webhooks: Webhooks, client: WebhookClient) -> float | None:
    """Send a job's end once; the seconds until the next attempt, or None when there is none.

    Raises `RedisError`.
    """
    token = runs.locks.new_token()
    due = webhooks.claim(job, token)
    if due is None:
        return None
    retry_in: float | None = None
    try:
        client.post(due.event_id, due.body)
        metrics.count_webhook("delivered")
        log.info("end sent to the webhook", job=job)
    except ClientError as error:
        failure = {"job": job, "status_code": error.status_code, "error": clean(str(error))}
        if is_rejected(error) or due.age >= MAX_AGE_SECONDS:
            metrics.count_webhook("given_up")
            log.error("webhook given up", **failure)
        else:
            asked = retry_after_seconds(error) or 0.0
            retry_in = max(backoff(attempt, MAX_COUNTDOWN_SECONDS), asked)
            metrics.count_webhook("retried")
            log.warning("webhook retry scheduled", attempt=attempt, **failure)
    webhooks.end_attempt(job, token, retry_in)
    return retry_in


def is_rejected(error: ClientError) -> bool:
    """Whether the receiver rejects the event for good: a 4xx that asks for no other attempt."""
    return 400 <= error.status_code < 500 and error.status_code not in (408, 409, 425, 429)


class WebhookSender(JobSender):
    """Sends the ends of the jobs that are added. It has threads, a list and locks of its own."""

    def __init__(self, runs: Runs, webhooks: Webhooks, client: WebhookClient) -> None:
        super().__init__(webhooks, "webhooks", MAX_THREADS)
        self._runs, self._webhooks, self._client = runs, webhooks, client

    def _send(self, pending: PendingReport) -> NextAttempt | None:
        try:
            wait = send_end(pending.job, pending.attempt, self._runs, self._webhooks, self._client)
        except INFRASTRUCTURE_ERRORS as error:
            log.warning("webhook put off", job=pending.job, error_type=type(error).__name__)
            return NextAttempt(INFRASTRUCTURE_RETRY_SECONDS, pending.attempt)
        except Exception as error:  # of any kind: it may end no thread, and is found again after a while
            log.error("webhook failed", job=pending.job, error_type=type(error).__name__, exc_info=error)
            return None
        return None if wait is None else NextAttempt(wait, pending.attempt + 1)
