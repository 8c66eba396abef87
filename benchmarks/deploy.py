"""deploy, from publishing to SUCCEEDED, against a bare `serve.run` of the same class on the same cluster."""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

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


def main() -> None:
    """Alternate the two, so that other load of the machine falls on both alike."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round: about a minute")
    rounds = QUICK_ROUNDS if parser.parse_args().quick else ROUNDS
    with Sandbox(plugins_dir=PLUGINS) as sandbox:
        sandbox.start_worker()
        first = deploy(sandbox)
        bare, worker = [], []
        for _ in range(rounds):
            delete_application(sandbox)
            bare.append(bare_serve_run(sandbox))
            worker.append(deploy(sandbox))
        print(
            "first deploy of a release (new driver, new process for its code):"
            f" {first:.2f} s, {first / statistics.median(bare):.2f} of bare,"
            f" {first / statistics.median(worker):.2f} of a later one"
        )
        print(f"bare serve.run:            median {statistics.median(bare):.2f} s of {bare}")
        print(f"publish to SUCCEEDED:      median {statistics.median(worker):.2f} s of {worker}")
        print(f"ratio: {statistics.median(worker) / statistics.median(bare):.2f}")


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
