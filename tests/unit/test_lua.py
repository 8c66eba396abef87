"""Redis's clock, and the scripts of a package."""

from typing import Any

import pytest

from worker.lua import redis_time, source_of


class Redis:
    def time(self) -> tuple[int, int]:
        return 1_000, 250_000


def test_redis_time_has_seconds_and_microseconds() -> None:
    redis: Any = Redis()

    assert redis_time(redis) == 1_000.25


def test_script_is_read_by_package_and_name() -> None:
    assert "RPOP" in source_of("worker.broker", "fetch")


def test_unknown_script_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        source_of("worker.broker", "no-such-script")
