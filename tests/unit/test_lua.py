"""Redis's clock, and the scripts of a package."""

import re
from pathlib import Path
from typing import Any

import pytest

import worker
from tests.harness.least_rights import documented_rules
from worker.lua import redis_time, source_of
from worker.redis_needs import COMMANDS_ON_A_KEY, OTHER_COMMANDS


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


def test_commands_of_scripts_are_documented_and_checked() -> None:
    # Given what every script calls
    sources = [path.read_text() for path in Path(worker.__file__).parent.rglob("*.lua")]
    called = {name.lower() for text in sources for name in re.findall(r"redis\.p?call\('(\w+)'", text)}
    assert "zadd" in called

    # Then `doctor` looks for the right to each, and the page of Redis has a rule for it
    checked = {command.split()[0] for command in (*COMMANDS_ON_A_KEY, *OTHER_COMMANDS)}
    granted = {rule.removeprefix("+") for rule in documented_rules() if rule.startswith("+")}
    assert called - checked - {"publish"} == set()
    assert called - granted == set()


def test_commands_that_doctor_checks_are_documented() -> None:
    granted = {rule.removeprefix("+").partition("|")[0] for rule in documented_rules() if rule[0] == "+"}

    assert {command.split()[0] for command in (*COMMANDS_ON_A_KEY, *OTHER_COMMANDS)} - granted == set()
