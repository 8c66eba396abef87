"""`python -m worker.sandbox.agent`: all of it comes from the environment, no token in a command line."""

import os

import uvicorn

from worker.sandbox.agent.app import create_app, dashboard_client


def main() -> None:
    """Serve until told to end."""
    client = dashboard_client(os.environ["SANDBOX_DASHBOARD_URL"], os.environ["RAY_AUTH_TOKEN"])
    uvicorn.run(
        create_app(os.environ["SANDBOX_AGENT_TOKEN"], client),
        host="127.0.0.1",
        port=int(os.environ["SANDBOX_PORT"]),
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=2,
        # Longer than clients keep an idle connection, else one closes under their hands.
        timeout_keep_alive=75,
        # Whoever is slow to read a log is slow to answer pings, and not to be cut off for it.
        ws_ping_timeout=None,
        ws_per_message_deflate=False,
    )


if __name__ == "__main__":
    main()
