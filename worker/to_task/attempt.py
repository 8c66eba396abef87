"""One pass over tasks that are open: what each of them came to, and what is held for a later pass."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from worker.platform import AuthenticationError, ClientError, clean, error_type
from worker.to_task.clients import run_has_ended
from worker.to_task.hooks import Hook, Item, answers_of
from worker.to_task.ledger import Ledger, Mark, OpenTask
from worker.to_task.steps import StillPendingError, StoppedError, TaskFailedError, may_pass

_NAMES = ("file_name_original", "filename", "name")
_SPECIFICATIONS = ("specification", "specification_name", "name")


@dataclass(frozen=True)
class File:
    """One file: `specification` is its name in the data collection."""

    url: str
    name: str | None
    specification: str | None
    is_primary: bool


def files_of(found: Any) -> list[File]:
    """The files in `found`, a mapping from specification to file or a list of files."""
    if isinstance(found, Mapping):
        return [_file(each, str(specification)) for specification, each in found.items()]
    if isinstance(found, list):
        return [_file(each, None) for each in found]
    raise TaskFailedError("the task's data unit has no files")


def primary_of(files: list[File]) -> File:
    """The primary file."""
    for file in files:
        if file.is_primary:
            return file
    raise TaskFailedError("the task has no primary file")


def of_specification(files: list[File], specification: str) -> File:
    """The file of the target specification."""
    for file in files:
        if file.specification == specification:
            return file
    raise TaskFailedError(f"the task has no file of the specification {specification!r}")


def _file(found: Any, specification: str | None) -> File:
    if not isinstance(found, Mapping):
        raise TaskFailedError("the files of the task's data unit are malformed")
    specification = specification or _first(found, _SPECIFICATIONS)
    url = found.get("url")
    if not isinstance(url, str) or not url:
        raise TaskFailedError(f"the task's file of the specification {specification!r} has no url")
    return File(url, _first(found, _NAMES), specification, found.get("is_primary") is True)


def _first(found: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((value for name in names if isinstance(value := found.get(name), str) and value), None)


class Recorder:
    """For one pass. `over` is set once the ledger takes nothing more: the run has ended."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiting: list[Mark] = []
        self._next: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self.over = False

    async def record(self, mark: Mark) -> None:
        """Return once `mark` is in the ledger, with those that came while it waited for the last write."""
        self._waiting.append(mark)
        if self._next is None:
            self._next = asyncio.ensure_future(self._write())
        await asyncio.shield(self._next)

    async def _write(self) -> None:
        async with self._turn:
            marks, self._waiting, self._next = self._waiting, [], None
            if not await asyncio.to_thread(self._ledger.record, marks):
                self.over = True


T = TypeVar("T")

FRESH_SECONDS = 0.02
"""So old may be the news that the run goes on when a request is sent."""
LONGEST_ERROR = 500
"""Characters of a failure record: a thousand of them go to the backend in one answer."""


@dataclass
class Work:
    """A task on its way from its id to the data that is written."""

    open: OpenTask
    task: dict[str, Any] = field(default_factory=dict)
    files: list[File] = field(default_factory=list)
    call: dict[str, Any] = field(default_factory=dict)
    answer: Any = None
    data: dict[str, Any] = field(default_factory=dict)

    def mark(self, error: str | None = None) -> Mark:
        """What came of it; an error is made fit to be shown."""
        if error is not None:
            error = clean(error)
            error = error if len(error) <= LONGEST_ERROR else f"{error[: LONGEST_ERROR - 1]}…"
        return Mark(self.open.position, self.open.task_id, error)


async def gather_all(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All to their end, also when one raises; then the first error is raised."""
    outcomes = await asyncio.gather(*coroutines, return_exceptions=True)
    results: list[T] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    return results


class Attempt:
    """`held`: tasks whose request failed in a way that may pass. `waiting`: inferences that run on.

    `answered`: somebody on the other side answered, so what failed is about its task. `denied`: a request was
    refused for its token, which may be about all of them. `full`: the pre-processor is busy with as many
    inferences as it may be sent.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._recorder = Recorder(ledger)
        self.held: dict[int, Mark] = {}
        self.waiting: set[int] = set()
        self.answered = False
        self.denied = False
        self.full = False
        self.stopped = False
        self._looked = float("-inf")
        self._looking: asyncio.Future[bool] | None = None

    @property
    def over(self) -> bool:
        """Whether the run was found ended."""
        return self.stopped or self._recorder.over

    def look(self) -> bool:
        """Look whether the run has ended; what is under way hears of it."""
        began = time.monotonic()
        self.stopped = self.stopped or self._ledger.is_over()
        self._looked = began
        return self.over

    async def has_ended(self) -> bool:
        """Whether the run has ended, as of just now; all who ask at once share one look. On the loop."""
        since = time.monotonic() - FRESH_SECONDS
        while not self.over and self._looked < since:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.ensure_future(asyncio.to_thread(self.look))
            await asyncio.shield(self._looking)
        return self.over

    async def each(self, works: Sequence[Work], call: Callable[[Work], Awaitable[None]]) -> list[Work]:
        """`call` for all at once; returns those for which it went well. On the loop."""
        outcomes = await gather_all(self.one(work, call) for work in works)
        return [work for work, went_well in zip(works, outcomes, strict=True) if went_well]

    async def one(
        self, work: Work, call: Callable[[Work], Awaitable[None]], passing: tuple[type[ClientError], ...] = ()
    ) -> bool:
        """`call` for one; False when its task goes no further in this pass. On the loop.

        `passing`: errors that may pass with this call, though not with others.
        """
        if self.over:
            return False
        run_has_ended.set(self.has_ended)
        try:
            await call(work)
        except StoppedError:
            return False
        except StillPendingError:
            self.answered = True
            self.waiting.add(work.open.position)
            return False
        except TaskFailedError as error:
            self.answered = True
            await self.record(work.mark(str(error)))
            return False
        except ClientError as error:
            text = f"{error_type(error)}: {error}"
            is_denial = isinstance(error, AuthenticationError)
            self.denied = self.denied or is_denial
            if is_denial or may_pass(error) or isinstance(error, passing):
                self.held[work.open.position] = work.mark(text)
            else:
                self.answered = True
                await self.record(work.mark(text))
            return False
        self.answered = True
        return True

    async def record(self, mark: Mark) -> None:
        """Into the ledger, now. On the loop."""
        await self._recorder.record(mark)

    def ask_plugin(
        self,
        works: Sequence[Work],
        hook: Hook,
        item: Callable[[Work], Item],
        take: Callable[[Work, Any], None],
    ) -> list[Work]:
        """The hook's answers for `works`; returns those that have one. In the step's own thread."""
        items: list[Item] = []
        marks: list[Mark] = []
        asked: list[Work] = []
        for work in works:
            try:
                items.append(item(work))
                asked.append(work)
            except TaskFailedError as error:
                marks.append(work.mark(str(error)))
        ready: list[Work] = []
        for work, answer in zip(asked, answers_of(hook, items), strict=True):
            if isinstance(answer.get("ok"), dict):
                take(work, answer["ok"])
                ready.append(work)
            else:
                marks.append(work.mark(str(answer.get("error") or "the plugin returned no data")))
        if marks and not self._ledger.record(marks):
            self.stopped = True
        return ready
