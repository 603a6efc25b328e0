"""Every check over every row that it is for."""

import inspect
import itertools
from typing import Any

import optax
import pytest
from cases import CASES, Case
from checks import CHECKS
from conftest import scope_of
from trees import declared

import optabs


def _marks(name: str, case: Case, variant: str | None) -> list[pytest.MarkDecorator]:
    marks = []
    if not CHECKS[name].is_quick(case, variant):
        marks.append(pytest.mark.slow)
    if case.error:
        # It leaves complex numbers and float64 alone, and says so.
        marks.append(pytest.mark.filterwarnings("ignore:narrow_(state|params) leaves"))
    return marks


RUNS = [
    pytest.param(
        name,
        case,
        variant,
        id="-".join(filter(None, (name.removeprefix("check_"), case.name, variant))),
        marks=_marks(name, case, variant),
    )
    for (name, each), case in itertools.product(CHECKS.items(), CASES)
    if each.applies(case)
    for variant in each.variants or (None,)
]


@pytest.mark.parametrize(("name", "case", "variant"), RUNS)
def test_contract(name: str, case: Case, variant: str | None) -> None:
    with declared(case):
        CHECKS[name].run(case, variant)


STACKED = {"vmapped"}  # of parameters with one more axis: test_vmapped.py


def _transformations() -> set[str]:
    """Public functions that make a transformation, and classes that are one."""
    kind = optax.GradientTransformation
    made = set()
    for name, public in vars(optabs).items():
        if name.startswith("_") or not callable(public) or name in STACKED:
            continue
        result = inspect.signature(public).return_annotation
        if isinstance(result, str) and "GradientTransformation" in result:
            made.add(name)
        if inspect.isclass(result) and issubclass(result, kind):
            made.add(name)
    return made


def uncovered(cases: list[Case]) -> set[str]:
    return _transformations() - {name for case in cases for name in case.covers}


def test_every_public_transformation_has_a_row() -> None:
    assert uncovered(CASES) == set()
    # The test can fail: without its row, a name is missing.
    assert uncovered([case for case in CASES if "adam_abs" not in case.covers]) == {"adam_abs"}


def test_a_quick_run_has_every_check_of_every_row() -> None:
    quick = {(run.values[0], run.values[1].code) for run in RUNS if not _is_slow(run)}
    assert quick == {(run.values[0], run.values[1].code) for run in RUNS}
    assert any(_is_slow(run) for run in RUNS)


def _is_slow(run: Any) -> bool:
    return any(mark.name == "slow" for mark in run.marks)


def test_large_rows_are_one_workers() -> None:
    for run in RUNS:
        name, case, _ = run.values
        scope = scope_of(f"tests/test_contract.py::test_contract[{run.id}]")
        if case.large:
            assert scope == case.code.removesuffix("_8")
        else:
            assert scope == CHECKS[name].function.__module__


def test_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


def test_every_trait_has_a_counterpart() -> None:
    replaced = {each.replaces for each in CHECKS.values() if each.replaces}
    assert replaced == {name for name, each in CHECKS.items() if each.where}
