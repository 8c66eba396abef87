"""The program of a Ray job that runs an action of ours whole: `python -m worker.whole_run.entrypoint`.

Its working directory is the release. It prints the result between two lines, as the program of the published
SDK does for the SDK's actions; an error of the author's ends it with the traceback.
"""

import inspect
import json
import os
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from worker.plugins.output import OutputCollector, OutputEntry
from worker.plugins.requests import ENTRIES, ActionRequest
from worker.plugins.runner import (
    OUTPUT_END,
    OUTPUT_START,
    RESULT_END,
    RESULT_START,
    dump_json,
    load_entrypoint,
)

REQUEST_VARIABLE: Final = "SYNAPSE_ACTION_REQUEST"
"""Holds the JSON of the `ActionRequest`."""


class PrintingCollector(OutputCollector):
    """Also prints each entry when it comes, so that the job's log has it at once."""

    def add(self, event: str, data: Any, level: str = "info", step: str | None = None) -> None:
        """Add and print an entry.

        Args:
            event: The kind of event.
            data: What belongs to it.
            level: The level's name.
            step: The step that it belongs to.
        """
        super().add(event, data, level, step)
        print(OutputEntry.model_construct(event=event, data=dict(data)).text, flush=True)


def run_whole(target: Any, request: ActionRequest, output: OutputCollector) -> Any:
    """Run an action from its first method on.

    Args:
        target: The author's class.
        request: The request of the run.
        output: What collects the messages, progress and metrics of the action.

    Returns:
        The action's result.

    Raises:
        ParamsError: The parameters do not fit the action's model.
    """
    action = target.from_request(request, output)
    first = next(name for name in ENTRIES if hasattr(target, name))
    if first == "dispatch" and inspect.ismethod(target.dispatch):
        return target.dispatch(request.params, action.ctx)
    return getattr(action, first)()


def main() -> None:
    """Run the action of the environment's request, and print its result."""
    request = ActionRequest.from_json(os.environ.pop(REQUEST_VARIABLE))
    output = PrintingCollector()
    try:
        result = run_whole(load_entrypoint(Path.cwd(), request.entrypoint), request, output)
    finally:
        if said := output.to_json():
            print(OUTPUT_START, json.dumps(said), OUTPUT_END, sep="\n", flush=True)
    if isinstance(result, BaseModel):
        result = result.model_dump(mode="json")
    content = result if isinstance(result, dict) else {"result": result}
    print(RESULT_START, dump_json(content), RESULT_END, sep="\n", flush=True)


if __name__ == "__main__":
    main()
