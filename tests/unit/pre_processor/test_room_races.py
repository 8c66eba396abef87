"""Many threads come and go at once: nobody is forgotten, nothing is dispatched twice."""

import threading
from concurrent.futures import ThreadPoolExecutor

from tests.unit.pre_processor.room_helpers import FakeBackend, Hall
from tests.unit.runs.runs_helpers import RecordingSender
from worker.pre_processor.waitlist import AWAIT_READY


def test_runs_that_come_while_others_are_let_out_all_get_out(
    hall: Hall, api: FakeBackend, sender: RecordingSender
) -> None:
    jobs = [str(number) for number in range(150)]
    for job in jobs:
        hall.enter(job)
    hall.wait(jobs[0])
    api.runs_now()  # from here on every poll lets everybody out who is there
    done = threading.Event()

    def poll_on() -> None:
        """A worker with one slot for polls: carries out what is sent, and what comes back."""
        seen = 0
        mine: list[int] = []
        while not (done.is_set() and not mine and seen == len(sender.of(AWAIT_READY.name))):
            sent = sender.of(AWAIT_READY.name)
            mine += [each.kwargs["generation"] for each in sent[seen:]]
            seen = len(sent)
            for generation in mine[:]:
                mine.remove(generation)
                again = hall.poll(generation)
                if again is not None:
                    mine.append(again.generation)

    pollers = [threading.Thread(target=poll_on) for _ in range(2)]
    for poller in pollers:
        poller.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hall.wait, jobs[1:]))
    done.set()
    for poller in pollers:
        poller.join(20)
    assert hall.waiting() == []
    assert set(hall.sent_on()) == set(jobs)
    assert len(hall.sent_on()) == len(jobs)
    assert len(api.dispatched) == 1
