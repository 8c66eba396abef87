"""The words that this project has given up are not used again.

    python -m tools.check_words [--counts]

Reads identifiers, comments, docstrings, log events and texts of help in Python, identifiers and comments in
Lua, whole Markdown pages, and comments in other files. Other strings are left alone: Redis keys, values and
task names keep the words that an older worker reads.

The words, and what is used instead, are in `tools/words.py`. ALLOWED excuses a file or a folder from a word,
with the reason; an entry that excuses nothing is a finding. `--counts` prints how often a word is used where.
"""

import ast
import io
import re
import sys
import tokenize
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from tools.tree import Finding, Tree, parser_of, report
from tools.words import NAMES, WORDS, Place

ALLOWED: Mapping[tuple[str, str], str] = {
    ("CHANGELOG.md", "*"): "history, in the words of its time",
    ("tools/words.py", "*"): "the list of the words itself",
    ("README.md", "patience"): "WORKER_LOG_PATIENCE_SECONDS, which installations have set",
    ("worker/logs/relay.py", "patience"): "WORKER_LOG_PATIENCE_SECONDS, which installations have set",
    ("worker/settings.py", "patience"): "WORKER_LOG_PATIENCE_SECONDS, which installations have set",
    ("worker/pre_processor/tasks.py", "room"): "an argument of messages, which older workers name so",
    ("tests/unit/pre_processor/test_tasks.py", "room"): "the same argument",
    ("tests/unit/workflow/test_validation.py", "room"): "the same argument",
    ("docs/architecture.md", "refuse"): "the name of a task, which older workers know",
    ("docs/architecture.md", "room"): "the same argument",
    ("worker/to_task/", "spread"): "the step `to_task.spread`, which older workers and stored runs name so",
    ("tests/unit/to_task/", "spread"): "the same step",
    ("worker/to_task/lua/pop_unreported_failures.lua", "tell"): "a stored field, which older workers read",
    ("worker/workflow/dead_letters.py", "refuse"): "stored states of jobs, which older workers read",
}
"""Reasons by file, or folder with a slash at its end, and by the word's name ("*" for all of them)."""

_LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
_TEXTS = {"description", "help", "hint", "epilog"}
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_LUA_TOKEN = re.compile(r"--(?P<comment>.*)|'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|(?P<name>[A-Za-z_]\w*)")
_CODE = re.compile(r"`([^`]+)`")
_NAME = re.compile(r"[A-Za-z_]\w*")


@dataclass
class Prose:
    """Lines of text as one, so that a phrase is found across the end of a line."""

    text: str = ""
    starts: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)

    def add(self, line: int, text: str) -> None:
        """Append one line, its white space folded."""
        folded = " ".join(text.split())
        if folded:
            self.text += " " if self.text else ""
            self.starts.append(len(self.text))
            self.lines.append(line)
            self.text += folded

    def line_at(self, offset: int) -> int:
        """The line of a character."""
        return self.lines[max(0, bisect_right(self.starts, offset) - 1)]


@dataclass
class Source:
    """What of a file is searched."""

    identifiers: list[tuple[int, str]] = field(default_factory=list)
    prose: list[Prose] = field(default_factory=list)

    def add_text(self, line: int, text: str) -> None:
        """Add a text of one or more lines."""
        prose = Prose()
        for offset, part in enumerate(text.splitlines()):
            prose.add(line + offset, part)
        self.prose.append(prose)

    def add_comments(self, comments: Iterable[tuple[int, str]]) -> None:
        """Add comments; those of consecutive lines are one text."""
        prose, last = Prose(), -1
        for line, text in comments:
            if line != last + 1:
                prose = Prose()
                self.prose.append(prose)
            prose.add(line, text)
            last = line


def read(path: str, text: str) -> Source:
    """The identifiers and the prose of a file whose kind is in READERS."""
    source = READERS[_kind(path)](text)
    source.identifiers += [(1, name) for part in PurePosixPath(path).parts for name in _NAME.findall(part)]
    return source


def _kind(path: str) -> str:
    """The suffix, or the name of a file without one."""
    pure = PurePosixPath(path)
    return pure.suffix or pure.name


def _read_python(text: str) -> Source:
    source = Source()
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]
    source.add_comments((line, comment.lstrip("#")) for line, comment in comments)
    for node in ast.walk(ast.parse(text)):
        source.identifiers += _identifiers(node)
        for string in _texts(node):
            source.add_text(string.lineno, str(string.value))
    return source


def _identifiers(node: ast.AST) -> Iterator[tuple[int, str]]:
    match node:
        case ast.Name(id=name):
            yield node.lineno, name
        case ast.Attribute(attr=name, end_lineno=int(line)):
            yield line, name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield node.lineno, name
        case ast.arg(arg=name) | ast.keyword(arg=str(name)) | ast.ExceptHandler(name=str(name)):
            yield node.lineno, name
        case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield node.lineno, name
        case ast.alias(name=name, asname=alias):
            yield from ((node.lineno, part) for part in name.split("."))
            if alias:
                yield node.lineno, alias
        case ast.ImportFrom(module=str(module)):
            yield from ((node.lineno, part) for part in module.split("."))


def _texts(node: ast.AST) -> Iterator[ast.Constant]:
    """Docstrings, log events, and texts that say what something is for."""
    match node:
        case ast.Expr(value=ast.Constant(value=str()) as string):
            yield string
        case ast.Call(
            func=ast.Attribute(attr=level, value=receiver), args=[ast.Constant(value=str()) as event, *_]
        ):
            if level in _LEVELS and ast.unparse(receiver).endswith(("log", "logger")):
                yield event
        case ast.keyword(arg=str(name), value=ast.Constant(value=str()) as string):
            if name in _TEXTS:
                yield string


