"""What an author reads of a failed deployment, however long the error is."""

import time

import pytest

from worker.actions.serve_state import MAX_CHARS, MAX_READ_LINES, clean_reason
from worker.platform import register_secrets

FRAME = '  File "{file}", line 3, in __init__'


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "/",
        "/a",
        " ",
        "\t x",
        "(",
        "/_ray_pkg_",
        "/_ray_pkg_a/",
        "/site-packages/",
        "pid=",
        " (pid=1,",
        "1.",
        "1.1.1.1:",
        "\x1b[",
        "\x1b[1;",
        "iVBORw0KGgo/9j4+",
        'File "/a',
        "\n",
        "\n  /",
        "\n" + "/" * 5_000,
        "\n" + FRAME.format(file="/a" * 1_000),
        "\n" + FRAME.format(file="/_ray_pkg_a/" * 100),
    ],
)
def test_a_megabyte_of_an_authors_error_is_explained_in_no_time(unit: str) -> None:
    message = f"ValueError: {unit * (1_000_000 // len(unit))} end"
    began = time.thread_time()

    explained = clean_reason(message)

    assert time.thread_time() - began < 3
    assert len(explained) <= MAX_CHARS


def test_a_line_that_is_too_long_is_shown_from_its_beginning() -> None:
    explained = clean_reason(
        f"{FRAME.format(file='/x/_ray_pkg_0a/plugin.py')}\nValueError: cannot read {'x' * 9_000}"
    )

    assert explained.startswith("ValueError: cannot read xxx")
    assert len(explained) == MAX_CHARS


def test_the_last_lines_of_very_many_are_read() -> None:
    assert clean_reason("\n".join(["x"] * 2 * MAX_READ_LINES + ["ValueError: no weights"])).endswith(
        "no weights"
    )


def test_a_secret_across_the_end_of_what_is_shown_is_masked() -> None:
    register_secrets(["private-secret"])

    explained = clean_reason(f"ValueError: {'x' * (MAX_CHARS - 20)} private-secret {'x' * 9_000}")

    assert "private" not in explained


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            FRAME.format(file="/tmp/ray/s_1/_ray_pkg_0a1b/plugin/serve.py"),
            FRAME.format(file="plugin/serve.py"),
        ),
        (FRAME.format(file="/x/_ray_pkg_0a1b/v/site-packages/m.py"), FRAME.format(file="m.py")),
        ("no /x/lib/site-packages/m.py nor /y/site-packages/n.py", "no m.py nor n.py"),
        ("ValueError: /data/weights.bin is gone", "ValueError: /data/weights.bin is gone"),
        ("died, SERVE   (pid=225, ip=127.0.0.2) at 10.0.0.1:80 now", "died, SERVE at  now"),
    ],
)
def test_folders_processes_and_addresses_of_a_node_are_left_out(line: str, shown: str) -> None:
    assert clean_reason(line) == shown
