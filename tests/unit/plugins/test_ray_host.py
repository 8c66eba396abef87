"""The Ray host on a driver process in memory: slots, errors, time-outs, and connections that are lost."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.harness.fake_ray_driver import FakeRayDriver
from worker.plugins import (
    ActionRequest,
    PluginCallError,
    PluginHostBusyError,
    PluginHostUnavailableError,
    PluginProcessDiedError,
    PluginStore,
    PluginTimeoutError,
    RayDriverError,
    RayHost,
    Release,
    RunEndedError,
    ray_host,
    run_end,
    waits_for_run,
)
from worker.plugins.ray_driver import RayConnection
from worker.plugins.ray_driver.operations import CallEnd

Write = Callable[..., Path]

REQUEST = ActionRequest("cat@1.0", "to_task", "plugin.to_task.ToTask")


class Packages:
    def keep(self, uri: str) -> bool:
        return True

    def ensure(self, release: Release) -> str:
        return "gcs://p.zip"


def ended(end: CallEnd, error_type: str = "", text: str = "", reply: str = "") -> dict[str, str]:
    return {"end": end, "reply": reply, "error_type": error_type, "text": text}


STARTED = ended(CallEnd.REPLY, reply="True")


LOADED = ended(CallEnd.REPLY, reply=json.dumps({"ok": None}))


def set_end(driver: FakeRayDriver, end: Any, start: Any = STARTED, load: Any = LOADED) -> None:
    """Let every call end so, and each start of a process and import; None is a call that does not end."""
    set_looks(driver, lambda call, _: {"start": start, "load": load}.get(call, end))


def set_looks(driver: FakeRayDriver, look: Callable[[str, float], Any]) -> None:
    """Let `look` answer for the call "start" of a process, "load" of a release, "task", and all others."""
    loads: set[str] = set()

    def call_actor(call: str, _actor: str, _request: str, operation: str, _payload: str, wait: float) -> Any:
        if operation == "load":
            loads.add(call)
        return wait_for_end(call, wait)

    def wait_for_end(call: str, wait: float) -> Any:
        return look("load" if call in loads else call, wait)

    driver.answers |= {"call_actor": call_actor, "wait_for_end": wait_for_end}


@pytest.fixture
def driver() -> FakeRayDriver:
    ids = iter(range(100))
    driver = FakeRayDriver(
        start_task=lambda *_: "task",
        start_actor=lambda *_: f"actor {next(ids)}",
        await_actor=lambda *_: "start",
        cancel_call=None,
        kill_actor=None,
        drop_actors=None,
    )
    set_end(driver, ended(CallEnd.REPLY, reply=json.dumps({"ok": 7})))
    return driver


@pytest.fixture
def connection(driver: FakeRayDriver, monkeypatch: pytest.MonkeyPatch) -> RayConnection:
    monkeypatch.setattr("worker.plugins.ray_driver.connection._probe", lambda *_: None)
    return RayConnection("head:6379", driver)


@pytest.fixture
def host(connection: RayConnection) -> RayHost:
    return RayHost(connection, Packages(), 300.0)


@pytest.fixture
def release(store: PluginStore, write_release: Write) -> Release:
    write_release("cat@1.0")
    return store.get("cat@1.0")


def batch(host: RayHost, release: Release) -> Any:
    return host.call_batch(release, REQUEST, "convert_from_files", [])


def test_call_without_a_slot_is_busy_and_not_a_timeout(
    host: RayHost, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_host, "MAX_SLOT_WAIT_SECONDS", 0.01)
    actor = ray_host._Actor("actor")
    with actor.slot, pytest.raises(PluginHostBusyError, match="busy"):
        host._call_in_slot(("a", "b"), actor, release, REQUEST, "convert_from_files", "[]")


def test_a_warm_up_loads_the_release_once(host: RayHost, release: Release, driver: FakeRayDriver) -> None:
    # Given a process whose import takes a while
    looks: list[str] = []
    loading, is_loaded = threading.Event(), threading.Event()

    def look(call: str, _: float) -> Any:
        if call == "start":
            return STARTED
        looks.append(call)
        if call == "load":
            loading.set()
            assert is_loaded.wait(10)
        return ended(CallEnd.REPLY, reply=json.dumps({"ok": 7}))

    set_looks(driver, look)
    # When it is warmed up, twice, and then called
    host.warm_up(release, REQUEST)
    host.warm_up(release, REQUEST)
    assert loading.wait(10)
    called = Future[Any]()
    threading.Thread(target=lambda: called.set_result(batch(host, release)), daemon=True).start()
    is_loaded.set()
    # Then the process was started and loaded once
    assert called.result(10) == 7
    assert (len(looks), looks[0]) == (2, "load")
    assert driver.calls.count("start_actor") == 1


def test_a_call_waits_for_a_warm_up_and_is_not_busy(
    host: RayHost, release: Release, driver: FakeRayDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a process that imports its release for longer than a call waits for another call
    monkeypatch.setattr(ray_host, "MAX_SLOT_WAIT_SECONDS", 0.01)
    waits: list[float] = []
    loading, is_loaded = threading.Event(), threading.Event()
    answer = ended(CallEnd.REPLY, reply=json.dumps({"ok": 7}))

    def wait_for_end(call: str, _: float) -> Any:
        if call == "load" and not is_loaded.is_set():
            loading.set()
            assert is_loaded.wait(10)
        return STARTED if call == "start" else answer

    def counted(try_once: Callable[[float], bool], seconds: float) -> bool:
        waits.append(seconds)
        if len(waits) == 3:
            is_loaded.set()
        return run_end.wait_for(try_once, seconds)

    set_looks(driver, wait_for_end)
    host.warm_up(release, REQUEST)
    assert loading.wait(10)
    monkeypatch.setattr(ray_host, "wait_for", counted)
    # When a call comes, then it is answered
    assert batch(host, release) == 7
    assert len(waits) >= 3


def test_a_warm_up_that_fails_leaves_the_error_to_the_call(
    host: RayHost, release: Release, driver: FakeRayDriver
) -> None:
    set_end(driver, ended(CallEnd.TASK_FAILED, "RayTaskError", "no module"))
    host.warm_up(release, REQUEST)
    with pytest.raises(PluginCallError, match="no module"):
        batch(host, release)


@pytest.mark.parametrize("end", [None, ended(CallEnd.ACTOR_DIED, "ActorDiedError")], ids=["hangs", "dies"])
def test_a_call_behind_one_that_ends_the_process_gets_another(
    connection: RayConnection, release: Release, driver: FakeRayDriver, end: dict[str, str] | None
) -> None:
    # Given a call that waits for its slot while another one is under way
    host = RayHost(connection, Packages(), 0.01)
    waiting = threading.Event()
    answers: list[Any] = []
    behind = threading.Thread(target=lambda: answers.append(batch(host, release)))

    class Slot:
        """Of the actor that both use; says when a call waits for it."""

        def __init__(self) -> None:
            self.lock = threading.Lock()

        def acquire(self, timeout: float) -> bool:
            if self.lock.locked():
                waiting.set()
            return self.lock.acquire(timeout=timeout)

        def release(self) -> None:
            self.lock.release()

    def fail(call: str, _: float) -> Any:
        # When the first call hangs, or ends the process
        if threading.current_thread() is not behind:
            if not waiting.is_set():
                behind.start()
                assert waiting.wait(30)
            return end
        return {"start": STARTED, "load": LOADED}.get(call, answer)

    answer = ended(CallEnd.REPLY, reply=json.dumps({"ok": 7}))
    batch(host, release)
    [actor] = host._actors.values()
    actor.slot = Slot()  # type: ignore[assignment]
    set_looks(driver, fail)
    with pytest.raises((PluginTimeoutError, PluginProcessDiedError)):
        host.call_batch(release, REQUEST, "convert_from_files", [{}, {}])
    behind.join(30)

    # Then the other one is answered by a process that is started for it
    assert (answers, driver.calls.count("start_actor")) == ([7], 2)


def test_a_one_off_call_returns_its_value(host: RayHost, release: Release) -> None:
    assert host.call(release, REQUEST, "plan", {}) == 7


def test_frequent_calls_share_an_actor(host: RayHost, release: Release, driver: FakeRayDriver) -> None:
    assert [batch(host, release), batch(host, release)] == [7, 7]
    assert driver.calls.count("start_actor") == 1


@pytest.mark.parametrize(
    ("answered", "items", "starts"),
    [(0, 1, 1), (1, 1, 2), (1, 2, 1)],
    ids=["the process's own first call", "after another call", "several items"],
)
def test_an_item_that_ends_a_used_process_is_called_again(
    host: RayHost, release: Release, driver: FakeRayDriver, answered: int, items: int, starts: int
) -> None:
    for _ in range(answered):
        batch(host, release)
    set_end(driver, ended(CallEnd.ACTOR_DIED, "ActorDiedError"))

    with pytest.raises(PluginCallError, match=r"ActorDiedError: the process of cat@1\.0 died"):
        host.call_batch(release, REQUEST, "convert_from_files", [{}] * items)

    assert (driver.calls.count("start_actor"), driver.calls.count("kill_actor")) == (starts, starts)


@pytest.mark.parametrize(
    ("load", "why"),
    [
        (None, r"PluginTimeoutError|load took longer than 0\.01 s"),
        (ended(CallEnd.ACTOR_DIED, "ActorDiedError"), "ActorDiedError: the process of cat@1.0 died"),
    ],
    ids=["hangs", "dies"],
)
def test_an_import_that_hangs_or_dies_is_no_fault_of_items(
    host: RayHost, release: Release, driver: FakeRayDriver, monkeypatch: pytest.MonkeyPatch,
    load: dict[str, str] | None, why: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(ray_host, "MAX_START_SECONDS", 0.01)
    set_end(driver, None, load=load)

    with pytest.raises(PluginHostUnavailableError, match=f"cat@1.0 cannot be imported: .*{why}"):
        batch(host, release)

    assert driver.calls[-1] == "kill_actor"


def test_the_import_is_not_in_the_time_of_the_call(
    connection: RayConnection, release: Release, driver: FakeRayDriver
) -> None:
    # Given a release whose import takes longer than a call may
    host = RayHost(connection, Packages(), 0.01)
    loads = iter([None, LOADED])
    reply = ended(CallEnd.REPLY, reply=json.dumps({"ok": 7}))

    def end(call: str, _: float) -> Any:
        if call == "load":
            return threading.Event().wait(0.02) or next(loads)
        return STARTED if call == "start" else reply

    set_looks(driver, end)

    # Then its first call is answered, and it is imported once
    assert [batch(host, release), batch(host, release)] == [7, 7]
    assert driver.calls.count("call_actor") == 3


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (ended(CallEnd.PROCESS_DIED, "OutOfMemoryError"), "OutOfMemoryError: the process of cat@1.0 died"),
        (ended(CallEnd.RUNTIME_ENV_FAILED, "RuntimeEnvSetupError", "pip\nno numpy"), "no numpy"),
        (ended(CallEnd.TASK_FAILED, "RayTaskError", "boom"), "RayTaskError: boom"),
    ],
)
def test_an_error_of_the_author_says_why(
    host: RayHost, release: Release, driver: FakeRayDriver, end: dict[str, str], message: str
) -> None:
    set_end(driver, end)

    with pytest.raises(PluginCallError, match=message):
        host.call(release, REQUEST, "plan", {})


def test_plugin_code_that_is_too_slow_is_stopped(
    connection: RayConnection, release: Release, driver: FakeRayDriver
) -> None:
    set_end(driver, None)
    host = RayHost(connection, Packages(), 0.01)

    with pytest.raises(PluginTimeoutError, match=r"longer than 0\.01 s"):
        host.call(release, REQUEST, "plan", {})
    with pytest.raises(PluginTimeoutError, match=r"longer than 0\.01 s"):
        batch(host, release)

    assert ("cancel_call" in driver.calls, "kill_actor" in driver.calls) == (True, True)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (None, r"cat@1\.0 has not started within 0\.01 s"),
        (ended(CallEnd.ACTOR_DIED, "ActorDiedError"), r"cat@1\.0 died at its start \(ActorDiedError\)"),
    ],
    ids=["slow", "dead"],
)
def test_a_process_that_does_not_start_is_no_fault_of_items(
    host: RayHost, release: Release, driver: FakeRayDriver, monkeypatch: pytest.MonkeyPatch,
    start: dict[str, str] | None, message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(ray_host, "MAX_START_SECONDS", 0.01)
    set_end(driver, None, start=start)

    with pytest.raises(PluginHostUnavailableError, match=message):
        batch(host, release)

    assert driver.calls[-1] == "kill_actor"
    assert "call_actor" not in driver.calls


def test_the_start_of_a_process_is_not_in_the_time_of_its_call(
    connection: RayConnection, release: Release, driver: FakeRayDriver
) -> None:
    # Given a process whose start takes longer than a call may
    host = RayHost(connection, Packages(), 0.01)
    polls = iter([None, STARTED])
    reply = ended(CallEnd.REPLY, reply=json.dumps({"ok": 7}))

    def end(call: str, _: float) -> Any:
        return (threading.Event().wait(0.02) or next(polls)) if call == "start" else reply

    set_looks(driver, end)

    # Then its first call is answered, and no further one waits for it
    assert [batch(host, release), batch(host, release)] == [7, 7]
    assert driver.calls.count("await_actor") == 1


def test_a_driver_that_hangs_is_no_fault_of_the_author(
    host: RayHost, release: Release, driver: FakeRayDriver
) -> None:
    driver.answers["wait_for_end"] = RayDriverError("TimeoutError", "no answer within 20 s")
    with pytest.raises(PluginHostUnavailableError, match="lost"):
        host.call(release, REQUEST, "plan", {})
    driver.answers["start_task"] = RayDriverError("TimeoutError", "no answer within 15 s")
    with pytest.raises(PluginHostUnavailableError, match="did not accept"):
        host.call(release, REQUEST, "plan", {})


def test_a_new_connection_has_new_actors(host: RayHost, release: Release, driver: FakeRayDriver) -> None:
    batch(host, release)
    driver.kill()

    assert batch(host, release) == 7

    assert driver.calls.count("start_actor") == 2


def test_idle_actors_are_dropped(
    host: RayHost, release: Release, driver: FakeRayDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch(host, release)
    monkeypatch.setattr(ray_host, "MAX_IDLE_SECONDS", -1.0)

    host.pin("gcs://a.zip")

    assert "drop_actors" in driver.calls


@pytest.fixture
def has_ended(monkeypatch: pytest.MonkeyPatch, driver: FakeRayDriver) -> Callable[[], bool]:
    """Whether the run has ended for which a call of the author's code is made, as it does during the call."""
    monkeypatch.setattr(run_end, "CHECK_INTERVAL_SECONDS", 0.0)
    waits: list[str] = []
    driver.answers["await_actor"] = lambda *_: "start"

    def wait(call: str, _seconds: float) -> dict[str, str]:
        if call != "start":
            waits.append(call)
            run_end.check_run()
        return ended(CallEnd.REPLY, reply=json.dumps({"ok": 7}))

    set_looks(driver, wait)
    return lambda: bool(waits)


