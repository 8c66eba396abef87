"""Plugin code in child processes: apart from each other and the worker, and ended when it hangs."""

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from worker.platform import register_secrets
from worker.plugins import (
    ClientAccess,
    PluginCallError,
    PluginHostBusyError,
    PluginHostUnavailableError,
    PluginProcessDiedError,
    PluginStore,
    PluginTimeoutError,
    ProcessHost,
    RunEndedError,
    process_host,
    request_for,
    run_end,
    waits_for_run,
)
from worker.plugins.child_process import process
from worker.sandbox import wait_for

PARAMS = {"name": "n", "project": 1, "agent": 1, "target_specification_name": "x"}
CONFIG = """
code: {code}
version: "1.0"
env: {{OWN: of the release}}
actions: {{to_task: {{entrypoint: plugin.ToTask}}}}
"""
CODE = """
    import os, subprocess, sys, threading, time
    from pathlib import Path
    from worker.actions import ToTaskAction

    with open(Path(__file__).with_name("imports"), "a") as file:
        print(os.getpid(), file=file)
    CALLS = []

    class ToTask(ToTaskAction):
        def convert_data_from_inference(self, inference_data, task_data=None):
            CALLS.append(1)
            match inference_data:
                case "hang":
                    time.sleep(3600)
                case "die":
                    os._exit(3)
                case ["start and die", path]:
                    Path(path).write_text(str(subprocess.Popen(["sleep", "600"]).pid))
                    os._exit(3)
                case "die later":
                    threading.Timer(0.05, os._exit, [1]).start()
                case ["wait for", path]:
                    while not Path(path).exists():
                        time.sleep(0.01)
            return {"pid": os.getpid(), "calls": len(CALLS), "env": dict(os.environ)}
"""


class Releases:
    """Releases that do as their items say, called on one host."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = PluginStore(folder / "plugins", folder / "cache", 10**6)
        self.host = ProcessHost(timeout=30.0)

    def write(self, code: str, head: str = "") -> None:
        release = self._folder / "plugins" / f"{code}@1.0"
        release.mkdir(parents=True)
        (release / "config.yaml").write_text(CONFIG.format(code=code))
        (release / "plugin.py").write_text(f"{dedent(head)}{dedent(CODE)}")

    def call(
        self, *items: Any, code: str = "cat", host: ProcessHost | None = None, is_one_off: bool = False
    ) -> list[Any]:
        release = self._store.get(f"{code}@1.0")
        request = request_for(release, "to_task", PARAMS, ClientAccess("http://backend.test"))
        payload = [{"inference_data": item} for item in items]
        host = host or self.host
        call = host.call if is_one_off else host.call_batch
        answers = call(release, request, "convert_from_inference", payload)
        return [answer["ok"] for answer in answers]

    def imports(self, code: str = "cat") -> list[int]:
        """Process ids of the processes that have imported the release, in their order."""
        found = self._folder / "plugins" / f"{code}@1.0" / "imports"
        return [int(line) for line in found.read_text().split()] if found.exists() else []


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def has_ended(child: int) -> bool:
    """Whether a child of this process has ended with all of its threads; the first may end earlier."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


@pytest.fixture
def releases(tmp_path: Path) -> Iterator[Releases]:
    found = Releases(tmp_path)
    found.write("cat")
    yield found
    found.host.close()


def test_a_process_is_that_of_its_release_and_stays(releases: Releases) -> None:
    releases.write("dog")

    answers = [releases.call(1, code=code)[0] for code in ("cat", "dog", "cat", "dog")]

    assert [answer["calls"] for answer in answers] == [1, 1, 2, 2]
    assert len({answer["pid"] for answer in answers} | {os.getpid()}) == 3


