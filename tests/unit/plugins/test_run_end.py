"""Waits for plugin code and for Ray end soon after the run for which they wait."""

import threading
import time
from collections.abc import Iterator

import pytest

from worker.plugins import RunEndedError, check_run, run_end, waits_for_run
from worker.plugins.run_end import held, wait_for


@pytest.fixture(autouse=True)
def short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_end, "CHECK_INTERVAL_SECONDS", 0.02)


class Run:
    def __init__(self) -> None:
        self.ended = False
        self.looks = 0

    def has_ended(self) -> bool:
        self.looks += 1
        return self.ended


@pytest.fixture
def run() -> Iterator[Run]:
    run = Run()
    with waits_for_run(run.has_ended):
        yield run


def never(seconds: float) -> bool:
    return threading.Event().wait(seconds)


def test_a_wait_ends_with_its_run(run: Run) -> None:
    threading.Timer(0.1, lambda: setattr(run, "ended", True)).start()

    with pytest.raises(RunEndedError):
        wait_for(never)

    assert run.ended


def test_a_wait_has_its_own_end(run: Run) -> None:
    assert wait_for(lambda _: True)
    assert not wait_for(never, 0.1)
    assert 1 <= run.looks <= 5


def test_the_waits_of_a_step_share_their_looks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_end, "CHECK_INTERVAL_SECONDS", 3600.0)
    run.ended = True

    for _ in range(100):
        check_run()

    assert run.looks == 0, "a step that has just been claimed is not looked up"


def test_nothing_further_is_begun_for_a_run_that_has_ended(run: Run) -> None:
    run.ended = True
    with pytest.raises(RunEndedError):
        wait_for(never)

    with pytest.raises(RunEndedError):
        check_run()

    assert run.looks == 1


def test_a_wait_outside_of_a_run_goes_on() -> None:
    begun = time.monotonic()

    check_run()
    assert not wait_for(never, 0.1)

    assert time.monotonic() - begun >= 0.1


def test_a_lock_that_hangs_is_given_up_with_the_run(run: Run) -> None:
    lock = threading.Lock()
    with held(lock):
        run.ended = True
        with pytest.raises(RunEndedError), held(lock):
            raise AssertionError("two hold it")

    assert not lock.locked()
