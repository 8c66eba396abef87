"""Errors between the worker and a plugin's code, and how a host's reply is read."""

import json
from collections.abc import Callable
from typing import Any

from worker.platform import clean
from worker.plugins.output import PluginOutput, read_output


class PluginError(Exception):
    """The base of all errors of this package."""


class ReleaseNotFoundError(PluginError):
    """The plugin store has no release of that name. Put it in PLUGINS_DIR."""


class ReleaseInvalidError(PluginError):
    """The release exists but cannot be used: its archive, its config.yaml or its files are wrong."""


class PluginCallError(PluginError):
    """The author's code raised. `error_type` is the exception's class, `trace` the author's frames."""

    def __init__(self, error_type: str, message: str, trace: str = "") -> None:
        super().__init__(f"{error_type}: {message}" if message else error_type)
        self.error_type = error_type
        self.message = message
        self.trace = trace


class PluginProcessDiedError(PluginCallError):
    """The process of the author's code ended in the middle of a call."""


def died_by_itself(answered: int, payload: Any) -> bool:
    """Whether the call with `payload`, amid which its process died, is to blame for that.

    A process that has `answered` other calls may have been ended by what these left running, such as a
    timer, so an item is called once more, in a process of its own. Several items are not: which of them it
    is the caller finds out one a call.
    """
    return answered == 0 or (isinstance(payload, list) and len(payload) > 1)


class PluginHostUnavailableError(PluginError):
    """The host that runs plugin code is unavailable. A retry later may succeed."""


class PluginLoadError(PluginHostUnavailableError):
    """The release's modules hung or ended their process while they were imported, before any call."""


class ReleaseChangedError(PluginHostUnavailableError):
    """The release's files are no longer those of its checksum. A retry later sees the new ones."""


class PluginHostBusyError(PluginHostUnavailableError):
    """The release's process is busy with another run or chunk. A retry later gets a slot."""


class RayDriverError(PluginHostUnavailableError):
    """A call in the driver process raised, did not return in time, or the process ended.

    The message is the reason in short; `text` is what Ray said, cleaned of secrets, which may be pages long.
    """

    def __init__(self, error_type: str, reason: str, text: str = "") -> None:
        super().__init__(reason)
        self.error_type = error_type
        self.text = text


class PluginTimeoutError(PluginError):
    """Plugin code took longer than WORKER_PLUGIN_TIMEOUT_SECONDS and was stopped."""


HUNG_OR_DIED: tuple[type[PluginError], ...] = (PluginTimeoutError, PluginProcessDiedError)
"""The author's code did not answer at all, not even with an error."""


class RunEndedError(Exception):
    """The run has ended: what was called for it is abandoned, and nothing further is begun.

    No `PluginError`, because nothing has failed.
    """


def parse_reply(reply: str, on_output: Callable[[PluginOutput], None]) -> Any:
    """The operation's value; raises `PluginCallError` with the author's error, cleaned of secrets.

    `on_output` is called first, with what the author's code has said during the call.
    """
    try:
        content = json.loads(reply)
    except RecursionError:
        # Its own process, where less was on the stack, could still encode it.
        raise PluginCallError("ValueError", "the answer is nested too deeply") from None
    output = read_output(content.get("output"))
    if output is not None:
        on_output(output)
    if "error" not in content:
        return content["ok"]
    error = content["error"]
    raise PluginCallError(str(error["type"]), clean(str(error["message"])), clean(str(error["trace"])))
