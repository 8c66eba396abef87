"""A stop is heard by requests that were begun before it and have not been sent."""

import asyncio
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from shared.statuses import TaskFailure
from worker.runs.ends import RunEnd
from worker.to_task.attempt import ChunkPass, TaskWork
from worker.to_task.clients import TenantBackend
from worker.to_task.ledger import Counts, InferencePolls, OpenTask, TaskOutcome, Ticket
from worker.to_task.window import RequestWindows


class StoppableLedger:
    def __init__(self) -> None:
        self.over = False
        self.recorded: list[int] = []
        self.looks = 0

    def has_ended(self) -> bool:
        self.looks += 1
        return self.over

    def record(self, marks: Any) -> bool:
        self.recorded += [mark.task_id for mark in marks]
        return not self.over

    def open_tasks(self, chunk: int) -> list[OpenTask]:
        return []

    def set_ticket(self, position: int, ticket: Ticket | None) -> None: ...

    def set_polls(self, position: int, polls: InferencePolls | None) -> None: ...

    def now(self) -> float:
        return 0.0

    def increment_attempts(self, positions: Any) -> list[int]:
        return []

    def has_single_calls(self, chunk: int) -> bool:
        return False

    def begin_single_calls(self, chunk: int) -> None: ...

    def count_plugin_failure(self, operation: str) -> int:
        return 0

    def reset_plugin_failures(self, operation: str) -> None: ...

    def counts(self) -> Counts:
        return Counts(0, 0, 0)

    def failures(self) -> list[TaskFailure]:
        return []


class SlowClient:
    def __init__(self, ledger: StoppableLedger) -> None:
        self.ledger = ledger
        self.most_unrecorded = 0
        self.sent: list[int] = []
        self.answer = asyncio.Event()

    async def annotate_task_data(self, task: int, data: Mapping[str, Any], schema: str | None = None) -> Any:
        self.sent.append(task)
        self.most_unrecorded = max(self.most_unrecorded, len(self.sent) - len(self.ledger.recorded))
        await self.answer.wait()
        return {"id": task}

    async def aclose(self) -> None: ...


async def annotated(
    count: int, slots: int, stop_after: int | None, run_end: RunEnd | None = None
) -> tuple[SlowClient, StoppableLedger]:
    """What came of `count` writes that queue for `slots`, with a stop while the first are away.

    With `run_end` the stop is heard, and the ledger does not know of it.
    """
    ledger = StoppableLedger()
    client = SlowClient(ledger)
    backend = TenantBackend(lambda _timeout: client, RequestWindows(slots))  # type: ignore[arg-type, return-value]
    attempt = ChunkPass(ledger, chunk=0, max_failures_in_row=10, run_end=run_end or RunEnd())

    async def write(work: TaskWork) -> None:
        mark = TaskOutcome(work.open.position, work.open.task_id)
        await backend.annotate(work.open.task_id, {}, None, lambda: attempt.record(mark))

    works = [TaskWork(OpenTask(position, position + 1)) for position in range(count)]
    writing = asyncio.gather(*(attempt.process(work, write) for work in works))
    if stop_after is not None:
        while len(client.sent) < stop_after:
            await asyncio.sleep(0)
            await asyncio.sleep(0.001)
        if run_end is None:
            ledger.over = True
        else:
            run_end.heard = True
        await asyncio.sleep(0.03)
    client.answer.set()
    await writing
    return client, ledger


async def test_writes_that_wait_for_a_slot_are_dropped_by_a_stop() -> None:
    client, _ = await annotated(40, slots=2, stop_after=2)

    assert client.sent == [1, 2]


async def test_a_stop_that_is_heard_drops_writes_without_a_look() -> None:
    heard = RunEnd()
    heard.heard_since = time.monotonic()

    client, ledger = await annotated(40, slots=2, stop_after=2, run_end=heard)

    assert client.sent == [1, 2]
    assert ledger.looks <= 1


async def test_an_end_before_anything_was_heard_is_looked_for() -> None:
    # Given a run whose end is heard only from now on, and a look before
    run_end, ledger = RunEnd(), StoppableLedger()
    attempt = ChunkPass(ledger, chunk=0, max_failures_in_row=10, run_end=run_end)
    assert not await attempt.has_ended()

    # When it ended in between
    ledger.over = True
    run_end.heard_since = time.monotonic()

    # Then it is known to have ended
    assert await attempt.has_ended()


async def test_a_process_that_was_suspended_looks_before_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a run whose end is heard, and a look
    run_end, ledger = RunEnd(), StoppableLedger()
    run_end.heard_since = time.monotonic()
    attempt = ChunkPass(ledger, chunk=0, max_failures_in_row=10, run_end=run_end)
    assert not await attempt.has_ended()

    # When the process was suspended for longer than its lease, which another holds now
    ledger.over = True
    now = time.monotonic()
    monkeypatch.setattr("worker.to_task.attempt.time", SimpleNamespace(monotonic=lambda: now + 60))

    # Then it writes no more
    assert await attempt.has_ended()


async def test_without_a_stop_all_are_sent_and_share_the_looks() -> None:
    client, ledger = await annotated(40, slots=2, stop_after=None)

    assert sorted(client.sent) == list(range(1, 41))
    assert sorted(ledger.recorded) == sorted(client.sent)
    assert ledger.looks < 40


async def test_unrecorded_writes_are_no_more_than_the_slots() -> None:
    client, _ = await annotated(200, slots=4, stop_after=None)

    assert client.most_unrecorded <= 4
