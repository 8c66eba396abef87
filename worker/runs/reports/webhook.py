"""Sends the end of each run to the webhook, once the backend has it, and never in the way of a report."""

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from redis import Redis

from shared.channels import job_key, redis_prefix
from shared.messages import JsonObject
from shared.statuses import JobStatus
from worker import metrics
from worker.blame import INFRASTRUCTURE_ERRORS, retry_after_seconds
from worker.platform import ClientError, clean
from worker.runs import keys
from worker.runs.bulkhead import backoff
from worker.runs.keys import run_key
from worker.runs.model import DamagedRunError, finite_number, reading_record, stopped_job_result
from worker.runs.reports.outbox import DueJobs
from worker.runs.reports.sender import (
    INFRASTRUCTURE_RETRY_SECONDS,
    JobSender,
    NextAttempt,
    PendingReport,
)
from worker.runs.reports.webhook_client import WebhookClient, is_rejected
from worker.runs.runs import Runs
from worker.runs.store import hash_of

log = structlog.get_logger(__name__)

MAX_THREADS = 8
LOCK_SECONDS = 30.0
"""Longer than an attempt, so that nobody else begins one meanwhile."""
MAX_COUNTDOWN_SECONDS = 300.0
"""The longest pause between two attempts: a receiver that was away hears of all ends within so long."""
MAX_RESULT_BYTES = 16 * 1024
"""Of the result in an event; a larger one is at the backend alone."""


@dataclass(frozen=True)
class DueEnd:
    """The end of a job that is to be sent, read when it was claimed."""

    left: float
    """Seconds for which the run is kept still. Then nothing is left of it to send."""
    event_id: str
    body: bytes


class Webhooks(DueJobs):
    """The jobs whose end is to be sent. A run that ends enters its job (`RunStore.finish_all`)."""

    def __init__(self, redis: "Redis") -> None:
        super().__init__(redis, keys.webhooks_key())

    def claim(self, job: str, token: str) -> DueEnd | None:
        """Take the lock of the job's event and make it; None when there is nothing to send yet.

        Raises `DamagedRunError`, and the lock is kept, when nothing says how the run has ended.
        """
        names = [run_key(job), job_key(job), self._lock(job), self._key, keys.rejected_end_key(job)]
        with reading_record(job):  # also what is no UTF-8
            status, *found = self._scripts.run("claim_webhook", names, job, token, int(LOCK_SECONDS * 1000))
            if status != "claimed":
                return None
            now, left, message, end, record = found
            return _due_end(job, float(now), float(left), message, end, hash_of(record))

    def end_attempt(self, job: str, token: str, retry_in: float | None) -> None:
        """Release the lock; the end is sent again in so many seconds, and with None never."""
        seconds = "" if retry_in is None else retry_in
        self._scripts.run("end_webhook_attempt", [self._lock(job), self._key], job, token, seconds)

    def _lock(self, job: str) -> str:
        return keys.lock_key(job, "webhook")


def _due_end(job: str, now: float, left: float, message: str, end: str, record: dict[str, str]) -> DueEnd:
    ended = int(finite_number(record.get("updated")) or now)
    try:
        with reading_record(job):
            status, result, tenant = _end_of(json.loads(message), json.loads(end), record)
    except DamagedRunError:
        # As far as the public record says it, which is what the backend gets (`report_unreadable`).
        status, result, tenant = JobStatus(record["status"]), {"error": record.get("error", "")}, None
        if not status.is_final:
            raise
    event = {
        "type": f"run.{status.lower()}",
        "timestamp": datetime.fromtimestamp(ended, UTC).isoformat().replace("+00:00", "Z"),
        "data": {
            "job": job,
            "action": record.get("action"),
            "plugin": record.get("plugin"),
            "tenant": tenant,
            "status": status,
            "result": result if len(json.dumps(result)) <= MAX_RESULT_BYTES else None,
        },
    }
    about = (redis_prefix(), job, status, record.get("started", ""), ended)
    digest = hashlib.sha256("\n".join(map(str, about)).encode()).hexdigest()
    return DueEnd(left, f"run_{digest[:32]}", json.dumps(event, separators=(",", ":")).encode())


def _end_of(
    message: JsonObject, end: JsonObject, record: dict[str, str]
) -> tuple[JobStatus, JsonObject, object]:
    """Status, result and tenant."""
    status, result = JobStatus(end["status"]), end["result"]
    if status is JobStatus.STOPPED and record.get("status"):
        result = stopped_job_result(message["task"], record)
    # The failures of single tasks are at the backend; their number is part of the result.
    result = {name: value for name, value in result.items() if name != "failures"}
    return status, result, message["kwargs"].get("tenant")


def send_end(job: str, attempt: int, runs: Runs, webhooks: Webhooks, client: WebhookClient) -> float | None:
    """Send a job's end once; the seconds until the next attempt, or None when there is none.

    Raises `RedisError`.
    """
    token = runs.locks.new_token()
    try:
        due = webhooks.claim(job, token)
    except DamagedRunError as error:
        # It will not be read better the next time.
        metrics.count_webhook("damaged")
        log.error("webhook dropped", job=job, error=str(error))
        webhooks.end_attempt(job, token, None)
        return None
    if due is None:
        return None
    retry_in: float | None = None
    try:
        client.post(due.event_id, due.body)
        metrics.count_webhook("delivered")
        log.info("end sent to the webhook", job=job)
    except ClientError as error:
        failure = {"job": job, "status_code": error.status_code, "error": clean(str(error))}
        countdown = max(backoff(attempt, MAX_COUNTDOWN_SECONDS), retry_after_seconds(error) or 0.0)
        if is_rejected(error) or countdown >= due.left:
            metrics.count_webhook("given_up")
            log.error("webhook given up", **failure)
        else:
            retry_in = countdown
            metrics.count_webhook("retried")
            log.warning("webhook retry scheduled", attempt=attempt, **failure)
    webhooks.end_attempt(job, token, retry_in)
    return retry_in


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
