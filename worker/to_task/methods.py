"""The two ways from a task to its data: from a file, or from a pre-processor's answer."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from shared import deferred
from shared.messages import ToTaskParams
from worker.blame import TaskFailedError
from worker.platform import contains_secret
from worker.pre_processor.serve_application import PreProcessor
from worker.to_task.attempt import (
    ChunkPass,
    TaskWork,
    file_of_specification,
    parse_files,
    primary_file,
)
from worker.to_task.clients import AsyncBackend
from worker.to_task.hooks import Hooks, Item
from worker.to_task.ledger import InferencePolls, Ledger, Ticket
from worker.to_task.steps import InferencePendingError, TaskAnnotatedError, TicketNotFoundError


class AnnotationMethod(Protocol):
    """How fetched tasks become data that can be written."""

    @property
    def slots(self) -> int | None:
        """Concurrent inferences; None when the method needs no inference."""

    @property
    def application(self) -> str | None:
        """The application that is asked, as `application_key`; None when the method needs no inference."""

    def prepare(self, works: list[TaskWork], attempt: ChunkPass, until: float) -> list[TaskWork]:
        """Call the plugin for the first time, in the step's thread; returns the tasks that go on.

        Without inference they have their `data` then. After `until` no single call of the plugin begins.
        """

    async def infer(self, work: TaskWork) -> None:
        """Set the `answer` of a prepared task. On the event loop."""

    def convert(self, works: list[TaskWork], attempt: ChunkPass) -> list[TaskWork]:
        """Set the `data` of tasks with an answer and return those that have it. In the step's thread."""


async def fetch(backend: AsyncBackend, work: TaskWork, *, skip_annotated: bool = False) -> None:
    """Fetch the task and the files of its data unit.

    With `skip_annotated` a task that has data raises `TaskAnnotatedError`.
    """
    work.task = await backend.get_task(work.open.task_id)
    if skip_annotated and work.task.get("data"):
        raise TaskAnnotatedError
    unit = work.task.get("data_unit")
    if type(unit) is int:
        unit = {"id": unit}
    if not isinstance(unit, dict):
        raise TaskFailedError("the task has no data unit")
    if not unit.get("files") and unit.get("id") is not None:
        unit = await backend.get_data_unit(unit["id"])
    work.files = parse_files(unit.get("files"))


class FileMethod:
    """Converts the file of the target specification."""

    slots = None
    application = None

    def __init__(self, params: ToTaskParams, hooks: Hooks) -> None:
        self._specification = params.target_specification_name or ""
        self._hooks = hooks

    def prepare(self, works: list[TaskWork], attempt: ChunkPass, until: float) -> list[TaskWork]:
        """See `AnnotationMethod`."""
        hook = self._hooks.convert_from_files
        return attempt.call_plugin(works, "convert_from_files", hook, self._item, set_data, until)

    async def infer(self, work: TaskWork) -> None:
        """Not needed."""

    def convert(self, works: list[TaskWork], attempt: ChunkPass) -> list[TaskWork]:  # noqa: ARG002
        """Not needed: `prepare` has set the data."""
        return works

    def _item(self, work: TaskWork) -> Item:
        primary = primary_file(work.files)
        target = file_of_specification(work.files, self._specification)
        return {
            "primary_file_url": primary.url,
            "primary_file_name": primary.name,
            "data_file_url": target.url,
            "data_file_name": target.name,
            "task_data": work.task,
        }


def set_data(work: TaskWork, data: dict[str, Any]) -> None:
    """Keep the plugin's conversion of the task."""
    work.data = data


MAX_TICKET_CHARS = 4_096


async def request_inference(backend: AsyncBackend, target: PreProcessor, call: Mapping[str, Any]) -> Any:
    """Send `call`, the plugin's `params`; returns the result, or a `Ticket` for a deferred one."""
    return _result(await backend.run_plugin(target.code, _body(target, call)), call.get("model"))


async def poll_inference(backend: AsyncBackend, target: PreProcessor, ticket: Ticket) -> Any:
    """The result of a deferred inference; raises `InferencePendingError` while it is running."""
    call: dict[str, Any] = {"method": "post", "json": {deferred.POLL_KEY: ticket.ticket}}
    if ticket.model is not None:
        call["model"] = ticket.model
    answer = _result(await backend.run_plugin(target.code, _body(target, call)), ticket.model)
    if isinstance(answer, Ticket):
        raise InferencePendingError
    return answer


def _body(target: PreProcessor, call: Mapping[str, Any]) -> dict[str, Any]:
    return {"agent": target.agent, "action": "inference", "params": dict(call), "version": target.version}


def _result(answer: Any, model: object) -> Any:
    if not isinstance(answer, dict) or answer.get(deferred.DEFERRED_KEY) is not True:
        return answer
    match answer.get("status"):
        case deferred.PENDING if _is_ticket(answer.get("ticket")):
            return Ticket(str(answer["ticket"]), model)
        case deferred.FAILED:
            reason = str(answer.get("error") or "no reason given")
            raise TaskFailedError(f"the pre-processor's inference failed: {reason}")
        case deferred.NOT_FOUND:
            raise TicketNotFoundError
    raise TaskFailedError("the pre-processor deferred the inference in a way that is not understood")


def _is_ticket(found: Any) -> bool:
    """A ticket is stored in Redis, so its length is bounded and it must not hold a token of the worker."""
    return (
        isinstance(found, str | int)
        and len(str(found)) <= MAX_TICKET_CHARS
        and not contains_secret(str(found))
    )


