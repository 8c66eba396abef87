"""Whatever the reference has a page for is described there."""

import pytest

from tools import reference


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(reference.settings_rows, id="settings"),
        pytest.param(reference.metrics_rows, id="metrics"),
        pytest.param(lambda: list(reference.tasks().items()), id="tasks"),
        pytest.param(lambda: [(name, text.help or "") for name, text in reference.commands()], id="commands"),
        pytest.param(reference.option_rows, id="options"),
        pytest.param(reference.all_message_rows, id="messages"),
    ],
)
def test_everything_is_described(rows: "reference.Rows") -> None:
    # Given the rows of a page, whose last cell says what each means
    found = rows()

    # Then each has some words
    assert found
    assert [row[0] for row in found if not row[-1].strip()] == []


def test_a_page_has_one_table_row_for_each_setting() -> None:
    # Given the page
    page = reference.settings_page()

    # Then a setting has its variable, its default and its meaning there
    assert "| `WORKER_PLUGIN_TIMEOUT_SECONDS` | `300` | Timeout of a call of plugin code. |" in page


def test_a_message_has_its_name_in_the_queue() -> None:
    # Given a parameter that Python calls otherwise, as pydantic has a method of its name
    rows = {row[0]: row for row in reference.all_message_rows()}

    # Then it stands there as publishers write it
    assert rows["`schema`"][1] == "`dm_schema_v1` or `any`"


def test_a_bar_in_a_cell_ends_no_column() -> None:
    assert reference.table(("a",), [("x | y",)]).splitlines()[-1] == "| x \\| y |"
