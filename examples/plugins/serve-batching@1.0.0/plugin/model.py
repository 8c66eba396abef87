"""A model that is faster with several inputs at once; how many at most stands in `config.yaml`."""

from typing import Any

from worker.actions import BaseServeDeployment


class WordCount(BaseServeDeployment):
    """Answers `{"text": ...}` with the number of words, and of requests in its batch."""

    async def infer_batch(self, requests: list[dict[str, Any]]) -> list[dict[str, int]]:
        return [{"words": len(each["text"].split()), "batch": len(requests)} for each in requests]
