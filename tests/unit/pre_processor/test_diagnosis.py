"""Why a pre-processor does not run yet: what each run that waits reads once."""

import json
from collections import Counter
from typing import Any

import pytest

from shared.channels import job_key
from shared.messages import DeployMessage
from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.pre_processor.waitlist_harness import WaitlistHarness
from worker.platform import ClientTimeoutError
from worker.pre_processor.diagnosis import ClusterView, Diagnosis
from worker.runs.keys import messages_key
from worker.runs.reports.reporter import stop
from worker.testing import FakeBackend
from worker.workflow.capacity import CapacityWaitlist

BEGINS = "Pre-processor digits@1.0.0 does not run yet: "


def diagnoses(harness: WaitlistHarness, job: str) -> list[str]:
    entries = map(json.loads, harness.services.redis.lrange(messages_key(job), 0, -1))
    said = [entry["data"]["content"] for entry in entries]
    return [text for text in said if text.startswith(BEGINS)]


def poll(harness: WaitlistHarness, times: int = 1) -> None:
    for _ in range(times):
        assert harness.poll(harness.waitlist.wake()) is not None


def test_a_run_reads_it_after_its_second_poll_and_once(
    harness: WaitlistHarness, backend: FakeBackend
) -> None:
    # Given a run whose pre-processor is being deployed
    harness.wait("1")
    backend.jobs["101"] = "RUNNING"
    harness.services.redis.hset(job_key("101"), "step", "deploy.await_running")
    explained = {"status": "DEPLOYING", "deployments": {"D": {"message": "1 replicas cannot be scheduled"}}}
    harness.agent.applications["digits@1.0.0"] = explained

    # When it was polled for once, then there is no diagnosis yet
    poll(harness)
    assert diagnoses(harness, "1") == []

    # But after the second poll, and only then
    poll(harness, 3)
    assert diagnoses(harness, "1") == [
        f"{BEGINS}its deployment is job 101 (RUNNING, deploy.await_running); "
        "DEPLOYING: 1 replicas cannot be scheduled; 0 of 2 GPUs are free; 3 replicas run on the cluster."
    ]


def test_one_look_is_for_all_who_wait(harness: WaitlistHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given runs that wait, to all of which one poll can send their diagnosis on any machine
    monkeypatch.setattr("worker.pre_processor.poll.MAX_DIAGNOSES_SECONDS", 60.0)
    jobs = [str(number) for number in range(250)]
    harness.wait(*jobs)

    # When they are polled for many times
    poll(harness, 5)

    # Then the agent was looked at once, and each run has one diagnosis
    assert harness.agent.faults.calls["get_cluster_resources"] == 1
    assert harness.agent.faults.calls["get_serve_application"] == 1
    assert Counter(len(diagnoses(harness, job)) for job in jobs) == {1: 250}


def test_one_that_comes_later_gets_its_own(harness: WaitlistHarness) -> None:
    harness.wait("1")
    poll(harness, 3)
    harness.wait("2")
    poll(harness)
    assert diagnoses(harness, "2") == []
    poll(harness)
    assert len(diagnoses(harness, "2")) == 1
    assert len(diagnoses(harness, "1")) == 1


def test_a_poll_without_time_leaves_the_rest_to_the_next(
    harness: WaitlistHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given batches of two runs, and no time for a second one
    monkeypatch.setattr("worker.pre_processor.poll.BATCH_WAITERS", 2)
    monkeypatch.setattr("worker.pre_processor.poll.MAX_DIAGNOSES_SECONDS", -1)
    harness.wait(*"12345")

    poll(harness, 2)
    assert [len(diagnoses(harness, job)) for job in "12345"] == [1, 1, 0, 0, 0]
    poll(harness, 2)
    assert [len(diagnoses(harness, job)) for job in "12345"] == [1, 1, 1, 1, 1]


def test_a_run_that_has_ended_gets_none(harness: WaitlistHarness) -> None:
    harness.wait("1", "2")
    stop("1", harness.runs)
    poll(harness, 3)
    assert diagnoses(harness, "1") == []
    assert len(diagnoses(harness, "2")) == 1


def test_a_dispatch_that_was_not_sent_is_said(harness: WaitlistHarness) -> None:
    harness.detect("1")
    harness.waitlist.join("1", 60)
    poll(harness, 2)
    assert diagnoses(harness, "1")[0].startswith(f"{BEGINS}its deployment is about to be dispatched; ")


def test_without_the_agent_it_says_what_else_is_known(harness: WaitlistHarness) -> None:
    harness.wait("1")
    harness.agent.faults.fail("get_cluster_resources", ClientTimeoutError())
    poll(harness, 2)
    assert diagnoses(harness, "1") == [f"{BEGINS}its deployment is job 101 (RUNNING)."]


@pytest.mark.parametrize(
    "resources", [{}, {"gpu": []}, {"gpu": {"total_gpus": "2"}, "total_serve_replicas": float("nan")}]
)
def test_an_agent_that_says_nothing_useful_fails_no_poll(harness: WaitlistHarness, resources: Any) -> None:
    harness.wait("1")
    harness.agent.resources = resources
    harness.agent.applications["digits@1.0.0"] = {"status": 7, "deployments": [1], "message": None}
    poll(harness, 2)
    assert diagnoses(harness, "1") == [f"{BEGINS}its deployment is job 101 (RUNNING)."]


def test_the_position_of_an_unread_deployment_is_said(
    harness: WaitlistHarness, backend: FakeBackend, sender: RecordingPublisher
) -> None:
    # Given a deployment that no worker has read, behind others
    harness.wait("1")
    backend.jobs["101"] = "PENDING"
    sender.queue_lengths[DeployMessage.queue] = 4

    poll(harness, 2)
    assert diagnoses(harness, "1")[0].endswith("; queue position 4.")


def test_the_position_of_one_that_waits_for_capacity_is_said(harness: WaitlistHarness) -> None:
    # Given a deployment that waits for capacity, behind another
    harness.wait("1")
    capacity = CapacityWaitlist(harness.services.redis, None, 1)
    for job in ("100", "101"):
        message = {"job": job, "plugin": "digits@1.0.0", "agent": 1, "params": {"wait_for_capacity": 600}}
        harness.runs.store.accept(DeployMessage.model_validate(message), "deploy")
        harness.runs.heartbeats.schedule(f"run:{job}")
        capacity.look(job, None)

    poll(harness, 2)
    [said] = diagnoses(harness, "1")
    assert "job 101 (RUNNING, capacity of agent 1)" in said
    assert said.endswith("; queue position 2.")


def test_users_read_it_in_their_language() -> None:
    view = ClusterView(free_gpus=0.5, total_gpus=2, replicas=3, reason="DEPLOYING")
    diagnosis = Diagnosis("digits@1.0.0", "101", "RUNNING", view, 2)
    assert diagnosis.text("ko") == (
        "전처리기 digits@1.0.0이(가) 아직 실행되지 않습니다: 작업 101이(가) 배포합니다 (RUNNING); DEPLOYING; "
        "GPU 2개 중 0.5개가 비어 있습니다; 클러스터에서 레플리카 3개가 실행 중입니다; 대기 순서 2번째."
    )
