"""requirements.txt in the forms in which people write it: installed as written, or rejected by name."""

from pathlib import Path

import pytest

from worker.plugins import ReleaseInvalidError
from worker.plugins.config import ReleaseConfig
from worker.plugins.requirements import WORKING_DIR, installation, read_requirements

CONFIG = ReleaseConfig(code="cat", version="1", actions={})


def write(folder: Path, content: str | bytes, name: str = "requirements.txt") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.mark.parametrize(
    "content",
    [
        "numpy==2.0\nrich\n",
        "# all\r\nnumpy==2.0\t# why\r\n\r\nrich #x\r\n",
        b"\xef\xbb\xbfnumpy==2.0\nrich",
        "numpy==2.0\nrich".encode("utf-16"),
        b"\xfe\xff" + "numpy==2.0\nrich".encode("utf-16-be"),
        "\ufeffnumpy==2.0\r\nrich".encode("utf-32-le"),
        "numpy\\\n==2.0\nrich",
    ],
    ids=["plain", "comments", "utf-8 mark", "utf-16", "utf-16-be", "utf-32", "continued"],
)
def test_packages_are_read_in_every_encoding(tmp_path: Path, content: str | bytes) -> None:
    write(tmp_path, content)

    found = read_requirements(tmp_path)

    assert [package.replace(" ", "") for package in found.packages] == ["numpy==2.0", "rich"]
    assert found.options == []


def test_a_hash_within_a_word_is_no_comment(tmp_path: Path) -> None:
    write(tmp_path, "x @ https://host/x.zip#sha256=1 # why")

    assert read_requirements(tmp_path).packages == ["x @ https://host/x.zip#sha256=1"]


@pytest.mark.parametrize("include", ["-r base.txt", "-rbase.txt", "--requirement=base.txt", '-r "base.txt"'])
def test_included_files_are_read_in_their_place(tmp_path: Path, include: str) -> None:
    # Given a file that includes another one, which includes one in a folder beside it
    write(tmp_path, f"first\n{include}\nlast")
    write(tmp_path, "-r more/extra.txt\nbase", "base.txt")
    write(tmp_path, "-r ../tail.txt\n--pre", "more/extra.txt")
    write(tmp_path, "tail", "tail.txt")

    found = read_requirements(tmp_path)

    assert found.packages == ["first", "tail", "base", "last"]
    assert found.options == ["--pre"]


def test_paths_of_the_release_are_those_on_the_node(tmp_path: Path) -> None:
    write(
        tmp_path, "numpy\n-c constraints.txt\n--find-links ./wheels\n-f https://host/x\n-i 'https://host/y'"
    )
    write(tmp_path, "numpy<3", "constraints.txt")
    write(tmp_path, "", "wheels/x.whl")

    constraints, wheels = f"{WORKING_DIR}/constraints.txt", f"{WORKING_DIR}/wheels"
    options = ["-f", "https://host/x", "-i", "https://host/y"]
    assert installation(tmp_path, CONFIG) == {
        "pip": {
            "packages": [f"-c {constraints}", f"--find-links {wheels}", "numpy"],
            "pip_install_options": options,
        }
    }
    assert installation(tmp_path, CONFIG.model_copy(update={"package_manager": "uv"})) == {
        "uv": {
            "packages": ["numpy"],
            "uv_pip_install_options": [*options, "-c", constraints, "--find-links", wheels],
        }
    }


def test_absolute_paths_are_those_of_the_node(tmp_path: Path) -> None:
    # They are on Ray's nodes and not necessarily here, so that only pip can say that one is missing
    write(tmp_path, "numpy\n-f /opt/wheels\n-c /etc/constraints.txt\n/opt/wheels/x-1-py3-none-any.whl")

    assert installation(tmp_path, CONFIG) == {
        "pip": {
            "packages": [
                "-f /opt/wheels",
                "-c /etc/constraints.txt",
                "numpy",
                "/opt/wheels/x-1-py3-none-any.whl",
            ]
        }
    }


@pytest.mark.parametrize("path", ["./wheels/x-1-py3-none-any.whl", "wheels/x-1-py3-none-any.whl"])
@pytest.mark.parametrize("rest", ["", "[extra]", " ; python_version > '3'", " --hash=sha256:1"])
def test_a_wheel_of_the_release_is_the_one_on_the_node(tmp_path: Path, path: str, rest: str) -> None:
    write(tmp_path, f"{path}{rest}")
    write(tmp_path, "", "wheels/x-1-py3-none-any.whl")

    expected = f"{WORKING_DIR}/wheels/x-1-py3-none-any.whl{rest}"
    assert read_requirements(tmp_path).packages == [expected]


@pytest.mark.parametrize("line", ["x@https://host/a/x.whl", "x @ file:///a/x.whl", "https://host/a.whl"])
def test_addresses_are_installed_as_written(tmp_path: Path, line: str) -> None:
    write(tmp_path, line)

    assert read_requirements(tmp_path).packages == [line]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("-r missing.txt", "requirements.txt: '-r missing.txt' names nothing within the release"),
        ("-r", "names nothing within the release"),
        ("-r ../outside.txt", "names nothing within the release"),
        ("-r /etc/hostname", "names nothing within the release"),
        ("-r https://host/x.txt", "names nothing within the release"),
        ("./wheels/missing.whl", "requirements.txt: './wheels/missing.whl' names nothing within the release"),
        ("../outside.txt", "names nothing within the release"),
        ("-c missing.txt", "names nothing within the release"),
        ("-r requirements.txt", "requirements.txt includes itself"),
        ("-e .", "'-e .' cannot be installed"),
        ("--editable=./x", "cannot be installed"),
        ("--index-url 'x", "cannot be read: No closing quotation"),
        (b"caf\xe9", "requirements.txt is not text in UTF-8"),
        ("numpy".encode("utf-16-le"), "requirements.txt is not text in UTF-8"),
    ],
)
def test_what_cannot_be_installed_is_named(tmp_path: Path, content: str | bytes, said: str) -> None:
    write(tmp_path / "release", content)
    write(tmp_path, "secret", "outside.txt")

    with pytest.raises(ReleaseInvalidError) as caught:
        read_requirements(tmp_path / "release")
    assert said in str(caught.value)


def test_two_places_that_say_what_to_install_are_named(tmp_path: Path) -> None:
    write(tmp_path, "numpy")
    config = CONFIG.model_copy(update={"runtime_env": {"pip": ["rich"]}})

    with pytest.raises(ReleaseInvalidError, match=r"requirements.txt and runtime_env.pip both say"):
        installation(tmp_path, config)


@pytest.mark.parametrize("wheels_dir", ["missing", "../wheels", "/opt"])
def test_a_folder_of_wheels_is_one_of_the_release(tmp_path: Path, wheels_dir: str) -> None:
    write(tmp_path / "release", "numpy")
    write(tmp_path, "", "wheels/x.whl")
    config = CONFIG.model_copy(update={"wheels_dir": wheels_dir})

    with pytest.raises(ReleaseInvalidError, match=rf"'wheels_dir: {wheels_dir}' names nothing within"):
        installation(tmp_path / "release", config)


def test_without_packages_nothing_is_installed(tmp_path: Path) -> None:
    assert installation(tmp_path, CONFIG) == {}
    write(tmp_path, "# nothing\n--pre\n")
    assert installation(tmp_path, CONFIG) == {}
