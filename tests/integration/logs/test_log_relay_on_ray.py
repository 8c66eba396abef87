"""Logs of real Ray jobs, from the message to the channel, through the sandbox's agent and a real worker."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from redis import Redis

from shared.channels import logs_history
from shared.follower import LogFollower
from shared.messages import TailLogsMessage
from shared.publisher import Publisher
from tests.integration.ray_client.jobs import JOBS, Cluster, printed
from worker.sandbox import Sandbox

pytestmark = [pytest.mark.timeout(180), pytest.mark.ray]

PRINTED = {
    "steady": ("ended", [f"step {number}" for number in range(5)]),
    "pieces": ("ended", ["partial", "한국어", "last"]),
    "failing": ("ended", ["before", "it failed", "The Ray job"]),
    "silent": ("ended", []),
    "endless": ("stopped", ["still here 0", "still here 1"]),
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Running Ray jobs, and a subscription to the log of each for a job of the same name."""
    with Sandbox(plugins_dir=tmp_path_factory.mktemp("plugins"), num_cpus=3) as sandbox:
        cluster = Cluster(sandbox, tmp_path_factory.mktemp("scripts"))
        for name in (*PRINTED, "colours"):
            cluster.submit(name, JOBS[name])
        # Its log is subscribed to while Ray still tries to install what it needs.
        cluster.submit("homeless", JOBS["silent"], runtime_env={"pip": ["no-such-package-of-ours==1.0"]})
        sandbox.start_worker(queues="logs", concurrency=2)
        with Publisher(sandbox.redis_url) as publisher:
            for name, ray_job in cluster.jobs.items():
                publisher.publish(TailLogsMessage(job=name, ray_job=ray_job))
        yield cluster


@pytest.fixture
def redis(cluster: Cluster) -> Iterator[Redis]:
    with Redis.from_url(cluster.sandbox.redis_url, decode_responses=True) as redis:
        yield redis


@pytest.mark.parametrize("name", PRINTED)
def test_log_of_a_real_job_is_relayed_to_its_end(name: str, cluster: Cluster, redis: Redis) -> None:
    # Given a subscription to the log of a Ray job; the endless job is stopped once it prints
    reason, expected = PRINTED[name]
    follower = LogFollower(redis, name)
    lines = []
    for line in follower:
        lines.append(line.line)
        if line.line == "still here 1":
            with cluster.client() as client:
                client.stop_job(cluster.jobs[name])

    # Then the follower ends by itself, with everything that was printed and the reason of the end
    own = [line[: len(text)] for line, text in zip(printed(lines), expected, strict=False)]
    assert own == expected
    assert name == "endless" or len(printed(lines)) == len(expected)
    assert follower.reason == reason


@pytest.mark.chaos
@pytest.mark.timeout(400)  # Ray tries three times, and copies this environment each time
def test_a_job_that_fails_before_its_driver_starts_says_why(cluster: Cluster, redis: Redis) -> None:
    # When the log of a job is followed whose requirements cannot be installed
    follower = LogFollower(redis, "homeless")
    lines = [line.line for line in follower]

    # Then its last word is Ray's reason
    assert lines[-1].startswith(f"The Ray job {cluster.jobs['homeless']} FAILED: ")
    assert "no-such-package-of-ours" in lines[-1]
    assert follower.reason == "ended"


def test_logs_command_follows_a_real_job_without_changes(cluster: Cluster, redis: Redis) -> None:
    # When the command writes the log into a pipe
    command = [sys.executable, "-c", "from worker.cli import main; main()", "logs", "colours", "--follow"]
    options = ["--source", cluster.jobs["colours"], "--redis-url", cluster.sandbox.redis_url]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60)

    # Then the printed text is unchanged, except that a line that is too long is cut and marked
    assert done.returncode == 0, done.stderr
    lines = printed(done.stdout.split("\n"))
    assert lines[:4] == ["\x1b[31m빨강\x1b[0m 🙂", 'data: {"type": "complete"}', "", '{"loss": 0.1}']
    assert lines[4].endswith("… [cut: 300000 bytes]")
    # And the end marker is the last entry of the history
    assert redis.xrevrange(logs_history("colours"), count=1)[0][1]["type"] == "end"
