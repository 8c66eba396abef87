"""Modules and files that pages name exist.

    python -m tools.check_pages

Reads the Markdown pages, except for the history in CHANGELOG.md. A dotted path (`worker.runs.locks.Locks`) is
a module, or a name that its module defines or imports; a path with slashes (`worker/runs/locks.py`) is a
tracked file or folder. Names in diagrams and code count as those in sentences do.
"""

import ast
import re
import sys
from collections.abc import Iterator, Sequence

from tools.tree import Finding, Tree, parser_of, report

_DOTTED = re.compile(r"(?<![\w./:@-])(?:worker|shared|tools|tests)(?:\.[A-Za-z_]\w*)+")
_PATH = re.compile(r"(?<![\w./:@-])(?:worker|shared|tools|tests|docs|benchmarks|examples)(?:/[\w.@-]*\w)+/?")
_HISTORY = "CHANGELOG.md"


def check(tree: Tree) -> list[Finding]:
    """Findings in all pages of a tree."""
    pages = [path for path in tree.files if path.endswith(".md") and path != _HISTORY]
    return [finding for page in pages for finding in check_page(tree, page)]


def check_page(tree: Tree, page: str) -> list[Finding]:
    """Modules and files that one page names and that do not exist."""
    findings = []
    for line, text in enumerate(tree.read(page).splitlines(), 1):
        for name in _DOTTED.findall(text):
            if not _is_defined(tree, name):
                message = f"{name} does not exist, name the module that does this now"
                findings.append(Finding(page, line, message))
        for path in _PATH.findall(text):
            if not _exists(tree, path):
                message = f"{path} does not exist, name the file that does this now"
                findings.append(Finding(page, line, message))
    return findings


def _exists(tree: Tree, path: str) -> bool:
    return path in tree.files or any(name.startswith(f"{path.rstrip('/')}/") for name in tree.files)


def _is_defined(tree: Tree, dotted: str) -> bool:
    """Whether a dotted path is a module, or continues one by a name at its top level."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        stem = "/".join(parts[:length])
        path = next((path for path in (f"{stem}.py", f"{stem}/__init__.py") if path in tree.files), None)
        if path is not None:
            return length == len(parts) or parts[length] in set(_names(ast.parse(tree.read(path)).body))
        if _exists(tree, stem):
            return length == len(parts)
    return False


def _names(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Names that a module defines or imports."""
    for statement in body:
        match statement:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from (alias.asname or alias.name for alias in names)
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Assign(targets=targets):
                nodes = (node for target in targets for node in ast.walk(target))
                yield from (node.id for node in nodes if isinstance(node, ast.Name))
            case ast.If() | ast.Try():
                yield from _names([*statement.body, *statement.orelse])


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the tracked tree."""
    parser_of("check_pages", __doc__).parse_args(arguments)
    return report(check(Tree.tracked()), "pages")


if __name__ == "__main__":
    sys.exit(main())
