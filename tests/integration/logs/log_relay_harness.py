"""A real Redis, a fast log server in place of the agent, and relays in processes of their own."""

import json
import os
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from redis import Redis

from shared.channels import logs_channel, logs_history
from shared.messages import TailLogsMessage
from worker.logs.subscriptions import log_owners_key
from worker.runs.events import subscribe_log
from worker.sandbox.processes import Process, free_port, is_listening, start_process
from worker.sandbox.servers import RedisServer

ROOT = Path(__file__).parents[3]
RELAY = """
from worker.logs.relay import new_event_loop, run_log_relay
new_event_loop().run_until_complete(run_log_relay())
"""

Entry = dict[str, Any]


class LogRelayHarness:
    """Starts the processes, subscribes to logs, and reads what the relays wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.redis_server = RedisServer(folder / "redis")
        self.redis_server.start()
        self.redis = Redis.from_url(self.redis_server.url, decode_responses=True)
        self.agent_port = free_port()
        (folder / "jobs").mkdir()
        self.agent: Process | None = None
        self.processes: list[Process] = []
        self.start_agent()

    def start_agent(self) -> None:
        script = Path(__file__).with_name("log_server.py")
        command = [sys.executable, str(script), str(self.agent_port), str(self.folder / "jobs")]
        self.agent = self._start("agent", command)
        self.agent.wait_until(lambda: is_listening(self.agent_port), 20)

    def environment(self, **more: str) -> dict[str, str]:
        (self.folder / "plugins").mkdir(exist_ok=True)
        return {
            **os.environ,
            "SYNAPSE_HOST": "http://127.0.0.1:9",
            "SYNAPSE_ACCESS_TOKEN": "an-access-token",
            "SYNAPSE_AGENT_URL": f"http://127.0.0.1:{self.agent_port}",
            "SYNAPSE_AGENT_TOKEN": "an-agent-token",
            "REDIS_URL": self.redis_server.url,
            "PLUGINS_DIR": str(self.folder / "plugins"),
            "PYTHONPATH": str(ROOT),
            **more,
        }

    def start_relay(self, **env: str) -> Process:
        return self._start("relay", [sys.executable, "-c", RELAY], self.environment(**env))

    def start_worker(self, **env: str) -> Process:
        celery = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "worker",
            "worker",
            "-Q",
            "logs",
            "-c",
            "2",
            "-l",
            "INFO",
        ]
        options = ["--pool", "threads"]
        options += ["-n", f"w{len(self.processes)}@test"]
        worker = self._start("worker", [*celery, *options], self.environment(**env))
        worker.wait_until(lambda: " ready" in worker.log.read_text(errors="replace"), 40)
        return worker

    def subscribe(self, job: str, ray_job: str, protocol: str = "stream") -> None:
        message = TailLogsMessage.model_validate({"job": job, "ray_job": ray_job, "protocol": protocol})
        subscribe_log(self.redis, message, 60_000)

    def is_claimed(self, job: str, ray_job: str) -> bool:
        return bool(self.redis.hexists(log_owners_key(), f"{job}/{ray_job}"))

    def history(self, job: str) -> list[Entry]:
        return [entry for _, entry in self.redis.xrange(logs_history(job))]

    def end_reason(self, job: str) -> str | None:
        """Why the log was closed; None while it is open."""
        last = self.redis.xrevrange(logs_history(job), count=1)
        return last[0][1].get("reason") if last and last[0][1].get("type") == "end" else None

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        self.redis.close()
        self.redis_server.stop()

    def _start(self, name: str, command: list[str], env: dict[str, str] | None = None) -> Process:
        log = self.folder / f"{name}{len(self.processes)}.log"
        log.touch()
        process = start_process(name, command, log=log, env=env, grace_seconds=10)
        self.processes.append(process)
        return process


class ChannelListener:
    """Collects the entries of a job's log channel, as a UI does."""

    def __init__(self, redis: Redis, job: str) -> None:
        self.entries: list[Entry] = []
        self._pubsub = redis.pubsub(ignore_subscribe_messages=True)
        self._pubsub.subscribe(logs_channel(job))
        self._pubsub.get_message(timeout=5)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._stopped.is_set():
            message = self._pubsub.get_message(timeout=0.1)
            if message is not None:
                self.entries.append(json.loads(message["data"]))

    def close(self) -> None:
        self._stopped.set()
        self._thread.join(5)
        self._pubsub.close()


def check_complete(entries: list[Entry], sources: dict[str, int]) -> None:
    """Check that numbers have no gap, lines are there once and in order, and one end marker is last."""
    assert [int(entry["seq"]) for entry in entries] == list(range(1, len(entries) + 1))
    assert [number for number, entry in enumerate(entries, 1) if entry.get("type") == "end"] == [len(entries)]
    lines: dict[str, list[int]] = {source: [] for source in sources}
    for entry in entries[:-1]:
        if entry["source"] in lines:
            lines[entry["source"]].append(int(entry["line"].split()[0]))
    counted = Counter({source: len(numbers) for source, numbers in lines.items()})
    assert counted == Counter(sources)
    assert all(numbers == list(range(len(numbers))) for numbers in lines.values())