def test_a_one_off_call_of_a_run_that_ends_is_cancelled(
    host: RayHost, release: Release, driver: FakeRayDriver, has_ended: Callable[[], bool]
) -> None:
    with waits_for_run(has_ended), pytest.raises(RunEndedError):
        host.call(release, REQUEST, "check_params", {})

    assert driver.calls[-2:] == ["wait_for_end", "cancel_call"]


def test_a_batch_of_a_run_that_ends_kills_its_process(
    host: RayHost, release: Release, driver: FakeRayDriver, has_ended: Callable[[], bool]
) -> None:
    # Given a run that ends during a call
    with waits_for_run(has_ended):
        with pytest.raises(RunEndedError):
            batch(host, release)
        assert driver.calls[-1] == "kill_actor"

        # Then no further call is begun for it
        calls = len(driver.calls)
        with pytest.raises(RunEndedError):
            batch(host, release)
        assert len(driver.calls) == calls

    # And another run gets a process of its own
    assert batch(host, release) == 7
    assert driver.calls.count("start_actor") == 2


def test_a_wait_for_a_busy_process_ends_with_the_run(
    host: RayHost, release: Release, monkeypatch: pytest.MonkeyPatch, driver: FakeRayDriver
) -> None:
    monkeypatch.setattr(run_end, "CHECK_INTERVAL_SECONDS", 0.02)
    actor = ray_host._Actor("actor")
    with actor.slot, waits_for_run(lambda: True), pytest.raises(RunEndedError):
        host._call_in_slot(("a", "b"), actor, release, REQUEST, "convert_from_files", "[]")

    assert driver.calls == [], "the process that another run uses is left alone"
