"""The classes of a release, read from its source without running it: their bases, methods and attributes."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


class SourceError(Exception):
    """A module of the release cannot be read; the text names it and the line."""


@dataclass(frozen=True)
class ClassSource:
    """A class with what its bases within the release define; of two definitions that of the derived class.

    `outside`: the bases that other packages define, as dotted names; `*` stands for what cannot be told from
    the source.
    """

    name: str
    methods: dict[str, ast.AST] = field(default_factory=dict)
    attributes: dict[str, ast.expr | None] = field(default_factory=dict)
    outside: tuple[str, ...] = ()
    module: str = ""

    def descends_from(self, *names: str) -> bool:
        """Whether a base of another package has one of these names, from whichever module it is imported."""
        return any(base.rpartition(".")[2] in names for base in self.outside)

    @property
    def is_known(self) -> bool:
        """Whether all its bases can be told from the source."""
        return "*" not in self.outside


class ReleaseSource:
    """Reads the modules below a release's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._trees: dict[str, ast.Module | None] = {}
        self._found: dict[tuple[str, str], ClassSource | ast.AST | None] = {}

    def tree(self, module: str) -> ast.Module | None:
        """The syntax of a module; None when the release has none of that name. Raises `SourceError`."""
        if module not in self._trees:
            self._trees[module] = self._parse(module)
        return self._trees[module]

    def check_syntax(self, module: str) -> None:
        """Read a module and all of the release's that it imports, directly or not. Raises `SourceError`."""
        open_modules, seen = [module], {module}
        while open_modules:
            current = open_modules.pop()
            for node in ast.walk(self.tree(current) or ast.Module([], [])):
                for name in self._imported_names(current, node):
                    if name not in seen:
                        seen.add(name)
                        open_modules.append(name)

    def _imported_names(self, module: str, node: ast.AST) -> Iterator[str]:
        """The modules that an import may load: packages with what is in them, for a name may be a module."""
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            owner = self._imported_module(module, node)
            names = [owner, *(f"{owner}.{alias.name}" for alias in node.names if alias.name != "*")]
        else:
            return
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[: end + 1]) for end in range(len(parts)))

    def definition(self, module: str, name: str) -> ClassSource | ast.AST | None:
        """What `name` is in a module: a class, another definition, or None when it is not the release's."""
        key = module, name
        if key not in self._found:
            self._found[key] = None  # the answer within itself: a class that is its own base leads nowhere
            self._found[key] = self._define(module, name)
        return self._found[key]

    def _define(self, module: str, name: str) -> ClassSource | ast.AST | None:
        tree = self.tree(module)
        for node in ast.walk(tree) if tree else ():
            match node:
                case ast.ClassDef() if node.name == name:
                    return self._class(module, node)
                case ast.FunctionDef() | ast.AsyncFunctionDef() if node.name == name:
                    return node
                case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                    return value
        owner, _, attribute = self.origin(module, name).rpartition(".") if tree else ("", "", "")
        return self.definition(owner, attribute) if owner else None

    def origin(self, module: str, name: str) -> str:
        """The dotted name by which other packages know `name` of the module; `*` when it is not imported."""
        head, _, rest = name.partition(".")
        for node in ast.walk(self.tree(module) or ast.Module([], [])):
            for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
                if (alias.asname or alias.name.partition(".")[0]) != head:
                    continue
                if isinstance(node, ast.ImportFrom):
                    origin = f"{self._imported_module(module, node)}.{alias.name}"
                else:
                    origin = alias.name if alias.asname else head
                return f"{origin}.{rest}" if rest else origin
        return "*"

    def _class(self, module: str, node: ast.ClassDef) -> ClassSource:
        methods: dict[str, ast.AST] = {}
        attributes: dict[str, ast.expr | None] = {}
        for statement in node.body:
            match statement:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                    methods[name] = statement
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    attributes[name] = value
                case ast.AnnAssign(target=ast.Name(id=name), value=value):
                    attributes[name] = value
        outside: list[str] = []
        for base in node.bases:
            dotted = _dotted(base.value if isinstance(base, ast.Subscript) else base)
            found = self._base(module, dotted) if dotted else None
            if found is None:
                outside.append(self.origin(module, dotted) if dotted else "*")
            else:
                methods, attributes = {**found.methods, **methods}, {**found.attributes, **attributes}
                outside += found.outside
        return ClassSource(node.name, methods, attributes, tuple(outside), module)

    def _base(self, module: str, dotted: str) -> ClassSource | None:
        head, _, attribute = dotted.rpartition(".")
        owner = self.origin(module, head) if head else module
        found = self.definition(owner, attribute)
        return found if isinstance(found, ClassSource) else None

    def _imported_module(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        package = parts if self._file(module).name == "__init__.py" else parts[:-1]
        above = package[: len(package) - node.level + 1]
        return ".".join([*above, *([node.module] if node.module else [])])

    def _file(self, module: str) -> Path:
        base = self._folder.joinpath(*module.split("."))
        return base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"

    def _parse(self, module: str) -> ast.Module | None:
        file = self._file(module)
        if not module or not file.is_file():
            return None
        place = file.relative_to(self._folder)
        try:
            return ast.parse(file.read_bytes())
        except (RecursionError, MemoryError):
            raise SourceError(f"{place} is nested too deeply") from None
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None) or 1
            raise SourceError(f"{place}, line {line}: {getattr(error, 'msg', error)}") from None


def bound_names(tree: ast.Module) -> Iterator[str]:
    """All names that a module may bind, also in an `if` or a `try`; `*` for those that it imports unnamed."""
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                yield from (alias.asname or alias.name for alias in aliases)
            case ast.Name(id=name, ctx=ast.Store()):
                yield name


def _dotted(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            head = _dotted(value)
            return f"{head}.{name}" if head else ""
    return ""
