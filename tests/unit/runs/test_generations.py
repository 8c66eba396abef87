"""Of all copies of a poll only those of the newest generation go on."""

from collections.abc import Callable

from fakeredis import FakeRedis

from worker.runs.generations import GenerationClaim
from worker.runs.keys import polls_key, run_key
from worker.runs.model import ClaimStatus, Run
from worker.runs.runs import Runs

Eventually = Callable[[Callable[[], object]], None]

POLL = "runs.report"


def test_poll_of_the_newest_generation_goes_on(runs: Runs, run: Run) -> None:
    generation = runs.generations.advance("42", POLL, 0)

    claim = runs.generations.claim("42", POLL, generation, False)

    assert claim == GenerationClaim(ClaimStatus.CLAIMED, 1)


def test_copy_of_an_older_poll_is_superseded(runs: Runs, run: Run) -> None:
    runs.generations.advance("42", POLL, 0)

    assert runs.generations.claim("42", POLL, 0, False).status is ClaimStatus.SUPERSEDED


def test_redelivered_poll_publishes_its_successor(runs: Runs, run: Run) -> None:
    runs.generations.advance("42", POLL, 0)  # and here its worker died

    claim = runs.generations.claim("42", POLL, 0, True)

    assert claim == GenerationClaim(ClaimStatus.REPUBLISH, 1)


def test_redelivered_poll_ends_once_its_successor_began(runs: Runs, run: Run) -> None:
    runs.generations.claim("42", POLL, runs.generations.advance("42", POLL, 0), False)

    assert runs.generations.claim("42", POLL, 0, True).status is ClaimStatus.SUPERSEDED


def test_advance_of_an_older_poll_answers_the_newest(runs: Runs, run: Run) -> None:
    runs.generations.advance("42", POLL, 4)

    assert runs.generations.advance("42", POLL, 1) == 5
    assert runs.generations.newest("42", POLL) == 5


def test_poll_that_never_advanced_leaves_no_hash(runs: Runs, run: Run, redis: FakeRedis) -> None:
    claim = runs.generations.claim("42", POLL, 0, False)

    assert claim.status is ClaimStatus.CLAIMED
    assert not redis.exists(polls_key("42"))


def test_nothing_is_stored_after_the_end_was_reported(runs: Runs, run: Run, redis: FakeRedis) -> None:
    runs.store.mark_reported("42")

    assert runs.generations.advance("42", POLL, 0) == 1
    assert not redis.exists(polls_key("42"))


def test_generations_are_kept_apart_from_the_runs_hash(runs: Runs, run: Run, redis: FakeRedis) -> None:
    before = redis.hlen(run_key("42"))
    for chunk in range(50):
        runs.generations.advance("42", f"to_task.annotate:{chunk}", 0)
    assert redis.hlen(run_key("42")) == before
    assert runs.generations.newest("42", "to_task.annotate:7") == 1
    runs.store.mark_reported("42")
    assert redis.ttl(polls_key("42")) > 0
