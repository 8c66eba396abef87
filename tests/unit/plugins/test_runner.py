"""What runs in the processes of Ray."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from worker.plugins.requests import ActionRequest
from worker.plugins.runner import LOAD, call_operation

HEAVY = ("httpx", "aiohttp", "redis", "celery", "pydantic_settings")


@pytest.mark.parametrize(
    "module", ["worker.plugins.runner", "worker.actions", "worker.plugins.ray_driver.operations"]
)
def test_a_process_of_ray_imports_no_client_of_the_worker(module: str) -> None:
    code = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.split() == []


def test_loading_an_entrypoint_imports_it_and_calls_nothing(tmp_path: Path) -> None:
    # Given an entrypoint that notes its import, and knows no operation
    (tmp_path / "loaded_plugin.py").write_text(
        "from pathlib import Path\n"
        "Path(__file__).with_name('imported').touch()\n"
        "class Action:\n"
        "    def run_operation(*_):\n"
        "        raise AssertionError\n"
    )
    request = ActionRequest("cat@1.0", "to_task", "loaded_plugin.Action")
    # When it is loaded
    path = list(sys.path)
    try:
        reply = call_operation(tmp_path, request, LOAD, "null")
    finally:
        sys.path[:] = path
        sys.modules.pop("loaded_plugin", None)
    # Then it is imported
    assert json.loads(reply) == {"ok": None}
    assert (tmp_path / "imported").exists()


FIRST_CALL = """
import json, sys
from pathlib import Path
from worker.plugins.requests import ActionRequest, ClientAccess
from worker.plugins.runner import call_operation

params = {"name": "n", "project": 1, "agent": 1, "method": "inference", "pre_processor": 7, "model": 3}
access = ClientAccess("http://127.0.0.1:1", "token-of-the-plugin", agent_url="http://127.0.0.1:2")
request = ActionRequest("cat@1.0", "to_task", "first_call_plugin.ToTask", params, clients=access)
call_operation(Path(sys.argv[1]), request, "load", "null")
loaded = set(sys.modules)
item = {"primary_file_url": "http://h/f", "primary_file_name": "f", "data_files": []}
reply = call_operation(Path(sys.argv[1]), request, "prepare_inference", json.dumps([item]))
print(list(json.loads(reply)["ok"][0]), sorted(set(sys.modules) - loaded))
"""


def test_the_first_call_after_loading_imports_nothing(tmp_path: Path) -> None:
    # Given an action with clients, whose import takes longer than all else of a first call
    (tmp_path / "first_call_plugin.py").write_text(
        "from worker.actions import ToTaskAction\nclass ToTask(ToTaskAction):\n    pass\n"
    )

    # When a process loads it and calls it
    arguments = [sys.executable, "-c", FIRST_CALL, str(tmp_path)]
    found = subprocess.run(arguments, capture_output=True, text=True, check=True)

    # Then the call imports nothing
    assert found.stdout == "['ok'] []\n"
