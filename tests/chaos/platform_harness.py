"""A platform that is there to be broken: real Redis, real Celery workers, the sandbox's backend; Serve is a
file, and each *site* has a database of that Redis, so that many things are broken at once and apart."""

import base64
import contextlib
import json
import shutil
import threading
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis as redis_py
import yaml
from celery import Celery
from redis import Redis

from shared.statuses import JobStatus
from tests.chaos.audit import Auditor
from tests.chaos.effect_log import Disturbances, EffectLog
from tests.chaos.fake_serve import FakeServe
from tests.chaos.faulty_services import Agent, FaultyProxy, application
from tests.chaos.forkserver import QUEUES as ALL_QUEUES
from tests.chaos.forkserver import ForkServer, Worker
from worker.runs.keys import heartbeats_key
from worker.sandbox import Sandbox, wait_for
from worker.sandbox.sandbox import AGENT_ID
from worker.sandbox.seed import SeededProject, seed_numbered_project

VISIBILITY_TIMEOUT = 10.0
RECOVERY = VISIBILITY_TIMEOUT + 15.0
"""Seconds within which the next live worker has carried a run to its end."""
SITES = range(1, 16)
QUEUES = ("deploy", "to_task", "annotate", "control")
ECHO = Path(__file__).parents[1] / "plugins" / "echo@1.0.0"
Row = dict[str, Any]


class PlatformHarness:
    """Everything that sites share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plugins = folder / "plugins"
        self.plugins.mkdir()
        self.deaths = folder / "deaths"
        self.deaths.mkdir()
        with contextlib.ExitStack() as stack:
            self.agent = Agent()
            stack.callback(self.agent.close)
            self.application = application()
            stack.callback(self.application.close)
            self.fork_server = ForkServer(folder)
            stack.callback(self.fork_server.close)
            self.plugin("echo")
            self.sandbox = Sandbox(folder / "sandbox", plugins_dir=self.plugins, with_ray=False)
            self.sandbox.backend._environ["SANDBOX_SERVE_URL"] = self.application.url
            stack.enter_context(self.sandbox)
            self.serve = FakeServe(folder / "serve.sqlite3")
            self.effect_log = EffectLog(folder / "effect_log")
            self._broker_bridge = BrokerBridge(self.sandbox.redis.port)
            stack.callback(self._broker_bridge.close)
            self._stack = stack.pop_all()
        self.state = self.sandbox.state
        self._numbers = iter(range(1, 1_000_000))
        self._free = deque(SITES)

    def close(self) -> None:
        """End everything."""
        self._stack.close()

    def plugin(self, code: str, *, broken: bool = False) -> str:
        """A release of its own, so that nobody else deploys it or waits for it."""
        folder = self.plugins / f"{code}@1.0.0"
        draft = self.folder / f"{code}.draft"
        shutil.copytree(ECHO, draft)
        config = draft / "config.yaml"
        config.write_text(config.read_text().replace("code: echo", f"code: {code}"))
        if broken:
            actions = draft / "plugin" / "actions.py"
            text = actions.read_text()
            actions.write_text(text.replace("    entrypoint = Echo\n", "    entrypoint = Echo\n" + BREAKS))
        draft.rename(folder)
        return f"{code}@1.0.0"

    def new_code(self) -> str:
        return f"p{next(self._numbers)}"

    @contextlib.contextmanager
    def site_behind(self, dependency: str, url: str) -> Iterator[tuple["Site", FaultyProxy]]:
        """A site with its own way to the dependency at `url`, whose address is the setting `dependency`."""
        with contextlib.closing(FaultyProxy(url)) as proxy, self.site(**{dependency: proxy.url}) as site:
            yield site, proxy

    @contextlib.contextmanager
    def site(self, **settings: str) -> Iterator["Site"]:
        """A Redis database, and workers on it."""
        number = self._free.popleft()
        site = Site(self, number, settings)
        try:
            yield site
        finally:
            site.close()
            self._free.append(number)


BREAKS = """
    def plan(self):
        raise ValueError("no plan")
