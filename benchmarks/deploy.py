"""deploy, from publishing to SUCCEEDED, against a bare `serve.run` of the same class on the same cluster."""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from common.results import Row, argument_parser, at_most, report

from shared import DeployMessage, JobStatus, Publisher
from worker.sandbox import Sandbox, wait_for
from worker.sandbox.sandbox import AGENT_ID

PLUGINS = Path(__file__).parents[1] / "examples" / "plugins"
ROUNDS, QUICK_ROUNDS = 3, 1
MAX_WAIT_SECONDS = 120

BARE = """
import sys, time
sys.path.insert(0, sys.argv[1])
import ray
from ray import serve
from plugin.classifier import DigitClassifier
ray.init(namespace="bare", log_to_driver=False, runtime_env={"working_dir": sys.argv[1]})
target = serve.deployment(ray_actor_options={"num_cpus": 1})(DigitClassifier).bind("http://127.0.0.1")
serve.status()
begun = time.perf_counter()
serve.run(target, name="bare", route_prefix="/bare")
print("seconds", time.perf_counter() - begun)
serve.delete("bare")
"""


def measure(rounds: int) -> Iterator[Row]:
    """Alternate the two, so that other load of the machine falls on both alike."""
    with Sandbox(plugins_dir=PLUGINS) as sandbox:
        sandbox.start_worker()
        first = deploy(sandbox)
        bare, worker = [], []
        for _ in range(rounds):
            delete_application(sandbox)
            bare.append(bare_serve_run(sandbox))
            worker.append(deploy(sandbox))
    yield Row("first deploy of a release: a new process for its code", first, "s")
    spread = f"median of {rounds}: {', '.join(f'{seconds:.1f}' for seconds in worker)}"
    yield Row(
        "deploy, from publishing to SUCCEEDED",
        statistics.median(worker),
        "s",
        "bare serve.run",
        statistics.median(bare),
        at_most(1.1),
        spread,
    )


def main() -> None:
    """Measure and report."""
    arguments = argument_parser(__doc__, quick="one round: half a minute").parse_args()
    report(measure(QUICK_ROUNDS if arguments.quick else ROUNDS), arguments, __file__)


def deploy(sandbox: Sandbox) -> float:
    """Seconds from publishing a deploy to the backend's SUCCEEDED."""
    job = sandbox.state.add_job(plugin="digits@1.0.0", agent=AGENT_ID, action="deployment")
    message = DeployMessage.model_validate(
        {"job": job, "plugin": "digits@1.0.0", "agent": AGENT_ID, "params": {"num_cpus": 1}}
    )
    begun = time.perf_counter()
    with Publisher(sandbox.redis_url) as publisher:
        publisher.publish(message)
    wait_for(
        lambda: JobStatus((sandbox.state.job(job) or {})["status"]).is_final, MAX_WAIT_SECONDS, "the deploy"
    )
    seconds = time.perf_counter() - begun
    ended = sandbox.state.job(job) or {}
    assert ended["status"] == JobStatus.SUCCEEDED, ended
    return seconds


def bare_serve_run(sandbox: Sandbox) -> float:
    """Seconds of `serve.run` alone, in a driver that is already connected."""
    release = PLUGINS / "digits@1.0.0"
    command = [sys.executable, "-c", BARE, str(release)]
    done = subprocess.run(command, env=sandbox.environment(), capture_output=True, text=True, check=True)
    return float(done.stdout.split("seconds")[1].split()[0])


def delete_application(sandbox: Sandbox) -> None:
    """Delete the worker's application, so that both deploy to an empty Serve."""
    code = (
        "import ray; from ray import serve; ray.init(namespace='bare', log_to_driver=False);"
        "serve.delete('digits@1.0.0')"
    )
    subprocess.run([sys.executable, "-c", code], env=sandbox.environment(), capture_output=True, check=True)


if __name__ == "__main__":
    main()
