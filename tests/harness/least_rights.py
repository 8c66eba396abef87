"""The user with least rights that docs/redis.md describes."""

import re
from pathlib import Path
from typing import Final

from redis import Redis

USER: Final = "worker"
PASSWORD: Final = "password"

PAGE: Final = Path(__file__).parents[2] / "docs" / "redis.md"


def documented_rules(database: int = 0) -> list[str]:
    """The rules behind `on >password` in the page's ACL SETUSER, for queues in `database`."""
    (command,) = re.findall(r"```\nACL SETUSER worker on >password (.*?)```", PAGE.read_text(), re.DOTALL)
    return [rule.replace("&/0.", f"&/{database}.") for rule in command.split()]


def create_user(admin: Redis, *rules: str) -> None:
    """Make the user anew, with these rules alone."""
    admin.execute_command("ACL", "SETUSER", USER, "reset", "on", f">{PASSWORD}", *rules)


def denied(admin: Redis) -> set[str]:
    """What Redis denied, without the names that redis-py tries to give its connections on any server."""
    entries = {str(entry["object"]) for entry in admin.acl_log()}
    return entries - {"client", "client|setinfo", "client|maint_notifications"}
