"""A model whose number of replicas follows the requests; the limits stand in `config.yaml`."""

import asyncio
import os
from typing import Any

from worker.actions import BaseServeDeployment


class Slow(BaseServeDeployment):
    """Takes a while, and says which replica it is."""

    async def infer(self, data: dict[str, Any]) -> dict[str, int]:
        await asyncio.sleep(0.3)
        return {"replica": os.getpid()}
