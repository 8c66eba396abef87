"""Whatever the reference has a page for is described there."""

import pytest

from tools import reference
from tools.tree import ROOT
from worker.plugins.requests import MAX_ONGOING_REQUESTS


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


def test_default_of_batch_size_is_what_happens_without_it() -> None:
    row = next(row for row in reference.all_message_rows() if row[0] == "`batch_size`")

    assert row[2] == f"the pre-processor's `max_ongoing_requests`, else {MAX_ONGOING_REQUESTS}"


def test_an_option_names_the_setting_that_is_its_default() -> None:
    rows = {row[0]: row for row in reference.option_rows()}

    assert rows["status `--redis-url`"][1] == "`REDIS_URL`, else `redis://127.0.0.1:6379/0`"
    assert rows["plugin list `--plugins-dir`"][1] == "`PLUGINS_DIR`, else required"


def test_no_default_names_a_folder_of_this_machine() -> None:
    rows = [*reference.option_rows(), *reference.settings_rows(), *reference.all_message_rows()]

    assert [row for row in rows if str(ROOT) in "".join(row)] == []


def test_values_are_shown_as_json_has_them() -> None:
    rows = {row[0]: row for row in reference.all_message_rows()}

    assert rows["`force`"][2] == "`false`"
    assert rows["`method`"][1] == "`file` or `inference`"


def test_a_bar_in_a_cell_ends_no_column() -> None:
    assert reference.table(("a",), [("x | y",)]).splitlines()[-1] == "| x \\| y |"
