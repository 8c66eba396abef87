"""Redis's clock, and the scripts of a package."""

import ast
import re
from pathlib import Path
from typing import Any, Final

import pytest
import redis

import shared
import worker
from tests.harness.least_rights import documented_rules
from worker.lua import redis_time, source_of
from worker.redis_needs import command_rules

SOURCES: Final = Path(worker.__file__).parent

COMMAND_OF: Final = {
    "delete": "del",
    "register_script": "evalsha",
    "script_load": "script",
    "memory_usage": "memory",
    "scan_iter": "scan",
}
"""Commands by the methods of the client that have other names."""

NO_COMMANDS: Final = {
    *("aclose", "client", "close", "execute_command", "from_url", "get_connection_kwargs", "parse_response"),
    *("pipeline", "pubsub"),
}
"""Methods that call none of their own."""


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


def test_commands_of_scripts_are_checked() -> None:
    # Given what every script calls
    sources = [path.read_text() for path in SOURCES.rglob("*.lua")]
    called = {name.lower() for text in sources for name in re.findall(r"redis\.p?call\('(\w+)'", text)}
    assert "zadd" in called

    # Then `doctor` looks for the right to each
    assert called - checked_commands() == set()


def test_commands_of_python_code_are_checked() -> None:
    # Given what is called on clients and pipelines of Redis
    modules = [*SOURCES.rglob("*.py"), *Path(shared.__file__).parent.rglob("*.py")]
    trees = [ast.parse(path.read_text()) for path in modules if "sandbox" not in path.parts]
    calls = [node.func for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = {
        COMMAND_OF.get(call.attr, call.attr)
        for call in calls
        if isinstance(call, ast.Attribute) and hasattr(redis.Redis, call.attr) and is_redis(call.value)
    }
    assert {"xrevrange", "zadd", "hmget"} <= called

    # Then `doctor` looks for the right to each that a worker cannot do without
    assert called - checked_commands() - NO_COMMANDS == {"scan"}


def is_redis(receiver: ast.expr) -> bool:
    """Whether the name says so of what is called, or of where a chain of calls begins."""
    while isinstance(receiver, ast.Call) and isinstance(receiver.func, ast.Attribute):
        receiver = receiver.func.value
    name = ast.unparse(receiver).rpartition(".")[2].lstrip("_")
    return name in ("redis", "pipe", "pipeline", "client", "subscriber", "pubsub")


def checked_commands() -> set[str]:
    return {rule.removeprefix("+").partition("|")[0] for rule in command_rules()}


def test_commands_that_doctor_checks_are_those_documented() -> None:
    assert {rule for rule in documented_rules() if rule.startswith("+")} == command_rules()
