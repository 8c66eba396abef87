"""Deployments that wait for capacity of a cluster: first come, first served."""

import json

import pytest

from shared.channels import job_key
from tests.unit.deploy.deploy_harness import DeployHarness
from worker.deploy.gate import capacity_gate
from worker.deploy.plan import CAPACITY_GATE, SERVE_RUN
from worker.platform import ClientTimeoutError
from worker.runs.heartbeat import run_member
from worker.runs.keys import heartbeats_key
from worker.runs.model import Continue, Outcome, Reschedule
from worker.runs.reports.reporter import stop
from worker.whole_run.run import SUBMIT
from worker.workflow.capacity import MAX_POLL_SECONDS, POLL_SECONDS, CapacityWaitlist

DENIED = {"allowed": False, "reasons": ["insufficient_gpu"]}
ALLOWED = {"allowed": True, "reasons": []}
WAITERS, ADMITTED = "synapse:capacity:{:1}:waiters", "synapse:capacity:{:1}:admitted"


@pytest.fixture
def full(harness: DeployHarness) -> DeployHarness:
    """A worker whose cluster has no capacity."""
    harness.agent.answer = DENIED
    return harness


def look(harness: DeployHarness, job: str) -> Outcome:
    """A run's message is delivered at the gate."""
    return harness.step(CAPACITY_GATE, lambda run: capacity_gate(run, harness.services), job)


def wait(harness: DeployHarness, *jobs: str, seconds: float = 600) -> None:
    """Runs come to the gate of a full cluster, one after the other."""
    for job in jobs:
        harness.accept(job, params={"wait_for_capacity": seconds})
        assert isinstance(look(harness, job), Reschedule)


def let_time_pass(harness: DeployHarness, job: str, seconds: float) -> None:
    """The run has come so much earlier."""
    redis = harness.services.redis
    redis.zincrby(WAITERS, -seconds, job)
    harness.update_state(job, waits_since=redis.zscore(WAITERS, job))


def waiting(harness: DeployHarness) -> list[str]:
    return [str(job) for job in harness.services.redis.zrange(WAITERS, 0, -1)]


def said(harness: DeployHarness, job: str) -> list[str]:
    lines = harness.messages(job).splitlines()
    return [json.loads(line)["data"]["content"] for line in lines]


def test_a_run_waits_until_the_cluster_has_capacity(full: DeployHarness) -> None:
    # Given a run that the gate lets wait
    wait(full, "1")
    assert isinstance(look(full, "1"), Reschedule)

    # When there is capacity
    full.agent.answer = ALLOWED

    # Then it goes on, with the plan that it made once, and waits no more
    assert look(full, "1") == Continue(SERVE_RUN)
    assert full.host.calls == ["plan"]
    assert waiting(full) == []
    assert full.run("1").state.capacity == "allowed"


def test_one_that_is_admitted_at_once_does_not_wait(harness: DeployHarness) -> None:
    harness.accept("1", params={"wait_for_capacity": 600})
    assert look(harness, "1") == Continue(SERVE_RUN)
    assert waiting(harness) == []
    assert said(harness, "1") == ["The cluster has room."]


def test_the_agent_is_asked_for_the_first_alone(full: DeployHarness) -> None:
    # Given runs that wait
    wait(full, "1", "2", "3")
    asked = len(full.agent.asked)
    assert asked == 1

    # When those behind the first look again, even with capacity
    full.agent.answer = ALLOWED
    assert isinstance(look(full, "3"), Reschedule)
    assert isinstance(look(full, "2"), Reschedule)

    # Then the agent is not asked for them, and the first one goes on
    assert len(full.agent.asked) == asked
    assert look(full, "1") == Continue(SERVE_RUN)


def test_the_next_is_admitted_once_the_first_one_has_started(full: DeployHarness) -> None:
    # Given a run that has just been admitted before another
    wait(full, "1", "2")
    full.agent.answer = ALLOWED
    look(full, "1")

    # When the other looks, then it waits on: the cluster still shows the same capacity as free
    assert isinstance(look(full, "2"), Reschedule)
    assert full.services.redis.ttl(ADMITTED) > 0

    # And goes on a moment later
    full.services.redis.delete(ADMITTED)
    assert look(full, "2") == Continue(SERVE_RUN)


def test_a_stopped_run_does_not_block_those_behind_it(full: DeployHarness) -> None:
    wait(full, "1", "2")
    stop("1", full.runs)
    assert waiting(full) == ["2"]
    full.agent.answer = ALLOWED
    assert look(full, "2") == Continue(SERVE_RUN)


def test_a_run_that_is_gone_does_not_block_those_behind(full: DeployHarness) -> None:
    # Given runs whose records are lost, as is one's heartbeat, while the other's is overdue
    wait(full, "1", "2", "3")
    full.services.redis.zrem(heartbeats_key(), run_member("1"))
    full.services.redis.zadd(heartbeats_key(), {run_member("2"): 1})

    # When there is capacity
    full.agent.answer = ALLOWED

    # Then the run behind them goes on
    assert look(full, "3") == Continue(SERVE_RUN)
    assert waiting(full) == []


def test_a_run_taken_for_lost_keeps_its_place(full: DeployHarness) -> None:
    # Given a first run that was taken for lost while its worker was away
    wait(full, "1", "2")
    full.services.redis.zadd(heartbeats_key(), {run_member("1"): 1})
    look(full, "2")
    assert waiting(full) == ["2"]

    # When its message is delivered at last
    look(full, "1")

    # Then it is first again
    assert waiting(full) == ["1", "2"]


