"""Messages for users in English and Korean."""

from string import Formatter

import pytest

from worker.workflow.texts import KOREAN, Text, in_language


def names(template: str) -> set[str | None]:
    return {name for _, name, _, _ in Formatter().parse(template) if name}


@pytest.mark.parametrize("text", list(Text))
def test_each_message_is_there_in_korean_with_the_same_values(text: Text) -> None:
    assert names(KOREAN[text]) == names(text.value)
    assert KOREAN[text] != text.value


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("en", "The cluster has room."),
        ("ko", "클러스터에 여유가 있습니다."),
        ("ko-KR", "클러스터에 여유가 있습니다."),
        ("KO_kr", "클러스터에 여유가 있습니다."),
        ("fr", "The cluster has room."),
        ("kok", "The cluster has room."),
    ],
)
def test_a_message_is_in_the_runs_language_or_in_english(language: str, said: str) -> None:
    assert in_language(language, Text.FITS) == said


def test_a_value_may_hold_braces() -> None:
    assert in_language("en", Text.STEP_WAITS, step="{x}", error="{0}") == "{x} waits: {0}"
