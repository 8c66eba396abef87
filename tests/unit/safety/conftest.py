from tests.unit.workflow.conftest import backend, sender, services, task_runner

__all__ = ["backend", "sender", "services", "task_runner"]
