"""What the page knows of the runs, from records and from changes."""

from worker.console.live_runs import MAX_ENDED_RUNS, LiveRuns

RECORD = {
    "action": "to_task",
    "plugin": "digits@1.0.0",
    "status": "PENDING",
    "step": "",
    "overall": "0",
    "success": "0",
    "failed": "0",
    "total": "0",
    "started": "1000",
    "updated": "1000",
    "error": "",
}


def runs_with(*jobs: str) -> LiveRuns:
    runs = LiveRuns()
    for job in jobs:
        runs.apply(job, RECORD, 1000.0)
    return runs


def test_only_changed_fields_are_sent() -> None:
    # Given two runs that a browser knows
    runs = runs_with("1", "2")
    known = runs.version

    # When one of them gets on
    runs.apply("2", {"status": "RUNNING", "overall": "10"}, 1001.0)

    # Then that is all that is to be sent
    assert runs.changes_since(known) == {"2": {"status": "RUNNING", "overall": 10.0}}


def test_what_is_known_already_is_no_change() -> None:
    runs = runs_with("1")
    known = runs.version

    runs.apply("1", RECORD, 1001.0)

    assert runs.version == known


def test_change_from_before_the_end_does_not_reopen_a_run() -> None:
    # Given a run that has ended
    runs = runs_with("1")
    runs.apply("1", {"status": "SUCCEEDED", "overall": "40"}, 1002.0)

    # When a change comes that was published before
    runs.apply("1", {"status": "RUNNING", "step": "to_task.annotate", "overall": "39"}, 1002.0)

    # Then it stays as it ended
    run = runs.get("1")
    assert run is not None
    assert (run.values["status"], run.values["step"], run.values["overall"]) == ("SUCCEEDED", "", 100.0)


def test_counts_never_fall() -> None:
    runs = runs_with("1")
    runs.apply("1", {"success": "20"}, 1001.0)

    runs.apply("1", {"success": "10"}, 1002.0)

    assert runs.snapshot()["1"]["success"] == 20


def test_run_without_its_record_is_not_shown() -> None:
    # Given a change of a run whose beginning was not heard
    runs = LiveRuns()
    runs.apply("9", {"overall": "50"}, 1000.0)

    # Then it is not shown until its record was read
    assert runs.unknown_jobs() == ["9"]
    assert (runs.snapshot(), runs.changes_since(0)) == ({}, {})
    runs.apply("9", RECORD, 1000.0, is_record=True)
    assert runs.unknown_jobs() == []
    assert runs.changes_since(0)["9"] == runs.snapshot()["9"]
    assert runs.snapshot()["9"]["overall"] == 50.0


def test_what_was_heard_before_the_record_is_sent_with_it() -> None:
    # Given a browser that has seen all, and a run of which only changes were heard
    runs = runs_with("1")
    runs.apply("2", {"message": "waits", "overall": "10"}, 1001.0)
    known = runs.version

    # When its record is read
    runs.apply("2", {**RECORD, "overall": "10"}, 1002.0, is_record=True)

    # Then the browser gets what was heard before, too
    sent = runs.changes_since(known)["2"]
    assert sent is not None
    assert (sent["message"], sent["overall"], sent["plugin"]) == ("waits", 10.0, "digits@1.0.0")


def test_run_of_which_nothing_is_known_hides_no_other() -> None:
    # Given a change of a run
    runs = runs_with("1")
    known = runs.version
    runs.apply("1", {"status": "RUNNING"}, 1001.0)

    # When only what a newer release publishes is heard of another one
    runs.apply("2", {"of_a_newer_release": "1"}, 1001.0)

    assert runs.changes_since(known) == {"1": {"status": "RUNNING"}}


def test_removed_run_is_said_to_be_gone() -> None:
    runs = runs_with("1")
    known = runs.version

    runs.remove("1")

    assert runs.changes_since(known) == {"1": None}


def test_removals_that_are_forgotten_are_no_changes() -> None:
    # Given a page that has seen more runs than removals are remembered
    jobs = [str(number) for number in range(MAX_ENDED_RUNS + 1)]
    runs = runs_with(*jobs)
    known = runs.version

    # When as many as are remembered go at once, then all of them are changes
    for job in jobs[1:]:
        runs.remove(job)
    assert runs.knows_changes_since(known)
    assert len(runs.changes_since(known)) == MAX_ENDED_RUNS

    # When one more goes, then that page needs all runs once more, and one that has seen the others does not
    before_last = runs.version
    runs.remove(jobs[0])
    assert not runs.knows_changes_since(known)
    assert runs.knows_changes_since(before_last)


def test_ended_runs_are_limited_and_live_ones_are_not() -> None:
    # Given more ended runs than the page keeps, and live ones that came before them
    runs = runs_with(*(f"live-{number}" for number in range(MAX_ENDED_RUNS)))
    for number in range(MAX_ENDED_RUNS + 10):
        runs.apply(f"old-{number}", {**RECORD, "status": "FAILED"}, 1000.0)

    # Then the oldest of those that have ended are gone
    assert len(runs) == 2 * MAX_ENDED_RUNS
    assert runs.get("old-9") is None
    assert runs.get("old-10") is not None
    assert len(runs.live_jobs()) == MAX_ENDED_RUNS


def test_time_left_comes_from_the_pace_of_tasks() -> None:
    # Given a run that annotates ten tasks a second
    runs = runs_with("1")
    runs.apply("1", {"total": "1000"}, 1000.0)
    for seconds in range(0, 11, 2):
        runs.apply("1", {"success": str(seconds * 10)}, 1000.0 + seconds)

    # Then its other 900 take 90 seconds, and nothing is said any more once it waits
    assert runs.snapshot()["1"]["left"] == 90
    runs.apply("1", {"waiting_for": "pre-processor a@1"}, 1011.0)
    assert runs.snapshot()["1"]["left"] is None


def test_unreadable_values_are_left_out() -> None:
    # Given a change as another program may write it
    runs = runs_with("1")

    runs.apply("1", {"overall": "much", "success": "1e999", "unknown": "x", "error": "e" * 5_000}, 1001.0)

    # Then the record is as it was, and a long text is cut
    values = runs.snapshot()["1"]
    assert (values["overall"], values["success"], len(values["error"])) == (0.0, 0, 1_000)
    assert "unknown" not in values
