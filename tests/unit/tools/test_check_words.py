"""Which old words are found where, and which plain English is left alone."""

from collections.abc import Callable

import pytest

from tools import check_words
from tools.tree import Tree

MakeTree = Callable[[dict[str, str]], Tree]


@pytest.fixture
def found(make_tree: MakeTree) -> Callable[..., list[str]]:
    """Line, text and word of each finding in one file."""

    def check(text: str, path: str = "worker/runs/a.py") -> list[str]:
        findings = check_words.check(make_tree({path: text}), {})
        return [f"{finding.line}: {finding.message.partition(' ->')[0]}" for finding in findings]

    return check


Found = Callable[..., list[str]]


def message(text: str, word: str, line: int = 1) -> str:
    return f'{line}: "{text}" is an old word, rewrite it: {word}'


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("the waiting room is empty", "room"),
        ("a door of the worker", "door"),
        ("ask the neighbour", "neighbour"),
        ("no sign of life", "sign of life"),
        ("it takes its turn here", "turn"),
        ("the message comes back", "come back"),
        ("the backend is told of it", "tell"),
        ("it cannot be taken in", "take in"),
        ("the last that is borne", "bear"),
        ("messages are refused", "refuse"),
        ("messages handed back", "hand back"),
        ("its task is none of these", "is none of"),
        ("what Redis has against it", "against it"),
        ("a note. Who claimed it may be dead", "who"),
    ],
)
def test_old_word_of_a_comment_is_found(found: Found, text: str, word: str) -> None:
    assert [line.rpartition(": ")[2] for line in found(f"# {text}\n")] == [word]


@pytest.mark.parametrize(
    "text",
    [
        "headroom, mushrooms, outdoor and indoors",
        "there is no room for more, and room for one is made",
        "returns what it turns into, one after the other in turn",
        "turn off the light",
        "connection refused",
        "tell them apart, and tell whether it ended",
        "the time taken in seconds",
        "a bearer token",
        "a look at the state",
        "the worker who began it",
    ],
)
def test_plain_english_is_left_alone(found: Found, text: str) -> None:
    assert found(f'"""{text}"""\n') == []


def test_phrase_over_two_lines_is_found_where_it_ends(found: Found) -> None:
    # Given a comment and a docstring in which a phrase is broken by the end of a line
    text = '# It comes\n# back.\ndef run():\n    """A sign\n    of life."""\n'

    # Then both are found
    assert found(text) == [message("comes back", "come back", 2), message("sign of life", "sign of life", 5)]


def test_identifiers_are_found_whole_and_by_their_words(found: Found) -> None:
    # Given an old name, one with an old word as a part, and a name within an f-string
    text = 'class QuietRequest: ...\nNeighbourAwayError = 1\ntest_it_comes_back = 2\nx = f"{waiting_room}"\n'

    # Then each is found
    assert found(text) == [
        message("QuietRequest", "QuietRequest", 1),
        message("NeighbourAwayError", "neighbour", 2),
        message("test_it_comes_back", "come back", 3),
        message("waiting_room", "room", 4),
    ]


def test_all_kinds_of_identifiers_are_read(found: Found) -> None:
    # Given a parameter, a keyword, an attribute, imports, an alias, and names of errors and of patterns
    text = """\
def f(door): ...
f(door=1)
x.door = 1
from a.door import y
import z as door
try: ...
except OSError as door: ...
match x:
    case [*door]: ...
    case door: ...
"""
    assert found(text) == [message("door", "door", line) for line in (1, 2, 3, 4, 5, 7, 9, 10)]


def test_name_is_old_only_in_its_package(found: Found) -> None:
    # Given a name that is plain English elsewhere, then it is found in the one package, private or not
    assert found("hear = _hear = 1\n", "worker/pre_processor/a.py") == [
        message("_hear", "hear"),
        message("hear", "hear"),
    ]


def test_name_of_another_package_is_left_alone(found: Found) -> None:
    assert found("hear = 1\n", "worker/cli/a.py") == []


def test_limits_are_named_max_and_min(found: Found) -> None:
    # Given a constant and a local variable
    assert found("LONGEST_WAIT = 1\nlongest_wait = 2\n") == [message("LONGEST_WAIT", "longest")]


def test_strings_are_left_alone_but_events_and_help(found: Found) -> None:
    # Given a key, an event of the log, and a setting's description
    text = 'KEY = "room:"\nlog.info("door found", at="door")\nField(description="a\\nneighbour")\n'

    # Then the key, and the value of the event's field, are not findings
    assert found(text) == [message("door", "door", 2), message("neighbour", "neighbour", 4)]


def test_names_of_files_are_read(found: Found) -> None:
    assert found("", "benchmarks/waiting_room.py") == [message("waiting_room", "room")]


def test_lua_is_read_without_its_strings(found: Found) -> None:
    text = "-- the waiting\n-- room\nlocal door = redis.call('HGET', KEYS[1], 'neighbour') -- told\n"

    assert found(text, "worker/runs/lua/a.lua") == [
        message("room", "room", 2),
        message("door", "door", 3),
        message("told", "tell", 3),
    ]


def test_pages_are_read_with_names_in_their_code(found: Found) -> None:
    # Given prose, a name in backticks, and a block of code
    text = "A waiting\nroom.\n\nSee `Turns` and Turns.\n\n```python\nQuietRequest()\n```\n"

    # Then names are read in code alone
    assert found(text, "docs/a.md") == [
        message("room", "room", 2),
        message("Turns", "Turns", 4),
        message("QuietRequest", "QuietRequest", 7),
    ]


def test_comments_of_other_files_are_read(found: Found) -> None:
    assert found("door = 1  # a door\n", "pyproject.toml") == [message("door", "door")]


def test_files_of_other_kinds_are_not_read(found: Found) -> None:
    assert found("a door", "examples/data.txt") == []


def test_allowed_word_is_no_finding_and_needs_a_use(make_tree: MakeTree) -> None:
    # Given a folder with one word, allowed for two words and for a file that is gone
    tree = make_tree({"docs/a.md": "a door"})
    allowed = {("docs/", "door"): "kept", ("docs/", "room"): "kept", ("README.md", "*"): "kept"}

    # Then only the entries that excuse nothing are found
    assert [str(finding) for finding in check_words.check(tree, allowed)] == [
        'README.md: "*" is not used here any more, remove it from ALLOWED',
        'docs/: "room" is not used here any more, remove it from ALLOWED',
    ]


def test_words_are_counted_by_folder(make_tree: MakeTree) -> None:
    # Given words in a package, in tests and at the root
    tree = make_tree(
        {
            "worker/runs/a.py": "# a door\ndoor = 1\n",
            "tests/unit/runs/test_a.py": "door = 1\nroom = 1\n",
            "README.md": "a door",
        }
    )

    # Then the most frequent word is first
    assert {word: dict(folders) for word, folders in check_words.counts(tree, {}).items()} == {
        "door": {"worker/runs": 2, "tests/unit/runs": 1, "README.md": 1},
        "room": {"tests/unit/runs": 1},
    }
