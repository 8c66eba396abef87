"""The same in one blocking call: how an author tries `ToTaskAction.execute()` out in a plain process."""

import math
import time
from dataclasses import replace

from worker.platform import ClientError, clean_exception
from worker.pre_processor.decision import DecisionKind, Dispatch, Observation, Timeouts, evaluate, timed_out
from worker.pre_processor.dispatch import dispatch_body, dispatch_failed, dispatched_job
from worker.pre_processor.serve_application import (
    Backend,
    PreProcessor,
    classify_serve_app,
    explained,
    find_pre_processor,
    job_status,
    list_recent_records_or_empty,
    list_records,
    snapshot_of,
)
from worker.settings import environment_setting

NEVER_LOST = Timeouts(ended_seconds=math.inf, reply_seconds=math.inf)
"""This process knows the job of its dispatch, and ends at its own timeout."""


class PrepareStep:
    """Ensures that a pre-processor runs: detects, dispatches its deployment, waits.

    Seconds that are not given are those of WORKER_PRE_PROCESSOR_TIMEOUT_SECONDS and _POLL_SECONDS.
    """

    def __init__(
        self,
        client: Backend,
        *,
        pre_processor: int | str,
        agent: int,
        timeout_seconds: float | None = None,
        poll_seconds: float | None = None,
    ) -> None:
        self._client = client
        self._timeout = timeout_seconds or environment_setting("worker_pre_processor_timeout_seconds")
        self._poll = poll_seconds or environment_setting("worker_pre_processor_poll_seconds")
        self.target = find_pre_processor(client, pre_processor, agent)
        self._dispatch = Dispatch(token="", claimed_at=0.0, sent_at=0.0)

    def _ensure_pre_processor_running(self) -> None:
        """Return when it runs; raise `RuntimeError` with the contract's message when it cannot."""
        records = list_recent_records_or_empty(self._client, self.target)
        if classify_serve_app(records)[0] == "running":
            return
        body = dispatch_body(self.target)
        failure: Exception | None = None
        try:
            job = dispatched_job(self._client.run_plugin(self.target.code, body))
        except (ClientError, OSError) as error:
            failure = error
        if failure is not None:
            raise dispatch_failed(failure)
        self._dispatch = replace(self._dispatch, job=job, snapshot=snapshot_of(records))
        self._wait_for_pre_processor(self._timeout)

    def _wait_for_pre_processor(self, timeout_seconds: float | None = None) -> None:
        """Poll until it runs, has failed, or the time is up. Answers that are errors are polled again."""
        deadline = time.monotonic() + (timeout_seconds or self._timeout)
        last_error: Exception | None = None
        while True:
            try:
                records = list_records(self._client, self.target)
                status = job_status(self._client, self._dispatch.job)
            except (ClientError, OSError) as error:
                last_error = error
            else:
                last_error = None
                seen = Observation(records, status, now=0.0)
                decision = evaluate(self._dispatch, seen, NEVER_LOST)
                if decision.kind is DecisionKind.READY:
                    return
                if decision.kind is DecisionKind.FAILED:
                    raise RuntimeError(explained(decision.message, self._client, self._dispatch.job))
            left = deadline - time.monotonic()
            if left <= 0:
                raise timed_out() from (clean_exception(last_error) if last_error else None)
            time.sleep(min(self._poll, left))


def ensure_running(
    client: Backend,
    *,
    pre_processor: int | str,
    agent: int,
    timeout_seconds: float | None = None,
    poll_seconds: float | None = None,
) -> PreProcessor:
    """Block until the pre-processor runs; return it."""
    step = PrepareStep(
        client,
        pre_processor=pre_processor,
        agent=agent,
        timeout_seconds=timeout_seconds,
        poll_seconds=poll_seconds,
    )
    step._ensure_pre_processor_running()
    # Without secrets in its config, as the steps of a run have it.
    return PreProcessor.from_json(step.target.to_json())
