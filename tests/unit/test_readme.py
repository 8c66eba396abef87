"""The README's table of settings is the settings."""

from pathlib import Path

from worker.settings import Settings

README = Path(__file__).parents[2] / "README.md"


def settings_table() -> str:
    rows = []
    for name, field in Settings.model_fields.items():
        default = "required" if field.is_required() else "" if field.default is None else f"`{field.default}`"
        rows.append(f"| `{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def test_readme_lists_every_setting_with_its_default() -> None:
    # Given the README's table between its marks
    text = README.read_text(encoding="utf-8")
    table = text.split("<!-- settings -->")[1].split("<!-- /settings -->")[0]

    # Then it is what the settings say
    assert settings_table() in table
