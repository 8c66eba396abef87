"""Plugin code that hangs, ends its process or answers too much, on a real Ray, from message to end."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from tests.harness.brokers import session_broker
from tests.harness.sandbox_harness import Row, SandboxHarness
from worker.sandbox import Process, Sandbox
from worker.sandbox.seed import SeededProject

TIMEOUT = 15
"""`WORKER_PLUGIN_TIMEOUT_SECONDS`: enough to import the plugin's modules on a busy machine."""
MAX_FAILURES = 3
PLUGIN = "bad@1.0.0"

pytestmark = pytest.mark.timeout(600)

CODE = """
    import json, os, time
    from worker.actions import ToTaskAction

    class ToTask(ToTaskAction):
        def convert_from_files(self, items):
            with open({calls!r}, "a") as file:
                print(json.dumps([item["task_data"]["id"] for item in items]), file=file)
            return super().convert_from_files(items)

        def convert_data_from_file(
            self, primary_file_url, primary_file_name, data_file_url, data_file_name, task_data=None
        ):
            if "/hang/" in data_file_url:
                time.sleep(3600)
            if "/die/" in data_file_url:
                os._exit(1)
            return {{"text": "x" * (65 * 1024 * 1024 if "/large/" in data_file_url else 1)}}
"""


class BadPlugins(SandboxHarness):
    """A sandbox with Ray whose one release does with a task what its files' URLs say."""

    # Up to four calls that hang, each followed by the start of a process, which is slow on a busy machine.
    MAX_WAIT_SECONDS = 500.0

    def __init__(self, sandbox: Sandbox, calls: Path) -> None:
        self.sandbox = sandbox
        self._calls = calls
        self.connect()
        self.worker = self.start_worker()

    def start_worker(self) -> Process:
        env = {
            "WORKER_PLUGIN_TIMEOUT_SECONDS": str(TIMEOUT),
            "WORKER_PLUGIN_MAX_FAILURES_IN_ROW": str(MAX_FAILURES),
            "WORKER_VISIBILITY_TIMEOUT_SECONDS": "20",
        }
        return self.sandbox.start_worker(concurrency=4, env=env)

    def bad_project(self, count: int, kind: Callable[[int], str]) -> SeededProject:
        """A project whose task of each number, from 0, has URLs with what `kind` says of it."""
        return self.new_project(count, file_url=lambda _, number: f"http://127.0.0.1/{kind(number)}/{number}")

    def annotate(self, project: SeededProject) -> str:
        return self.to_task(project, PLUGIN, method="file", target_specification_name="label_1")

    def calls(self, project: SeededProject) -> list[list[int]]:
        """The calls of the plugin, each with the numbers of its tasks, in their order."""
        if not self._calls.exists():
            return []
        made = [json.loads(line) for line in self._calls.read_text().splitlines()]
        first = project.tasks.start
        return [[id - first for id in ids] for ids in made if ids[0] in project.tasks]

    def calls_with(self, number: int, project: SeededProject) -> list[list[int]]:
        """The calls with a task; each of the others in its batch must have been called alone after it.

        Tasks are in one batch that are there at the same time, so on a busy machine a chunk may be several.
        """
        made = self.calls(project)
        found = [call for call in made if number in call]
        after = made[made.index(found[0]) + 1 :]
        assert all([each] in after for each in found[0]), made
        return found

    def failed(self, end: Row, project: SeededProject) -> dict[int, str]:
        """The failed tasks by number, with the reason."""
        failures = end["result"]["failures"]
        return {each["task_id"] - project.tasks.start: each["error"] for each in failures}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BadPlugins]:
    plugins, calls = tmp_path_factory.mktemp("plugins"), tmp_path_factory.mktemp("calls") / "calls"
    release = plugins / PLUGIN
    release.mkdir()
    (release / "config.yaml").write_text(
        'code: bad\nversion: "1.0.0"\nactions: {to_task: {entrypoint: actions.ToTask}}\n'
    )
    (release / "actions.py").write_text(dedent(CODE.format(calls=str(calls))))
    with Sandbox(plugins_dir=plugins, num_cpus=2, broker_url=session_broker.new_url()) as sandbox:
        yield BadPlugins(sandbox, calls)


