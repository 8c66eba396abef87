"""One pass over the open tasks of a chunk: the outcome of each, and which are left for a later pass."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from worker import blame, tracing
from worker.blame import MAX_ATTEMPTS, Blame, Owner, Retries, TaskFailedError
from worker.platform import AuthenticationError, ClientError, clean, error_type
from worker.plugins import RunEndedError
from worker.runs.ends import RunEnd
from worker.to_task.clients import pass_has_ended
from worker.to_task.hooks import Hook, Item, PluginCalls
from worker.to_task.ledger import Ledger, OpenTask, TaskOutcome
from worker.to_task.steps import InferencePendingError, TaskAnnotatedError

_NAMES = ("file_name_original", "filename", "name")
_SPECIFICATIONS = ("specification", "specification_name", "name")


@dataclass(frozen=True)
class File:
    """One file of a data unit; `specification` is its name in the data collection.

    `mistake`: why it cannot be used, which fails only a task that needs it.
    """

    url: str
    name: str | None
    specification: str | None
    is_primary: bool
    mistake: str = ""


def parse_files(found: Any) -> list[File]:
    """The files in `found`: a mapping from specification to file, or a list of files (platform-api)."""
    if found and isinstance(found, Mapping):
        return [_file(each, str(specification)) for specification, each in found.items()]
    if found and isinstance(found, list):
        return [_file(each, None) for each in found]
    raise TaskFailedError("the task's data unit has no files")


def primary_file(files: list[File]) -> File:
    """The primary file."""
    return _sound([file for file in files if file.is_primary], "the task has no primary file")


def file_of_specification(files: list[File], specification: str) -> File:
    """The file of the target specification."""
    named = [file for file in files if file.specification == specification]
    return _sound(named, f"the task has no file of the specification {specification!r}")


def _sound(files: list[File], missing: str) -> File:
    for file in files:
        if not file.mistake:
            return file
    raise TaskFailedError(files[0].mistake if files else missing)


def _file(found: Any, specification: str | None) -> File:
    if not isinstance(found, Mapping):
        return File(
            "",
            None,
            specification,
            False,
            f"the task's file of the specification {specification!r} is no object",
        )
    specification = specification or _first(found, _SPECIFICATIONS)
    url, mistake = found.get("url"), ""
    if not isinstance(url, str) or not url:
        url, mistake = "", f"the task's file of the specification {specification!r} has no url"
    return File(url, _first(found, _NAMES), specification, found.get("is_primary") is True, mistake)


def _first(found: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((value for name in names if isinstance(value := found.get(name), str) and value), None)


class OutcomeRecorder:
    """Records outcomes in groups, off the event loop. `ended` is set once the run is known to have ended."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiting: list[TaskOutcome] = []
        self._next: asyncio.Task[None] | None = None
        self._write_lock = asyncio.Lock()
        self.ended = False

    async def record(self, mark: TaskOutcome) -> None:
        """Return once the outcome is in the ledger, with those that arrived during the last write."""
        self._waiting.append(mark)
        if self._next is None:
            self._next = asyncio.ensure_future(self._write())
        await asyncio.shield(self._next)

    async def _write(self) -> None:
        async with self._write_lock:
            marks, self._waiting, self._next = self._waiting, [], None
            if not await asyncio.to_thread(self._ledger.record, marks):
                self.ended = True


T = TypeVar("T")

MAX_ENDED_CHECK_AGE_SECONDS = 0.02
"""Maximum age of the last check for the run's end when a request is sent."""
MAX_HEARD_CHECK_AGE_SECONDS = 1.0
"""The same while the end is heard: a process that was suspended may have lost its lease, or an event."""
MAX_ERROR_CHARS = 500
"""Length of a failure record: a thousand of them go to the backend in one job result."""


@dataclass
class TaskWork:
    """A task while it is fetched, converted and written."""

    open: OpenTask
    task: dict[str, Any] = field(default_factory=dict)
    files: list[File] = field(default_factory=list)
    call: dict[str, Any] = field(default_factory=dict)
    answer: Any = None
    data: dict[str, Any] = field(default_factory=dict)
    is_sampled: bool = False
    """Whether each of its requests has a span in the run's trace."""

    def skipped(self) -> TaskOutcome:
        """The outcome of a task that was annotated before."""
        return TaskOutcome(self.open.position, self.open.task_id, was_annotated=True)

    def outcome(self, error: str | None = None) -> TaskOutcome:
        """The outcome; an error is redacted and cut for users."""
        if error is not None:
            error = clean(error)
            error = error if len(error) <= MAX_ERROR_CHARS else f"{error[: MAX_ERROR_CHARS - 1]}…"
        return TaskOutcome(self.open.position, self.open.task_id, error)


@dataclass(frozen=True)
class FailedAttempt:
    """An attempt at a task that counts; after `max_attempts` of them its outcome is recorded."""

    outcome: TaskOutcome
    max_attempts: int


