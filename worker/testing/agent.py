"""An agent in memory: what the workflows ask of a cluster's capacity."""

from typing import Any

from worker.platform import NotFoundError
from worker.testing.faults import Faults


class FakeAgent:
    """Answers `check_feasibility` with `answer` and keeps what was asked.

    Attributes:
        faults: Errors to raise on demand.
        answer: The answer, `{"allowed": bool, "reasons": [...]}` (platform-api).
        asked: The keyword arguments of every question, in their order.
        resources: What the cluster has and what of it is free (platform-api: `GET resources/cluster/`).
        applications: What is on Ray Serve, by name.
    """

    def __init__(self) -> None:
        self.faults = Faults()
        self.answer: Any = {"allowed": True, "reasons": []}
        self.asked: list[dict[str, Any]] = []
        self.resources: Any = {"gpu": {"total_gpus": 2, "available_gpus": 0}, "total_serve_replicas": 3}
        self.applications: dict[str, Any] = {}

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

    def get_cluster_resources(self, use_cache: bool = True) -> Any:
        """What the cluster has and what of it is free (`GET resources/cluster/`).

        Args:
            use_cache: Makes no difference.

        Returns:
            `resources`, whatever it was set to.
        """
        with self.faults.of("get_cluster_resources"):
            return self.resources

    def get_serve_application(self, pk: str) -> Any:
        """An application on Ray Serve (`GET serve_applications/{name}/`).

        Args:
            pk: Its name.

        Returns:
            That of `applications`.

        Raises:
            NotFoundError: No application has that name.
        """
        with self.faults.of("get_serve_application", pk):
            if pk not in self.applications:
                raise NotFoundError
            return self.applications[pk]
