"""A Ray Serve in memory."""

from worker.deploy.cluster import ServeState
from worker.testing.faults import Faults


class FakeServe:
    """One application on Ray Serve.

    Attributes:
        faults: Errors to raise on demand.
        application: What Serve shows of it.
        removed: Names of the applications that were removed.
        replaced: What the application showed before the last submission, if it ran.
    """

    def __init__(self) -> None:
        self.faults = Faults()
        self.application = ServeState()
        self.removed: list[str] = []
        self.replaced: ServeState | None = None

    def state(self, app_name: str, max_age: float = 0.0) -> ServeState:
        """What Serve shows of the application."""
        with self.faults.of("state", app_name):
            return self.application

    def remove(self, app_name: str) -> None:
        """Remove the application."""
        with self.faults.of("remove", app_name):
            self.removed.append(app_name)
            self.application = ServeState()

    def put_back(self, app_name: str, failed: str) -> bool:
        """Let the application run again what it ran before."""
        with self.faults.of("put_back", app_name):
            if self.replaced is None:
                return False
            self.application, self.replaced = self.replaced, None
            return True

    def submit(self, digest: str, route_prefix: str | None) -> None:
        """Show the application as DEPLOYING; one that is there keeps its route."""
        before = self.application
        self.replaced = before if before.bucket == "running" else None
        route = before.route_prefix or route_prefix
        self.application = ServeState(True, "pending", "DEPLOYING", "", frozenset({digest}), route)
