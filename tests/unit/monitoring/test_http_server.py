"""The pages of the HTTP server, and what is recorded for them."""

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import fakeredis
import prometheus_client.values
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import ConnectionError as RedisConnectionError

from shared.channels import dead_letters_key
from worker import metrics
from worker.broker.keys import delayed_key, unacked_key
from worker.host import make_private
from worker.monitoring import exposition, http_server
from worker.monitoring.exposition import Exposition, metrics_folder, remove_metrics_of_ended
from worker.monitoring.pages import Pages
from worker.monitoring.redis_metrics import Queues
from worker.monitoring.worker_states import StateFile, WorkerState, states_folder, states_root
from worker.pre_processor.serve_application import PreProcessor
from worker.pre_processor.waitlist import Waitlist, WaitlistName, waitlists_key
from worker.runs.keys import heartbeats_key
from worker.runs.model import Outcome, Reschedule, Suspend

NAME = "all@host"


@pytest.fixture(autouse=True)
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is a worker that is ready and records, in a host's temporary directory of its own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(prometheus_client.values, "ValueClass", prometheus_client.values.MutexValue)
    monkeypatch.setattr(metrics, "_metrics", None)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    now = time.monotonic()
    StateFile(states_folder(), NAME).write(WorkerState(NAME, os.getpid(), now, True, now))
    folder = metrics_folder(NAME, os.getpid())
    make_private(folder, states_root())
    metrics.start_recording(folder)


@pytest.fixture
def pages(redis: fakeredis.FakeRedis) -> Pages:
    return Pages(Exposition(redis, Queues(redis, ["deploy", "annotate"])))


def get(pages: Pages, path: str, method: str = "GET") -> tuple[int, str]:
    """Status and body."""
    statuses: list[str] = []
    body = pages({"REQUEST_METHOD": method, "PATH_INFO": path}, lambda status, _: statuses.append(status))
    return int(statuses[0].split()[0]), b"".join(body).decode()


def value(pages: Pages, name: str, **labels: str) -> float | None:
    """The value of one sample; None when there is none with exactly these labels."""
    _, text = get(pages, "/metrics")
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"synapse_worker_{name}" and sample.labels == labels:
                return float(sample.value)
    return None


# What the workers of this host have recorded


def test_runs_are_counted_by_action_and_status(pages: Pages) -> None:
    metrics.count_accepted("to_task")
    metrics.count_ended("to_task", "FAILED")

    assert value(pages, "runs_accepted_total", action="to_task", worker=NAME) == 1
    assert value(pages, "runs_ended_total", action="to_task", status="FAILED", worker=NAME) == 1


@pytest.mark.parametrize(("outcome", "name"), [(Suspend(), "suspended"), (Reschedule(1.0), "rescheduled")])
def test_a_step_is_measured_by_what_followed(pages: Pages, outcome: Outcome, name: str) -> None:
    metrics.StepTimer("to_task.prepare").observe(outcome)

    labels = {"step": "to_task.prepare", "outcome": name, "worker": NAME}
    assert value(pages, "step_seconds_count", **labels) == 1
    assert value(pages, "step_seconds_bucket", le="+Inf", **labels) == 1


def test_annotations_are_counted_by_result(pages: Pages) -> None:
    metrics.count_annotations(success=7, failed=2)

    assert value(pages, "annotations_total", result="success", worker=NAME) == 7
    assert value(pages, "annotations_total", result="failed", worker=NAME) == 2


def test_a_request_is_measured_by_service_and_status(pages: Pages) -> None:
    metrics.observe_request("backend", "PATCH", 503, time.monotonic() - 0.2)

    labels = {"service": "backend", "method": "PATCH", "status": "503", "worker": NAME}
    assert value(pages, "request_seconds_bucket", le="0.1", **labels) == 0
    assert value(pages, "request_seconds_bucket", le="30.0", **labels) == 1


def test_a_dead_letter_of_an_unknown_task_counts_as_other(pages: Pages) -> None:
    # Given names that anybody may send, each of which would be a series of its own
    for task in ("deploy", "x" * 10_000, "y"):
        metrics.count_rejected(task)

    assert value(pages, "dead_letters_total", task="deploy", worker=NAME) == 1
    assert value(pages, "dead_letters_total", task="other", worker=NAME) == 2


