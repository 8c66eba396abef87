"""The hooks of a plugin, called with batches: in the plugin's host, or directly on the action."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from worker.blame import Owner, in_task
from worker.plugins import (
    ActionRequest,
    PluginError,
    PluginHost,
    PluginHostBusyError,
    Release,
)

Item = dict[str, Any]
Answer = dict[str, Any]
Hook = Callable[[Sequence[Item]], list[Answer]]

MAX_CONVERSION_WAIT_SECONDS = 120.0
"""Seconds."""


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


def call_hook(hook: Hook, items: Sequence[Item]) -> list[Answer]:
    """The hook's answer to each item, also when one of them breaks the call.

    An item that hangs the host or ends its process fails alone: the items of its batch are then called one by
    one, because every further batch with the bad item would cost the whole timeout.
    Raises `PluginHostUnavailableError` when there is no host.
    """
    if not items:
        return []
    try:
        answers = hook(items)
    except PluginError as error:
        if in_task(error).owner is not Owner.TASK:
            raise
        if len(items) == 1:
            return [{"error": str(error)}]
        return [call_hook(hook, [item])[0] for item in items]
    if not isinstance(answers, list) or len(answers) != len(items):
        return [{"error": "the plugin did not answer with one result for each task"}] * len(items)
    return answers
