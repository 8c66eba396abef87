"""A small tree of files for the checks of `tools`."""

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from tools.tree import Tree

MakeTree = Callable[[dict[str, str]], Tree]


@pytest.fixture
def make_tree(tmp_path: Path) -> MakeTree:
    """Write files, given as path and text."""

    def make(files: dict[str, str]) -> Tree:
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(dedent(text), encoding="utf-8")
        return Tree.below(tmp_path)

    return make
