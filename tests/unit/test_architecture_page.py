"""The architecture page names modules that exist."""

from tools.check_pages import check_page
from tools.tree import Tree

PAGE = "docs/architecture.md"


def test_architecture_page_names_existing_modules() -> None:
    # Given the page, and the files of this repository
    tree = Tree.tracked()

    # Then each module and file that it names is there
    assert [str(finding) for finding in check_page(tree, PAGE)] == []
