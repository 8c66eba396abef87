"""Files and folders keep their measure: a module holds one whole concept.

    python -m tools.check_layout [--table]

Rules, over the tracked Python modules of `shared` and `worker`, tests apart; lines are physical lines:

- at most 7 modules per 1,000 lines: modules of 10 lines or more are counted, and all lines;
- a median length between 100 and 150 lines, of the modules of 10 lines or more that are not `__init__` or
  `__main__` (the 90th percentile and the maximum of the table are counted in the same way);
- no module over 450 lines;
- none under 30 lines, except `__init__.py`, `__main__.py` and tables of names (a docstring, imports,
  constants, enums);
- at most 15 Python files in a folder, `__init__.py` included;
- no module or package named like a top-level module that the project imports (`redis.py`, `logging.py`);
- the names of tests, below `tests`, stay under 60 characters.

Where a rule makes no sense, EXCEPTIONS has an entry with the reason. One that excuses nothing is a finding.
`--table` prints the numbers.
"""

import ast
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import PurePosixPath

from tools.check_docstrings import PACKAGES, share_with_sections
from tools.tree import PRODUCT, ROOT, Finding, Tree, parser_of, report

MAX_MODULES_PER_1000_LINES = 7.0
MIN_MEDIAN_LINES, MAX_MEDIAN_LINES = 100, 150
MIN_COUNTED_LINES = 10
MIN_LINES, MAX_LINES = 30, 450
MAX_FILES = 15
MAX_TEST_NAME_CHARS = 59

_UNCOUNTED = ("__init__.py", "__main__.py")
_CONSTANT_CALLS = {"frozenset", "MappingProxyType", "timedelta"}


class Rule(StrEnum):
    DENSITY = "modules per 1,000 lines"
    MEDIAN = "median length"
    MAX_LENGTH = "longest module"
    MIN_LENGTH = "shortest module"
    FOLDER = "files in a folder"
    NAME = "named like an import"
    TEST_NAME = "length of a test's name"


EXCEPTIONS: Mapping[tuple[Rule, str], str] = {
    (Rule.MIN_LENGTH, "worker/logs/tasks.py"): "each workflow has its Celery tasks in a module of this name",
}
"""Why a rule does not hold for a file or a folder ("" is the whole tree; a test is `path::name`)."""


@dataclass(frozen=True)
class Module:
    """A Python file of the product."""

    path: str
    lines: int
    syntax: ast.Module

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def folder(self) -> str:
        return str(PurePosixPath(self.path).parent)

    @property
    def is_counted(self) -> bool:
        """Whether its length counts for the median."""
        return self.lines >= MIN_COUNTED_LINES and self.name not in _UNCOUNTED


