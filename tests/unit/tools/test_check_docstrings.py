"""What a public docstring must say, each rule on a small module."""

from collections.abc import Callable

import pytest

from tools import check_docstrings
from tools.tree import Tree

MakeTree = Callable[[dict[str, str]], Tree]

COMPLETE = '''
"""A module."""

class Client:
    """A client.

    Args:
        url: where it is.
    """

    def __init__(self, url: str) -> None:
        if not url:
            raise ValueError("no url")
        self._url = url

    @property
    def url(self) -> str:
        """Where it is."""
        return self._url

    @url.setter
    def url(self, value: str) -> None:
        self._url = value

    def close(self) -> None:
        """Close it."""

    def get(self, path: str, *more: str, timeout: float = 1.0, _unused: int = 0, **options: str) -> str:
        """Get a page.

        Args:
            path: which page,
                without a slash.
            *more: more pages: one a call.
            timeout (float): seconds.
            **options: headers.

        Returns:
            The text.

        Raises:
            worker.platform.errors.ClientError: there is none.
        """
        raise errors.ClientError(path)

    def __len__(self) -> int:
        return 0

    def _private(self, path: str) -> str:
        return path
'''


@pytest.fixture
def found(make_tree: MakeTree) -> Callable[[str], list[str]]:
    """The findings in one module of `shared`."""

    def check(text: str) -> list[str]:
        return [str(finding) for finding in check_docstrings.check(make_tree({"shared/a.py": text}))]

    return check


Found = Callable[[str], list[str]]


def test_complete_docstrings_have_no_finding_but_raises(found: Found) -> None:
    # Given a class whose one fault is that its constructor's error is not said
    assert found(COMPLETE) == [
        "shared/a.py:11: Client.__init__: `Raises:` lacks ValueError: say when it is raised",
    ]


def test_name_without_docstring_is_found(found: Found) -> None:
    assert found("class A: ...\ndef run() -> None: ...\n") == [
        "shared/a.py:1: A: no docstring, say what it is for",
        "shared/a.py:2: run: no docstring, say what it does",
    ]


def test_parameters_and_result_without_sections_are_found(found: Found) -> None:
    text = '''
    async def run(job: str, /, *, after: int = 0) -> int:
        """Run it."""
    '''
    assert found(text) == [
        "shared/a.py:2: run: `Args:` lacks job, after: describe it",
        "shared/a.py:2: run: no `Returns:`, say what the caller gets",
    ]


def test_name_that_is_no_parameter_is_found(found: Found) -> None:
    text = '''
    def run(job: str) -> None:
        """Run it.

        Args:
            job: an id.
            name: gone since.
        """
    '''
    assert found(text) == [
        "shared/a.py:2: run: `Args:` names name, which is no parameter: remove or rename it",
    ]


def test_generator_is_documented_by_yields(found: Found) -> None:
    text = '''
    def lines() -> Iterator[str]:
        """Read lines.

        Yields:
            One line each.
        """
        yield ""
    '''
    assert found(text) == []


def test_function_without_annotation_returns_what_it_returns(found: Found) -> None:
    # Given functions without annotations, of which the second has a value only in an inner function
    text = '''
    def first():
        """First."""
        return 1

    def second():
        """Second."""
        def inner():
            return 1
        return
    '''
    assert found(text) == ["shared/a.py:2: first: no `Returns:`, say what the caller gets"]


def test_errors_are_those_that_the_function_raises_itself(found: Found) -> None:
    # Given a variable that is raised again, an error that is caught, and one of an inner function
    text = '''
    def run() -> None:
        """Run it."""
        try:
            raise KeyError("caught")
        except (KeyError, OSError) as error:
            raise error
        def inner() -> None:
            raise TypeError
        for _ in ():
            raise RuntimeError("own") from None
        raise translated(run)
    '''
    assert found(text) == ["shared/a.py:2: run: `Raises:` lacks RuntimeError: say when it is raised"]


def test_overrides_and_overloads_are_left_out(found: Found) -> None:
    text = '''
    class A:
        """A."""
        @typing.override
        def run(self, job: str) -> str: ...
        @overload
        def get(self, job: str) -> str: ...
        @staticmethod
        def make(name: str) -> None:
            """Make it."""
    '''
    assert found(text) == ["shared/a.py:9: A.make: `Args:` lacks name: describe it"]


def test_reference_must_name_a_class_of_the_package(found: Found) -> None:
    text = '''
    class A(Protocol):
        """A."""
        def run(self, job: str) -> None:
            """See `A`."""
        def stop(self, job: str) -> None:
            """See `Gone.stop`."""
    '''
    assert found(text) == [
        "shared/a.py:6: A.stop: refers to `Gone`, which shared does not define: name an existing class",
    ]


def test_private_modules_and_other_packages_are_not_read(make_tree: MakeTree) -> None:
    # Given functions without docstrings where nobody else imports them, and one in a nested package
    text = "def run(): ...\n"
    tree = make_tree(
        {"shared/_inner.py": text, "worker/runs/a.py": text, "worker/platform/streams/a.py": text}
    )

    # Then only the public one is found
    assert [finding.path for finding in check_docstrings.check(tree)] == ["worker/platform/streams/a.py"]


def test_share_counts_documented_functions_with_sections(make_tree: MakeTree) -> None:
    # Given one function with a section, one without, and one without a docstring
    tree = make_tree(
        {
            "shared/a.py": '''
            def a():
                """A.

                Returns:
                    One.
                """
            def b():
                """B."""
            def c(): ...
            '''
        }
    )
    assert check_docstrings.share_with_sections(tree, ["shared"]) == 0.5
