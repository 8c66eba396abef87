"""The actor that keeps a release loaded between batches."""

from worker.plugins.runner import run_in_ray


class BatchActor:
    """One release's process. It dies with the worker that started it, which alone holds its handle."""

    def run(self, request: str, operation: str, payload: str) -> str:
        """One operation, as `runner.run_in_ray`."""
        return run_in_ray(request, operation, payload)
