"""deploy, from publishing to SUCCEEDED, against bare Serve with the same class on the same cluster."""

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from common.results import Row, argument_parser, at_most, report

from shared import DeployMessage, JobStatus, Publisher
from worker.sandbox import Sandbox, wait_for
from worker.sandbox.sandbox import AGENT_ID

EXAMPLES = Path(__file__).parents[1] / "examples" / "plugins"
DIGITS = "digits@1.0.0"
MAX_WAIT_SECONDS = 900
LIGHT_CPUS = 0.01
"""Of a light deployment: many of them fit on a few cores, which they share."""


@dataclass(frozen=True)
class Size:
    """How often one release is deployed, and how many at once."""

    rounds: int
    at_once: int


FULL, QUICK = Size(rounds=3, at_once=50), Size(rounds=1, at_once=2)

CONFIG = """
code: light{number}
version: 1.0.0
actions:
  deployment: {{entrypoint: plugin.Deployment}}
  inference:
    entrypoint: plugin.Light
    required_resources: {{required_cpu_count: 1, required_gpu_count: 0}}
"""
CODE = """
from worker.actions import BaseDeploymentAction, BaseServeDeployment

class Light(BaseServeDeployment):
    async def _get_model(self, model_info):
        return None
    async def infer(self, data):
        return data

class Deployment(BaseDeploymentAction):
    entrypoint = Light
"""

BARE = """
import json, sys, time
folder, module, name, count, cpus, old = sys.argv[1:]
sys.path.insert(0, folder)
import importlib
import ray
from ray import serve
ray.init(namespace="bare", log_to_driver=False, runtime_env={"working_dir": folder})
for app in json.loads(old):
    serve.delete(app)
entrypoint = getattr(importlib.import_module(module), name)
options = {"num_cpus": float(cpus)}
targets = [
    serve.RunTarget(
        serve.deployment(ray_actor_options=options)(entrypoint).bind("http://127.0.0.1"),
        name=f"bare{number}",
        route_prefix=f"/bare{number}",
    )
    for number in range(int(count))
]
serve.status()
begun = time.perf_counter()
serve.run_many(targets)
print("seconds", time.perf_counter() - begun)
for target in targets:
    serve.delete(target.name)
"""


@dataclass(frozen=True)
class Entrypoint:
    """The class that is deployed bare, of a release's folder, and its CPUs."""

    release: Path
    module: str
    name: str
    cpus: float


def write_releases(folder: Path, count: int) -> list[str]:
    """The digits, and light releases beside them, whose names are returned."""
    shutil.copytree(EXAMPLES / DIGITS, folder / DIGITS)
    names = [f"light{number}@1.0.0" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text(CONFIG.format(number=number))
        (folder / name / "plugin.py").write_text(CODE)
    return names


def measure_one(sandbox: Sandbox, rounds: int) -> Iterator[Row]:
    """Alternate the two, so that other load of the machine falls on both alike."""
    digits = Entrypoint(sandbox.plugins_dir / DIGITS, "plugin.classifier", "DigitClassifier", 1.0)
    first = deploy(sandbox, [DIGITS], digits.cpus)
    bare, worker = [], []
    for _ in range(rounds):
        bare.append(bare_run_many(sandbox, digits, 1, [DIGITS]))
        worker.append(deploy(sandbox, [DIGITS], digits.cpus))
    note = f"median of {rounds}: {', '.join(f'{seconds:.1f}' for seconds in worker)}"
    what, against = "deploy, from publishing to SUCCEEDED", "bare serve.run"
    found, reference = statistics.median(worker), statistics.median(bare)
    yield Row(what, found, "s", against, reference, at_most(1.1), note)
    yield Row("first deploy of a release: a new process for its code", first, "s", against, reference)


def measure_at_once(sandbox: Sandbox, releases: Sequence[str]) -> Iterator[Row]:
    """Many releases at once, each for the first time and then once more, to a Serve that has none of them.

    Bare Serve has one class, in one environment. The releases have an environment each, as the worker gives
    every release, so the first time a process is started for the code of each one, beside its replica.
    """
    light = Entrypoint(sandbox.plugins_dir / releases[0], "plugin", "Light", LIGHT_CPUS)
    first = deploy(sandbox, releases, light.cpus)
    bare = bare_run_many(sandbox, light, len(releases), releases)
    again = deploy(sandbox, releases, light.cpus)
    what, against = f"{len(releases)} deploys at once", "bare serve.run_many"
    yield Row(f"{what}, until all run", again, "s", against, bare, at_most(1.2))
    yield Row(f"{what}, each release's first", first, "s", against, bare)


def measure(size: Size) -> Iterator[Row]:
    """One release again and again, then many at once, on one cluster."""
    with TemporaryDirectory() as folder:
        releases = write_releases(Path(folder), size.at_once)
        with Sandbox(plugins_dir=Path(folder)) as sandbox:
            sandbox.start_worker()
            yield from measure_one(sandbox, size.rounds)
            yield from measure_at_once(sandbox, releases)


def main() -> None:
    """Measure and report."""
    parser = argument_parser(__doc__, quick="one round, and few deploys at once: a minute")
    parser.add_argument("--at-once", type=int, help="so many deploys at once, in place of 50")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    if arguments.at_once:
        size = replace(size, at_once=arguments.at_once)
    report(measure(size), arguments, __file__)


def deploy(sandbox: Sandbox, plugins: Sequence[str], cpus: float) -> float:
    """Seconds from publishing the deploys to the backend's last SUCCEEDED."""
    jobs, state = {}, sandbox.state
    for plugin in plugins:
        jobs[state.add_job(plugin=plugin, agent=AGENT_ID, action="deployment")] = plugin
    begun = time.perf_counter()
    with Publisher(sandbox.redis_url) as publisher:
        for job, plugin in jobs.items():
            fields = {"job": job, "plugin": plugin, "agent": AGENT_ID, "params": {"num_cpus": cpus}}
            publisher.publish(DeployMessage.model_validate(fields))

    def have_ended() -> bool:
        return all(JobStatus((state.job(job) or {})["status"]).is_final for job in jobs)

    wait_for(have_ended, MAX_WAIT_SECONDS, "the deploys")
    seconds = time.perf_counter() - begun
    for job in jobs:
        ended = state.job(job) or {}
        assert ended["status"] == JobStatus.SUCCEEDED, ended
    return seconds


def bare_run_many(sandbox: Sandbox, what: Entrypoint, count: int, old: Sequence[str]) -> float:
    """Seconds of `serve.run_many` alone, in a driver that is connected and has deleted `old`."""
    arguments = [str(what.release), what.module, what.name, str(count), str(what.cpus), json.dumps(list(old))]
    command = [sys.executable, "-c", BARE, *arguments]
    done = subprocess.run(command, env=sandbox.environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"bare Serve failed\n{done.stderr[-2000:]}")
    return float(done.stdout.split("seconds")[1].split()[0])


if __name__ == "__main__":
    main()
