"""A model with routes of its own: FastAPI validates requests, and documents the routes under `/docs`."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field

from worker.actions import BaseServeDeployment

app = FastAPI(title="Sentiment")
WEIGHTS = {"good": 1, "great": 1, "bad": -1, "poor": -1}


class Text(BaseModel):
    text: str = Field(min_length=1)


class Sentiment(BaseServeDeployment):
    """`POST /` is where the platform sends an inference; other routes are the author's."""

    app = app

    @app.post("/")
    async def classify(self, body: Text) -> Any:
        return await self.handle_inference(body.model_dump())

    @app.get("/labels")
    async def labels(self) -> list[str]:
        return ["positive", "negative", "neutral"]

    async def infer(self, data: dict[str, Any]) -> dict[str, str]:
        score = sum(WEIGHTS.get(word, 0) for word in data["text"].lower().split())
        return {"label": "positive" if score > 0 else "negative" if score < 0 else "neutral"}
