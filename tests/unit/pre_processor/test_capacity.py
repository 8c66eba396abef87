"""The capacity gate before a dispatch, and the diagnosis that runs get which wait."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.unit.pre_processor.waitlist_harness import WaitlistHarness
from worker.platform import ClientTimeoutError, MalformedResponseError, NotFoundError
from worker.pre_processor import dispatch as dispatch_module
from worker.runs.bulkhead import Bulkhead
from worker.runs.keys import messages_key
from worker.runs.model import Reschedule, Suspend
from worker.testing import FakeBackend
from worker.workflow.agent_task import CLUSTER

DENIED = {"allowed": False, "reasons": ["insufficient_gpu"]}
BLOCKED = "Pre-processor deployment blocked by capacity gate (['insufficient_gpu'])"


def said(harness: WaitlistHarness, job: str) -> list[tuple[str, str]]:
    """The level and the text of the run's messages."""
    entries = map(json.loads, harness.services.redis.lrange(messages_key(job), 0, -1))
    return [(entry["level"], entry["data"]["content"]) for entry in entries]


def declare(backend: FakeBackend, **resources: Any) -> None:
    backend.release["config"]["actions"] = {"inference": {"required_resources": resources}}


def test_the_agent_is_asked_before_the_dispatch(harness: WaitlistHarness, backend: FakeBackend) -> None:
    # Given a release that declares its resources
    declare(backend, required_gpu_count=1, num_cpus=2, memory=1024, num_replicas=3)

    # When its deployment is dispatched
    harness.wait("1")

    # Then the agent was asked whether that fits
    assert harness.agent.asked == [
        {
            "kind": "serve",
            "num_cpus": 2.0,
            "num_gpus": 1.0,
            "memory_bytes": 1024,
            "replicas": 3,
            "metadata": {"plugin_code": "digits@1.0.0", "agent": 1},
        }
    ]
    assert len(backend.dispatches) == 1


def test_what_nobody_declares_blocks_nothing(harness: WaitlistHarness, backend: FakeBackend) -> None:
    # Given a release without resources, for which a dispatch says a CPU and a tenth of a GPU
    harness.wait("1")

    # Then the agent was not asked for them: a decorator may say that it needs none
    asked = harness.agent.asked[0]
    assert (asked["num_cpus"], asked["num_gpus"], asked["replicas"]) == (0.0, 0.0, 1)
    assert backend.dispatches[0][1]["params"] == {"num_cpus": 1, "num_gpus": 0.1}


def test_a_denial_ends_all_runs_and_nothing_is_dispatched(
    harness: WaitlistHarness, backend: FakeBackend
) -> None:
    # Given runs that need a pre-processor for which there is no capacity
    harness.agent.answer = DENIED
    jobs = [str(number) for number in range(100)]
    for job in jobs:
        harness.detect(job)

    # When all come to dispatch it
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(harness.dispatch, jobs))
    harness.poll()

    # Then the agent was asked once, and each run has its answer
    assert len(harness.agent.asked) == 1
    assert {harness.error(job) for job in jobs} == {BLOCKED}
    assert backend.dispatches == []


def test_the_next_run_after_a_denial_is_asked_for_anew(
    harness: WaitlistHarness, backend: FakeBackend
) -> None:
    harness.agent.answer = DENIED
    harness.wait("1")
    harness.poll()
    harness.agent.answer = {"allowed": True, "reasons": []}
    harness.wait("2")
    assert harness.error("2") is None
    assert len(backend.dispatches) == 1


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ClientTimeoutError(), "ClientTimeoutError"),
        (NotFoundError(), "NotFoundError"),
        (MalformedResponseError(), "MalformedResponse"),
        (ConnectionRefusedError(), "ConnectionRefusedError"),
    ],
)
def test_an_agent_that_cannot_be_asked_is_a_warning(
    harness: WaitlistHarness, backend: FakeBackend, error: Exception, name: str
) -> None:
    harness.agent.faults.fail("check_feasibility", error)
    harness.wait("1")
    warning = f"Capacity was not checked before the dispatch: the agent cannot be asked ({name})."
    assert ("warning", warning) in said(harness, "1")
    assert len(backend.dispatches) == 1


@pytest.mark.parametrize("agent", [None, ClientTimeoutError()])
def test_an_agent_that_is_not_known_is_a_warning(
    harness: WaitlistHarness, backend: FakeBackend, agent: Exception | None
) -> None:
    harness.services.agent_client = agent
    harness.wait("1")
    assert [level for level, _ in said(harness, "1")] == ["warning", "info"]
    assert len(backend.dispatches) == 1


def test_one_whose_claim_expired_meanwhile_denies_nobody(
    harness: WaitlistHarness, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a run that asks for so long that another one has the claim when the agent denies
    harness.detect("1")
    harness.detect("2")

    def ask(**asked: Any) -> dict[str, Any]:
        harness.waitlist.clear_dispatch(str(harness.services.redis.hget(harness.waitlist._hash, "token")))
        harness.waitlist.join("2", 60)
        return DENIED

    monkeypatch.setattr(harness.agent, "check_feasibility", ask)

    # When it comes to that, then neither fails
    assert harness.dispatch("1") == Suspend()
    assert harness.error("1") is None
    assert harness.error("2") is None


def test_no_more_threads_ask_than_the_bulkhead_lets(
    harness: WaitlistHarness, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker whose slots for clusters are taken
    bulkhead = Bulkhead(lambda: 2)
    monkeypatch.setattr(dispatch_module, "bulkhead", bulkhead)
    harness.detect("1")
    with ThreadPoolExecutor(1) as other:
        slot = bulkhead.acquire(CLUSTER)
        assert other.submit(slot.__enter__).result()

        # When a run comes to ask, then it is retried later
        assert isinstance(harness.dispatch("1"), Reschedule)
        assert harness.agent.asked == []
        other.submit(slot.__exit__, None, None, None).result()

    # And asks when there is a slot
    assert harness.dispatch("1") == Suspend()
    assert len(backend.dispatches) == 1


def test_a_blocked_dispatch_says_what_was_wanted(harness: WaitlistHarness, backend: FakeBackend) -> None:
    declare(backend, required_gpu_count=3, num_cpus=1)
    harness.agent.answer = DENIED

    harness.wait("1")

    text = "Wanted: 1 × (1 CPU, 3 GPU). Free on the cluster: 0 / 2 GPU."
    assert ("warning", text) in said(harness, "1")
