"""Where plugin code runs, as the workflows see it."""

from collections.abc import Iterable
from typing import Any, Protocol

from worker.plugins.requests import ActionRequest
from worker.plugins.store import Release


class PluginHost(Protocol):
    """Runs an *operation* of a release's entrypoint. What crosses is JSON, both ways.

    Both calls raise `PluginCallError` when the author's code raised, `PluginTimeoutError`, and
    `PluginHostUnavailableError` when the host cannot be reached. Safe for threads.
    """

    def call(self, release: Release, request: ActionRequest, operation: str, payload: Any) -> Any:
        """One-off work: plan a deployment, submit it, check parameters."""

    def call_batch(self, release: Release, request: ActionRequest, operation: str, payload: Any) -> Any:
        """Hot work: the release stays loaded between calls."""

    def pin(self, releases: Iterable[Release]) -> None:
        """Keep the packages of these from expiring; to be called every few minutes."""

    def close(self) -> None:
        """Give everything back."""
