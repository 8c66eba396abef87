"""The states of a dispatch, how it is stored, and what a poll decides from it."""

from dataclasses import fields, replace
from typing import Any

import pytest

from worker.pre_processor.decision import (
    DISPATCH_FIELDS,
    Decision,
    DecisionKind,
    Dispatch,
    DispatchState,
    Observation,
    Timeouts,
    after_failure,
    evaluate,
    lost_at,
    stored_fields,
)

CLAIMED = Dispatch(token="t", claimed_at=100.0, claimed_by="1")
SENT = replace(CLAIMED, sent_at=100.0)
KNOWN = replace(SENT, job="7")
ENDED = replace(KNOWN, ended_at=110.0)
FAILED = replace(SENT, failure="no")
TIMEOUTS = Timeouts(ended_seconds=60.0, reply_seconds=15.0)


def seen(now: float = 101.0, status: Any = None, *statuses: str, **more: Any) -> Observation:
    records = [{"id": number, "status": each, "job": 7} for number, each in enumerate(statuses)]
    return Observation(records, status, now, **more)


def decide(dispatch: Dispatch | None, observation: Observation) -> Decision:
    return evaluate(dispatch, observation, TIMEOUTS)


@pytest.mark.parametrize(
    ("dispatch", "state"),
    [
        (CLAIMED, DispatchState.CLAIMED),
        (SENT, DispatchState.SENT),
        (KNOWN, DispatchState.KNOWN),
        (ENDED, DispatchState.ENDED),
        (FAILED, DispatchState.FAILED),
        (replace(KNOWN, failure="no"), DispatchState.FAILED),
    ],
)
def test_a_dispatch_has_one_state(dispatch: Dispatch, state: DispatchState) -> None:
    assert dispatch.state is state


def test_every_attribute_of_a_dispatch_is_stored() -> None:
    assert set(DISPATCH_FIELDS) == {each.name for each in fields(Dispatch)}
    assert {each.name for each in DISPATCH_FIELDS.values()} == {
        "token", "by", "claimed", "sent", "snapshot", "job", "ended", "doubtful", "failure", "unclear",
        "silent", "looked",
    }  # fmt: skip


def test_a_dispatch_is_read_from_the_fields_that_it_writes() -> None:
    dispatch = Dispatch(
        token="t",
        claimed_at=1.25,
        claimed_by="1",
        sent_at=2.5,
        snapshot={"1": "DEPLOY_FAILED"},
        job="7",
        ended_at=3.5,
        job_unverified=True,
        failure="no",
        maybe_accepted=True,
        no_reply_since=4.5,
        last_polled_at=5.5,
    )
    empty = Dispatch(token="", claimed_at=0.0)
    stored = {name: str(value) for name, value in stored_fields(empty.changes(dispatch)).items()}
    assert Dispatch.from_hash(stored) == dispatch
    assert stored["doubtful"] == stored["unclear"] == "1"


def test_unset_attributes_are_stored_as_older_workers_read() -> None:
    changes = replace(ENDED, failure="no", job_unverified=True).changes(KNOWN)
    assert stored_fields(changes) == {"ended": "", "failure": "", "doubtful": 0}
    assert Dispatch.from_hash({"token": "t", "claimed": "100.0", "ended": "", "failure": ""}) is not None
    assert Dispatch.from_hash({"generation": "3", "polling": "1"}) is None


def test_an_unchanged_dispatch_writes_nothing() -> None:
    assert stored_fields(KNOWN.changes(replace(KNOWN))) == {}


@pytest.mark.parametrize("dispatch", [None, CLAIMED, SENT, KNOWN, ENDED, FAILED])
def test_a_running_application_is_ready_in_every_state(dispatch: Dispatch | None) -> None:
    assert decide(dispatch, seen(101.0, None, "RUNNING")) == Decision(DecisionKind.READY, dispatch)


def test_without_a_dispatch_one_is_to_be_made() -> None:
    assert decide(None, seen()) == Decision(DecisionKind.LOST)


@pytest.mark.parametrize(("now", "kind"), [(120.0, DecisionKind.PENDING), (120.1, DecisionKind.LOST)])
def test_an_unsent_claim_expires_and_stays_for_its_successor(now: float, kind: DecisionKind) -> None:
    assert decide(CLAIMED, seen(now, None, "DEPLOY_FAILED")) == Decision(kind, CLAIMED)


def test_a_failed_dispatch_fails_the_runs_with_its_message() -> None:
    assert decide(FAILED, seen()) == Decision(DecisionKind.FAILED, FAILED, "no")
    assert after_failure(FAILED) is None
    assert after_failure(replace(FAILED, maybe_accepted=True)) == SENT


@pytest.mark.parametrize("status", ["FAILED", "STOPPED"])
def test_a_failed_job_fails_the_runs(status: str) -> None:
    decision = decide(KNOWN, seen(101.0, status))
    assert (decision.kind, decision.dispatch) == (DecisionKind.FAILED, KNOWN)
    assert decision.message.endswith(f"job reached terminal state ({status})")


