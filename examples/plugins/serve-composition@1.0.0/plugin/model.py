"""An application of several deployments: one that takes the requests calls the others, at the same time.

Each has replicas and resources of its own. The ingress gets a handle for each deployment that is bound to it.
"""

import asyncio
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request

WEIGHTS = {"good": 1, "great": 1, "bad": -1, "poor": -1}


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Sentiment:
    async def __call__(self, text: str) -> str:
        score = sum(WEIGHTS.get(word, 0) for word in text.lower().split())
        return "positive" if score > 0 else "negative" if score < 0 else "neutral"


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Length:
    async def __call__(self, text: str) -> str:
        return "short" if len(text) < 40 else "long"


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Ingress:
    def __init__(self, sentiment: DeploymentHandle, length: DeploymentHandle) -> None:
        self._sentiment = sentiment
        self._length = length

    async def __call__(self, request: Request) -> dict[str, Any]:
        text = (await request.json())["text"]
        sentiment, length = await asyncio.gather(self._sentiment.remote(text), self._length.remote(text))
        return {"sentiment": sentiment, "length": length}


application = Ingress.bind(Sentiment.bind(), Length.bind())
