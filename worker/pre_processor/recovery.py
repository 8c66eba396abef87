"""Bring a waiting room back whose poll was lost."""

from worker.pre_processor.names import RoomName
from worker.pre_processor.polls import wake
from worker.runs.runs import Runs


def recover_room(key: str, runs: Runs) -> None:
    """Publish a poll of a new generation; forget a room in which nobody waits."""
    name = RoomName.parse(key)
    if not wake(runs, name):
        runs.live.forget(name.member)