def test_nothing_is_recorded_without_a_port(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_metrics", None)

    metrics.count_accepted("deploy")

    assert value(pages, "runs_accepted_total", action="deploy", worker=NAME) is None


def test_each_worker_of_the_host_has_its_own_series(pages: Pages) -> None:
    # Given two workers that have counted
    metrics.count_accepted("deploy")
    now = time.monotonic()
    StateFile(states_folder(), "two@host").write(WorkerState("two@host", os.getppid(), now, True, now))
    other = metrics_folder("two@host", os.getppid())
    make_private(other, states_root())
    metrics.start_recording(other)
    metrics.count_accepted("deploy")
    metrics.count_accepted("deploy")

    assert value(pages, "runs_accepted_total", action="deploy", worker=NAME) == 1
    assert value(pages, "runs_accepted_total", action="deploy", worker="two@host") == 2


def test_what_ended_workers_have_recorded_is_removed() -> None:
    ended = metrics_folder("old@host", 2**22 + 1)
    make_private(ended, states_root())

    remove_metrics_of_ended()

    assert not ended.exists()
    assert metrics_folder(NAME, os.getpid()).exists()


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Numbers of processes that have ended."""
    pids: set[int] = set()
    monkeypatch.setattr(exposition, "is_running", lambda pid: pid not in pids)
    return pids


def record_as(pid: int) -> None:
    """Let a process of the pool record a run and a step."""
    make = prometheus_client.values.MultiProcessValue
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prometheus_client.values, "ValueClass", None)
        patch.setattr(prometheus_client.values, "MultiProcessValue", lambda: make(lambda: pid))
        patch.setattr(metrics, "_metrics", None)
        metrics.start_recording(metrics_folder(NAME, os.getpid()))
        metrics.count_accepted("deploy")
        metrics.StepTimer("to_task.prepare").observe(Suspend())


def test_ended_processes_of_a_pool_leave_no_files(pages: Pages, ended: set[int]) -> None:
    # Given a pool of which many processes have ended
    for pid in range(1001, 1021):
        record_as(pid)
        ended.add(pid)
    record_as(2000)
    labels = {"step": "to_task.prepare", "outcome": "suspended", "worker": NAME}

    for _ in range(2):
        # When metrics are asked for, then what was counted is there
        assert value(pages, "runs_accepted_total", action="deploy", worker=NAME) == 21
        assert value(pages, "step_seconds_count", **labels) == 21
        assert value(pages, "step_seconds_bucket", le="+Inf", **labels) == 21

    # And there is one file of each kind of all that have ended
    numbers = {file.stem.partition("_")[2] for file in metrics_folder(NAME, os.getpid()).glob("*.db")}
    assert numbers - {str(os.getpid())} == {"ended", "2000"}


def test_a_process_that_begins_folds_what_ended_ones_left(
    pages: Pages, ended: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an ended process, after which nobody asks for metrics
    record_as(1001)
    ended.add(1001)
    monkeypatch.setattr(http_server, "_folder", metrics_folder(NAME, os.getpid()))

    # When one begins in its place
    http_server._fold_ended()

    # Then its files are gone, and what it has counted is not
    assert not list(metrics_folder(NAME, os.getpid()).glob("*_1001.db"))
    assert value(pages, "runs_accepted_total", action="deploy", worker=NAME) == 1


FORKED_AMID_A_SCRAPE = """
import os, sys
from pathlib import Path
from worker.monitoring.exposition import fold_ended_processes, _locked
folder = Path(sys.argv[1])
with _locked(folder):
    pid = os.fork()
    if not pid:
        fold_ended_processes(folder)
        os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_process_that_is_forked_amid_a_scrape_begins(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKED_AMID_A_SCRAPE, str(tmp_path)]

    forked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)

    assert forked.stdout.strip() == "7"


def test_a_damaged_file_of_an_ended_process_hides_no_others(pages: Pages, ended: set[int]) -> None:
    metrics.count_accepted("deploy")
    (metrics_folder(NAME, os.getpid()) / "counter_1001.db").write_bytes(b"\xff\x00\x00\x00" + b"\xff" * 60)
    ended.add(1001)

    assert value(pages, "runs_accepted_total", action="deploy", worker=NAME) == 1


def test_files_that_cannot_be_written_end_the_recording_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a disk that is full, where the library would end the process with SIGBUS
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)

    metrics.count_accepted("deploy")
    metrics.count_ended("deploy", "FAILED")

    assert metrics._metrics is None


def test_space_is_reserved_before_it_is_mapped() -> None:
    for number in range(2_000):
        metrics.count_failure("step", f"Error{number}", "none")

    [file] = metrics_folder(NAME, os.getpid()).glob("counter_*.db")
    assert file.stat().st_blocks * 512 >= file.stat().st_size > 64 * 1024


def test_what_is_no_worker_s_folder_stays() -> None:
    for name in ("stray", "x.y", "z."):
        make_private(states_folder() / "metrics" / name, states_root())

    remove_metrics_of_ended()

    assert len(list((states_folder() / "metrics").iterdir())) == 4


# What Redis says of all workers