class ChunkPass:
    """The state of one pass.

    `retryable`: tasks whose request failed for a reason that may pass, by position. `postponed`: errors
    that are not the task's, such as that of a service that asks for a later call, by position.
    `pending_inferences`:
    positions of deferred inferences. `got_answer`: some request was answered, so the services are up and
    other failures concern their own task. `token_rejected`: a request was answered 401, which may concern
    all of them. `saturated`: the pre-processor has as many inferences as it may be sent. `plugin`: the calls
    of the plugin, of which `max_failures_in_row` that hang or die end the run.
    """

    def __init__(self, ledger: Ledger, chunk: int, max_failures_in_row: int, run_end: RunEnd) -> None:
        self._ledger = ledger
        self._run_end = run_end
        self._recorder = OutcomeRecorder(ledger)
        self.retryable: dict[int, FailedAttempt] = {}
        self.postponed: dict[int, ClientError] = {}
        self.pending_inferences: set[int] = set()
        self.got_answer = False
        self.token_rejected = False
        self.saturated = False
        self.stopped = False
        self._looked = float("-inf")
        self._looking: asyncio.Future[bool] | None = None
        self.plugin = PluginCalls(ledger, chunk, max_failures_in_row, self.check_ended)

    @property
    def is_asked_to_wait(self) -> bool:
        """Whether a service said when it is to be called again."""
        return any(blame.retry_after_seconds(error) is not None for error in self.postponed.values())

    @property
    def is_over(self) -> bool:
        """Whether the pass works no further tasks, because of the pre-processor or the plugin."""
        return self.saturated or self.plugin.is_over

    @property
    def ended(self) -> bool:
        """Whether the run is known to have ended."""
        return self.stopped or self._recorder.ended or self._run_end.heard

    def check_ended(self) -> bool:
        """Check whether the run has ended; requests that have not been sent are dropped then."""
        began = time.monotonic()
        self.stopped = self.stopped or self._ledger.has_ended()
        self._looked = began
        return self.ended

    def check_ended_if_due(self) -> bool:
        """The same; while the end is heard, Redis is asked only when the last check says too little."""
        is_due = self._run_end.heard_since is None or self._looked < self._check_due_since()
        return self.ended or (is_due and self.check_ended())

    def _check_due_since(self) -> float:
        """The last check must not be older than this."""
        now, heard_since = time.monotonic(), self._run_end.heard_since
        if heard_since is None:
            return now - MAX_ENDED_CHECK_AGE_SECONDS
        # An end before anything was heard is only found by a check after that.
        return max(heard_since, now - MAX_HEARD_CHECK_AGE_SECONDS)

    async def has_ended(self) -> bool:
        """Whether the run has ended, as of just now; concurrent callers share one check. On the loop."""
        since = self._check_due_since()
        while not self.ended and self._looked < since:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.ensure_future(asyncio.to_thread(self.check_ended))
            await asyncio.shield(self._looking)
        return self.ended

    async def process(
        self,
        work: TaskWork,
        call: Callable[[TaskWork], Awaitable[None]],
        blame_for: Callable[[BaseException], Blame] = blame.in_task,
    ) -> bool:
        """Run `call` for one task; False when the task goes no further in this pass. On the event loop."""
        if self.ended:
            return False
        pass_has_ended.set(self.has_ended)
        tracing.sample_requests(work.is_sampled)
        try:
            await call(work)
        except RunEndedError:
            return False
        except InferencePendingError:
            self.got_answer = True
            self.pending_inferences.add(work.open.position)
            return False
        except TaskFailedError as error:
            self.got_answer = True
            await self.record(work.outcome(str(error)))
            return False
        except TaskAnnotatedError:
            self.got_answer = True
            await self.record(work.skipped())
            return False
        except ClientError as error:
            await self._handle(error, work, blame_for(error))
            return False
        self.got_answer = True
        return True

    async def _handle(self, error: ClientError, work: TaskWork, found: Blame) -> None:
        self.token_rejected = self.token_rejected or isinstance(error, AuthenticationError)
        if found.owner is Owner.RUN:
            raise error
        if found.owner is not Owner.TASK:
            self.postponed[work.open.position] = error
            return
        outcome = work.outcome(f"{error_type(error)}: {error}")
        if found.retries is Retries.NONE:
            self.got_answer = True
            await self.record(outcome)
        else:
            self.retryable[work.open.position] = FailedAttempt(outcome, MAX_ATTEMPTS[found.retries])

    async def record(self, mark: TaskOutcome) -> None:
        """Write the outcome into the ledger. On the event loop."""
        await self._recorder.record(mark)

    def call_plugin(
        self,
        tasks: Sequence[TaskWork],
        operation: str,
        hook: Hook,
        make_item: Callable[[TaskWork], Item],
        store_answer: Callable[[TaskWork, Any], None],
        until: float | None,
    ) -> list[TaskWork]:
        """Call the hook and return the tasks with an answer, see `PluginCalls`. In the step's own thread.

        Tasks for which there is no time, or which the plugin's state leaves for later, stay open.
        """
        items: list[Item] = []
        marks: list[TaskOutcome] = []
        asked: list[TaskWork] = []
        for work in tasks:
            try:
                items.append(make_item(work))
                asked.append(work)
            except TaskFailedError as error:
                marks.append(work.outcome(str(error)))
        ready: list[TaskWork] = []

        def failed(index: int, error: str) -> TaskOutcome:
            return asked[index].outcome(error)

        for index, answer in self.plugin.answers(operation, hook, items, until, failed):
            work = asked[index]
            if isinstance(answer.get("ok"), dict):
                store_answer(work, answer["ok"])
                ready.append(work)
            else:
                marks.append(work.outcome(str(answer.get("error") or "the plugin returned no data")))
        if marks and not self._ledger.record(marks):
            self.stopped = True
        return ready
