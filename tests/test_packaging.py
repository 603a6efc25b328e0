"""What optabs needs, the versions it is tested with, and which of them an interpreter gets."""

import ast
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
    assert f"{environment}/bin/python -m pytest -n auto --dist loadscope some" in printed


def test_inner_names_of_jax_are_used_only_where_programs_are_compared() -> None:
    """They change from release to release; `jax.core.Tracer` is a public one."""
    inner = re.compile(r"jax\.core(?!\.Tracer\b)|jax\.extend|jax\._src|jax\.interpreters")
    found = {
        str(path.relative_to(ROOT))
        for folder in ("optabs", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if inner.search(path.read_text())
    }
    assert found <= {"optabs/training/checks.py", "optabs/training/checkpoints.py"}
    assert inner.search("from jax.extend.core import Jaxpr")


def imported(source: str) -> set[str]:
    """The modules that a file imports anywhere: each dotted name, and names from packages."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def packages_of_optabs(source: str) -> set[str]:
    """The packages and modules at the top of optabs that a file imports."""
    inside = (name.split(".") for name in imported(source) if name.startswith("optabs."))
    return {parts[1] for parts in inside}


def sources() -> dict[str, str]:
    """Every file of optabs but its table of contents, by its path inside."""
    inside = ROOT / "optabs"
    files = {str(path.relative_to(inside)): path.read_text() for path in inside.rglob("*.py")}
    del files["__init__.py"]
    return files


def top(path: str) -> str:
    return pathlib.Path(path).parts[0].removesuffix(".py")


NUMERICS = {"_checks", "_numerics", "_tree"}
PARTS = NUMERICS | {"moments", "ratio", "sizes"}
NAMED = PARTS | {"optimizers"}
# What each module or package at the top of optabs may import, beside itself.
MAY_IMPORT = {
    **dict.fromkeys(NUMERICS, NUMERICS),
    **dict.fromkeys(PARTS - NUMERICS, PARTS),
    "optimizers": NAMED,
    "mixture": NAMED,
    "storage": NUMERICS,
    "_loss_inputs": NUMERICS,
    "losses": NUMERICS | {"_loss_inputs"},
    "initializers": NUMERICS,
    "genetics": NUMERICS,
    "training": NUMERICS,
    "evolution": NAMED | {"genetics", "training"},
    "_metrics": NAMED | {"mixture", "evolution", "storage"},
}


def wrong_imports(path: str, source: str) -> set[str]:
    """What a file of optabs imports against the order of the layers."""
    return packages_of_optabs(source) - MAY_IMPORT[top(path)] - {top(path)}


def test_imports_run_one_way() -> None:
    wrong = {path: wrong_imports(path, source) for path, source in sources().items()}
    assert {path: found for path, found in wrong.items() if found} == {}


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("_tree.py", "from optabs.storage.codecs import decode"),
        ("_numerics.py", "from optabs import moments"),
        ("moments.py", "from optabs.optimizers.adam_family import adam"),
        ("optimizers/_descent.py", "def late():\n    from optabs.mixture import dao_e"),
        ("storage/narrowing.py", "import optabs.moments as moments"),
    ],
)
def test_an_import_against_the_order_is_seen(path: str, line: str) -> None:
    assert wrong_imports(path, line)
    assert wrong_imports(path, sources()[path]) == set()


@pytest.mark.parametrize(
    "line",
    [
        "from optabs.storage.codecs import decode",
        "from optabs import storage",
        "import optabs.storage.codecs as codecs",
        "def late():\n    from optabs.storage import codecs",
    ],
)
def test_an_import_of_storage_is_seen(line: str) -> None:
    assert packages_of_optabs(line) == {"storage"}


def test_data_sets_and_pictures_are_not_for_optabs() -> None:
    packages = {name.split(".")[0] for text in sources().values() for name in imported(text)}
    assert not packages & {"tensorflow_datasets", "matplotlib"}
    assert {"jax", "optax"} <= packages
