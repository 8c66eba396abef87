"""Outcomes of other projects' tests on two transports, compared by name."""

import json
from pathlib import Path

from tests.foreign.comparison import ABSENT, Outcome, compare, read_expected, read_outcomes, unknown_names

PASSED, FAILED = Outcome("passed"), Outcome("failed", "AssertionError: 1 == 2")


def test_equal_outcomes_are_no_difference() -> None:
    # Given two runs in which one test passes and one fails
    run = {"a": PASSED, "b": FAILED}

    # Then nothing differs, also where the messages do
    assert compare(run, run | {"b": Outcome("failed", "TimeoutError")}, {}) == []


def test_a_difference_without_a_reason_is_unexpected() -> None:
    # Given a test that fails on the worker's transport alone
    [difference] = compare({"a": PASSED}, {"a": FAILED}, {})

    # Then it is not expected, and what is printed has its message
    assert not difference.is_expected
    assert FAILED.message in str(difference)


def test_a_test_that_one_run_lacks_is_a_difference() -> None:
    # Given a run that ended before its second test
    [difference] = compare({"a": PASSED, "b": PASSED}, {"a": PASSED}, {})

    # Then the second is absent in it
    assert (difference.name, difference.worker) == ("b", ABSENT)


def test_a_reason_holds_for_all_parameters() -> None:
    # Given a test with two parameters that is expected to differ, and does
    stock, worker = {"a[1]": PASSED, "a[2]": PASSED}, {"a[1]": FAILED, "a[2]": FAILED}

    # Then both differences are expected
    assert [one.is_expected for one in compare(stock, worker, {"a": "an internal"})] == [True, True]


def test_an_expected_difference_that_is_none_is_reported() -> None:
    # Given a test that is expected to differ and passes in both runs
    [difference] = compare({"a": PASSED}, {"a": PASSED}, {"a": "an internal"})

    # Then it is a finding
    assert not difference.is_expected
    assert "expected to differ" in str(difference)


def test_names_that_no_test_has_are_found() -> None:
    # Given a reason for a test that was renamed
    expected = {"a": "an internal", "b": "another"}

    # Then its old name is found
    assert unknown_names({"a[1]": PASSED}, expected) == ["b"]


def test_a_failed_clean_up_fails_the_test(tmp_path: Path) -> None:
    # Given a test that passed and whose clean-up failed, and one that failed before its clean-up was skipped
    file = tmp_path / "outcomes.jsonl"
    records = [("a", "passed"), ("a", "failed"), ("b", "failed"), ("b", "skipped")]
    lines = [json.dumps({"name": name, "outcome": outcome, "message": ""}) for name, outcome in records]
    file.write_text("\n".join(lines))

    # Then both failed
    assert {name: outcome.kind for name, outcome in read_outcomes(file).items()} == {
        "a": "failed",
        "b": "failed",
    }


def test_each_expected_difference_has_its_reason() -> None:
    # Given the page of expected differences
    reasons = read_expected("kombu")

    # Then every test in it has one
    assert reasons
    assert all(reasons.values())
