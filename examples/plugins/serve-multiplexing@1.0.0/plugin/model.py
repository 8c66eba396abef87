"""Many models behind one application: each request names one, and replicas keep the last ones."""

from typing import Any

from worker.actions import BaseServeDeployment


class Greeting(BaseServeDeployment):
    """Greets in the manner of the model that the request's header `serve_multiplexed_model_id` names."""

    max_models = 2

    def __init__(self, backend_url: str) -> None:
        super().__init__(backend_url)
        self._loads = 0

    async def _get_model(self, model_info: dict[str, Any]) -> str:
        # A model of the platform comes with the folder of its unpacked file, `model_info["path"]`.
        self._loads += 1
        return f"Model {model_info['id']} says" if model_info else "No model says"

    async def infer(self, data: dict[str, Any]) -> dict[str, Any]:
        return {"greeting": f"{await self.get_model()}: {data['text']}", "loads": self._loads}
