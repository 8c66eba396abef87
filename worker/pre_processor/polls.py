"""Publish a room's poll."""

from worker.pre_processor.names import RoomName
from worker.pre_processor.room import Room
from worker.pre_processor.steps import AWAIT_READY
from worker.runs.runs import Runs

FIRST_SECONDS = 0.5
GROWTH = 1.5


def start_poll(runs: Runs, name: RoomName, generation: int, countdown: float = 0.0) -> None:
    """Send the poll of `generation`; a sign of life of the room is due."""
    runs.live.expect(name.member, countdown)
    kwargs = {"room": name.key, "generation": generation}
    runs.sender.send(AWAIT_READY, AWAIT_READY.queue or "to_task", kwargs, countdown)


def wake(runs: Runs, name: RoomName) -> bool:
    """Something happened that a room waits for: poll now. False when nobody waits."""
    generation = Room(runs.redis, name).wake()
    if generation:
        start_poll(runs, name, generation)
    return bool(generation)


def ramp(attempt: int, ceiling: float) -> float:
    """Seconds until the next poll: half a second at first, growing."""
    return min(FIRST_SECONDS * GROWTH ** min(attempt, 50), ceiling)
