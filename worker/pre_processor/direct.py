"""The same way in a plain process, blocking: how an author tries `ToTaskAction.execute()` out."""

import math
import time
from dataclasses import replace
from typing import Any

from worker.platform import ClientError, clean_exception
from worker.pre_processor.decision import DecisionKind, Dispatch, Observation, Timeouts, evaluate, timed_out
from worker.pre_processor.dispatch import dispatch_body, dispatch_failed, dispatched_job
from worker.pre_processor.serve_application import (
    Backend,
    classify_serve_app,
    find,
    job_status,
    records,
    records_if_legible,
    snapshot_of,
)

TIMEOUT_SECONDS = 180.0
POLL_SECONDS = 10.0
NEVER_LOST = Timeouts(ended_seconds=math.inf, reply_seconds=math.inf)
"""This process knows the job of its dispatch, and ends at its own timeout."""


class PrepareStep:
    """Makes sure that a pre-processor runs: looks, dispatches its deployment, waits."""

    def __init__(
        self,
        client: Backend,
        *,
        pre_processor: int | str,
        agent: int,
        timeout_seconds: float = TIMEOUT_SECONDS,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._client = client
        self._timeout = timeout_seconds
        self._poll = poll_seconds
        self.target = find(client, pre_processor, agent)
        self._dispatch = Dispatch(token="", claimed_at=0.0, sent_at=0.0)

    def _ensure_pre_processor_running(self) -> None:
        """Return when it runs; `RuntimeError` in the contract's words when it cannot."""
        found = records_if_legible(self._client, self.target)
        if classify_serve_app(found)[0] == "running":
            return
        body = dispatch_body(self.target)
        failure: Exception | None = None
        try:
            job = dispatched_job(self._client.run_plugin(self.target.code, body))
        except (ClientError, OSError) as error:
            failure = error
        if failure is not None:
            raise dispatch_failed(failure)
        self._dispatch = replace(self._dispatch, job=job, snapshot=snapshot_of(found))
        self._wait_for_pre_processor(self._timeout)

    def _wait_for_pre_processor(self, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """Poll until it runs, has failed, or the time is up. An answer that is an error says nothing."""
        deadline = time.monotonic() + timeout_seconds
        last_error: Exception | None = None
        while True:
            try:
                found = records(self._client, self.target)
                status = job_status(self._client, self._dispatch.job)
            except (ClientError, OSError) as error:
                last_error = error
            else:
                last_error = None
                seen = Observation(found, status, now=0.0)
                decision = evaluate(self._dispatch, seen, NEVER_LOST)
                if decision.kind is DecisionKind.READY:
                    return
                if decision.kind is DecisionKind.FAILED:
                    raise RuntimeError(decision.message)
            left = deadline - time.monotonic()
            if left <= 0:
                raise timed_out() from (clean_exception(last_error) if last_error else None)
            time.sleep(min(self._poll, left))


def ensure_running(
    client: Backend,
    *,
    pre_processor: int | str,
    agent: int,
    timeout_seconds: float = TIMEOUT_SECONDS,
    poll_seconds: float = POLL_SECONDS,
) -> dict[str, Any]:
    """Block until the pre-processor runs; returns the finding that the workflow's steps read."""
    step = PrepareStep(
        client,
        pre_processor=pre_processor,
        agent=agent,
        timeout_seconds=timeout_seconds,
        poll_seconds=poll_seconds,
    )
    step._ensure_pre_processor_running()
    return step.target.to_finding()
