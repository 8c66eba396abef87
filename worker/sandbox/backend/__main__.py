"""`python -m worker.sandbox.backend`: settings come from the environment, so no command line has a token.

Each may stand in a file, as a worker's: `SANDBOX_ACCESS_TOKEN_FILE`. With SANDBOX_AGENT_URL, the address of
an agent that somebody else starts, it begins with what `synapse-worker sandbox` has; SANDBOX_URL is its own.
"""

import os
from pathlib import Path

import uvicorn

from shared import Publisher
from worker.sandbox.backend.app import BackendConfig, create_app
from worker.sandbox.backend.state import State
from worker.setting_values import setting_text


def main() -> None:
    """Serve until SIGTERM."""
    config = BackendConfig(
        access_token=setting_text("SANDBOX_ACCESS_TOKEN"),
        plugin_token=setting_text("SANDBOX_PLUGIN_TOKEN"),
        plugins_dir=Path(os.environ["PLUGINS_DIR"]),
        files_dir=Path(os.environ["SANDBOX_FILES_DIR"]),
        serve_url=os.environ.get("SANDBOX_SERVE_URL", ""),
    )
    with (
        Publisher(setting_text("CELERY_BROKER_URL") or setting_text("REDIS_URL")) as publisher,
        State(Path(os.environ["SANDBOX_STATE"])) as state,
    ):
        if agent_url := os.environ.get("SANDBOX_AGENT_URL"):
            _seed(config, state, agent_url)
        uvicorn.run(
            create_app(config, state, publisher.publish),
            host=os.environ.get("SANDBOX_BIND", "127.0.0.1"),
            port=int(os.environ["SANDBOX_PORT"]),
            access_log=False,
            log_level="warning",
            timeout_graceful_shutdown=2,
            # Longer than clients keep idle connections, so that none is closed while a client reuses it.
            timeout_keep_alive=75,
        )


def _seed(config: BackendConfig, state: State, agent_url: str) -> None:
    # Imported here: where the command seeds, this process starts without the images' libraries.
    from worker.sandbox.seed import seed_agent, seed_platform

    seed_agent(state, url=agent_url, token=setting_text("SANDBOX_AGENT_TOKEN"), id=config.agent)
    config.files_dir.mkdir(parents=True, exist_ok=True)
    seed_platform(state, config.files_dir, f"{os.environ['SANDBOX_URL']}/files", agent=config.agent)


if __name__ == "__main__":
    main()
