"""Runs of every kind at once, and what must have come of them."""

import re
import time
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.chaos.audit import Findings
from tests.chaos.effect_log import Disturbances
from tests.chaos.platform_harness import Site
from worker.sandbox import wait_for
from worker.sandbox.seed import SeededProject

MESSAGES = re.compile(
    r"Serve deploy capacity check failed: agent unreachable \(\w+\)"
    r"|Pre-processor deployment dispatch failed \(\w+\)"
    r"|Pre-processor deployment failed: job reached terminal state \(FAILED\)"
)
"""What a run may fail with whose dependency was away at the one moment at which it is asked once."""


@dataclass
class MixedRuns:
    """Published by `publish`, in an order of `random`."""

    site: Site
    random: Random
    deploys: dict[str, str] = field(default_factory=dict)
    by_file: dict[str, SeededProject] = field(default_factory=dict)
    by_inference: dict[str, tuple[SeededProject, str]] = field(default_factory=dict)
    disturbances: Disturbances = field(default_factory=Disturbances)

    @property
    def jobs(self) -> list[str]:
        return [*self.deploys, *self.by_file, *self.by_inference]

    def prepare(self, count: int, *, tasks: int = 12, pre_processors: int = 4) -> None:
        """Of ten runs four deploy, four annotate by file, two by inference."""
        site = self.site
        codes = [site.pre_processor() for _ in range(pre_processors)]
        for number in range(count):
            if number % 10 < 4:
                plugin = site.harness.plugin(site.harness.new_code())
                self.deploys[site.new_job(plugin, "deployment")] = plugin
                continue
            job, project = site.new_job("echo@1.0.0", "to_task"), site.project(tasks)
            if number % 10 < 8:
                self.by_file[job] = project
            else:
                self.by_inference[job] = (project, codes[number % len(codes)])

    def publish(self, over: float = 0.0) -> None:
        """All of them, within so many seconds."""
        jobs = self.jobs
        self.random.shuffle(jobs)
        for job in jobs:
            self.publish_one(job)
            time.sleep(over / len(jobs))

    def publish_one(self, job: str) -> None:
        """The message of `job`."""
        if job in self.deploys:
            self.site.deploy(job, self.deploys[job])
        elif job in self.by_file:
            self.site.to_task_by_file(job, self.by_file[job])
        else:
            self.site.to_task_by_inference(job, *self.by_inference[job])

    def wait_for_ends(self, seconds: float) -> None:
        wait_for(lambda: not self.unended(), seconds, "the end of every run")

    def unended(self) -> list[str]:
        return [job for job in self.jobs if not self.site.is_over(job)]

    def audit(self, *, may_fail: bool = False) -> Findings:
        """`may_fail`: by the contract's messages for a dependency that was away."""
        auditor = self.site.auditor(self.disturbances)
        say = auditor.findings.expect
        failed: list[str] = []

        def succeeded(job: str) -> bool:
            row: dict[str, Any] = auditor.job(job)
            error = str((row["result"] or {}).get("error"))
            fine = row["status"] == "SUCCEEDED"
            excused = may_fail and MESSAGES.fullmatch(error) is not None
            say(fine or excused, f"job {job}: {row['status']} {row['result']}")
            failed.extend([] if fine else [error])
            return fine

        for job in self.deploys:
            succeeded(job)
            auditor.deployment(job)
        for job, project in self.by_file.items():
            if succeeded(job):
                auditor.tasks(job, project)
        served = set()
        for job, (project, code) in self.by_inference.items():
            if succeeded(job):
                served.add(code)
                auditor.tasks(job, project)
        for code in {code for _, code in self.by_inference.values()}:
            count = self.site.dispatches(code)
            rejected = sum("dispatch failed" in error or "job reached" in error for error in failed)
            # A backend that was away when it was asked has none: then nobody was served either.
            say(
                (code in served) <= count <= 1 + rejected,
                f"{code}: {count} dispatches, {rejected} runs failed for one",
            )
        for plugin in self.deploys.values():
            query = "SELECT count(*) FROM submissions WHERE name = ?"
            [(times,)] = self.site.harness.serve.rows(query, plugin)
            say(times <= 1, f"{plugin}: submitted {times} times")
        auditor.findings.failed = failed
        return auditor.findings