def test_queues_show_what_waits_and_what_is_delayed(pages: Pages, redis: fakeredis.FakeRedis) -> None:
    redis.lpush("annotate", "{}", "{}")
    redis.lpush("annotate\x06\x163", "{}")  # of a lower priority
    redis.zadd(delayed_key("annotate"), {"{}": 1.0})
    redis.hset(unacked_key(), "tag", "{}")

    assert value(pages, "queue_messages", queue="annotate", state="waiting") == 3
    assert value(pages, "queue_messages", queue="annotate", state="delayed") == 1
    assert value(pages, "queue_messages", queue="deploy", state="waiting") == 0
    assert value(pages, "messages_held") == 1


def test_runs_that_wait_are_shown_by_pre_processor(pages: Pages, redis: fakeredis.FakeRedis) -> None:
    name = WaitlistName.of(None, PreProcessor("digits", "1.0.0", {}, 3))
    waitlist = Waitlist(redis, name)
    for job in ("1", "2"):
        redis.hset(f"synapse:jobs:{{{job}}}:run", "message", "{}")
        waitlist.join(job, 60)
        redis.zadd(heartbeats_key(), {f"run:{job}": 1.0})
    redis.zadd(heartbeats_key(), {name.member: 1.0})

    assert value(pages, "runs_waiting", agent="3", pre_processor="digits@1.0.0") == 2
    assert value(pages, "runs_live") == 2


def test_a_list_that_all_have_left_is_shown_no_more(pages: Pages, redis: fakeredis.FakeRedis) -> None:
    waitlist = Waitlist(redis, WaitlistName.of(None, PreProcessor("digits", "1.0.0", {}, 3)))
    redis.hset("synapse:jobs:{1}:run", "message", "{}")
    poll = waitlist.join("1", 60).poll

    waitlist.remove("1")
    waitlist.end_poll(poll)

    assert value(pages, "runs_waiting", agent="3", pre_processor="digits@1.0.0") is None


def test_a_list_left_by_a_killed_worker_goes_with_the_sweep(pages: Pages, redis: fakeredis.FakeRedis) -> None:
    # Given a worker that died between the last run's leaving and the end of the poll
    waitlist = Waitlist(redis, WaitlistName.of(None, PreProcessor("digits", "1.0.0", {}, 3)))
    redis.hset("synapse:jobs:{1}:run", "message", "{}")
    waitlist.join("1", 60)
    waitlist.remove("1")

    # When the sweep polls again
    assert waitlist.wake() == 0

    # Then there is no such list
    assert value(pages, "runs_waiting", agent="3", pre_processor="digits@1.0.0") is None
    assert value(pages, "runs_live") == 0


def test_a_strange_name_of_a_list_hides_nothing(pages: Pages, redis: fakeredis.FakeRedis) -> None:
    redis.sadd(waitlists_key(), "garbage")

    assert value(pages, "runs_live") == 0


def test_dead_letters_are_counted(pages: Pages, redis: fakeredis.FakeRedis) -> None:
    redis.xadd(dead_letters_key(), {"task": "deploy"})

    assert value(pages, "dead_letters") == 1


def test_without_redis_the_page_says_so(
    pages: Pages, redis: fakeredis.FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RedisConnectionError("connection refused")

    metrics.count_accepted("deploy")
    monkeypatch.setattr(redis, "ping", fail)

    assert value(pages, "redis_up") == 0
    assert value(pages, "dead_letters") is None
    assert value(pages, "runs_accepted_total", action="deploy", worker=NAME) == 1


# Probes and others


@pytest.mark.parametrize("path", ["/live", "/ready"])
def test_a_ready_worker_answers_ok(pages: Pages, path: str) -> None:
    assert get(pages, path) == (200, "ok\n")


def test_a_worker_without_broker_is_not_ready(pages: Pages) -> None:
    state = WorkerState(NAME, os.getpid(), time.monotonic(), is_connected=False, turned_at=None)
    StateFile(states_folder(), NAME).write(state)

    assert get(pages, "/live") == (200, "ok\n")
    assert get(pages, "/ready") == (503, f"{NAME}: it is not connected to its broker\n")


def test_other_paths_and_methods_are_rejected(pages: Pages) -> None:
    assert get(pages, "/") == (404, "/metrics, /live or /ready\n")
    assert get(pages, "/metrics", "POST")[0] == 405


def test_clients_beyond_the_limit_are_sent_away(pages: Pages) -> None:
    # Given as many clients that say nothing as there are places
    server = http_server._Server(("127.0.0.1", 0), http_server._Handler)
    server.set_app(pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = ("127.0.0.1", server.server_port)
    clients = [socket.create_connection(address) for _ in range(http_server.MAX_REQUESTS)]

    # When one more comes
    with server, socket.create_connection(address, timeout=30) as last:
        answered = last.recv(1)
        for client in clients:
            client.close()
        server.shutdown()

    # Then its connection is closed
    assert answered == b""
