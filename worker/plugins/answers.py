"""Read what `runner.run` wrote, on the worker's side."""

import json
from typing import Any

from worker.platform import clean
from worker.plugins.errors import PluginCallError


def read_answer(answer: str) -> Any:
    """The operation's value, or `PluginCallError` with the author's error, cleaned of secrets."""
    content = json.loads(answer)
    if "error" not in content:
        return content["ok"]
    error = content["error"]
    raise PluginCallError(str(error["type"]), clean(str(error["message"])), clean(str(error["trace"])))
