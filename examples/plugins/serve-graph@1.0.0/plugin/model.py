"""A graph of deployments, built by a function: the text is cleaned, then classified by two models that vote.

A result that is still being computed is passed on as it is: Serve waits for it where it is needed.
"""

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request

CPUS = {"num_cpus": 0.1}


@serve.deployment(ray_actor_options=CPUS)
class Clean:
    async def __call__(self, text: str) -> list[str]:
        return text.lower().replace(".", " ").replace("!", " ").split()


@serve.deployment(ray_actor_options=CPUS)
class Vote:
    """Votes with the words that it knows."""

    def __init__(self, weights: dict[str, int]) -> None:
        self._weights = weights

    async def __call__(self, words: list[str]) -> int:
        return sum(self._weights.get(word, 0) for word in words)


@serve.deployment(ray_actor_options=CPUS)
class Ingress:
    def __init__(self, clean: DeploymentHandle, *voters: DeploymentHandle) -> None:
        self._clean = clean
        self._voters = voters

    async def __call__(self, request: Request) -> dict[str, Any]:
        words = self._clean.remote((await request.json())["text"])
        votes = [await vote for vote in [voter.remote(words) for voter in self._voters]]
        return {"label": "positive" if sum(votes) > 0 else "negative", "votes": votes}


def application() -> Application:
    """Build the graph; called when it is deployed."""
    praise, blame = Vote.options(name="Praise"), Vote.options(name="Blame")
    voters = praise.bind({"good": 1, "great": 2}), blame.bind({"bad": -1, "poor": -2})
    return Ingress.bind(Clean.bind(), *voters)
