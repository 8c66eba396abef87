"""An agent in memory: the capacity question of the deploy workflow."""

from typing import Any

from worker.testing.faults import Faults


class FakeAgent:
    """Answers `check_feasibility` with `answer` and keeps what was asked.

    Attributes:
        faults: Errors to raise on demand.
        answer: The answer, `{"allowed": bool, "reasons": [...]}` (platform-api).
        asked: The keyword arguments of every question, in their order.
    """

    def __init__(self) -> None:
        self.faults = Faults()
        self.answer: Any = {"allowed": True, "reasons": []}
        self.asked: list[dict[str, Any]] = []

    def check_feasibility(self, **asked: Any) -> Any:
        """Whether the cluster has room (`POST resources/feasibility/`).

        Args:
            **asked: The body of the request.

        Returns:
            `answer`, whatever it was set to.
        """
        self.asked.append(asked)
        with self.faults.of("check_feasibility"):
            return self.answer
