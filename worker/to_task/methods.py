"""The two ways from a task to its data: from a file, or from a pre-processor's answer."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

from shared.messages import ToTaskParams
from worker.platform import NotFoundError, contains_secret
from worker.pre_processor.serve_application import PreProcessor
from worker.to_task.attempt import Attempt, Work, files_of, gather_all, of_specification, primary_of
from worker.to_task.clients import AsyncBackend
from worker.to_task.hooks import Hooks, Item
from worker.to_task.ledger import Ledger, Ticket
from worker.to_task.steps import StillPendingError, TaskFailedError

Wait = Callable[[Coroutine[Any, Any, Any]], Any]
"""Runs a coroutine on the loop and waits for it, in the step's thread."""


class Route(Protocol):
    """From tasks that were fetched to data that can be written."""

    @property
    def slots(self) -> int | None:
        """Inferences at once, or None: no inference is needed."""

    def ready(self, works: list[Work], attempt: Attempt, until: float, wait: Wait) -> list[Work]:
        """Give each its `data`; new inferences are begun until the clock says `until`."""


async def fetch(backend: AsyncBackend, work: Work) -> None:
    """The task, and the files of its data unit."""
    work.task = await backend.get_task(work.open.task_id)
    unit = work.task.get("data_unit")
    if type(unit) is int:
        unit = {"id": unit}
    if not isinstance(unit, dict):
        raise TaskFailedError("the task has no data unit")
    if unit.get("files") is None:
        unit = await backend.get_data_unit(unit.get("id", ""))
    work.files = files_of(unit.get("files"))


class FileRoute:
    """By the file of the target specification."""

    slots = None

    def __init__(self, params: ToTaskParams, hooks: Hooks) -> None:
        self._specification = params.target_specification_name or ""
        self._hooks = hooks

    def ready(
        self,
        works: list[Work],
        attempt: Attempt,
        until: float,  # noqa: ARG002 - only inferences take long
        wait: Wait,  # noqa: ARG002
    ) -> list[Work]:
        """See `Route`."""
        return attempt.ask_plugin(works, self._hooks.convert_from_files, self._item, take_data)

    def _item(self, work: Work) -> Item:
        primary = primary_of(work.files)
        target = of_specification(work.files, self._specification)
        return {
            "primary_file_url": primary.url,
            "primary_file_name": primary.name,
            "data_file_url": target.url,
            "data_file_name": target.name,
            "task_data": work.task,
        }


def take_data(work: Work, data: dict[str, Any]) -> None:
    """What the plugin made of the task."""
    work.data = data


DEFERRED = "__synapse_deferred__"
POLL = "__synapse_poll__"
LONGEST_TICKET = 4_096


async def ask(backend: AsyncBackend, target: PreProcessor, call: Mapping[str, Any]) -> Any:
    """The pre-processor's answer to `call`, the plugin's `params`: a result, or the `Ticket` for it."""
    return _result(await backend.run_plugin(target.code, _body(target, call)), call.get("model"))


async def poll(backend: AsyncBackend, target: PreProcessor, ticket: Ticket) -> Any:
    """What has become of a deferred inference; `StillPendingError` while it runs on."""
    call: dict[str, Any] = {"method": "post", "json": {POLL: ticket.ticket}}
    if ticket.model is not None:
        call["model"] = ticket.model
    answer = _result(await backend.run_plugin(target.code, _body(target, call)), ticket.model)
    if isinstance(answer, Ticket):
        raise StillPendingError
    return answer


def _body(target: PreProcessor, call: Mapping[str, Any]) -> dict[str, Any]:
    return {"agent": target.agent, "action": "inference", "params": dict(call), "version": target.version}


def _result(answer: Any, model: object) -> Any:
    if not isinstance(answer, dict) or answer.get(DEFERRED) is not True:
        return answer
    match answer.get("status"):
        case "pending" if _is_ticket(answer.get("ticket")):
            return Ticket(str(answer["ticket"]), model)
        case "failed":
            reason = str(answer.get("error") or "no reason given")
            raise TaskFailedError(f"the pre-processor's inference failed: {reason}")
        case "not_found":
            raise TaskFailedError(
                "the pre-processor does not know the ticket of this inference any more"
                " (tickets live in one replica: with several, the poll may miss it)"
            )
    raise TaskFailedError("the pre-processor deferred the inference in a way that is not understood")


def _is_ticket(found: Any) -> bool:
    """It is kept in Redis until it is asked for: neither without measure nor with a token of ours in it."""
    return (
        isinstance(found, str | int) and len(str(found)) <= LONGEST_TICKET and not contains_secret(str(found))
    )


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
            work.answer = await ask(self._backend, self._target, work.call)
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
                work.answer = await poll(self._backend, self._target, ticket)
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
