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


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "the task's data unit has no files"),
        (7, "the task's data unit has no files"),
        ([7], "the files of the task's data unit are malformed"),
        ({"label": None}, "the files of the task's data unit are malformed"),
        ({"label": {}}, "the task's file of the specification 'label' has no url"),
        ({"label": {"url": None}}, "the task's file of the specification 'label' has no url"),
    ],
)
def test_what_is_not_a_file_fails_with_the_reason(found: Any, message: str) -> None:
    with pytest.raises(TaskFailedError) as caught:
        parse_files(found)

    assert str(caught.value) == message


def test_a_missing_file_is_named() -> None:
    with pytest.raises(TaskFailedError, match="no primary file"):
        primary_file([LABEL])
    with pytest.raises(TaskFailedError, match="no file of the specification 'mask'"):
        file_of_specification([IMAGE, LABEL], "mask")


def test_an_error_is_cut_and_redacted() -> None:
    work = TaskWork(OpenTask(0, 7))

    assert work.outcome("see http://files/1?token=abc").error == "see <url>"
    assert len(work.outcome("x" * 10_000).error or "") == 500
