"""A platform whose parts can be broken: real Redis, real Celery workers, the sandbox's backend, a fake Serve.

A *fleet* is one database of that Redis with its workers, and maybe a virtual host of a RabbitMQ. Fleets do
not affect each other, so that a test can inject many faults at the same time.
"""

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
from kombu.exceptions import OperationalError
from redis import Redis

from shared.messages import ToTaskMessage
from shared.statuses import JobStatus
from tests.chaos.audit import Auditor
from tests.chaos.effect_log import EffectLog, Faults
from tests.chaos.fake_serve import FakeServe
from tests.chaos.faulty_services import (
    CapacityAgent,
    FaultyProxy,
    WebhookReceiver,
    start_echo_application,
)
from tests.chaos.forkserver import QUEUES as ALL_QUEUES
from tests.chaos.forkserver import ForkServer, Worker
from tests.harness.brokers import Queues, RedisQueues, session_broker
from tests.harness.rabbitmq import VirtualHost
from worker.runs.keys import heartbeats_key
from worker.runs.model import End
from worker.runs.store import RunStore
from worker.sandbox import Sandbox, wait_for
from worker.sandbox.sandbox import AGENT_ID
from worker.sandbox.seed import SeededProject, seed_numbered_project
from worker.to_task.ledger import RedisLedger, TaskOutcome

VISIBILITY_TIMEOUT_SECONDS = 10.0
RECOVERY_SECONDS = VISIBILITY_TIMEOUT_SECONDS + 15.0
"""Within this time after a kill, the next worker brings a run to its end."""
DATABASES = range(1, 16)
"""Redis databases of fleets; the backend publishes to database 0."""
QUEUES = ("deploy", "to_task", "annotate", "control")
ECHO = Path(__file__).parents[1] / "plugins" / "echo@1.0.0"
FAILING_PLAN = """
    def plan(self):
        raise ValueError("no plan")
"""
RUNS_WHOLE = """

    def execute(self):
        return open("never opened here")
"""
"""Of its `to_task`, which stands at the end of the module."""
Row = dict[str, Any]


class PlatformHarness:
    """The parts that all fleets share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plugins = folder / "plugins"
        self.plugins.mkdir()
        self.crashes = folder / "crashes"
        self.crashes.mkdir()
        with contextlib.ExitStack() as stack:
            self.agent = CapacityAgent()
            stack.callback(self.agent.close)
            self.webhook = WebhookReceiver()
            stack.callback(self.webhook.close)
            self.application = start_echo_application()
            stack.callback(self.application.close)
            self.fork_server = ForkServer(folder)
            stack.callback(self.fork_server.close)
            self.new_plugin("echo")
            self.sandbox = Sandbox(folder / "sandbox", plugins_dir=self.plugins, with_ray=False)
            self.sandbox.backend._environ["SANDBOX_SERVE_URL"] = self.application.url
            stack.enter_context(self.sandbox)
            self.serve = FakeServe(folder / "serve.sqlite3")
            self.effect_log = EffectLog(folder / "effect_log")
            self.broker_bridge = BrokerBridge(self.sandbox.redis.port)
            stack.callback(self.broker_bridge.close)
            self._stack = stack.pop_all()
        self.state = self.sandbox.state
        self._numbers = iter(range(1, 1_000_000))
        self._free_databases = deque(DATABASES)

    def close(self) -> None:
        """End all processes."""
        self._stack.close()

    def new_plugin(
        self, code: str = "", *, broken: bool = False, prepended: str = "", appended: str = ""
    ) -> str:
        """Add a release that no other run uses; returns `code@version`.

        `broken`: its deployment fails. `prepended`, `appended`: code at the begin or end of its module.
        """
        code = code or self.new_code()
        folder = self.plugins / f"{code}@1.0.0"
        temporary = self.folder / f"{code}.temporary"
        shutil.copytree(ECHO, temporary)
        config = temporary / "config.yaml"
        config.write_text(config.read_text().replace("code: echo", f"code: {code}"))
        if broken:
            actions = temporary / "plugin" / "actions.py"
            text = actions.read_text()
            actions.write_text(
                text.replace("    entrypoint = Echo\n", "    entrypoint = Echo\n" + FAILING_PLAN)
            )
        actions = temporary / "plugin" / "actions.py"
        actions.write_text(prepended + actions.read_text() + appended)
        temporary.rename(folder)
        return f"{code}@1.0.0"

    def new_code(self) -> str:
        return f"p{next(self._numbers)}"

    @contextlib.contextmanager
    def fleet_behind_proxy(
        self, url_setting: str, url: str, **settings: str
    ) -> Iterator[tuple["Fleet", FaultyProxy]]:
        """A fleet that reaches the dependency at `url`, set by `url_setting`, through a proxy."""
        with (
            contextlib.closing(FaultyProxy(url)) as proxy,
            self.fleet(**{url_setting: proxy.url}, **settings) as fleet,
        ):
            yield fleet, proxy

    @contextlib.contextmanager
    def fleet(self, *, on_rabbitmq: bool | None = None, **settings: str) -> Iterator["Fleet"]:
        """A fleet without workers, for the duration of the block.

        `on_rabbitmq`: its broker is a RabbitMQ; by default as in all tests of the session.
        """
        if on_rabbitmq is None:
            on_rabbitmq = session_broker.is_rabbitmq
        database = self._free_databases.popleft()
        with contextlib.ExitStack() as stack:
            stack.callback(self._free_databases.append, database)
            virtual_host = session_broker.node.new_virtual_host() if on_rabbitmq else None
            if virtual_host is not None:
                stack.callback(virtual_host.delete)
            fleet = Fleet(self, database, virtual_host, settings)
            stack.callback(fleet.close)
            yield fleet


class BrokerBridge(threading.Thread):
    """Moves messages of the backend, which publishes to one database, to the fleet that they are for."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._fleets: dict[str, Fleet] = {}
        self._ended = threading.Event()
        self.start()

    def deliver_to(self, code: str, fleet: "Fleet") -> None:
        """Move deployments of plugin `code` to this fleet; else they stay where no worker reads them."""
        self._fleets[code] = fleet

    def forget(self, fleet: "Fleet") -> None:
        """Leave what is for a fleet that has ended."""
        for code in [code for code, each in list(self._fleets.items()) if each is fleet]:
            del self._fleets[code]

    def close(self) -> None:
        self._ended.set()
        self.join(5)

    def run(self) -> None:
        while not self._ended.is_set():
            errors = (redis_py.RedisError, OperationalError)
            with contextlib.suppress(*errors), Redis(port=self._port) as source:
                while not self._ended.wait(0.02):
                    for element in source.lrange("deploy", 0, -1):
                        kwargs = json.loads(base64.b64decode(json.loads(element)["body"]))[1]
                        fleet = self._fleets.get(str(kwargs["plugin"]).partition("@")[0])
                        if fleet is not None:
                            self._move(source, element, kwargs, fleet)

    @staticmethod
    def _move(source: Redis, element: bytes, kwargs: Row, fleet: "Fleet") -> None:
        """So that no message is lost: by one transaction, or published before it is removed."""
        if isinstance(fleet.queues, VirtualHost):
            fleet.send_task("deploy", "deploy", **kwargs)
            source.lrem("deploy", 1, element)
            return
        with source.pipeline() as pipe:
            pipe.lrem("deploy", 1, element)
            pipe.execute_command("SELECT", fleet.database)
            pipe.lpush("deploy", element)
            pipe.execute_command("SELECT", 0)
            pipe.execute()


