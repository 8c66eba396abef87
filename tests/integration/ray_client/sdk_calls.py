"""Makes every call with the published client, in that client's Python, and prints the results as JSON."""

import json
import sys
from typing import Any

from synapse_sdk.clients.agent import AgentClient  # type: ignore[import-not-found]
from synapse_sdk.exceptions import ClientError  # type: ignore[import-not-found]


def result_or_status(call: Any) -> Any:
    try:
        return call()
    except ClientError as error:
        return {"rejected": error.status_code}


def main(arguments: dict[str, Any]) -> dict[str, Any]:
    client = AgentClient(arguments["url"], arguments["token"], timeout={"connect": 5, "read": 30})
    job, to_stop, app = arguments["job"], arguments["to_stop"], arguments["application"]
    results: dict[str, Any] = {
        "get_job": client.get_job(job),
        "list_jobs": client.list_jobs(),
        "list_job_logs": client.list_job_logs(job),
        "websocket_tail_job_logs": list(client.websocket_tail_job_logs(job)),
        "stream_tail_job_logs": list(client.stream_tail_job_logs(job)),
        "tail_job_logs": list(client.tail_job_logs(job)),
        "list_nodes": client.list_nodes(),
        "list_tasks": client.list_tasks(),
        "list_serve_applications": client.list_serve_applications(),
        "get_node": client.get_node(arguments["node"]),
        "get_task": client.get_task(arguments["task"]),
        "get_serve_application": client.get_serve_application(app),
        "stop_job": client.stop_job(to_stop),
        "stop_ended": result_or_status(lambda: client.stop_job(job)),
        "delete_serve_application": client.delete_serve_application(app),
    }
    for name in ("get_job", "get_node", "get_task", "get_serve_application", "stop_job"):
        results[f"{name} none"] = result_or_status(lambda name=name: getattr(client, name)("none"))
    return results


if __name__ == "__main__":
    print(json.dumps(main(json.load(sys.stdin))))
