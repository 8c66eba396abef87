"""An inference that takes longer than a request may: the caller gets a ticket and polls for it.

The worker does so by itself, and so does the platform.
"""

import asyncio
from typing import Any

from worker.actions import BaseServeDeployment


class Slow(BaseServeDeployment):
    """Answers after `{"seconds": ...}`."""

    serve_deadline_s = 0.5

    async def infer(self, data: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(data["seconds"])
        return {"waited": data["seconds"]}
