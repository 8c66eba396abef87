"""Namespaces of network, mounts and processes for one command: another machine, joined by a veth pair."""

import os
import random
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


def missing_rights() -> str:
    """Why this process cannot make namespaces; empty when it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "unshare"):
        if shutil.which(tool) is None:
            return f"`{tool}` is not installed"
    try:
        with veth_pair():
            return ""
    except subprocess.CalledProcessError as error:
        return f"namespaces are not permitted: {error.stderr.strip()}"


class OtherMachine:
    """The namespace `name`, which reaches this machine at `address` and nothing else."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address

    def prefix(self, hidden: Path) -> list[str]:
        """The command that runs a command there, where the folder `hidden` is empty."""
        hide = f'mount -t tmpfs none {hidden} && exec "$@"'
        isolate = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        return ["ip", "netns", "exec", self.name, *isolate, "sh", "-c", hide, "sh"]

    @contextmanager
    def forwarded(self, ports: Sequence[int]) -> Iterator[None]:
        """Let the other machine's loopback ports be those of this one."""
        numbers = [str(port) for port in ports]
        script = [sys.executable, "-m", "tests.chaos.port_forwarder"]
        there = ["ip", "netns", "exec", self.name]
        with (
            subprocess.Popen([*script, self.address, "127.0.0.1", *numbers], cwd=ROOT) as here_process,
            subprocess.Popen(
                [*there, *script, "127.0.0.1", self.address, *numbers], cwd=ROOT
            ) as there_process,
        ):
            try:
                yield
            finally:
                here_process.kill()
                there_process.kill()


@contextmanager
def veth_pair() -> Iterator[OtherMachine]:
    """A namespace and a pair of interfaces, which end with the block."""
    number = random.randrange(1, 250)
    # New names each time, because an interface is gone only some time after its namespace.
    mark = secrets.token_hex(3)
    name, here, there = f"synapse-{mark}", f"synh-{mark}", f"synt-{mark}"
    network = f"10.213.{number}"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        _ip("address", "add", f"{network}.1/30", "dev", here)
        _ip("link", "set", here, "up")
        for command in (
            ("address", "add", f"{network}.2/30", "dev", there),
            ("link", "set", there, "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip("-n", name, *command)
        yield OtherMachine(name, f"{network}.1")
    finally:
        _ip("netns", "del", name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
