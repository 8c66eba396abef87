"""What `doctor` finds, as lines or as JSON."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NoReturn

import typer
from rich.markup import escape

from worker.cli.console import out


@dataclass(frozen=True)
class Finding:
    """A line of the doctor's: an error, or a warning."""

    text: str
    is_error: bool = True


class CheckWarning(Exception):
    """Nothing is wrong, but the user should know: the check is a warning."""


class CheckFailures(Exception):
    """What is wrong was reported, each finding with what to do."""


class Report:
    """The findings, each printed on one line when it is found, or all of them as JSON at the end."""

    MARKS: Final = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "error": "[red]✗[/]"}

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self.findings: list[dict[str, str]] = []

    def add(self, check: str, status: str, text: str = "", *, see: str = "") -> None:
        """A finding: `ok`, `warning` or `error`; `see` names the settings that it is about."""
        finding = {"check": check, "status": status, "text": text, "see": see}
        self.findings.append({name: value for name, value in finding.items() if value})
        colon = f": {escape(text)}" if text else ""
        self._print(f"{self.MARKS[status]} {check}{colon}" + (f" [dim](see {see})[/]" if see else ""))

    def add_all(self, check: str, findings: Iterable[Finding]) -> None:
        """Report these; raises `CheckFailures` after an error."""
        has_errors = False
        for finding in findings:
            self.add(check, "error" if finding.is_error else "warning", finding.text)
            has_errors = has_errors or finding.is_error
        if has_errors:
            raise CheckFailures

    def note(self, text: str) -> None:
        """What takes a while is about to be checked."""
        self._print(f"[dim]· {text}[/]")

    def end(self, *, is_healthy: bool) -> NoReturn:
        """Print what was not printed, and end the command."""
        if self._as_json:
            typer.echo(json.dumps({"healthy": is_healthy, "findings": self.findings}, indent=2))
        raise typer.Exit(0 if is_healthy else 1)

    def _print(self, line: str) -> None:
        if not self._as_json:
            # On one line, also in a file that is searched by lines.
            out.print(line, highlight=False, soft_wrap=True)
