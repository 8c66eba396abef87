"""`python -m worker.sandbox.backend`: settings come from the environment, so no command line has a token."""

import os
from pathlib import Path

import uvicorn

from shared import Publisher
from worker.sandbox.backend.app import BackendConfig, create_app
from worker.sandbox.backend.state import State


def main() -> None:
    """Serve until SIGTERM."""
    config = BackendConfig(
        access_token=os.environ["SANDBOX_ACCESS_TOKEN"],
        plugin_token=os.environ["SANDBOX_PLUGIN_TOKEN"],
        plugins_dir=Path(os.environ["PLUGINS_DIR"]),
        files_dir=Path(os.environ["SANDBOX_FILES_DIR"]),
        serve_url=os.environ.get("SANDBOX_SERVE_URL", ""),
    )
    with Publisher(os.environ["REDIS_URL"]) as publisher, State(Path(os.environ["SANDBOX_STATE"])) as state:
        app = create_app(config, state, publisher.publish)
        uvicorn.run(
            app,
            host="127.0.0.1",
            port=int(os.environ["SANDBOX_PORT"]),
            access_log=False,
            log_level="warning",
            timeout_graceful_shutdown=2,
            # Longer than clients keep idle connections, so that none is closed while a client reuses it.
            timeout_keep_alive=75,
        )


if __name__ == "__main__":
    main()
