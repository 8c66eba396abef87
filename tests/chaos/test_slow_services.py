"""Services that ask for later calls: every good task is annotated, later, and none fails."""

import contextlib
import json
import threading
import time
from random import Random
from typing import Any

import pytest

from tests.chaos.effect_log import Faults
from tests.chaos.faulty_services import Handler, Interceptor, Response, json_response
from tests.chaos.platform_harness import Fleet, PlatformHarness
from worker.sandbox import wait_for
from worker.sandbox.seed import SeededProject
from worker.testing.faults import RateLimiter, failing_share

TASKS = 200
REQUESTS_PER_SECOND = 5
RETRY_AFTER_SECONDS = 10
MAX_SECONDS = 420
"""Two requests a task, five a second: 80 seconds at the least, and there are pauses and a slow machine."""


def overloaded(rule: Any) -> Interceptor:
    """Answers with the errors of `rule`, one of `worker.testing.faults`."""
    lock = threading.Lock()

    def respond(request: Handler, _body: bytes) -> Response | None:
        with lock:
            error = rule(request.path)
        if error is None:
            return None
        request.retry_after = error.retry_after
        return json_response({"detail": "busy"}, error.status_code)

    return respond


class TwoReplicas:
    """An application that defers each inference; only the replica that issued a ticket knows it."""

    def __init__(self) -> None:
        self.missed = 0
        self._random = Random(1)
        self._inferences: dict[str, tuple[int, str]] = {}
        self._lock = threading.Lock()

    def __call__(self, request: Handler, body: bytes) -> Response | None:
        if request.command != "POST" or not request.path.endswith("/run/"):
            return None
        given = json.loads(body)
        if given["action"] != "inference":
            return None
        with self._lock:
            return json_response(self._infer(given["params"]["json"]))

    def _infer(self, call: dict[str, Any]) -> dict[str, Any]:
        replica, ticket = self._random.randrange(2), call.get("__synapse_poll__")
        envelope = {"__synapse_deferred__": True, "status": "pending"}
        if ticket is None:
            ticket = f"t-{len(self._inferences)}"
            self._inferences[ticket] = (replica, call["text"])
            return {**envelope, "ticket": ticket}
        owner, text = self._inferences[ticket]
        if owner != replica:
            self.missed += 1
            return {**envelope, "status": "not_found", "ticket": ticket}
        return {"said": text, "by": "1.0.0"}


@pytest.mark.chaos
@pytest.mark.timeout(MAX_SECONDS + 60)
def test_services_that_ask_for_later_calls_fail_no_task(harness: PlatformHarness) -> None:
    replicas = TwoReplicas()
    interceptors: dict[str, Interceptor] = {
        "5 requests/s": overloaded(RateLimiter(REQUESTS_PER_SECOND)),
        "5 requests/s, Retry-After": overloaded(
            RateLimiter(REQUESTS_PER_SECOND, retry_after=RETRY_AFTER_SECONDS)
        ),
        "40 % of answers 503": overloaded(failing_share(0.4)),
        "two replicas": replicas,
    }
    with contextlib.ExitStack() as stack:
        # Given a fleet for each kind of slowness, with a run of 200 tasks
        runs: dict[str, tuple[Fleet, str, SeededProject, Faults]] = {}
        for name, interceptor in interceptors.items():
            fleet, proxy = stack.enter_context(
                harness.fleet_behind_proxy(
                    "SYNAPSE_HOST", harness.sandbox.environment()["SYNAPSE_HOST"], WORKER_ANNOTATE_CHUNK="50"
                )
            )
            fleet.start_worker(concurrency=4)
            project, faults = fleet.new_project(TASKS), Faults()
            job = fleet.new_job("echo@1.0.0", "to_task")
            if interceptor is replicas:
                fleet.to_task_by_inference(job, project, fleet.new_pre_processor())
            else:
                fleet.to_task_by_file(job, project)
            stack.enter_context(proxy.intercept(interceptor))
            # A rejected request is begun again.
            stack.enter_context(faults.outage())
            runs[name] = (fleet, job, project, faults)
        began = time.monotonic()
        ended: dict[str, float] = {}

        def all_ended() -> bool:
            for name, (fleet, job, _, _) in runs.items():
                if name not in ended and fleet.has_ended(job):
                    ended[name] = time.monotonic() - began
            return len(ended) == len(runs)

        # When they work
        wait_for(all_ended, MAX_SECONDS, "the end of every run")

    # Then every task is annotated, and none has failed
    for name, seconds in ended.items():
        print(f"{name}: {TASKS} tasks in {seconds:.0f} s")
    violations = []
    for name, (fleet, job, project, faults) in runs.items():
        auditor = fleet.auditor(faults)
        auditor.check_succeeded(job)
        auditor.check_tasks(job, project)
        violations += [f"{name}: {violation}" for violation in auditor.result.violations]
    assert violations == []
    assert replicas.missed > 0
