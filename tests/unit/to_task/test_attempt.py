"""The files and the outcome of a task."""

from typing import Any

import pytest

from worker.blame import TaskFailedError
from worker.to_task.attempt import File, TaskWork, file_of_specification, parse_files, primary_file
from worker.to_task.ledger import OpenTask

IMAGE = File("http://f/1.png", "1.png", "image", True)
LABEL = File("http://f/1.json", "1.json", "label", False)

MAPPING: dict[str, Any] = {
    "image": {"url": "http://f/1.png", "is_primary": True, "file_name_original": "1.png"},
    "label": {"url": "http://f/1.json", "is_primary": False, "filename": "1.json"},
}
LIST: list[Any] = [
    {"url": "http://f/1.png", "is_primary": True, "file_name_original": "1.png", "specification": "image"},
    {"url": "http://f/1.json", "is_primary": False, "name": "1.json", "specification_name": "label"},
]


@pytest.mark.parametrize("found", [MAPPING, LIST])
def test_a_mapping_and_a_list_are_the_same_files(found: Any) -> None:
    files = parse_files(found)

    assert files == [IMAGE, LABEL]
    assert primary_file(files) == IMAGE
    assert file_of_specification(files, "label") == LABEL


def test_a_listed_file_may_name_its_specification_by_name() -> None:
    [file] = parse_files([{"url": "u", "name": "label"}])

    assert (file.specification, file.name, file.is_primary) == ("label", "label", False)


@pytest.mark.parametrize("found", [None, 7, [], {}])
def test_a_data_unit_without_files_fails_with_the_reason(found: Any) -> None:
    with pytest.raises(TaskFailedError, match="the task's data unit has no files"):
        parse_files(found)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (None, "the task's file of the specification 'label' is no object"),
        ({}, "the task's file of the specification 'label' has no url"),
        ({"url": None}, "the task's file of the specification 'label' has no url"),
    ],
)
def test_an_odd_file_fails_a_task_that_needs_it(odd: Any, message: str) -> None:
    files = parse_files({**MAPPING, "label": odd})

    assert primary_file(files) == IMAGE
    with pytest.raises(TaskFailedError) as caught:
        file_of_specification(files, "label")
    assert str(caught.value) == message


def test_an_odd_file_in_a_list_hides_no_other() -> None:
    files = parse_files([7, None, {"is_primary": True}, *LIST])

    assert (primary_file(files), file_of_specification(files, "label")) == (IMAGE, LABEL)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(TaskFailedError, match="no primary file"):
        primary_file([LABEL])
    with pytest.raises(TaskFailedError, match="no file of the specification 'mask'"):
        file_of_specification([IMAGE, LABEL], "mask")


def test_an_error_is_cut_and_redacted() -> None:
    work = TaskWork(OpenTask(0, 7))

    assert work.outcome("see http://files/1?token=abc").error == "see <url>"
    assert len(work.outcome("x" * 10_000).error or "") == 500
