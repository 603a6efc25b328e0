"""What optabs needs, the versions it is tested with, and which of them an interpreter gets."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# A name and a version: nothing that names an index, a file or a commit.
PIN = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)")
CONSTRAINTS = ["constraints.txt", "constraints-newest.txt"]


def requirements() -> list[Requirement]:
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    found = [Requirement(text) for each in lists for text in each]
    return [requirement for requirement in found if requirement.name != "optabs"]


def pins(file: str) -> dict[str, str]:
    """The lines of a file of constraints: name -> version."""
    found = [PIN.fullmatch(line) for line in (ROOT / file).read_text().splitlines()]
    return {canonicalize_name(pin[1]): pin[2] for pin in found if pin}


@pytest.mark.parametrize("file", CONSTRAINTS)
def test_constraints_are_names_and_versions_in_order(file: str) -> None:
    lines = (ROOT / file).read_text().splitlines()
    assert [line for line in lines if not PIN.fullmatch(line)] == []
    names = [canonicalize_name(line.split("==")[0]) for line in lines]
    assert names == sorted(set(names))


@pytest.mark.parametrize("file", CONSTRAINTS)
def test_constraints_are_versions_that_the_project_allows(file: str) -> None:
    pinned = pins(file)
    needed = [(canonicalize_name(each.name), each.specifier) for each in requirements()]
    assert {"jax", "optax", "orbax-checkpoint", "pytest"} <= {name for name, _ in needed}
    for name, versions in needed:
        assert pinned[name] in versions, name


def test_the_two_sets_of_packages_are_an_old_jax_and_a_new_one() -> None:
    old, new = (Version(pins(file)["jax"]) for file in CONSTRAINTS)
    assert Version("0.10") <= old < Version("0.11")  # 0.11 needs Python 3.12
    assert new >= Version("0.12")


def test_releases_that_will_not_work_are_refused() -> None:
    refused = {"optax": "0.4.0", "orbax-checkpoint": "1.0.0"}
    ranges = {each.name: each.specifier for each in requirements() if each.name in refused}
    assert {name for name in refused if refused[name] in ranges[name]} == set()


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize(
    ("version", "file"),
    [((3, 11), CONSTRAINTS[0]), ((3, 12), CONSTRAINTS[1]), ((3, 13), CONSTRAINTS[1])],
)
@pytest.mark.parametrize("there", [False, True], ids=["fresh", "there"])
def test_make_takes_the_constraints_of_the_interpreter(
    version: tuple[int, int], file: str, there: bool, tmp_path: pathlib.Path
) -> None:
    """That of the environment where there is one, else the one that will make it."""
    python = tmp_path / ("environment/bin/python" if there else "python")
    python.parent.mkdir(exist_ok=True, parents=True)
    python.write_text(
        f"#!{sys.executable}\n"
        f"import sys; sys.version_info = {version}; exec(sys.argv[sys.argv.index('-c') + 1])\n"
    )
    python.chmod(0o755)
    chosen = "nothing" if there else python
    environment = tmp_path / "environment"
    printed = subprocess.run(
        ["make", "--dry-run", f"VENV={environment}", f"PYTHON={chosen}", "test", "TESTS=some"],
        cwd=ROOT,
        # Without what a make that runs this test passes on.
        env={name: value for name, value in os.environ.items() if name != "MAKEFLAGS"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert re.findall(r" -c (constraints\S*)", printed) == [file]
    assert f"{environment}/bin/python -m pytest -n auto --dist loadgroup some" in printed


def test_inner_names_of_jax_are_used_only_where_programs_are_compared() -> None:
    """They change from release to release; `jax.core.Tracer` is a public one."""
    inner = re.compile(r"jax\.core(?!\.Tracer\b)|jax\.extend|jax\._src|jax\.interpreters")
    found = {
        str(path.relative_to(ROOT))
        for folder in ("optabs", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if inner.search(path.read_text())
    }
    assert found <= {"optabs/training/checks.py", "optabs/training/identity.py"}
    assert inner.search("from jax.extend.core import Jaxpr")