@pytest.mark.parametrize("status", ["FAILED", "STOPPED", "SUCCEEDED"])
def test_a_job_that_ended_before_the_runs_came_is_replaced(status: str) -> None:
    unverified = replace(KNOWN, job_unverified=True)
    assert decide(unverified, seen(101.0, status)) == Decision(DecisionKind.LOST)


def test_a_job_seen_running_is_verified() -> None:
    unverified = replace(KNOWN, job_unverified=True)
    assert decide(unverified, seen(101.0, "RUNNING")) == Decision(DecisionKind.PENDING, KNOWN)
    assert decide(unverified, seen(101.0, None)) == Decision(DecisionKind.PENDING, unverified)


@pytest.mark.parametrize("status", ["SUCCEEDED", "GONE"])
def test_an_ended_job_has_a_while_until_its_application_is_seen(status: str) -> None:
    ended = decide(KNOWN, seen(110.0, status)).dispatch
    assert ended == ENDED
    assert decide(ended, seen(170.0, status)) == Decision(DecisionKind.PENDING, ENDED)
    assert decide(ended, seen(170.1, status)) == Decision(DecisionKind.LOST)


def test_a_job_that_the_backend_knows_again_has_not_ended() -> None:
    assert decide(ENDED, seen(200.0, "RUNNING")) == Decision(DecisionKind.PENDING, KNOWN)
    assert decide(ENDED, seen(200.0, None)) == Decision(DecisionKind.PENDING, ENDED)


def test_a_changed_record_leaves_the_snapshot() -> None:
    dispatch = replace(KNOWN, snapshot={"0": "DEPLOY_FAILED", "1": "NOT_STARTED"})
    decision = decide(dispatch, seen(101.0, "RUNNING", "DEPLOYING", "NOT_STARTED"))
    assert decision.dispatch == replace(dispatch, snapshot={"1": "NOT_STARTED"})


def test_a_reply_is_not_missed_while_the_dispatcher_lives() -> None:
    assert decide(SENT, seen(1000.0)) == Decision(DecisionKind.PENDING, SENT)


def test_a_reply_is_missed_after_polls_in_a_row() -> None:
    # Given two polls that have found no dispatcher
    first = decide(SENT, seen(110.0, is_dispatcher_alive=False)).dispatch
    assert first == replace(SENT, no_reply_since=110.0, last_polled_at=110.0)
    second = decide(first, seen(114.0, is_dispatcher_alive=False)).dispatch
    assert second == replace(SENT, no_reply_since=110.0, last_polled_at=114.0)
    assert lost_at(second, TIMEOUTS) == 115.0

    # When the reply's time is up
    decision = decide(second, seen(115.1, is_dispatcher_alive=False))

    # Then the dispatch is lost
    assert decision == Decision(DecisionKind.LOST)


def test_a_pause_between_polls_begins_the_count_anew() -> None:
    polled = replace(SENT, no_reply_since=105.0, last_polled_at=105.0)
    decision = decide(polled, seen(160.0, is_dispatcher_alive=False))
    assert decision.kind is DecisionKind.PENDING
    assert decision.dispatch == replace(SENT, no_reply_since=160.0, last_polled_at=160.0)


def test_unread_deployments_give_the_reply_its_time_again() -> None:
    polled = replace(SENT, no_reply_since=110.0, last_polled_at=120.0)
    decision = decide(polled, seen(125.0, is_dispatcher_alive=False, unread_deployments=1))
    assert decision.kind is DecisionKind.PENDING
    assert decision.dispatch == replace(SENT, sent_at=125.0, no_reply_since=125.0, last_polled_at=125.0)


def test_a_record_that_is_starting_is_waited_for() -> None:
    polled = replace(SENT, no_reply_since=110.0, last_polled_at=120.0)
    decision = decide(polled, seen(130.0, None, "DEPLOYING", is_dispatcher_alive=False))
    assert decision.kind is DecisionKind.PENDING


@pytest.mark.parametrize("dispatch", [None, CLAIMED, KNOWN, ENDED])
def test_only_a_sent_dispatch_without_a_job_can_miss_its_reply(dispatch: Dispatch | None) -> None:
    assert lost_at(dispatch, TIMEOUTS) is None


@pytest.mark.parametrize(
    ("wait", "visibility", "timeouts"),
    [
        (180.0, 60.0, Timeouts(60.0, 60.0)),
        (180.0, 10.0, Timeouts(60.0, 15.0)),
        (30.0, 60.0, Timeouts(30.0, 30.0)),
    ],
)
def test_timeouts_follow_from_the_settings(wait: float, visibility: float, timeouts: Timeouts) -> None:
    assert Timeouts.of(wait, visibility) == timeouts
