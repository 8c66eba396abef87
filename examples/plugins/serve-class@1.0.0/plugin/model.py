"""A model as a class: `_get_model` loads what is loaded once, `infer` answers each request."""

from typing import Any

from worker.actions import BaseServeDeployment


class Sentiment(BaseServeDeployment):
    """Answers `{"text": ...}` with `{"label": "positive"}`, `negative` or `neutral`."""

    async def _get_model(self, model_info: dict[str, Any]) -> dict[str, int]:
        return {"good": 1, "great": 1, "bad": -1, "poor": -1}

    async def infer(self, data: dict[str, Any]) -> dict[str, str]:
        weights = await self.get_model()
        score = sum(weights.get(word, 0) for word in data["text"].lower().split())
        return {"label": "positive" if score > 0 else "negative" if score < 0 else "neutral"}
