"""What CONTRIBUTING.md shows works: a new optimizer, its row, a check and its control."""

import pathlib
import re
from typing import Any

import broken.registry
import checks.registry
import pytest
from checks import CHECKS

from benchmarks.lab.records import Records
from benchmarks.lab.study import run_units

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that its blocks define, run in order; what they register is forgotten."""
    monkeypatch.setattr(checks.registry, "CHECKS", dict(CHECKS))
    monkeypatch.setattr(broken.registry, "CONTROLS", {})
    namespace: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(compile(block, "CONTRIBUTING.md", "exec"), namespace)
    return namespace


@pytest.mark.parametrize(
    "name",
    [
        "check_parabola",
        "check_params_are_optional",
        "check_unknown_arguments_are_ignored",
        "check_moments_are_found",
    ],
)
def test_the_new_row_passes_checks(shown: dict[str, Any], name: str) -> None:
    row = shown["row"]
    assert CHECKS[name].applies(row)
    CHECKS[name].run(row)


@pytest.mark.slow
def test_the_new_check_accepts_the_row_and_rejects_its_control(shown: dict[str, Any]) -> None:
    name = "check_a_rate_of_zero_moves_nothing"
    new = checks.registry.CHECKS[name]
    new.run(shown["row"])
    control = broken.registry.CONTROLS[name]
    with pytest.raises(control.raises):
        new.run(control.case)


@pytest.mark.slow
def test_the_new_study_runs(shown: dict[str, Any], tmp_path: pathlib.Path) -> None:
    study, records = shown["STUDY"], Records(tmp_path)
    run_units(study.units(["digits"], ["adam", "abs_0.99"], seeds=2, steps=20), records)
    study.report(records)
    assert len(records) == 2 * (1 + 2)
    assert "| AdamABS, b2 0.99 | at most +1 |" in (tmp_path / "README.md").read_text()


def test_its_files_are_there() -> None:
    paths = set(re.findall(r"`((?:optabs|tests|benchmarks|docs)(?:/[\w.]+)+)`", TEXT))
    paths -= {"benchmarks/decays.py"}  # the new study
    assert {path for path in paths if not (ROOT / path).exists()} == set()
    assert {"optabs/_numerics.py", "tests/checks/interface.py"} <= paths


def test_every_file_of_the_core_is_in_the_table() -> None:
    """Packages with a row of their own have their files there."""
    core = [*(ROOT / "optabs").glob("*.py")]
    for package in ("mixture", "optimizers", "storage"):
        core += (ROOT / "optabs" / package).glob("*.py")
    named = {str(path.relative_to(ROOT)) for path in core if path.name != "__init__.py"}
    missing = {path for path in named if f"`{path}`" not in TEXT}
    assert missing == set()
