"""`python -m worker.sandbox.agent`: settings come from the environment, so no command line has a token.

Each may stand in a file, as a worker's: `SANDBOX_AGENT_TOKEN_FILE`.
"""

import os

import uvicorn

from worker.sandbox.agent.app import create_app, dashboard_client
from worker.setting_values import setting_text


def main() -> None:
    """Serve until SIGTERM."""
    client = dashboard_client(os.environ["SANDBOX_DASHBOARD_URL"], setting_text("RAY_AUTH_TOKEN"))
    uvicorn.run(
        create_app(setting_text("SANDBOX_AGENT_TOKEN"), client, setting_text("SANDBOX_PLUGIN_TOKEN")),
        host=os.environ.get("SANDBOX_BIND", "127.0.0.1"),
        port=int(os.environ["SANDBOX_PORT"]),
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=2,
        # Longer than clients keep idle connections, so that none is closed while a client reuses it.
        timeout_keep_alive=75,
        # No pings: a client that reads a log slowly answers them late, and must not be disconnected for that.
        ws_ping_timeout=None,
        ws_per_message_deflate=False,
    )


if __name__ == "__main__":
    main()
