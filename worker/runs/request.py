"""How a received message is shown: job, plugin and action, and nothing else of its arguments."""

from typing import Any

from celery.worker.request import Request

from worker.platform import redact

SHOWN = ("job", "plugin", "action")


def shown(kwargs: Any) -> dict[str, str | int]:
    """The arguments that logs and task events may show."""
    if not isinstance(kwargs, dict):
        return {}
    values = {key: kwargs.get(key) for key in SHOWN}
    return {
        key: value[:100] if isinstance(value, str) else value
        for key, value in values.items()
        if isinstance(value, str | int)
    }


class QuietRequest(Request):
    """Replaces what the publisher says of its arguments, on receipt: a bare `send_task` shows them all."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._argsrepr = "()"
        self._kwargsrepr = repr(shown(self._kwargs))
        self._request_dict["argsrepr"] = self._argsrepr
        self._request_dict["kwargsrepr"] = self._kwargsrepr

    def info(self, safe: bool = False) -> Any:  # noqa: ARG002 - `inspect active` asks for the unsafe form
        """What `inspect` and Flower see."""
        return super().info(safe=True)

    def send_event(self, type: str, **fields: Any) -> None:
        """Tell the monitors; what an exception or its traceback says is cleaned of secrets first."""
        shown = {name: redact(value) if isinstance(value, str) else value for name, value in fields.items()}
        super().send_event(type, **shown)
