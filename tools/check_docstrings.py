"""Public docstrings say arguments, results and errors.

    python -m tools.check_docstrings [--counts]

Reads `shared`, `worker.actions` and `worker.platform`, which other people's code imports. Every class,
function and method there whose name and module have no leading underscore has a docstring with sections:

- `Args:` names each parameter, and nothing that is no parameter. Those of `__init__` stand in the docstring
  of the class or of `__init__`.
- `Returns:` (or `Yields:`) where something other than None is returned. A property's first sentence says it.
- `Raises:` names each class that the function raises itself (`raise SomeError(...)`).

Left out: overloads, setters, special methods other than `__init__`, methods with `@override`, and methods
whose docstring is exactly "See `Name`." where the same package defines the class `Name`.
"""

import ast
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tools.tree import Finding, Tree, parser_of, report

PACKAGES = ("shared", "worker/actions", "worker/platform")

Function = ast.FunctionDef | ast.AsyncFunctionDef

_SECTION = re.compile(r"(Args|Returns|Yields|Raises):\s*(.*)")
_ENTRY = re.compile(r"`?\*{0,2}([A-Za-z_][\w.]*)`?(?: \([^)]*\))?:")
_REFERENCE = re.compile(r"See `([A-Za-z_]\w*)(?:\.\w+)*`\.")
_NOTHING = {"None", "NoReturn", "Never"}


@dataclass
class Sections:
    """The Google sections of a docstring, each with the names of its entries."""

    entries: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def parse(cls, docstring: str) -> "Sections":
        sections = cls()
        lines = inspect.cleandoc(docstring).splitlines()
        current: list[str] | None = None
        indent = 0
        for line in lines:
            depth = len(line) - len(line.lstrip())
            if (header := _SECTION.fullmatch(line)) is not None:
                current, indent = sections.entries.setdefault(header[1], []), 0
            elif line and not depth:
                current = None
            elif line and current is not None:
                indent = indent or depth
                entry = _ENTRY.match(line.strip()) if depth == indent else None
                if entry is not None:
                    current.append(entry[1])
        return sections

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def names(self, section: str) -> list[str]:
        return self.entries.get(section, [])

    def joined(self, other: "Sections") -> "Sections":
        keys = {**self.entries, **other.entries}
        return Sections({key: self.names(key) + other.names(key) for key in keys})


@dataclass(frozen=True)
class PublicName:
    """A public class or function, with the class around it."""

    path: str
    qualified: str
    node: Function | ast.ClassDef
    owner: ast.ClassDef | None = None


def public_names(tree: Tree, packages: Sequence[str] = PACKAGES) -> list[PublicName]:
    """All public classes, functions and methods of the given packages."""
    found: list[PublicName] = []
    for path in tree.python(packages):
        if any(part.startswith("_") and part != "__init__.py" for part in path.split("/")):
            continue
        found += _public(path, ast.parse(tree.read(path)).body, "", None)
    return found


def _public(
    path: str, body: Sequence[ast.stmt], prefix: str, owner: ast.ClassDef | None
) -> Iterator[PublicName]:
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from _public(path, [*node.body, *node.orelse], prefix, owner)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield PublicName(path, prefix + node.name, node, owner)
            yield from _public(path, node.body, f"{prefix}{node.name}.", node)
        elif isinstance(node, Function) and (not node.name.startswith("_") or node.name == "__init__"):
            yield PublicName(path, prefix + node.name, node, owner)


def check(tree: Tree, packages: Sequence[str] = PACKAGES) -> list[Finding]:
    """Findings in the docstrings of the given packages."""
    names = public_names(tree, packages)
    classes = {(_package(name.path, packages), name.node.name) for name in names if _is_class(name)}
    findings = []
    for name in names:
        for line, message in _faults(name, _package(name.path, packages), classes):
            findings.append(Finding(name.path, line, f"{name.qualified}: {message}"))
    return findings


def _is_class(name: PublicName) -> bool:
    return isinstance(name.node, ast.ClassDef)


def _package(path: str, packages: Sequence[str]) -> str:
    return next(package for package in packages if path.startswith(f"{package}/"))


def _faults(name: PublicName, package: str, classes: set[tuple[str, str]]) -> Iterator[tuple[int, str]]:
    node, line = name.node, name.node.lineno
    docstring = ast.get_docstring(node)
    if isinstance(node, ast.ClassDef):
        if not docstring:
            yield line, "no docstring, say what it is for"
        return
    if _decorators(node) & {"overload", "setter", "deleter", "override"}:
        return
    if docstring and (reference := _REFERENCE.fullmatch(docstring.strip())) is not None:
        if (package, reference[1]) not in classes:
            yield line, f"refers to `{reference[1]}`, which {package} does not define: name an existing class"
        return
    sections = Sections.parse(docstring or "")
    if node.name == "__init__":
        sections = sections.joined(Sections.parse((name.owner and ast.get_docstring(name.owner)) or ""))
    elif not docstring:
        yield line, "no docstring, say what it does"
    for message in _section_faults(node, sections, is_method=name.owner is not None):
        yield line, message


