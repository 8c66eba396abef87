"""What idle workers cost Redis by their periodic work: ten against one, in one run.

Each worker's works (`worker.maintenance`) run in threads of this process, with leases of their own. What the
transport of an idle worker costs is measured by `benchmarks/broker.py`.
"""

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog
from common.results import Row, argument_parser, report
from redis import Redis

from worker.sandbox.servers import RedisServer

WORKERS = (1, 10)


@dataclass(frozen=True)
class Cost:
    """Commands a second, those in scripts included, and microseconds of Redis that they take."""

    commands: float
    microseconds: float


def cost_of(redis: Redis, workers: int, warm_up_seconds: float, seconds: float) -> Cost:
    """Run the periodic work of so many workers, and measure it once all of them know who does it."""
    from worker.maintenance import Maintenance

    redis.flushdb()
    running = [Maintenance() for _ in range(workers)]
    for each in running:
        each.start()
        time.sleep(0.3)  # workers of a fleet do not look at the same moment
    time.sleep(warm_up_seconds)
    redis.config_resetstat()
    time.sleep(seconds)
    counted = redis.info("commandstats")
    for each in running:
        each.stop()
    ours = ("cmdstat_config|resetstat", "cmdstat_info")
    found = [stat for name, stat in counted.items() if name not in ours]
    # A script's own time has that of its commands in it.
    top = [
        stat for name, stat in counted.items() if name in ("cmdstat_evalsha", "cmdstat_pttl", "cmdstat_set")
    ]
    return Cost(sum(stat["calls"] for stat in found) / seconds, sum(stat["usec"] for stat in top) / seconds)


def compare(seconds: float) -> Iterator[Row]:
    """The costs of ten workers against those of one."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with TemporaryDirectory() as folder:
        server = RedisServer(Path(folder) / "redis")
        server.start()
        os.environ |= {
            "REDIS_URL": server.url,
            "PLUGINS_DIR": folder,
            "SYNAPSE_HOST": "http://backend",
            "SYNAPSE_ACCESS_TOKEN": "token-of-the-worker",
        }
        try:
            import worker.app  # noqa: F401 - only now, because the app is made of the settings in the environment

            redis = Redis.from_url(server.url, decode_responses=True)
            costs = [cost_of(redis, workers, 40.0, seconds) for workers in WORKERS]
        finally:
            server.stop()
    one, ten = costs
    yield Row("sweeps of ten idle workers: commands", ten.commands, "a second", "one worker", one.commands)
    time_of = "sweeps of ten idle workers: time of Redis"
    yield Row(time_of, ten.microseconds, "µs a second", "one worker", one.microseconds)


def main() -> None:
    """Measure and report."""
    arguments = argument_parser(__doc__, quick="a shorter measurement").parse_args()
    report(compare(30.0 if arguments.quick else 120.0), arguments, __file__)


if __name__ == "__main__":
    main()
