"""Of all copies of a poll only those of the newest generation go on."""

from collections.abc import Callable

from fakeredis import FakeRedis

from tests.unit.runs.example_workflow import FIRST, advance
from worker.runs.keys import claimed_field, polls_key, run_key
from worker.runs.model import ClaimStatus, Run
from worker.runs.runs import Runs
from worker.runs.store import StepClaim

Eventually = Callable[[Callable[[], object]], None]


def claim(runs: Runs, generation: int, redelivered: bool) -> StepClaim:
    """A poll of the run's first step begins."""
    return runs.store.claim_step("42", FIRST, "", "token", 5, generation, redelivered)


def test_poll_of_the_newest_generation_goes_on(runs: Runs, run: Run) -> None:
    generation = advance(runs, "42", FIRST.name, 0)

    claimed = claim(runs, generation, False)

    assert (claimed.status, claimed.generation) == (ClaimStatus.CLAIMED, 1)


def test_copy_of_an_older_poll_is_superseded(runs: Runs, run: Run) -> None:
    advance(runs, "42", FIRST.name, 0)

    assert claim(runs, 0, False).status is ClaimStatus.SUPERSEDED


def test_redelivered_poll_publishes_its_successor(runs: Runs, run: Run) -> None:
    advance(runs, "42", FIRST.name, 0)  # and here its worker died

    claimed = claim(runs, 0, True)

    assert (claimed.status, claimed.generation) == (ClaimStatus.REPUBLISH, 1)


def test_redelivered_poll_ends_once_its_successor_began(runs: Runs, run: Run) -> None:
    claim(runs, advance(runs, "42", FIRST.name, 0), False)

    assert claim(runs, 0, True).status is ClaimStatus.SUPERSEDED


def test_advance_of_an_older_poll_answers_the_newest(runs: Runs, run: Run) -> None:
    advance(runs, "42", FIRST.name, 4)

    assert advance(runs, "42", FIRST.name, 1) == 5
    assert runs.generations.newest("42", FIRST.name) == 5


def test_poll_that_never_advanced_leaves_no_claim(runs: Runs, run: Run, redis: FakeRedis) -> None:
    claimed = claim(runs, 0, False)

    assert claimed.status is ClaimStatus.CLAIMED
    assert not redis.hexists(polls_key("42"), claimed_field(FIRST.name))


def test_nothing_is_stored_after_the_end_was_reported(runs: Runs, run: Run, redis: FakeRedis) -> None:
    runs.store.mark_reported("42")

    assert advance(runs, "42", FIRST.name, 0) == 1
    assert not redis.exists(polls_key("42"))


def test_generations_are_kept_apart_from_the_runs_hash(runs: Runs, run: Run, redis: FakeRedis) -> None:
    before = redis.hlen(run_key("42"))
    for chunk in range(50):
        advance(runs, "42", f"to_task.annotate:{chunk}", 0)
    assert redis.hlen(run_key("42")) == before
    assert runs.generations.newest("42", "to_task.annotate:7") == 1
    runs.store.mark_reported("42")
    assert redis.ttl(polls_key("42")) > 0
