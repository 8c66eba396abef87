"""What no client of ours may use: the environment's proxies, all of which lead to one listener."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

PROXY_VARIABLES = tuple(
    name
    for scheme in ("http", "https", "grpc", "all", "ws", "wss")
    for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper())
)


@contextlib.contextmanager
def proxy_trap(patch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Set all proxies of the environment; yields what was sent to them."""
    sent: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.settimeout(1)
                        sent.append(connection.recv(1000))

        threading.Thread(target=accept, daemon=True).start()
        for name in PROXY_VARIABLES:
            patch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY"):
            patch.delenv(name, raising=False)
        yield sent
        server.shutdown(socket.SHUT_RDWR)
