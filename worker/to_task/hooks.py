"""The hooks of a plugin, called with batches: in the plugin's host, or directly on the action."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from worker.blame import Owner, in_task
from worker.plugins import (
    HUNG_OR_DIED,
    ActionRequest,
    PluginError,
    PluginHost,
    PluginHostBusyError,
    Release,
)
from worker.runs.model import RunFailedError
from worker.to_task.ledger import Ledger, TaskOutcome

Item = dict[str, Any]
Answer = dict[str, Any]
Hook = Callable[[Sequence[Item]], list[Answer]]

MAX_CONVERSION_WAIT_SECONDS = 120.0
"""How long answers of inferences wait for a busy plugin, and, one a call, for each other's conversions."""


class Hooks(Protocol):
    """Each hook returns one answer per item, in order: `{"ok": value}` or `{"error": text}`."""

    def convert_from_files(self, items: Sequence[Item]) -> list[Answer]:
        """Task data from files."""

    def prepare_inference(self, items: Sequence[Item]) -> list[Answer]:
        """The parameters of inference calls."""

    def convert_from_inference(self, items: Sequence[Item]) -> list[Answer]:
        """Task data from the pre-processor's answers."""


class PluginHooks:
    """The hooks of a release, in its host."""

    def __init__(self, host: PluginHost, release: Release, request: ActionRequest) -> None:
        self._host, self._release, self._request = host, release, request

    def convert_from_files(self, items: Sequence[Item]) -> list[Answer]:
        """See `Hooks`."""
        return self._call("convert_from_files", items)

    def prepare_inference(self, items: Sequence[Item]) -> list[Answer]:
        """See `Hooks`."""
        return self._call("prepare_inference", items)

    def convert_from_inference(self, items: Sequence[Item]) -> list[Answer]:
        """See `Hooks`."""
        # Giving up would repeat the inferences, so this call waits longer for a busy plugin than the others.
        until = time.monotonic() + MAX_CONVERSION_WAIT_SECONDS
        while True:
            try:
                return self._call("convert_from_inference", items)
            except PluginHostBusyError:
                if time.monotonic() > until:
                    raise

    def _call(self, operation: str, items: Sequence[Item]) -> list[Answer]:
        answers: list[Answer] = self._host.call_batch(self._release, self._request, operation, list(items))
        return answers


MAX_FAILURES_IN_PASS = 2
"""Items on which the plugin hung or died, after which a chunk goes back: each may take the whole timeout."""


class PluginCalls:
    """The plugin's calls in one pass over a chunk, in the step's thread.

    Items go in batches. A batch whose call fails says nothing about any of its items, so from then on the
    items of its chunk go one a call, in later passes, too: an item is failed only by its own call. One on
    which the plugin hangs or dies is recorded at once, so that whatever happens to this worker nobody calls
    it again. Those are counted in a row, over all chunks, for each operation by itself: preparations that are
    answered say nothing about conversions.
    """

    def __init__(
        self, ledger: Ledger, chunk: int, max_failures_in_row: int, check_ended: Callable[[], bool]
    ) -> None:
        self._ledger, self._chunk = ledger, chunk
        self._max_failures_in_row = max_failures_in_row
        self._check_ended = check_ended
        self._failures = 0
        self._is_cut_short = False
        self.are_single = ledger.has_single_calls(chunk)

    @property
    def failed_too_often(self) -> bool:
        """Whether the plugin hung or died so often that the chunk is to go back."""
        return self._failures >= MAX_FAILURES_IN_PASS

    @property
    def is_over(self) -> bool:
        """Whether the pass works no further tasks; what is answered is still to be written."""
        return self.failed_too_often or self._is_cut_short

    def answers(
        self,
        operation: str,
        hook: Hook,
        items: Sequence[Item],
        until: float | None,
        failed: Callable[[int, str], TaskOutcome],
    ) -> Iterator[tuple[int, Answer]]:
        """The index of each item that is answered, with its answer; those left out are open or have failed.

        `hook` is the release's `operation`. `until`: when no further single call begins; by default after
        `MAX_CONVERSION_WAIT_SECONDS` of them. `failed` makes the outcome of an item that hung or died.
        Raises the errors that are not the items', and `RunFailedError` after too many failures in a row.
        """
        is_first = until is None or self.are_single or len(items) <= 1
        if not self.are_single and len(items) > 1:
            batch = self._batch(operation, hook, items)
            if batch is not None:
                yield from enumerate(batch)
                return
        until = time.monotonic() + MAX_CONVERSION_WAIT_SECONDS if until is None else until
        has_answered = False
        for index, item in enumerate(items):
            is_late = not is_first and time.monotonic() > until
            self._is_cut_short = self._is_cut_short or is_late
            if is_late or self.failed_too_often or self._check_ended():
                return
            is_first = False
            try:
                [answer] = _one_for_each(hook([item]), 1)
            except HUNG_OR_DIED as error:
                self._record_failure(operation, failed(index, str(error)))
                continue
            except PluginError as error:
                owner = in_task(error).owner
                if owner is Owner.DEPENDENCY and has_answered:
                    # What is answered is written first; the next pass meets the error before it has anything.
                    self._is_cut_short = True
                    return
                if owner is not Owner.TASK:
                    raise
                answer = {"error": str(error)}
            has_answered = True
            self._ledger.reset_plugin_failures(operation)
            yield index, answer

    def _batch(self, operation: str, hook: Hook, items: Sequence[Item]) -> list[Answer] | None:
        """The answers of one call; None when it failed, so that the items go one a call from now on."""
        try:
            answers = _one_for_each(hook(items), len(items))
        except PluginError as error:
            if in_task(error).owner is not Owner.TASK:
                raise
            self._ledger.begin_single_calls(self._chunk)
            self.are_single = True
            return None
        self._ledger.reset_plugin_failures(operation)
        return answers

    def _record_failure(self, operation: str, outcome: TaskOutcome) -> None:
        self._failures += 1
        if not self._ledger.record([outcome]):
            return
        in_row = self._ledger.count_plugin_failure(operation)
        if in_row >= self._max_failures_in_row:
            raise RunFailedError(
                f"The plugin hung or died on {in_row} tasks in a row, the last of them task {outcome.task_id}"
                f" ({outcome.error}). No other task is tried: run a release that is mended, or, if its calls"
                " only need longer, raise WORKER_PLUGIN_TIMEOUT_SECONDS"
            )


def _one_for_each(answers: Any, count: int) -> list[Answer]:
    found = answers if isinstance(answers, list) else []
    if len(found) != count or not all(isinstance(answer, dict) for answer in found):
        return [{"error": "the plugin did not answer with one result for each task"}] * count
    return found