def _section_faults(node: Function, sections: Sections, *, is_method: bool) -> Iterator[str]:
    expected = parameters(node, is_method=is_method)
    described = sections.names("Args")
    if missing := [name for name in expected if name not in described]:
        yield f"`Args:` lacks {', '.join(missing)}: describe it"
    everything = [argument.arg for argument in _arguments(node)]
    if stale := [name for name in described if name not in everything]:
        yield f"`Args:` names {', '.join(stale)}, which is no parameter: remove or rename it"
    is_property = bool(_decorators(node) & {"property", "cached_property"})
    if returns_value(node) and not is_property and not {"Returns", "Yields"} & set(sections.entries):
        yield "no `Returns:`, say what the caller gets"
    documented = {name.rpartition(".")[2] for name in sections.names("Raises")}
    if undocumented := [name for name in raised(node) if name not in documented]:
        yield f"`Raises:` lacks {', '.join(undocumented)}: say when it is raised"


def _arguments(node: Function) -> list[ast.arg]:
    given = node.args
    starred = [argument for argument in (given.vararg, given.kwarg) if argument is not None]
    return [*given.posonlyargs, *given.args, *given.kwonlyargs, *starred]


def parameters(node: Function, *, is_method: bool) -> list[str]:
    """The parameters to describe: without `self` or `cls` and without those that are unused (`_name`)."""
    names = [argument.arg for argument in _arguments(node)]
    if is_method and "staticmethod" not in _decorators(node):
        names = names[1:]
    return [name for name in names if not name.startswith("_")]


def _decorators(node: Function) -> set[str]:
    """The last part of each decorator's name."""
    found = set()
    for decorator in node.decorator_list:
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        found.add(ast.unparse(called).rpartition(".")[2])
    return found


def returns_value(node: Function) -> bool:
    """Whether a caller gets something other than None, by the annotation or else by the statements."""
    if node.returns is not None:
        return ast.unparse(node.returns).strip("'\"").rpartition(".")[2] not in _NOTHING
    own = list(_own_nodes(node.body))
    has_return = any(isinstance(found, ast.Return) and found.value is not None for found in own)
    return has_return or any(isinstance(found, ast.Yield | ast.YieldFrom) for found in own)


def raised(node: Function) -> list[str]:
    """Classes that the function's own `raise` statements raise and that it does not catch itself."""
    found: dict[str, None] = {}
    for statement, caught in _raises(node.body, frozenset()):
        error = statement.exc.func if isinstance(statement.exc, ast.Call) else statement.exc
        name = ast.unparse(error).rpartition(".")[2] if isinstance(error, ast.Name | ast.Attribute) else ""
        # A name in lower case is a variable, or a function whose result is not known here.
        if name.lstrip("_")[:1].isupper() and name not in caught:
            found[name] = None
    return list(found)


def _raises(body: Sequence[ast.AST], caught: frozenset[str]) -> Iterator[tuple[ast.Raise, frozenset[str]]]:
    for node in body:
        if isinstance(node, ast.Raise):
            yield node, caught
        elif isinstance(node, ast.Try):
            names = {_caught_name(name) for handler in node.handlers for name in _caught(handler)}
            yield from _raises(node.body, caught | names)
            yield from _raises([*node.handlers, *node.orelse, *node.finalbody], caught)
        elif not isinstance(node, Function | ast.ClassDef | ast.Lambda):
            yield from _raises(list(ast.iter_child_nodes(node)), caught)


def _caught(handler: ast.ExceptHandler) -> list[ast.expr]:
    if handler.type is None:
        return []
    return handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]


def _caught_name(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]


def _own_nodes(body: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """All nodes below, without those of nested functions and classes."""
    for node in body:
        yield node
        if not isinstance(node, Function | ast.ClassDef | ast.Lambda):
            yield from _own_nodes(list(ast.iter_child_nodes(node)))


def share_with_sections(tree: Tree, packages: Sequence[str]) -> float:
    """How many of the public functions with a docstring have a section, from 0 to 1."""
    documented = [
        docstring
        for name in public_names(tree, packages)
        if not _is_class(name) and (docstring := ast.get_docstring(name.node))
    ]
    with_sections = [docstring for docstring in documented if Sections.parse(docstring).entries]
    return len(with_sections) / len(documented) if documented else 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the tracked tree."""
    parser = parser_of("check_docstrings", __doc__)
    parser.add_argument("--counts", action="store_true", help="findings a module instead of each finding")
    options = parser.parse_args(arguments)
    findings = check(Tree.tracked())
    if not options.counts:
        return report(findings, "public docstrings")
    for path, count in Counter(finding.path for finding in findings).most_common():
        print(f"{count:5} {path}")
    print(f"{len(findings):5} in all")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
