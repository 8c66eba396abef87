"""Rows of benchmarks: what counts as met, and that a kept row is the same when it is read."""

import json
import math

import pytest

from benchmarks.common.results import Goal, Row, at_least, at_most, draw, show


def row(figure: float, reference: float | None, goal: Goal | None) -> Row:
    return Row("a rate", figure, "tasks/s", "bare loop", reference, goal, note="of three", script="annotate")


@pytest.mark.parametrize(
    ("figure", "reference", "goal", "is_met"),
    [
        (90, 100, at_least(0.9), True),
        (89, 100, at_least(0.9), False),
        (110, 100, at_most(1.1), True),
        (111, 100, at_most(1.1), False),
        (0.5, 0.1, at_most(0.5, of_figure=True), True),
        (0.6, 10, at_most(0.5, of_figure=True), False),
    ],
)
def test_a_goal_is_of_the_ratio_or_of_the_figure(
    figure: float, reference: float, goal: Goal, is_met: bool
) -> None:
    assert row(figure, reference, goal).as_json()["goal_met"] is is_met


@pytest.mark.parametrize(("reference", "goal"), [(None, at_least(0.9)), (0.0, at_least(0.9)), (100, None)])
def test_without_goal_or_reference_nothing_is_met(reference: float | None, goal: Goal | None) -> None:
    assert row(90, reference, goal).as_json()["goal_met"] is None


def test_a_kept_row_is_read_as_it_was() -> None:
    # given
    kept = row(90, 100, at_most(0.9, of_figure=True))
    # when
    found = Row.from_json(json.loads(json.dumps(kept.as_json())))
    # then
    assert found == kept


@pytest.mark.parametrize("figure", [math.inf, 0.0])
@pytest.mark.parametrize("goal", [at_most(50, of_figure=True), at_least(0.9)])
def test_a_figure_without_a_ratio_is_shown_and_kept(figure: float, goal: Goal) -> None:
    # given the delay of lines that never came, or nothing at all
    kept = row(figure, 100, goal)
    # when
    text = json.dumps(kept.as_json(), allow_nan=False)
    show([kept], "bench")
    # then
    assert Row.from_json(json.loads(text)) == kept


def test_the_picture_loads_nothing_from_elsewhere(tmp_path) -> None:
    # when
    draw([row(90, 100, at_least(0.9)), row(10, 100, at_least(0.9))], "bench", "today", tmp_path / "bench.svg")
    # then
    text = (tmp_path / "bench.svg").read_text(encoding="utf-8")
    assert "bare" in text
    assert "url(http" not in text
    assert "@font-face" not in text