def _read_lua(text: str) -> Source:
    source = Source()
    comments = []
    for line, content in enumerate(text.splitlines(), 1):
        for token in _LUA_TOKEN.finditer(content):
            if token["comment"] is not None:
                comments.append((line, token["comment"]))
            elif token["name"] is not None:
                source.identifiers.append((line, token["name"]))
    source.add_comments(comments)
    return source


def _read_markdown(text: str) -> Source:
    source = Source()
    prose = Prose()
    is_code = False
    for line, content in enumerate(text.splitlines(), 1):
        is_fence = content.lstrip().startswith("```")
        is_code = is_code != is_fence
        if is_fence or is_code or not content.strip():
            prose = Prose()
        if not prose.text:
            source.prose.append(prose)
        prose.add(line, content)
        spans = [content] if is_code else _CODE.findall(content)
        source.identifiers += [(line, name) for span in spans for name in _NAME.findall(span)]
    return source


def _read_comments(text: str) -> Source:
    """Of a file whose comments begin with a hash sign."""
    source = Source()
    found = ((line, content.partition("#")) for line, content in enumerate(text.splitlines(), 1))
    source.add_comments((line, comment) for line, (_, mark, comment) in found if mark)
    return source


READERS: Mapping[str, Callable[[str], Source]] = {
    ".py": _read_python,
    ".lua": _read_lua,
    ".md": _read_markdown,
    **dict.fromkeys((".toml", ".yml", ".yaml", "Makefile", "Dockerfile", "Procfile", "run"), _read_comments),
}
"""How a file is read, by its suffix or, without one, by its name. Other files are not read."""


def parts(identifier: str) -> str:
    """The words of an identifier: "run step" of `run_step` and of `RunStep`."""
    return " ".join(part.lower() for part in _PART.findall(identifier))


def old_words(path: str, source: Source) -> Iterator[tuple[str, Finding]]:
    """Each old word of a file, by name."""
    names = {old.name: old for old in NAMES if not old.folders or path.startswith(old.folders)}
    for line, identifier in source.identifiers:
        if (old := names.get(identifier) or names.get(identifier.lstrip("_"))) is not None:
            yield old.name, _finding(path, line, identifier, old.name, old.use)
            continue
        words = parts(identifier)
        for word in WORDS:
            is_constant = Place.CONSTANT in word.places and identifier.isupper()
            if (Place.IDENTIFIER in word.places or is_constant) and word.pattern.search(words):
                yield word.name, _finding(path, line, identifier, word.name, word.use)
    for prose in source.prose:
        for word in WORDS:
            if Place.PROSE in word.places:
                for match in word.pattern.finditer(prose.text):
                    line = prose.line_at(match.end() - 1)
                    yield word.name, _finding(path, line, match[0].strip(" .:;"), word.name, word.use)


def _finding(path: str, line: int, text: str, name: str, use: str) -> Finding:
    return Finding(path, line, f'"{text}" is an old word, rewrite it: {name} -> {use}')


def check(tree: Tree, allowed: Mapping[tuple[str, str], str] = ALLOWED) -> list[Finding]:
    """Old words that no entry excuses, and entries that excuse nothing."""
    return sorted({finding for _, finding in _search(tree, allowed)})


def _search(tree: Tree, allowed: Mapping[tuple[str, str], str]) -> Iterator[tuple[str, Finding]]:
    used = set()
    for path in tree.files:
        if _kind(path) not in READERS:
            continue
        for name, finding in old_words(path, read(path, tree.read(path))):
            entry = next((key for key in allowed if _excuses(key, path, name)), None)
            if entry is None:
                yield name, finding
            else:
                used.add(entry)
    for path, name in allowed:
        if (path, name) not in used:
            yield "allowed", Finding(path, 0, f'"{name}" is not used here any more, remove it from ALLOWED')


def _excuses(entry: tuple[str, str], path: str, name: str) -> bool:
    place, word = entry
    is_there = path.startswith(place) if place.endswith("/") else path == place
    return is_there and word in ("*", name)


def counts(tree: Tree, allowed: Mapping[tuple[str, str], str] = ALLOWED) -> dict[str, Counter[str]]:
    """How often each word is used in each folder, the most frequent word first."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for name, finding in set(_search(tree, allowed)):
        found[name][_folder(finding.path)] += 1
    return dict(sorted(found.items(), key=lambda item: (-item[1].total(), item[0])))


def _folder(path: str) -> str:
    """`worker/runs`, `tests/unit/runs`, `docs`, or a file at the root."""
    folders = PurePosixPath(path).parts[:-1]
    return "/".join(folders[: 3 if folders[:1] == ("tests",) else 2]) or path


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the tracked tree, or count."""
    parser = parser_of("check_words", __doc__)
    parser.add_argument("--counts", action="store_true", help="how often each word is used, by folder")
    options = parser.parse_args(arguments)
    tree = Tree.tracked()
    if not options.counts:
        return report(check(tree), "words")
    found = counts(tree)
    for name, folders in found.items():
        places = ", ".join(f"{folder} {count}" for folder, count in folders.most_common())
        print(f"{folders.total():5} {name}: {places}")
    print(f"{sum(folders.total() for folders in found.values()):5} in all")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
