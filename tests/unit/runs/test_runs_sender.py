"""Sending a step's message."""

from typing import Any

import pytest
from kombu.exceptions import OperationalError

from worker.runs.model import Step
from worker.runs.publisher import CeleryPublisher


class BrokenApp:
    """What kombu does when its connection breaks under another thread's hands."""

    def send_task(self, *_: Any, **__: Any) -> None:
        raise AttributeError("'NoneType' object has no attribute 'client'")


def test_whatever_breaks_while_publishing_is_the_brokers_fault() -> None:
    sender: Any = CeleryPublisher(BrokenApp())  # type: ignore[arg-type]

    with pytest.raises(OperationalError, match="AttributeError"):
        sender.publish(Step("to_task.prepare", position=20), "to_task", {"job": "1"})
