"""Modules under the names of the published SDK's, with the little of them that an adapter's unit tests need.

The real SDK needs Python 3.12; the tests marked `sdk` run its templates.
"""

from pathlib import Path
from textwrap import dedent

MODULES = {
    "clients.backend": """
        class BackendClient:
            def __init__(self, host, access_token=None, *, tenant=None):
                self.host, self.access_token, self.tenant = host, access_token, tenant
    """,
    "clients.agent": """
        class AgentClient:
            def __init__(self, url, agent_token, *, tenant=None):
                self.url, self.agent_token, self.tenant = url, agent_token, tenant
    """,
    "loggers": """
        class ConsoleLogger:
            def log(self, level, event, data, file=None, step=None):
                self._log_impl(event, dict(data), file, step, level)
            def set_progress(self, current, total, step=None):
                self._on_progress(type("Progress", (), {"percent": current * 100 / total}), step)
            def set_metrics(self, value, step):
                self._on_metrics(step, dict(value))
    """,
    "plugins.models.logger": """
        from enum import Enum
        class LogLevel(str, Enum):
            INFO = "info"
            WARNING = "warning"
    """,
    "plugins.context": """
        from dataclasses import dataclass
        from typing import Any
        class PluginEnvironment:
            def __init__(self, data): self.data = data
        @dataclass
        class RuntimeContext:
            logger: Any
            env: Any
            job_id: Any = None
            client: Any = None
            agent_client: Any = None
            language: Any = None
    """,
    "plugins.action": """
        from abc import ABC, abstractmethod
        class BaseAction(ABC):
            def __init__(self, params, ctx): self.params, self.ctx = params, ctx
            @abstractmethod
            def execute(self): ...
            def create_context(self):
                return type("Context", (), {"params": self.params.model_dump(), "inference": None})()
            def run(self): return self.execute()
    """,
    "plugins.actions.to_task.action": """
        from pydantic import BaseModel
        from synapse_sdk.plugins.action import BaseAction
        class ToTaskParams(BaseModel):
            name: str
            project: int
        class ToTaskAction(BaseAction):
            params_model = ToTaskParams
            context = None
            def execute(self): return self.run()
            def convert_data_from_inference(self, inference_data, task_data=None): raise NotImplementedError
            def setup_inference_params(self, url, name, files, *, model_id=None, pre_processor_params=None,
                                       pre_processor_config=None, task_data=None): return {}
    """,
    "plugins.actions.inference.deployment": """
        from synapse_sdk.plugins.action import BaseAction
        class BaseDeploymentAction(BaseAction):
            entrypoint = None
            def get_serve_app_name(self): return "the SDK's"
            def get_ray_actor_options(self): return {"num_cpus": self.params.num_cpus, "of": "the SDK"}
            def deploy(self): ...
    """,
}


def write_sdk_modules(folder: Path) -> None:
    """Write the package `synapse_sdk` into `folder`."""
    for name, source in MODULES.items():
        path = folder.joinpath("synapse_sdk", *name.split("."))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".py").write_text(dedent(source))
