"""Files of this machine behind URLs, as hooks get those of the platform."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

from worker.cli.console import fail


@contextmanager
def served_files() -> Iterator[Callable[[str], str]]:
    """Serve local files while the block runs, as the platform does; yields what makes a URL of a path."""
    servers: list[ThreadingHTTPServer] = []

    def url_of(place: str) -> str:
        if "://" in place:
            return place
        path = Path(place).resolve()
        if not path.is_file():
            fail(f"there is no file {place}")
        handler = partial(_QuietHandler, directory=str(path.parent))
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/{quote(path.name)}"

    try:
        yield url_of
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """A request is no matter of the terminal."""