POLL_DELAYS: tuple[float, ...] = (0.25, 0.5, 1.0)
"""Seconds before the first polls of a ticket; after them the task waits for a later pass."""
MAX_NOT_FOUND_POLLS = 20
"""Polls in a row that find no such ticket, after which the inference is requested anew: tickets live in one
replica, and with several a poll may meet another one."""
MAX_NEW_REQUESTS = 3
"""Requests for one inference after the first."""
MAX_INFERENCE_SECONDS = 1_800.0
"""From the first request to the failure of the task."""


class InferenceMethod:
    """Asks a pre-processor, with at most `slots` concurrent requests; a deferred inference keeps its slot."""

    def __init__(
        self,
        params: ToTaskParams,
        hooks: Hooks,
        backend: AsyncBackend,
        ledger: Ledger,
        target: PreProcessor,
        slots: int,
    ) -> None:
        self._params, self._hooks, self._backend = params, hooks, backend
        self._ledger, self._target, self.slots = ledger, target, slots
        self.application = target.application

    def prepare(self, works: list[TaskWork], attempt: ChunkPass, until: float) -> list[TaskWork]:
        """See `AnnotationMethod`; a task whose inference is deferred has been prepared before."""
        ticketed = [work for work in works if work.open.ticket is not None]
        fresh = [work for work in works if work.open.ticket is None]
        hook = self._hooks.prepare_inference
        return ticketed + attempt.call_plugin(
            fresh, "prepare_inference", hook, self._preparation, _set_call, until
        )

    def convert(self, works: list[TaskWork], attempt: ChunkPass) -> list[TaskWork]:
        """See `AnnotationMethod`."""
        hook = self._hooks.convert_from_inference
        # Without `until`: an inference whose answer is not converted in this pass is repeated.
        return attempt.call_plugin(works, "convert_from_inference", hook, _answer_item, set_data, None)

    async def infer(self, work: TaskWork) -> None:
        """See `AnnotationMethod`; raises `InferencePendingError` while the inference is deferred."""
        ticket, polls = work.open.ticket, work.open.polls
        now = await asyncio.to_thread(self._ledger.now) if ticket or polls else 0.0
        if polls is not None and now - polls.first_at > MAX_INFERENCE_SECONDS:
            minutes = MAX_INFERENCE_SECONDS / 60
            raise TaskFailedError(f"the pre-processor's inference has not ended within {minutes:.0f} minutes")
        delays = (0.0, *POLL_DELAYS)
        if ticket is None:
            work.answer = await request_inference(self._backend, self._target, work.call)
            if not isinstance(work.answer, Ticket):
                _check_answer(work.answer)
                return
            ticket, delays = work.answer, POLL_DELAYS
            polls = await asyncio.to_thread(self._begin_polls, work, ticket)
        elif polls is None:  # A worker of an older version has requested it.
            polls = InferencePolls(now)
        for delay in delays:
            await asyncio.sleep(delay)
            try:
                work.answer = await poll_inference(self._backend, self._target, ticket)
            except InferencePendingError:
                polls = replace(polls, not_found=0)
            except TicketNotFoundError:
                polls = replace(polls, not_found=polls.not_found + 1)
                if polls.not_found >= MAX_NOT_FOUND_POLLS:
                    await asyncio.to_thread(self._give_up_ticket, work, polls)
                    raise InferencePendingError from None
            else:
                # The ticket is used up; if the task cannot be written, its inference is repeated.
                await asyncio.to_thread(self._end_polls, work)
                _check_answer(work.answer)
                return
        polls = replace(polls, passes=polls.passes + 1)
        await asyncio.to_thread(self._ledger.set_polls, work.open.position, polls)
        raise InferencePendingError

    def _begin_polls(self, work: TaskWork, ticket: Ticket) -> InferencePolls:
        position, known = work.open.position, work.open.polls
        polls = InferencePolls(self._ledger.now())
        if known is not None:
            polls = InferencePolls(known.first_at, known.requests + 1)
        self._ledger.set_polls(position, polls)
        self._ledger.set_ticket(position, ticket)
        return polls

    def _give_up_ticket(self, work: TaskWork, polls: InferencePolls) -> None:
        """Let a later pass request the inference anew, or fail the task."""
        if polls.requests > MAX_NEW_REQUESTS:
            raise TaskFailedError(
                "the pre-processor does not know the ticket of this inference any more"
                f" (it was requested {polls.requests} times)"
            )
        self._ledger.set_polls(work.open.position, InferencePolls(polls.first_at, polls.requests))
        self._ledger.set_ticket(work.open.position, None)

    def _end_polls(self, work: TaskWork) -> None:
        self._ledger.set_ticket(work.open.position, None)
        self._ledger.set_polls(work.open.position, None)

    def _preparation(self, work: TaskWork) -> Item:
        primary = primary_file(work.files)
        others = [file for file in work.files if file is not primary and not file.mistake]
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


def _check_answer(answer: Any) -> None:
    """As the published SDK has it: data made of nothing would replace what the task has."""
    if answer is None or (isinstance(answer, str | list | dict) and not answer):
        raise TaskFailedError("the pre-processor's inference failed: empty response")


def _answer_item(work: TaskWork) -> Item:
    return {"inference_data": work.answer, "task_data": work.task}


def _set_call(work: TaskWork, call: dict[str, Any]) -> None:
    work.call = call
