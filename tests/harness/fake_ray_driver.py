"""A driver process in memory: what it is asked is recorded, and what it answers is set by the test."""

from collections.abc import Callable
from typing import Any

from worker.plugins import RayDriverError
from worker.plugins.ray_driver import RayDriver

VERSIONS = {"ray": "2.60.0", "python": "3.12.1"}


class FakeRayDriver(RayDriver):
    """Answers by the function's name; an exception is raised, a callable is called."""

    def __init__(self, **answers: Any) -> None:
        super().__init__()
        self.answers: dict[str, Any] = {
            "load_ray": None,
            "connect": VERSIONS,
            "is_usable": True,
            **answers,
        }
        self.calls: list[str] = []
        self.starts = 0
        self.runs = False

    @property
    def is_running(self) -> bool:
        return self.runs

    def start(self) -> None:
        self.starts += 1
        self.runs = True

    def kill(self) -> None:
        self.runs = False

    def send(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.calls.append(function.__name__)

    def call(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        timeout: float,
        undo: Callable[[Any], Any] | None = None,
    ) -> Any:
        self.calls.append(function.__name__)
        if not self.runs:
            raise RayDriverError("ProcessEnded", "the process has ended")
        answer = self.answers[function.__name__]
        if isinstance(answer, Exception):
            raise answer
        return answer(*arguments) if callable(answer) else answer