def test_a_wait_in_vain_ends_with_the_gates_error(full: DeployHarness) -> None:
    wait(full, "1")
    let_time_pass(full, "1", 600)
    with pytest.raises(RuntimeError):
        look(full, "1")
    end = full.run("1").end
    assert end is not None
    assert end.error == (
        "Serve deploy denied: insufficient cluster capacity (['insufficient_gpu']): waited 600 s for it"
    )
    assert waiting(full) == []


@pytest.mark.parametrize(
    ("answer", "reasons"), [(DENIED, "['insufficient_gpu']"), (ALLOWED, "['queue_position_2']")]
)
def test_one_that_was_never_first_ends_with_a_reason(
    full: DeployHarness, answer: dict[str, object], reasons: str
) -> None:
    # Given a run that waits behind another
    wait(full, "1", seconds=9_000)
    wait(full, "2")
    full.services.redis.zincrby(WAITERS, -2_000, "1")

    # When its time is over
    let_time_pass(full, "2", 700)
    full.agent.answer = answer
    with pytest.raises(RuntimeError) as failure:
        look(full, "2")

    # Then it says why, and has not passed the other
    expected = f"Serve deploy denied: insufficient cluster capacity ({reasons}): waited 700 s for it"
    assert str(failure.value) == expected
    assert waiting(full) == ["1"]


def test_the_last_look_is_at_the_end_of_the_time(full: DeployHarness) -> None:
    full.accept("1", params={"wait_for_capacity": 2})
    outcome = look(full, "1")
    assert isinstance(outcome, Reschedule)
    assert 0 < outcome.countdown <= 2.01


def test_those_further_behind_look_less_often(full: DeployHarness) -> None:
    wait(full, *map(str, range(1, 31)))
    countdowns = {}
    for job in ("1", "2", "30"):
        outcome = look(full, job)
        assert isinstance(outcome, Reschedule)
        countdowns[job] = outcome.countdown
    longest = min(MAX_POLL_SECONDS, full.runs.timing.max_countdown)
    assert countdowns == {"1": POLL_SECONDS, "2": 2 * POLL_SECONDS, "30": longest}


def test_the_user_reads_the_position_once_until_it_changes(full: DeployHarness) -> None:
    # Given two runs that wait
    wait(full, "1", "2")
    look(full, "2")
    look(full, "1")
    assert said(full, "1") == [
        "Wanted: 3 × (2 CPU).",
        "The cluster has no room (['insufficient_gpu']): waiting at position 1, 600 s at most.",
    ]
    assert len(said(full, "2")) == 1
    assert "at position 2" in said(full, "2")[0]

    # When the first one ends
    stop("1", full.runs)
    look(full, "2")
    look(full, "2")

    # Then the other reads its new position, with the reasons
    assert len(said(full, "2")) == 3
    assert "(['insufficient_gpu']): waiting at position 1" in said(full, "2")[2]
    assert full.services.redis.hget(job_key("2"), "waiting_for") == "capacity of agent 1"


def test_a_wait_outlasts_an_agent_that_is_away(full: DeployHarness) -> None:
    # Given a run that waits
    wait(full, "1")

    # When the agent cannot be asked for a while
    full.agent.faults.fail("check_feasibility", ClientTimeoutError())
    assert isinstance(look(full, "1"), Reschedule)

    # Then that ends the run only when its time is over
    let_time_pass(full, "1", 600)
    with pytest.raises(RuntimeError, match=r"agent unreachable \(ClientTimeoutError\)"):
        look(full, "1")


def test_an_agent_that_is_away_at_first_is_not_waited_for(harness: DeployHarness) -> None:
    harness.accept("1", params={"wait_for_capacity": 600})
    harness.agent.faults.fail("check_feasibility", ClientTimeoutError())
    with pytest.raises(RuntimeError, match="agent unreachable"):
        look(harness, "1")


def test_a_delivery_after_the_admission_leaves_the_list(full: DeployHarness) -> None:
    # Given a worker that died after it had stored the answer
    wait(full, "1", "2")
    full.update_state("1", capacity="allowed")

    # When the message is delivered again
    outcome = look(full, "1")

    # Then it goes on, and blocks nobody
    assert outcome == Continue(SERVE_RUN)
    assert waiting(full) == ["2"]


def test_an_action_that_runs_whole_waits_as_well(full: DeployHarness) -> None:
    full.host.whole_run = {"methods": ["execute"], "runner": "sdk"}
    wait(full, "1")
    full.agent.answer = ALLOWED
    assert look(full, "1") == Continue(SUBMIT)


def test_one_that_does_not_wait_is_asked_for_at_once(full: DeployHarness) -> None:
    # Given a run that waits, and then capacity
    wait(full, "1")
    full.agent.answer = ALLOWED

    # When one comes that does not wait, then its gate is the contract's
    full.accept("2")
    assert look(full, "2") == Continue(SERVE_RUN)
    assert waiting(full) == ["1"]


def test_a_position_is_counted_up_to_a_hundred(full: DeployHarness) -> None:
    # Given more runs that wait than are counted
    full.services.redis.zadd(WAITERS, {f"before-{number}": number for number in range(150)})
    for number in range(150):
        full.runs.heartbeats.schedule(run_member(f"before-{number}"))
    wait(full, "1")

    # Then the last one reads the last position that there is
    assert "at position 100" in said(full, "1")[0]
    assert CapacityWaitlist(full.services.redis, None, 1).position("1") == 100
    assert CapacityWaitlist(full.services.redis, None, 1).position("before-4") == 5


def test_tenants_with_agents_of_one_number_wait_apart(full: DeployHarness) -> None:
    one, other = (CapacityWaitlist(full.services.redis, tenant, 1) for tenant in ("a", "b"))
    wait(full, "1", "2")

    assert one.look("1", None).is_next
    assert other.look("2", None).is_next
