"""Every check over every row that it is for."""

import inspect
import itertools
from collections.abc import Iterator

import optax
import pytest
from cases import CASES, MIXTURES, NARROW, Case
from checks import CHECKS
from checks.registry import Check
from conftest import scope_of
from trees import coarsely

import optabs

# Rows of the largest programs. Those of RESET have the code of another, under other settings:
# the checks that take longest of them are slow ones there.
LARGE = {case.name for case in (*MIXTURES, *NARROW)}
RESET = {"dao_e_paper", "narrow_bfloat16"}
LONG = {
    "check_checkpoint_continues_bit_for_bit",
    "check_debug_flags_stay_silent",
    "check_empty_arrays_change_nothing",
    "check_forward_mode_equals_reverse",
    "check_gradient_at_rest",
    "check_gradient_through_updates",
    "check_injected_equals_plain",
    "check_jit_equals_eager",
    "check_shard_map_of_shards",
    "check_shard_map_of_whole_params",
    "check_state_follows_auto_mesh",
    "check_state_follows_explicit_mesh",
    "check_vmap_over_params_equals_loop",
    "check_vmap_over_rates_equals_loop",
}


def _marks(name: str, case: Case, variant: str | None) -> list[pytest.MarkDecorator]:
    marks = []
    other = variant is not None and variant != CHECKS[name].quick_variant(case)
    if other or (case.name in RESET and name in LONG):
        marks.append(pytest.mark.slow)
    if case.error:
        # It leaves complex and float64 moments alone, and says so.
        marks.append(pytest.mark.filterwarnings("ignore:narrow_state leaves"))
    return marks


def _pairs() -> Iterator[tuple[str, Case, Check]]:
    small = [case for case in CASES if case.name not in LARGE]
    large = [case for case in CASES if case.name in LARGE]
    pairs = [
        *itertools.product(CHECKS, small),
        *((name, case) for case, name in itertools.product(large, CHECKS)),
    ]
    for name, case in pairs:
        if CHECKS[name].applies(case):
            yield name, case, CHECKS[name]


RUNS = [
    pytest.param(
        name,
        case,
        variant,
        id="-".join(filter(None, (name.removeprefix("check_"), case.name, variant))),
        marks=_marks(name, case, variant),
    )
    for name, case, each in _pairs()
    for variant in each.variants or (None,)
]


@pytest.mark.parametrize(("name", "case", "variant"), RUNS)
def test_contract(name: str, case: Case, variant: str | None) -> None:
    with coarsely(case.error):
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


def test_a_large_row_is_one_workers() -> None:
    for run in RUNS:
        name, case, _ = run.values
        scope = scope_of(f"tests/test_contract.py::test_contract[{run.id}]")
        assert scope == (case.name if case.name in LARGE else name.removeprefix("check_"))


def test_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


def test_every_trait_has_a_counterpart() -> None:
    replaced = {each.replaces for each in CHECKS.values() if each.replaces}
    assert replaced == {name for name, each in CHECKS.items() if each.where}