"""


class BrokerBridge(threading.Thread):
    """The backend publishes to one database; that asked for the deployment is at home in another."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._homes: dict[str, int] = {}
        self._ended = threading.Event()
        self.start()

    def deliver_to(self, code: str, database: int) -> None:
        """Deployments of `code` go there."""
        self._homes[code] = database

    def close(self) -> None:
        self._ended.set()
        self.join(5)

    def run(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(redis_py.RedisError), Redis(port=self._port) as source:
                while not self._ended.wait(0.02):
                    # Moved in one go: a message of the backend's must not be lost by the test.
                    for element in source.lrange("deploy", 0, -1):
                        home = self._homes.get(_code_in(element), 0)
                        with source.pipeline() as pipe:
                            pipe.lrem("deploy", 1, element)
                            pipe.execute_command("SELECT", home)
                            pipe.lpush("deploy", element)
                            pipe.execute_command("SELECT", 0)
                            if home:
                                pipe.execute()


def _code_in(element: bytes) -> str:
    body = json.loads(base64.b64decode(json.loads(element)["body"]))
    return str(body[1]["plugin"]).partition("@")[0]


class Site:
    """One Redis database with its workers; jobs, projects and plugins of its own."""

    def __init__(self, harness: PlatformHarness, number: int, settings: dict[str, str]) -> None:
        self.harness, self.state, self._number = harness, harness.state, number
        self.url = f"redis://127.0.0.1:{harness.sandbox.redis.port}/{number}"
        self.redis = Redis.from_url(self.url, decode_responses=True)
        self.redis.flushdb()
        self.publisher = Celery("publisher", broker=self.url, set_as_current=False)
        self.publisher.conf.update(task_ignore_result=True)
        self.workers: list[Worker] = []
        self.settings = settings

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.publisher.close()
        self.redis.close()

    # given

    def environment(self) -> dict[str, str]:
        harness = self.harness
        return {
            **harness.sandbox.environment(),
            "REDIS_URL": self.url,
            "SYNAPSE_AGENT_URL": harness.agent.url,
            "SYNAPSE_AGENT_TOKEN": "token-of-the-agent",
            "RAY_ADDRESS": "127.0.0.1:1",  # never used: Serve is a file
            "WORKER_PLUGIN_HOST": "process",
            "WORKER_VISIBILITY_TIMEOUT_SECONDS": str(VISIBILITY_TIMEOUT),
            "WORKER_PRE_PROCESSOR_POLL_SECONDS": "2",
            "WORKER_ANNOTATE_CHUNK": "5",
            "CHAOS_SERVE": str(harness.folder / "serve.sqlite3"),
            "CHAOS_DEATHS": str(harness.deaths),
            "CHAOS_DIARY": str(harness.folder / "effect_log"),
            **self.settings,
        }

    def worker(self, *, concurrency: int = 8, queues: str = ALL_QUEUES, **env: str) -> Worker:
        settings = {**self.environment(), **env}
        worker = self.harness.fork_server.start(settings, concurrency=concurrency, queues=queues)
        self.workers.append(worker)
        return worker

    def pre_processor(self, code: str | None = None, *, broken: bool = False) -> str:
        """A release that nobody has deployed; its code."""
        code = code or self.harness.new_code()
        self.harness.plugin(code, broken=broken)
        self.harness._broker_bridge.deliver_to(code, self._number)
        return code

    def project(self, count: int) -> SeededProject:
        return seed_numbered_project(self.state, count)

    def new_job(self, plugin: str, action: str) -> str:
        return str(self.state.add_job(plugin=plugin, action=action, agent=AGENT_ID))

    def fatal(self, point: str, subject: str) -> None:
        """The caller that comes to `point` for `subject` first dies there."""
        (self.harness.deaths / f"{point}@{subject}").touch()

    # when

    def send(self, task: str, queue: str, **kwargs: Any) -> None:
        self.publisher.send_task(task, kwargs=kwargs, queue=queue)

    def deploy(self, job: str, plugin: str) -> None:
        self.send("deploy", "deploy", job=job, plugin=plugin, agent=AGENT_ID, params={"num_cpus": 1})

    def to_task(self, job: str, project: SeededProject, **params: Any) -> None:
        fields = {"name": "chaos", "project": project.id, "agent": AGENT_ID, **params}
        self.send("to_task", "to_task", job=job, plugin="echo@1.0.0", params=fields)

    def to_task_by_file(self, job: str, project: SeededProject) -> None:
        self.to_task(job, project, method="file", target_specification_name="label_1")

    def to_task_by_inference(self, job: str, project: SeededProject, code: str) -> None:
        self.to_task(job, project, method="inference", pre_processor=self.release(code), model=1)

    def stop(self, job: str) -> None:
        self.send("stop", "control", job=job)

    def lose_messages(self) -> None:
        """Take every message out of the queues by hand."""
        self.redis.delete(*QUEUES, "synapse:broker:held", "synapse:broker:due")

    # then

    def release(self, code: str) -> int:
        """Its number at the backend, which has not read it yet."""
        query = "SELECT id FROM plugin_releases WHERE code = ?"
        found = self.state.value(query, code)
        if found is None:
            config = yaml.safe_load((self.harness.plugins / f"{code}@1.0.0" / "config.yaml").read_text())
            row = {"code": code, "version": "1.0.0", "config": config}
            found = self.state.insert("plugin_releases", row)
        return int(found)

    def auditor(self, disturbances: Disturbances | None = None) -> Auditor:
        """Of what was received so far."""
        return Auditor(self.state, self.harness.effect_log, disturbances)

    def death(self, point: str, subject: str) -> Row | None:
        """When and who."""
        news = self.harness.deaths / f"{point}@{subject}.dead"
        return json.loads(news.read_text()) if news.exists() else None

    def is_over(self, job: str) -> bool:
        found = self.state.job(int(job))
        return found is not None and JobStatus(found["status"]).is_final

    def end_of(self, job: str, seconds: float = 60) -> Row:
        wait_for(lambda: self.is_over(job), seconds, f"end of job {job}")
        found = self.state.job(int(job))
        assert found is not None
        return found

    def messages(self) -> int:
        """How many there are, waiting or in some worker's hands."""
        queued = sum(self.redis.llen(queue) for queue in QUEUES)
        return queued + self.redis.hlen("synapse:broker:held")

    def copies(self) -> Counter[tuple[str, str]]:
        """How many messages there are of each step of each job."""
        found: Counter[tuple[str, str]] = Counter()
        elements = [e for queue in QUEUES for e in self.redis.lrange(queue, 0, -1)]
        elements += [held.partition("\n")[2] for held in self.redis.hvals("synapse:broker:held")]
        for element in map(json.loads, elements):
            body = json.loads(base64.b64decode(element["body"]))
            found[element["headers"]["task"], str(body[1].get("job"))] += 1
        return found

    def leftovers(self) -> list[str]:
        """What is still under way: messages, and runs and waiting lists that somebody watches over."""
        messages = self.messages()
        return [*self.redis.zrange(heartbeats_key(), 0, -1), *([f"{messages} messages"] if messages else [])]

    def step(self, job: str) -> str:
        return self.redis.hget(f"synapse:jobs:{{{job}}}", "step") or ""

    def dispatches(self, code: str) -> int:
        """Deployments of a pre-processor that the backend was asked for."""
        query = "SELECT count(*) FROM jobs WHERE plugin LIKE ? AND action = 'deployment'"
        return int(self.state.value(query, f"{code}@%"))
