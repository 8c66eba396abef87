"""The results of the demo on a narrow terminal."""

import io

from rich.console import Console

from shared.statuses import JobStatus
from worker.cli.demo import DemoRun, _results_table, _seconds_by_step
from worker.cli.progress import WatchedRun


def test_results_fit_into_eighty_columns() -> None:
    # Given a run with many steps
    steps = dict.fromkeys(("initialize", "prepare", "fetch_tasks", "annotate_task_data", "finalize"), 1.25)
    watched = WatchedRun(JobStatus.SUCCEEDED, seconds=123.4, seconds_by_step=steps)
    run = DemoRun("7", "inference", watched, {"total_tasks": 899}, 0.9711)

    # When it is shown
    text = io.StringIO()
    console = Console(file=text, width=80)
    console.print(_results_table([run]), _seconds_by_step(run))

    # Then the run and each of its steps have one line
    lines = [line.replace("│", " ").split() for line in text.getvalue().splitlines()]
    assert ["inference", "SUCCEEDED", "899", "0", "97.1%", "123.4"] in lines
    assert ["annotate_task_data", "1.2", "s"] in lines