@pytest.mark.ray
def test_only_a_task_that_hangs_fails(platform: BadPlugins) -> None:
    # Given a project with one such task
    project = platform.bad_project(6, lambda number: "hang" if number == 2 else "good")

    # When it is annotated
    end = platform.wait_for_end(platform.annotate(project))

    # Then all others have their data
    failed = platform.failed(end, project)
    assert (end["status"], list(failed)) == ("SUCCEEDED", [2])
    assert failed[2].endswith(f"convert_from_files took longer than {TIMEOUT} s and was stopped")
    assert platform.write_counts(project) == [1, 1, 0, 1, 1, 1]
    # And it was called once in a batch and once alone
    [_, alone] = platform.calls_with(2, project)
    assert alone == [2]


@pytest.mark.chaos
def test_only_a_task_that_ends_the_process_fails(platform: BadPlugins) -> None:
    project = platform.bad_project(6, lambda number: "die" if number == 2 else "good")

    end = platform.wait_for_end(platform.annotate(project))

    failed = platform.failed(end, project)
    assert (end["status"], list(failed)) == ("SUCCEEDED", [2])
    assert failed[2].endswith(f"the process of {PLUGIN} died")
    assert platform.write_counts(project) == [1, 1, 0, 1, 1, 1]
    # It was called once in a batch, and again alone where the process had answered the tasks before it.
    [_, *alone] = platform.calls_with(2, project)
    assert alone in ([[2]], [[2], [2]])


@pytest.mark.chaos
def test_only_a_task_with_too_large_an_answer_fails(platform: BadPlugins) -> None:
    project = platform.bad_project(4, lambda number: "large" if number == 2 else "good")

    end = platform.wait_for_end(platform.annotate(project))

    failed = platform.failed(end, project)
    assert (end["status"], list(failed)) == ("SUCCEEDED", [2])
    assert "has at least 65.0 MB as JSON, and 64 MB are allowed: return less" in failed[2]
    assert platform.write_counts(project) == [1, 1, 0, 1]
    # And no task was called twice
    assert sorted(task for call in platform.calls(project) for task in call) == list(range(4))


@pytest.mark.chaos
def test_a_plugin_that_only_hangs_ends_the_run_in_time(platform: BadPlugins) -> None:
    # Given a project whose tasks all hang
    project = platform.bad_project(40, lambda _: "hang")

    # When it is annotated
    end = platform.wait_for_end(platform.annotate(project))

    # Then the run ends FAILED with the reason, after one batch and as many tasks as may fail in a row
    error = end["result"]["error"]
    single = [call[0] for call in platform.calls(project) if len(call) == 1]
    assert end["status"] == "FAILED"
    assert error.startswith(
        f"The plugin hung or died on {MAX_FAILURES} tasks in a row,"
        f" the last of them task {project.tasks.start + single[-1]}"
    )
    assert f"took longer than {TIMEOUT} s and was stopped" in error
    assert len(set(single)) == MAX_FAILURES
    assert sum(platform.write_counts(project)) == 0


@pytest.mark.chaos
def test_a_plugin_that_only_dies_ends_the_run(platform: BadPlugins) -> None:
    project = platform.bad_project(40, lambda _: "die")

    end = platform.wait_for_end(platform.annotate(project))

    assert end["status"] == "FAILED"
    assert f"the process of {PLUGIN} died" in end["result"]["error"]
    # Each had a process of its own, so it was called once.
    single = [call[0] for call in platform.calls(project) if len(call) == 1]
    assert len(set(single)) == MAX_FAILURES


@pytest.mark.chaos
def test_a_killed_worker_leaves_no_task_to_hang_again(platform: BadPlugins) -> None:
    # Given a worker that is killed while it calls the bad task after one that hung
    project = platform.bad_project(5, lambda number: "hang" if number in (1, 2) else "good")
    job = platform.annotate(project)

    def bad_calls() -> list[int]:
        return [call[0] for call in platform.calls(project) if call in ([1], [2])]

    platform.wait_for(lambda: len(bad_calls()) == 2, "the call with the second bad task")
    platform.worker.kill()
    hung, under_way = bad_calls()
    before = len(platform.calls(project))

    # When another one goes on
    platform.worker = platform.start_worker()
    end = platform.wait_for_end(job)

    # Then the task that has hung is not called again, and the one that was under way is
    assert (end["status"], sorted(platform.failed(end, project))) == ("SUCCEEDED", [1, 2])
    # (In which order the tasks come, and which of them are there at the same time, depends on their files.)
    called = [task for call in platform.calls(project)[before:] for task in call]
    assert (called.count(hung), called.count(under_way)) == (0, 1)
    assert len(called) == len(set(called))
    assert platform.write_counts(project)[3:] == [1, 1]
