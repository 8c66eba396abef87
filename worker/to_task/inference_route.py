"""The way from a task to its data by a pre-processor's answer."""

import asyncio
import time
from collections import deque
from typing import Any

from shared.messages import ToTaskParams
from worker.platform import NotFoundError
from worker.to_task import inference
from worker.to_task.attempt import Attempt, Work, gather_all
from worker.to_task.backends import AsyncBackend
from worker.to_task.errors import StillPendingError
from worker.to_task.files import primary_of
from worker.to_task.hooks import Hooks, Item
from worker.to_task.inference import PreProcessor
from worker.to_task.ledger import Ledger, Ticket
from worker.to_task.routes import Wait, take_data

POLL_DELAYS: tuple[float, ...] = (0.25, 0.5, 1.0)
"""Seconds between the first polls of a ticket; then its task waits for a later pass, in no process."""


class InferenceRoute:
    """By a pre-processor, which is sent `slots` requests at once; a deferred one keeps its slot."""

    def __init__(
        self,
        params: ToTaskParams,
        hooks: Hooks,
        backend: AsyncBackend,
        ledger: Ledger,
        target: PreProcessor,
    ) -> None:
        self._params, self._hooks, self._backend = params, hooks, backend
        self._ledger, self._target = ledger, target
        self.slots = target.requests_at_once(params)

    def ready(self, works: list[Work], attempt: Attempt, until: float, wait: Wait) -> list[Work]:
        """See `Route`."""
        ticketed = [work for work in works if work.open.ticket is not None]
        fresh = [work for work in works if work.open.ticket is None]
        prepared = attempt.ask_plugin(fresh, self._hooks.prepare_inference, self._preparation, _take_call)
        if attempt.look():
            return []
        answered = wait(self._infer_all(ticketed + prepared, attempt, until))
        hook = self._hooks.convert_from_inference
        return attempt.ask_plugin(answered, hook, _answer_item, take_data)

    async def _infer_all(self, works: list[Work], attempt: Attempt, until: float) -> list[Work]:
        queue, answered = deque(works), list[Work]()

        async def slot() -> None:
            while queue and not attempt.over:
                if answered and time.monotonic() > until:
                    return
                work = queue.popleft()
                # What is not found may be the application itself, which is being replaced.
                if await attempt.one(work, self._infer, passing=(NotFoundError,)):
                    answered.append(work)
                elif work.open.position in attempt.waiting:
                    return  # The pre-processor is still busy with it.

        slots = self.slots - len(attempt.waiting)
        await gather_all(slot() for _ in range(min(slots, len(works))))
        return answered

    async def _infer(self, work: Work) -> None:
        ticket = work.open.ticket
        if ticket is None:
            work.answer = await inference.ask(self._backend, self._target, work.call)
            if not isinstance(work.answer, Ticket):
                return
            ticket = work.answer
            await asyncio.to_thread(self._ledger.keep_ticket, work.open.position, ticket)
            delays = POLL_DELAYS
        else:
            delays = (0.0, *POLL_DELAYS)
        for delay in delays:
            await asyncio.sleep(delay)
            try:
                work.answer = await inference.poll(self._backend, self._target, ticket)
            except StillPendingError:
                continue
            # The pre-processor has forgotten it: should its task not be written, it is inferred again.
            await asyncio.to_thread(self._ledger.keep_ticket, work.open.position, None)
            return
        raise StillPendingError

    def _preparation(self, work: Work) -> Item:
        primary = primary_of(work.files)
        others = [file for file in work.files if file is not primary]
        return {
            "primary_file_url": primary.url,
            "primary_file_name": primary.name,
            "data_files": [
                {"url": file.url, "file_name": file.name, "specification_name": file.specification}
                for file in others
            ],
            "model_id": self._params.model,
            "pre_processor_params": self._params.pre_processor_params,
            "pre_processor_config": dict(self._target.config),
            "task_data": work.task,
        }


def _answer_item(work: Work) -> Item:
    return {"inference_data": work.answer, "task_data": work.task}


def _take_call(work: Work, call: dict[str, Any]) -> None:
    work.call = call
