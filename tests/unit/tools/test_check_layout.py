"""The layout's rules, each on a small tree that breaks it."""

import ast
from collections.abc import Callable
from textwrap import dedent

import pytest

from tools import check_layout
from tools.check_layout import Rule, is_table_of_names, table
from tools.tree import Tree

MakeTree = Callable[[dict[str, str]], Tree]


def module(lines: int, first: str = "def run(): ...") -> str:
    return "\n".join([first, *["# more"] * (lines - 1)]) + "\n"


def found(tree: Tree, exceptions: dict[tuple[Rule, str], str] | None = None) -> list[str]:
    return [str(finding) for finding in check_layout.check(tree, exceptions or {})]


def test_tree_within_the_limits_has_no_finding(make_tree: MakeTree) -> None:
    # Given modules of a good length, and an empty package file
    tree = make_tree({"shared/__init__.py": "", "shared/a.py": module(140), "worker/b.py": module(150)})

    # Then nothing is found
    assert found(tree) == []


def test_many_small_modules_break_density_and_median(make_tree: MakeTree) -> None:
    # Given a tree of small modules
    tree = make_tree({f"worker/m{n}.py": module(50) for n in range(4)})

    # Then there are too many a line, and the median is too short
    assert found(tree) == [
        "the whole tree: 20.0 modules per 1,000 lines, merge to 7 at most",
        "the whole tree: the median module has 50 lines, not 100 to 150: merge or divide modules",
    ]


def test_package_files_do_not_count_for_the_median(make_tree: MakeTree) -> None:
    # Given one module, and package files and modules that are too short to count
    names = {f"worker/p{n}/__init__.py": module(12, "X = 1") for n in range(3)}
    tree = make_tree({**names, "worker/tiny.py": "X = 1\n", "worker/a.py": module(120)})

    # Then the median is the module's length
    assert ("module lines: median", "120") in table(tree)


def test_module_over_the_limit_is_found(make_tree: MakeTree) -> None:
    tree = make_tree({"worker/a.py": module(451), "worker/b.py": module(120), "worker/c.py": module(120)})

    assert found(tree) == ["worker/a.py:451: 451 lines, divide it by its concepts: at most 450"]


def test_short_module_is_found_unless_a_table_of_names(make_tree: MakeTree) -> None:
    # Given a short module with a function, one with constants, and the two package files
    short = {
        "worker/a.py": module(20),
        "worker/names.py": "A = 1\n",
        "worker/__main__.py": module(2),
        "worker/__init__.py": module(2),
    }
    tree = make_tree({**short, "worker/long.py": module(280)})

    # Then only the function's module is found
    assert found(tree) == [
        "worker/a.py:1: 20 lines, merge it into the module of its concept: at least 30",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"""Names."""\nfrom typing import Final\nA: Final = {"a": 1}\nB = frozenset({A, -1})\n', True),
        ("class Kind(StrEnum):\n    A = 'a'\n    '''First.'''\n", True),
        ("def key(job): return job\n", False),
        ("class Model(BaseModel):\n    a = 1\n", False),
        ("A = compute()\n", False),
        ("A = [n for n in range(3)]\n", False),
        ("A: int\n", False),
    ],
)
def test_table_of_names_has_only_constants_and_enums(text: str, expected: bool) -> None:
    assert is_table_of_names(ast.parse(text)) is expected


def test_folder_with_too_many_files_is_found(make_tree: MakeTree) -> None:
    # Given 16 files in one folder, tests apart
    files = {f"worker/m{n}.py": module(150) for n in range(16)}
    tree = make_tree({**files, **{f"tests/t{n}.py": "" for n in range(16)}})

    assert found(tree) == ["worker: 16 Python files, merge or move some: at most 15"]


def test_module_and_package_named_like_imports_are_found(make_tree: MakeTree) -> None:
    # Given a module and a package with names that are imported, the second inside of a function
    files = {
        "worker/redis.py": module(150, "import redis.asyncio"),
        "worker/http/__init__.py": "",
        "worker/a.py": module(150, "def run():\n    from http import HTTPStatus"),
        "worker/shared.py": module(150, "import worker.a, shared"),
    }

    # Then both are found, and the project's own names are not
    assert found(make_tree(files)) == [
        "worker/redis.py:1: named like the module `redis` that the product imports, rename it",
        "worker/http: named like the module `http` that the product imports, rename it",
    ]


def test_long_test_name_is_found(make_tree: MakeTree) -> None:
    # Given test names of 59 and of 60 characters, and a helper with a long name
    name = "test_" + "a" * 54
    text = f"def {name}(): ...\nclass TestIt:\n    async def {name}b(self): ...\ndef helper_{name}(): ...\n"

    # Then the longer one is found
    assert found(make_tree({"tests/unit/test_a.py": text})) == [
        f"tests/unit/test_a.py:3: {name}b has 60 characters, shorten it to 59 at most",
    ]


def test_exception_excuses_its_finding(make_tree: MakeTree) -> None:
    tree = make_tree({"worker/a.py": module(451), "worker/b.py": module(120), "worker/c.py": module(120)})

    assert found(tree, {(Rule.MAX_LENGTH, "worker/a.py"): "a reason"}) == []


def test_exception_that_excuses_nothing_is_found(make_tree: MakeTree) -> None:
    tree = make_tree({"worker/a.py": module(150)})

    assert found(tree, {(Rule.MAX_LENGTH, "worker/a.py"): "a reason"}) == [
        "worker/a.py: no exception from 'longest module' is needed any more, remove it from EXCEPTIONS",
    ]


def test_table_has_the_numbers_of_the_tree(make_tree: MakeTree) -> None:
    # Given a tree with a documented function, a test and a page
    documented = dedent(
        '''
        def run(job):
            """Run it.

            Args:
                job: the job's id.
            """
        '''
    )
    files = {
        "shared/__init__.py": "",
        "shared/a.py": module(100, documented.strip()),
        "worker/b.py": module(200),
        "tests/test_a.py": "def test_ab(): ...\n",
        "docs/a.md": "",
    }

    # Then its table says so
    assert table(make_tree(files)) == [
        ("modules", "3"),
        ("lines", "305"),
        ("modules per 1,000 lines", "6.6"),
        ("module lines: median", "152.5"),
        ("module lines: 90th percentile", "190"),
        ("module lines: max", "200"),
        ("files in a folder: median", "1.5"),
        ("files in a folder: max", "2"),
        ("documented public functions with sections", "100%"),
        ("... of shared, worker.actions, worker.platform", "100%"),
        ("tests", "1"),
        ("test name, mean characters", "7"),
        ("pages of documentation", "1"),
    ]
