"""Runs inside the host: imports a release's entrypoint and calls one operation of it.

An exception of the author's code is returned as data, never pickled: the worker could not import its class
and should not trust it.
"""

import importlib
import json
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

from shared.validation import json_mistake
from worker.plugins.output import OutputCollector
from worker.plugins.requests import ActionRequest

ADAPTER = "worker.actions.sdk:action_for"
"""Turns an entrypoint that is no action of ours into one: an action of the SDK, or what Serve can run."""
CONTEXT = "worker.actions.context:RuntimeContext"
"""What an action gets of its run, with clients where the worker has a token for them."""
LOAD = "load"
"""The operation of every entrypoint that imports it, and what its calls need, and calls nothing of it."""
RESULT_START, RESULT_END = "__SYNAPSE_RESULT_START__", "__SYNAPSE_RESULT_END__"
"""In the log of a Ray job that runs an action whole: lines before and after its result's JSON."""
OUTPUT_START, OUTPUT_END = "__SYNAPSE_OUTPUT_START__", "__SYNAPSE_OUTPUT_END__"
"""The same for what an action of ours has said (`worker.plugins.output`)."""
CLUSTER_TOKEN = "RAY_AUTH_TOKEN"  # noqa: S105 - the variable's name
"""Ray's own: every process of a cluster that asks for a token inherits it from the node's."""
MB = 1024 * 1024
MAX_REPLY_BYTES = 64 * MB
"""Of the JSON that a call returns, measured here, before it takes memory of Ray's store and of a worker."""
MAX_FRAMES = 8
MAX_FRAME_CHARS, MAX_NAME_CHARS, MAX_MESSAGE_CHARS = 500, 400, 4_000
"""Of an author's error that is returned: of each frame, of its class's name, of its message."""
_WORD = re.compile(r"""[^\s"'&,;<>()\[\]{}]{1,200}\Z""")


class EntrypointError(Exception):
    """The entrypoint that config.yaml names does not exist."""


class AnswerTooLargeError(Exception):
    """The author's code answered with more than `MAX_REPLY_BYTES`."""

    def __init__(self, size: int) -> None:
        super().__init__(
            f"the plugin's answer has at least {size / MB:.1f} MB as JSON, and {MAX_REPLY_BYTES // MB} MB are"
            " allowed: return less, for example a reference to a file instead of what is in it"
        )


def call_operation(folder: Path, request: ActionRequest, operation: str, payload: str) -> str:
    """Call `operation` of the entrypoint in `folder`; returns JSON, `{"ok": value}` or `{"error": ...}`.

    What the author's code says during the call stands beside that, as `output`.
    """
    output = OutputCollector()
    try:
        target = load_action(folder, request.entrypoint)
        value = None
        if operation == LOAD:
            _import_context(request)
        else:
            value = target.run_operation(request, operation, json.loads(payload), output)
        reply = _reply(value)
    # All that the author's code raises is caught, KeyboardInterrupt too: it would end Celery's thread or
    # Ray's process, the call would be lost, and the message would be redelivered forever.
    except BaseException as error:
        reply = json.dumps({"error": describe_error(error, folder)})
    said = output.to_json()
    return f'{reply[:-1]}, "output": {json.dumps(said)}}}' if said else reply


def _import_context(request: ActionRequest) -> None:
    """Import what every call of an action makes: importing the context's clients takes most of a second."""
    module_name, _, name = CONTEXT.partition(":")
    getattr(importlib.import_module(module_name), name).from_request(request)


def _reply(value: Any) -> str:
    """The reply's JSON; a list is encoded item by item, so that no text is made of one that is too large."""
    parts, size = [], 0
    for each in value if isinstance(value, list) else [value]:
        part = dump_json(each)
        size += len(part)
        check_size(size)
        parts.append(part)
    content = ", ".join(parts)
    return f'{{"ok": [{content}]}}' if isinstance(value, list) else f'{{"ok": {content}}}'


def dump_json(value: Any) -> str:
    """The value's JSON; raises `TypeError` or `ValueError`, which name the place that JSON cannot hold."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(json_mistake(value)) from None


def check_size(size: int) -> None:
    """Raise `AnswerTooLargeError` when so many bytes of JSON are too many for a reply."""
    if size > MAX_REPLY_BYTES:
        raise AnswerTooLargeError(size)


def run_in_ray(request: str, operation: str, payload: str) -> str:
    """`call_operation` as Ray calls it: the release's package is the working directory.

    Ray has read the cluster's token when the process started, and needs the variable no more.
    """
    os.environ.pop(CLUSTER_TOKEN, None)
    return call_operation(Path.cwd(), ActionRequest.from_json(request), operation, payload)


def load_action(folder: Path, entrypoint: str) -> Any:
    """The class of ours that the entrypoint is, or the one that stands for it."""
    target = load_entrypoint(folder, entrypoint)
    if hasattr(target, "run_operation"):
        return target
    module_name, _, name = ADAPTER.partition(":")
    return getattr(importlib.import_module(module_name), name)(target)


def load_entrypoint(folder: Path, entrypoint: str) -> Any:
    """Import `package.module.Class` or `package.module:Class` from the release's folder."""
    module_name, _, name = entrypoint.replace(":", ".").rpartition(".")
    path = str(folder)
    if sys.path[:1] != [path]:
        # At the first place, before the worker's own folder, which Ray adds to the path of its processes.
        sys.path[:] = [path, *(entry for entry in sys.path if entry != path)]
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise EntrypointError(f"entrypoint {entrypoint}: there is no module {error.name}") from None
        raise
    try:
        return getattr(module, name)
    except AttributeError:
        raise EntrypointError(f"entrypoint {entrypoint}: module {module_name} has no {name}") from None


def describe_error(error: BaseException, folder: Path) -> dict[str, str]:
    """The exception as data: its class, its message with the author's last line, the author's frames."""
    frames = [
        _cut(f"{Path(frame.filename).relative_to(folder)}:{frame.lineno} in {frame.name}", MAX_FRAME_CHARS)
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(folder)
    ][-MAX_FRAMES:]
    message = error_text(error)
    if frames:
        message = f"{message} ({frames[-1]})" if message else frames[-1]
    return {"type": error_name(error), "message": message, "trace": "\n".join(frames)}


def error_name(error: BaseException) -> str:
    """The name of the exception's class."""
    return _cut(type(error).__name__, MAX_NAME_CHARS)


def error_text(error: BaseException) -> str:
    """The exception's message."""
    try:
        text = str(error)
    except Exception:  # an author's __str__
        return "(its message cannot be printed)"
    return _cut(text, MAX_MESSAGE_CHARS)


def _cut(text: str, max_chars: int) -> str:
    if len(text) <= max_chars:
        return text
    # Never cut in the middle of a word: the worker could not recognise half a secret.
    return f"{_WORD.sub('', text[:max_chars])}…"


class BatchActor:
    """The process of one release. It ends with the worker that started it, which alone holds its handle."""

    def run(self, request: str, operation: str, payload: str) -> str:
        """See `run_in_ray`. Workers of other releases call it by this name."""
        return run_in_ray(request, operation, payload)