class Layout:
    """The numbers of a tree."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.modules = []
        for path in tree.python(PRODUCT):
            text = tree.read(path)
            self.modules.append(Module(path, len(text.splitlines()), ast.parse(text)))

    @property
    def lines(self) -> int:
        return sum(module.lines for module in self.modules)

    @property
    def density(self) -> float:
        """Modules of 10 lines or more per 1,000 lines."""
        long_enough = [module for module in self.modules if module.lines >= MIN_COUNTED_LINES]
        return 1000 * len(long_enough) / self.lines if self.lines else 0.0

    @property
    def lengths(self) -> list[int]:
        """Of the modules that count, from the shortest on."""
        return sorted(module.lines for module in self.modules if module.is_counted)

    @property
    def median(self) -> float:
        return statistics.median(self.lengths) if self.lengths else 0.0

    @property
    def percentile_90(self) -> float:
        lengths = self.lengths
        return (
            statistics.quantiles(lengths, n=10, method="inclusive")[-1] if len(lengths) > 1 else sum(lengths)
        )

    @property
    def folders(self) -> Counter[str]:
        """Python files of each folder."""
        return Counter(module.folder for module in self.modules)

    @cached_property
    def imported(self) -> set[str]:
        """Top-level modules of others that the product imports."""
        names: set[str] = set()
        for module in self.modules:
            for node in ast.walk(module.syntax):
                if isinstance(node, ast.Import):
                    names |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names.add(node.module.partition(".")[0])
        return names - set(PRODUCT)

    @cached_property
    def tests(self) -> list[tuple[str, int, str]]:
        """Path, line and name of each test function."""
        return [
            (path, node.lineno, node.name)
            for path in self.tree.python(["tests"])
            for node in ast.walk(ast.parse(self.tree.read(path)))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        ]


def is_table_of_names(syntax: ast.Module) -> bool:
    """Whether a module has only a docstring, imports, constants and enums."""
    return all(_is_declaration(statement) for statement in syntax.body)


def _is_declaration(statement: ast.stmt) -> bool:
    match statement:
        case ast.Import() | ast.ImportFrom():
            return True
        case ast.Expr(value=ast.Constant(value=str())):
            return True
        case ast.Assign(value=value) | ast.AnnAssign(value=ast.expr() as value):
            return _is_constant(value)
        case ast.ClassDef(bases=bases, body=body):
            is_enum = any(ast.unparse(base).endswith(("Enum", "Flag")) for base in bases)
            return is_enum and all(_is_declaration(member) for member in body)
    return False


def _is_constant(value: ast.expr) -> bool:
    computed = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Await)
    for node in ast.walk(value):
        if isinstance(node, computed):
            return False
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] not in _CONSTANT_CALLS:
            return False
    return True


def check(tree: Tree, exceptions: Mapping[tuple[Rule, str], str] = EXCEPTIONS) -> list[Finding]:
    """Findings in the layout of a tree that no exception excuses, and exceptions that excuse nothing."""
    findings = []
    used = set()
    for rule, subject, finding in _broken_rules(Layout(tree)):
        if (rule, subject) in exceptions:
            used.add((rule, subject))
        else:
            findings.append(finding)
    for rule, subject in exceptions:
        if (rule, subject) not in used:
            message = f"no exception from {rule.value!r} is needed any more, remove it from EXCEPTIONS"
            findings.append(Finding(subject or "the whole tree", 0, message))
    return findings


def _broken_rules(layout: Layout) -> Iterator[tuple[Rule, str, Finding]]:
    if layout.density > MAX_MODULES_PER_1000_LINES:
        message = (
            f"{layout.density:.1f} modules per 1,000 lines, merge to {MAX_MODULES_PER_1000_LINES:g} at most"
        )
        yield Rule.DENSITY, "", Finding("the whole tree", 0, message)
    if layout.lengths and not MIN_MEDIAN_LINES <= layout.median <= MAX_MEDIAN_LINES:
        message = (
            f"the median module has {layout.median:g} lines, not {MIN_MEDIAN_LINES} to {MAX_MEDIAN_LINES}"
        )
        yield Rule.MEDIAN, "", Finding("the whole tree", 0, f"{message}: merge or divide modules")
    for folder, count in layout.folders.items():
        if count > MAX_FILES:
            message = f"{count} Python files, merge or move some: at most {MAX_FILES}"
            yield Rule.FOLDER, folder, Finding(folder, 0, message)
    for module in layout.modules:
        yield from _broken_by(module)
    for path, name in _names(layout):
        if name in layout.imported:
            message = f"named like the module `{name}` that the product imports, rename it"
            yield Rule.NAME, path, Finding(path, int(path.endswith(".py")), message)
    for path, line, name in layout.tests:
        if len(name) > MAX_TEST_NAME_CHARS:
            message = f"{name} has {len(name)} characters, shorten it to {MAX_TEST_NAME_CHARS} at most"
            yield Rule.TEST_NAME, f"{path}::{name}", Finding(path, line, message)


def _broken_by(module: Module) -> Iterator[tuple[Rule, str, Finding]]:
    if module.lines > MAX_LINES:
        message = f"{module.lines} lines, divide it by its concepts: at most {MAX_LINES}"
        yield Rule.MAX_LENGTH, module.path, Finding(module.path, module.lines, message)
    is_exempt = module.name in _UNCOUNTED or is_table_of_names(module.syntax)
    if module.lines < MIN_LINES and not is_exempt:
        message = f"{module.lines} lines, merge it into the module of its concept: at least {MIN_LINES}"
        yield Rule.MIN_LENGTH, module.path, Finding(module.path, 1, message)


def _names(layout: Layout) -> Iterator[tuple[str, str]]:
    """Path and name of each module and package."""
    for module in layout.modules:
        if module.name not in _UNCOUNTED:
            yield module.path, module.name.removesuffix(".py")
    for folder in layout.folders:
        yield folder, PurePosixPath(folder).name


def table(tree: Tree) -> list[tuple[str, str]]:
    """The numbers of a tree, as name and value."""
    layout = Layout(tree)
    counts = sorted(layout.folders.values())
    names = [len(name) for _, _, name in layout.tests]
    pages = [path for path in tree.files if path.startswith("docs/") and path.endswith(".md")]
    return [
        ("modules", f"{len(layout.modules)}"),
        ("lines", f"{layout.lines:,}"),
        ("modules per 1,000 lines", f"{layout.density:.1f}"),
        ("module lines: median", f"{layout.median:g}"),
        ("module lines: 90th percentile", f"{layout.percentile_90:.0f}"),
        ("module lines: max", f"{max(layout.lengths, default=0)}"),
        ("files in a folder: median", f"{statistics.median(counts) if counts else 0:g}"),
        ("files in a folder: max", f"{max(counts, default=0)}"),
        ("documented public functions with sections", f"{share_with_sections(tree, PRODUCT):.0%}"),
        ("... of shared, worker.actions, worker.platform", f"{share_with_sections(tree, PACKAGES):.0%}"),
        ("tests", f"{len(names):,}"),
        ("test name, mean characters", f"{statistics.fmean(names) if names else 0:.0f}"),
        ("pages of documentation", f"{len(pages)}"),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the tracked tree, or print its numbers."""
    parser = parser_of("check_layout", __doc__)
    parser.add_argument("--table", action="store_true", help="print the numbers and check nothing")
    options = parser.parse_args(arguments)
    tree = Tree.tracked(ROOT)
    if not options.table:
        return report(check(tree), "layout")
    for name, value in table(tree):
        print(f"| {name} | {value} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
