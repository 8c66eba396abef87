"""A RabbitMQ of the tests' own, with a virtual host for each of its users.

Nothing of an installed server is used but its programs: not its user, nor its folders, ports, cookie or
Erlang's port mapper. All processes of a node end with it (`worker.sandbox.supervisor`).
"""

import itertools
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from kombu import Connection

from worker.sandbox.processes import MAX_START_SECONDS, Process, free_port, start_process, wait_for

# Debian puts a script on the PATH that runs the server as another user, who may not enter the tests' folders.
SERVER = shutil.which("rabbitmq-server", path="/usr/lib/rabbitmq/bin") or shutil.which("rabbitmq-server")
ERL_CALL = shutil.which("erl_call")
"""Calls a function in a node within milliseconds, where `rabbitmqctl` takes a second."""
IS_MISSING = not (SERVER and ERL_CALL)
MISSING = "there is no rabbitmq-server with Erlang's erl_call"
MAX_CONNECT_SECONDS = 10.0


class RabbitMQ:
    """A node, which keeps what it has over a kill."""

    def __init__(self, folder: Path, settings: str = "") -> None:
        """`settings`: lines of its `rabbitmq.conf`."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._port, self._distribution_port = folder, free_port(), free_port()
        self._cookie = secrets.token_hex(16)
        cookie = folder / ".erlang.cookie"
        cookie.write_text(self._cookie)
        cookie.chmod(0o400)
        (folder / "rabbitmq.conf").write_text(settings)
        self._environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(folder),
            "ERL_CRASH_DUMP_BYTES": "0",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(free_port()),
            "RABBITMQ_NODENAME": f"test{self._port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        }
        self._numbers = itertools.count(1)
        self.process: Process | None = None

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        log = self._folder / "server.log"
        self.process = start_process("rabbitmq", [str(SERVER)], log=log, env=self._environment)
        self.process.wait_until(self._is_up, MAX_START_SECONDS)

    def kill(self) -> None:
        """End it as a crash would."""
        if self.process is not None:
            self.process.kill()

    def restart(self) -> None:
        """Kill it and start it again, with what it had stored."""
        self.kill()
        self.start()

    def url(self, virtual_host: str = "/") -> str:
        return f"amqp://guest:guest@127.0.0.1:{self._port}/{virtual_host}"

    def new_virtual_host(self) -> "VirtualHost":
        name = f"tests-{next(self._numbers)}"
        self.evaluate(f'rabbit_vhost:add(<<"{name}">>, <<"guest">>)')
        rights = ", ".join(['<<".*">>'] * 3)
        self.evaluate(
            f'rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"{name}">>, {rights}, <<"guest">>)'
        )
        return VirtualHost(self, name)

    def evaluate(self, expression: str) -> str:
        """The value of an Erlang expression in the node, as text."""
        answers: list[subprocess.CompletedProcess[str]] = []

        def is_answered() -> bool:
            # The node may still be ending the connection of the call before, which had the same name.
            answers.append(self._call(expression))
            return "failed to connect" not in answers[-1].stderr

        wait_for(is_answered, MAX_CONNECT_SECONDS, f"{expression}: a connection to the node")
        value = answers[-1].stdout.strip()
        assert value.startswith("{ok, "), f"{expression}: {answers[-1].stdout} {answers[-1].stderr}"
        return value.removeprefix("{ok, ").removesuffix("}")

    def _call(self, expression: str) -> subprocess.CompletedProcess[str]:
        address = f"127.0.0.1:{self._distribution_port}"
        return subprocess.run(
            [str(ERL_CALL), "-address", address, "-c", self._cookie, "-timeout", "20", "-e"],
            input=f"{expression}.\n",
            env={"HOME": str(self._folder)},
            text=True,
            capture_output=True,
            timeout=30,
            check=False,
        )

    def _is_up(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1) as probe:
            probe.sendall(b"AMQP\x00\x00\x09\x01")
            # Another node may have taken the port while this one starts.
            return bool(probe.recv(1)) and self.evaluate("rabbit:is_running()") == "true"
        return False


class VirtualHost:
    """The queues of one user of a node."""

    def __init__(self, node: RabbitMQ, name: str) -> None:
        self.node, self._name = node, name
        self.url = node.url(name)

    def url_of(self, user: str, configure: str, write: str, read: str) -> str:
        """The URL of a user with these rights alone, made anew."""
        evaluate, name = self.node.evaluate, f'<<"{user}">>'
        if evaluate(f"rabbit_auth_backend_internal:exists({name})") == "false":
            evaluate(f'rabbit_auth_backend_internal:add_user({name}, <<"password">>, <<"guest">>)')
        rights = ", ".join(f'<<"{right}">>' for right in (configure, write, read))
        arguments = f'{name}, {self._erlang_name}, {rights}, <<"guest">>'
        evaluate(f"rabbit_auth_backend_internal:set_permissions({arguments})")
        return self.url.replace("guest:guest", f"{user}:password")

    def put(self, queue: str, text: str) -> None:
        """Put a text into a queue, which is no message of Celery's."""
        with Connection(self.url) as connection, connection.Producer() as producer:
            content = {"content_type": "application/json", "content_encoding": "utf-8"}
            producer.publish(text.encode(errors="surrogatepass"), routing_key=queue, **content)

    def message_count(self, queues: Iterable[str]) -> int:
        """Messages in these queues, and those that a worker has not acknowledged."""
        return self._sum("messages", queues)

    def waiting_count(self, queue: str) -> int:
        """Messages of a queue that no worker has."""
        return self._sum("messages_ready", [queue])

    def delete_messages(self, queues: Iterable[str]) -> None:
        """Delete what is in these queues, once what ended workers held is back in them."""
        queues = tuple(queues)
        wait_for(lambda: not self._sum("messages_unacknowledged", queues), 20, "what ended workers held")
        names = self._names(queues)
        self.node.evaluate(
            f"[rabbit_amqqueue:purge(Q) || Q <- rabbit_amqqueue:list({self._erlang_name}),"
            f" lists:member(element(4, amqqueue:get_name(Q)), {names})], done"
        )

    def delete(self) -> None:
        self.node.evaluate(f'rabbit_vhost:delete({self._erlang_name}, <<"guest">>)')

    @property
    def _erlang_name(self) -> str:
        return f'<<"{self._name}">>'

    @staticmethod
    def _names(queues: Iterable[str]) -> str:
        return "[{}]".format(", ".join(f'<<"{queue}">>' for queue in queues))

    def _sum(self, item: str, queues: Iterable[str]) -> int:
        found = f"rabbit_amqqueue:info_all({self._erlang_name}, [name, {item}])"
        pattern = f"[{{name, {{resource, _, queue, Name}}}}, {{{item}, Count}}]"
        return int(
            self.node.evaluate(
                f"lists:sum([Count || {pattern} <- {found}, lists:member(Name, {self._names(queues)})])"
            )
        )
