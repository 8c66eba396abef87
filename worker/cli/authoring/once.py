"""The process of `plugin run`: one task through the hooks of a release.

`python -m worker.cli.authoring.once CALL RESULT`: two files of JSON, the second of which it writes. It has an
error's whole traceback there from the author's first line on, where a worker keeps one line.
"""

import json
import sys
import traceback
from pathlib import Path
from typing import Any

from worker.plugins.output import OutputCollector
from worker.plugins.requests import ActionRequest
from worker.plugins.runner import dump_json, load_action


def run(call: dict[str, Any], output: OutputCollector) -> dict[str, Any]:
    """`{"ok": value}`, or `{"error": text}` with the author's traceback."""
    folder = Path(call["folder"])
    try:
        request = ActionRequest.from_json(call["request"])
        action = load_action(folder, request.entrypoint).from_request(request, output)
        value = getattr(action, call["hook"])(*call["positional"], **call["named"])
        if not isinstance(value, dict):
            raise TypeError(f"{call['hook']} must return a dict, not {type(value).__name__}")
        return {"ok": json.loads(dump_json(value))}
    except BaseException as error:  # also SystemExit of the author's
        return {"error": _traceback(error, folder)}


def _traceback(error: BaseException, folder: Path) -> str:
    frames = error.__traceback__
    while frames is not None and not Path(frames.tb_frame.f_code.co_filename).is_relative_to(folder):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames)).strip()


def main(call: Path, result: Path) -> None:
    """Run the call of the one file, and write the other."""
    output = OutputCollector()
    found = run(json.loads(call.read_text()), output)
    result.write_text(json.dumps({**found, "output": output.to_json()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
