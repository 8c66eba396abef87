"""Which names of a page must exist."""

from collections.abc import Callable

from tools import check_pages
from tools.tree import Tree

MakeTree = Callable[[dict[str, str]], Tree]

FILES = {
    "worker/__init__.py": "from worker.runs import Runs\n",
    "worker/runs/__init__.py": "",
    "worker/runs/locks.py": "LIMIT: int = 1\nA, B = 1, 2\nif LIMIT:\n    class Locks: ...\n",
    "worker/runs/lua/log.lua": "",
}


def found(tree: Tree) -> list[str]:
    return [str(finding) for finding in check_pages.check(tree)]


def test_modules_names_and_files_that_exist_are_no_findings(make_tree: MakeTree) -> None:
    # Given a page that names a package, a module, names of modules, files and a folder, once in a diagram
    page = """\
    See `worker.runs`, `worker.runs.locks`, worker.Runs and `worker.runs.locks.Locks.take()`,
    `worker.runs.locks.LIMIT`, `worker.runs.locks.B`, `worker/runs/`, and `worker/runs/lua/log.lua`.

    ```mermaid
    flowchart LR
        a["worker.runs.locks"] --> b[worker/runs/locks.py]
    ```
    """

    # Then all is well
    assert found(make_tree({**FILES, "docs/architecture.md": page})) == []


def test_module_name_and_file_that_are_gone_are_found(make_tree: MakeTree) -> None:
    # Given a page that names a module, a name, a file and a folder that are gone
    page = "See `worker.runs.turns`,\n`worker.runs.locks.Gone`,\n`worker/runs/turns.py` and `worker/rooms`.\n"

    # Then each is found where it stands
    assert found(make_tree({**FILES, "docs/architecture.md": page})) == [
        "docs/architecture.md:1: worker.runs.turns does not exist, name the module that does this now",
        "docs/architecture.md:2: worker.runs.locks.Gone does not exist, name the module that does this now",
        "docs/architecture.md:3: worker/runs/turns.py does not exist, name the file that does this now",
        "docs/architecture.md:3: worker/rooms does not exist, name the file that does this now",
    ]


def test_addresses_and_other_paths_are_not_names(make_tree: MakeTree) -> None:
    page = "https://example.org/worker/gone, /srv/worker/gone, my.worker.gone, and a worker. Another one.\n"

    assert found(make_tree({**FILES, "README.md": page})) == []


def test_history_may_name_what_is_gone(make_tree: MakeTree) -> None:
    assert found(make_tree({**FILES, "CHANGELOG.md": "`worker.gone`"})) == []