def test_the_environment_has_no_setting_or_secret(
    releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker's settings, Ray's token, secrets under other names, and what GPUs need
    register_secrets(["s3cr3t-of-the-worker"], forever=True)
    settings = {
        "SYNAPSE_ACCESS_TOKEN": "a", "WORKER_X": "b", "REDIS_URL": "c", "CELERY_BROKER_URL": "d",
        "RAY_AUTH_TOKEN": "e", "MY_NAME": "Bearer s3cr3t-of-the-worker", "AWS_SECRET_ACCESS_KEY": "f",
        "HTTPS_PROXY": "http://u:p@proxy.test", "CUDA_SECRET": "s3cr3t-of-the-worker",
    }  # fmt: skip
    for name, value in {**settings, "CUDA_VISIBLE_DEVICES": "0"}.items():
        monkeypatch.setenv(name, value)

    [answer] = releases.call(1)

    assert settings.keys() & answer["env"].keys() == set()
    assert (answer["env"]["CUDA_VISIBLE_DEVICES"], answer["env"]["OWN"]) == ("0", "of the release")
    assert answer["env"]["SYNAPSE_PLUGIN_RELEASE_CODE"] == "cat@1.0"


def test_a_call_that_hangs_is_ended_and_the_next_is_answered(releases: Releases) -> None:
    host = ProcessHost(timeout=0.5)

    with pytest.raises(PluginTimeoutError, match=r"convert_from_inference took longer than 0\.5 s"):
        releases.call("hang", host=host)

    assert not is_alive(releases.imports()[0])
    assert releases.call(1)[0]["calls"] == 1


def test_a_call_that_ends_its_process_says_how(releases: Releases) -> None:
    with pytest.raises(PluginProcessDiedError, match=r"the process of cat@1\.0 died \(exit code 3\)"):
        releases.call("die")

    assert releases.call(1)[0]["calls"] == 1


def test_what_a_dead_process_has_started_ends_with_it(releases: Releases, tmp_path: Path) -> None:
    started = tmp_path / "started"

    with pytest.raises(PluginProcessDiedError):
        releases.call(["start and die", str(started)])

    wait_for(lambda: not is_alive(int(started.read_text())), 10, "the end of what it has started")


def test_an_item_is_blamed_for_the_end_of_its_own_process_alone(releases: Releases) -> None:
    # Given a process that has answered
    releases.call(1)

    # When an item ends it, then the item was called again in one of its own
    with pytest.raises(PluginProcessDiedError):
        releases.call("die")
    assert len(releases.imports()) == 2

    # And where it has a new process already, it is not called again
    with pytest.raises(PluginProcessDiedError):
        releases.call("die")
    assert len(releases.imports()) == 3


def test_a_batch_that_ends_its_process_is_not_called_again(releases: Releases) -> None:
    releases.call(1)

    with pytest.raises(PluginProcessDiedError):
        releases.call(1, "die")

    assert len(releases.imports()) == 1


def test_what_an_item_has_left_behind_fails_no_other(releases: Releases, tmp_path: Path) -> None:
    # Given an item that lets its process end after its answer
    [first] = releases.call("die later")

    # When the process ends amid the call of another item
    def finish() -> None:
        wait_for(lambda: not is_alive(first["pid"]), 10, "the end of the process")
        (tmp_path / "go").touch()

    waiting = threading.Thread(target=finish)
    waiting.start()
    [second] = releases.call(["wait for", str(tmp_path / "go")])
    waiting.join()

    # Then that one is answered by another process
    assert second["pid"] != first["pid"]


def test_a_process_that_died_between_two_calls_is_replaced(releases: Releases) -> None:
    [first] = releases.call("die later")
    wait_for(lambda: has_ended(first["pid"]), 10, "the end of the process")

    assert [answer["calls"] for answer in releases.call(1, 2)] == [1, 2]


def test_the_import_is_not_in_the_time_of_a_call(releases: Releases) -> None:
    releases.write("slow", head="import time\ntime.sleep(1.0)\n")

    assert releases.call(1, code="slow", host=ProcessHost(timeout=0.9))[0]["calls"] == 1


@pytest.mark.parametrize("head", ["import time; time.sleep(3600)", "import os; os._exit(1)"])
def test_modules_that_hang_or_die_at_import_fail_no_item(
    releases: Releases, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    monkeypatch.setattr(process, "MAX_LOAD_SECONDS", 0.5)
    releases.write("bad", head=f"{head}\n")

    with pytest.raises(PluginHostUnavailableError, match=r"bad@1\.0 cannot be imported: "):
        releases.call(1, code="bad")


def test_a_one_off_call_answers_for_its_import(releases: Releases) -> None:
    releases.write("bad", head="import os; os._exit(1)\n")

    with pytest.raises(PluginCallError, match=r"PluginLoadError: bad@1\.0 cannot be imported: "):
        releases.call(1, code="bad", is_one_off=True)


def test_a_call_is_ended_with_its_run(releases: Releases, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a run that is stopped while its call hangs
    monkeypatch.setattr(run_end, "CHECK_INTERVAL_SECONDS", 0.05)
    releases.call(1)
    has_ended = threading.Event()
    threading.Timer(0.3, has_ended.set).start()

    # When its end is looked up, then the call is ended, and its process
    with waits_for_run(has_ended.is_set), pytest.raises(RunEndedError):
        releases.call("hang")
    assert not is_alive(releases.imports()[-1])


def test_no_call_is_begun_for_a_run_that_has_ended(
    releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_end, "CHECK_INTERVAL_SECONDS", 0.0)

    with waits_for_run(lambda: True), pytest.raises(RunEndedError):
        releases.call(1)
    assert releases.imports() == []


def test_calls_side_by_side_have_a_process_each(
    releases: Releases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given as many calls as there may be processes, which wait
    monkeypatch.setattr(process_host, "MAX_PROCESSES", 2)
    monkeypatch.setattr(process_host, "MAX_SLOT_WAIT_SECONDS", 0.2)
    go = tmp_path / "go"
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(releases.call, ["wait for", str(go)]) for _ in range(2)]
        wait_for(lambda: len(releases.imports()) == 2, 30, "two processes")
        # When another comes, then it is to come again
        with pytest.raises(PluginHostBusyError, match=r"cat@1\.0: its processes are busy"):
            releases.call(1)
        go.touch()
        answered = {future.result()[0]["pid"] for future in waiting}

    assert answered == set(releases.imports())


def test_short_calls_one_after_the_other_share_a_process(releases: Releases) -> None:
    releases.call(1)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: releases.call(1)[0], range(40)))

    assert {answer["pid"] for answer in answers} == {releases.imports()[0]}


def test_processes_end_when_the_host_is_closed(releases: Releases) -> None:
    [answer] = releases.call(1)

    releases.host.close()

    assert not is_alive(answer["pid"])


def test_a_large_answer_arrives_whole(releases: Releases) -> None:
    text = json.dumps(list(range(1_000_000)))
    releases.write("large", head=f"TEXT = 'x' * {len(text)}\n")

    assert len(releases.call(*range(8))) == 8
