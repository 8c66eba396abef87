"""Ray jobs whose output differs in speed and content, and the cluster that runs them."""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent
from typing import Any

import httpx

from worker.platform import AgentClient
from worker.sandbox import Sandbox, wait_for

FAST_LINES = 50_000
DELAY_OUTPUT = "import time; time.sleep(0.5)\n"
"""Ray writes a line about the entrypoint after it has started the job. What a job prints at once may
come before that line, or in the middle of it."""

JOBS = {
    "fast": f"print(*(f'line {{n}}' for n in range({FAST_LINES})), sep='\\n')",
    "steady": """
        import time
        for n in range(5):
            print(f'step {n}', flush=True)
            time.sleep(1)
        """,
    "pieces": """
        import sys, time
        for piece in (b'par', b'tial\\n', '한'.encode()[:1], '한'.encode()[1:] + '국어\\nlast'.encode()):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            time.sleep(1.2)
        """,
    "colours": """
        import sys
        print('\\x1b[31m빨강\\x1b[0m 🙂', 'data: {"type": "complete"}', '', '{"loss": 0.1}', sep='\\n')
        print('x' * 300_000)
        sys.stdout.flush()
        sys.stdout.buffer.write(b'caf\\xe9\\n')
        """,
    "silent": "import time; time.sleep(6)",
    "failing": "print('before', flush=True); raise SystemExit('it failed')",
    "endless": """
        import itertools, time
        for n in itertools.count():
            print('still here', n, flush=True)
            time.sleep(0.2)
        """,
}


@dataclass
class Cluster:
    """A sandbox, and the Ray ids of the jobs that were submitted to it, by name."""

    sandbox: Sandbox
    scripts: Path
    jobs: dict[str, str] = field(default_factory=dict)

    def client(self, **options: Any) -> AgentClient:
        return AgentClient(self.sandbox.agent_url or "", self.sandbox.agent_token, **options)

    def submit(self, name: str, program: str | None = None, **options: Any) -> str:
        script = self.scripts / f"{name}.py"
        script.write_text(DELAY_OUTPUT + dedent(program or JOBS[name]))
        ray = self.sandbox.ray
        assert ray is not None
        answer = httpx.post(
            f"{ray.dashboard_url}/api/jobs/",
            json={"entrypoint": shlex.join([sys.executable, str(script)]), **options},
            headers={"Authorization": f"Bearer {ray.token}"},
            timeout=60,
        )
        self.jobs[name] = answer.raise_for_status().json()["submission_id"]
        return self.jobs[name]

    def await_status(self, job: str, *statuses: str) -> None:
        with self.client() as client:
            wait_for(lambda: client.get_job(job)["status"] in statuses, 60, f"{job} to be {statuses}")


def printed(lines: list[str]) -> list[str]:
    """The lines that the job itself printed, which come after Ray's line about the entrypoint."""
    start = next(n for n, line in enumerate(lines) if line.startswith("Running entrypoint for job"))
    return lines[start + 1 :]
