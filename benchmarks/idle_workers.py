"""What idle workers cost Redis by their periodic work: ten against one, in one run.

Each worker's works (`worker.maintenance`) run in threads of this process, with leases of their own. What the
transport of an idle worker costs is measured by `benchmarks/broker.py`.
"""

import argparse
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog
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


def main() -> None:
    """Print the costs and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a shorter measurement")
    seconds = 30.0 if parser.parse_args().quick else 120.0
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
    for workers, cost in zip(WORKERS, costs, strict=True):
        print(f"{workers} idle: {cost.commands:.2f} commands/s, {cost.microseconds:.0f} us of Redis a second")
    one, ten = costs
    print(
        f"ten against one: {ten.commands / one.commands:.2f} of the commands,"
        f" {ten.microseconds / one.microseconds:.2f} of the time"
    )


if __name__ == "__main__":
    main()