class Fleet:
    """One Redis database with its workers, and jobs, projects and plugins that no other fleet uses."""

    def __init__(
        self,
        harness: PlatformHarness,
        database: int,
        virtual_host: VirtualHost | None,
        settings: dict[str, str],
    ) -> None:
        self.harness, self.state, self.database = harness, harness.state, database
        self.url = f"redis://127.0.0.1:{harness.sandbox.redis.port}/{database}"
        self.redis = Redis.from_url(self.url, decode_responses=True)
        self.redis.flushdb()
        self.queues: Queues = virtual_host or RedisQueues(self.url, self.redis)
        self.publisher = Celery("publisher", broker=self.queues.url, set_as_current=False)
        self.publisher.conf.update(
            task_ignore_result=True, broker_transport_options={"confirm_publish": True}
        )
        self.workers: list[Worker] = []
        self.settings = settings

    def close(self) -> None:
        self.harness.broker_bridge.forget(self)
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
            "RAY_ADDRESS": "127.0.0.1:1",  # never used, because Serve is a fake
            "WORKER_PLUGIN_HOST": "process",
            "WORKER_VISIBILITY_TIMEOUT_SECONDS": str(VISIBILITY_TIMEOUT_SECONDS),
            "WORKER_PRE_PROCESSOR_POLL_SECONDS": "2",
            "WORKER_ANNOTATE_CHUNK": "5",
            "CHAOS_SERVE": str(harness.folder / "serve.sqlite3"),
            "CHAOS_CRASHES": str(harness.crashes),
            "CHAOS_EFFECT_LOG": str(harness.folder / "effect_log"),
            **({"CELERY_BROKER_URL": self.queues.url} if isinstance(self.queues, VirtualHost) else {}),
            **self.settings,
        }

    def start_worker(
        self, *, concurrency: int = 8, queues: str = ALL_QUEUES, pool: str = "threads", **env: str
    ) -> Worker:
        environment = {**self.environment(), **env}
        worker = self.harness.fork_server.start(
            environment, concurrency=concurrency, queues=queues, pool=pool
        )
        self.workers.append(worker)
        return worker

    def new_pre_processor(self, *, broken: bool = False, deploys: bool = True) -> str:
        """A release that is not deployed; returns its code.

        `broken`: its deployment fails. `deploys`: this fleet receives the messages that deploy it.
        """
        code = self.harness.new_code()
        self.harness.new_plugin(code, broken=broken)
        if deploys:
            self.harness.broker_bridge.deliver_to(code, self)
        return code

    def new_project(self, count: int) -> SeededProject:
        return seed_numbered_project(self.state, count)

    def new_job(self, plugin: str, action: str) -> str:
        return str(self.state.add_job(plugin=plugin, action=action, agent=AGENT_ID))

    def request_crash(self, point: str, subject: str) -> None:
        """Kill the first worker that comes to `point` for `subject`, a job or a plugin code."""
        (self.harness.crashes / f"{point}@{subject}").touch()

    # when

    def send_task(self, task: str, queue: str, **kwargs: Any) -> None:
        self.publisher.send_task(task, kwargs=kwargs, queue=queue)

    def deploy(self, job: str, plugin: str, **params: Any) -> None:
        fields = {"num_cpus": 1, **params}
        self.send_task("deploy", "deploy", job=job, plugin=plugin, agent=AGENT_ID, params=fields)

    def to_task(self, job: str, project: SeededProject, plugin: str = "echo@1.0.0", **params: Any) -> None:
        fields = {"name": "chaos", "project": project.id, "agent": AGENT_ID, **params}
        self.send_task("to_task", "to_task", job=job, plugin=plugin, params=fields)

    def to_task_by_file(self, job: str, project: SeededProject, plugin: str = "echo@1.0.0") -> None:
        self.to_task(job, project, plugin, method="file", target_specification_name="label_1")

    def retry(self, job: str, project: SeededProject) -> None:
        """Publish a run of the failed tasks of an ended one, in which all tasks of the project failed."""
        params = {
            "name": "chaos",
            "project": project.id,
            "agent": AGENT_ID,
            "target_specification_name": "label_1",
            "task_filters": {"nobody": "reads them"},
        }
        fields: Row = {"plugin": "echo@1.0.0", "params": params}
        earlier, store = f"before-{job}", RunStore(self.redis)
        store.accept(ToTaskMessage.model_validate({"job": earlier, **fields}), "to_task")
        outcomes = [TaskOutcome(index, task, "broken") for index, task in enumerate(project.tasks)]
        RedisLedger(self.redis, earlier).record(outcomes)
        store.finish(earlier, End(JobStatus.FAILED, {"error": "broken"}))
        store.mark_reported(earlier)
        self.send_task("to_task", "to_task", job=job, only_failed_of=earlier, **fields)

    def to_task_by_inference(self, job: str, project: SeededProject, code: str) -> None:
        self.to_task(job, project, method="inference", pre_processor=self.release_id(code), model=1)

    def stop(self, job: str) -> None:
        self.send_task("stop", "control", job=job)

    def delete_messages(self) -> None:
        """Delete all messages, also delayed ones and those that an ended worker has not acknowledged."""
        self.queues.delete_messages(QUEUES)

    # then

    def release_id(self, code: str) -> int:
        """The backend's id of a release; adds the release to the backend when it is not there."""
        query = "SELECT id FROM plugin_releases WHERE code = ?"
        found = self.state.value(query, code)
        if found is None:
            config = yaml.safe_load((self.harness.plugins / f"{code}@1.0.0" / "config.yaml").read_text())
            row = {"code": code, "version": "1.0.0", "config": config}
            found = self.state.insert("plugin_releases", row)
        return int(found)

    def auditor(self, faults: Faults | None = None) -> Auditor:
        """An auditor of what the backend has received so far."""
        return Auditor(self.state, self.harness.effect_log, faults)

    def crash(self, point: str, subject: str) -> Row | None:
        """Time and process id of a crash; None before it happens."""
        report = self.harness.crashes / f"{point}@{subject}.crashed"
        return json.loads(report.read_text()) if report.exists() else None

    def has_ended(self, job: str) -> bool:
        row = self.state.job(int(job))
        return row is not None and JobStatus(row["status"]).is_final

    def wait_for_end(self, job: str, seconds: float = 60) -> Row:
        wait_for(lambda: self.has_ended(job), seconds, f"end of job {job}")
        row = self.state.job(int(job))
        assert row is not None
        return row

    def message_count(self) -> int:
        """Messages in the queues, and those that a worker has not acknowledged."""
        return self.queues.message_count(QUEUES)

    def copies_by_message(self) -> Counter[tuple[str, str]]:
        """How many copies there are of each message, by task name and job."""
        found: Counter[tuple[str, str]] = Counter()
        elements = [element for queue in QUEUES for element in self.redis.lrange(queue, 0, -1)]
        elements += [held.partition("\n")[2] for held in self.redis.hvals("synapse:broker:held")]
        for element in map(json.loads, elements):
            body = json.loads(base64.b64decode(element["body"]))
            found[element["headers"]["task"], str(body[1].get("job"))] += 1
        return found

    def unfinished(self) -> list[str]:
        """Messages, and runs and waiting lists that have a heartbeat; none when all runs have ended."""
        messages = self.message_count()
        return [*self.redis.zrange(heartbeats_key(), 0, -1), *([f"{messages} messages"] if messages else [])]

    def dispatch_count(self, code: str) -> int:
        """How many deployments of a pre-processor the backend was asked for."""
        query = "SELECT count(*) FROM jobs WHERE plugin LIKE ? AND action = 'deployment'"
        return int(self.state.value(query, f"{code}@%"))
