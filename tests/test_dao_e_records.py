"""What the DAO-E study makes of its records: bars, ratios, ablations, drift, the report."""

import pathlib
from typing import Any

import numpy as np
import pytest

from benchmarks.dao_e import study_report
from benchmarks.dao_e.ablations import ablation_section
from benchmarks.dao_e.arms import FEATURES, RULE, SINGLES, UNIFORM
from benchmarks.dao_e.bars import bars_of
from benchmarks.dao_e.drift import table, verdict
from benchmarks.dao_e.records import MEASURES, Pair, Records, ratios_to_uniform

Values = dict[str, tuple[float, float, bool]]  # by arm: area, accuracy, diverged


def invented(pairs: dict[Pair, Values], scope: str = "all") -> Records:
    """Records of such areas, which are also the other losses, over two seeds."""
    records: Records = {}
    for pair, values in pairs.items():
        base = dict.fromkeys([*SINGLES, UNIFORM], (1.0, 0.9, False))
        for arm, (loss, accuracy, diverged) in (base | values).items():
            config = {
                "scope": scope,
                "title": pair.task,
                "classifies": True,
                "steps": 20,
                "rates": {},
                "seeds": 2,
                "test": False,
            }
            record = records.setdefault((pair.task, arm), {"config": config, "results": {}})
            record["config"]["rates"][pair.setting] = [1.0] * 4
            watched = {key: [0.25, 0.25] for key in (*SINGLES, "multiplier")}
            record["results"][pair.setting] = {
                **{key: [loss, 1.1 * loss] for key in MEASURES},
                "validation_accuracy": [accuracy, accuracy],
                "diverged": [False, diverged],
                "curve": [1.0, loss],
                "watched": watched if arm == RULE else {},
            }
    return records


def rule(area: float = 0.9, accuracy: float = 0.91, diverged: bool = False) -> Values:
    return {RULE: (area, accuracy, diverged)}


A, B, C, D, E = (Pair("first", str(place)) for place in range(5))


@pytest.mark.parametrize(
    ("cases", "met", "missed"),
    [
        ({A: rule(), B: rule()}, [True, True, True, True], [[], [], [], []]),
        (
            {pair: rule(1.1 if pair == E else 1.0) for pair in (A, B, C, D, E)},
            [True] * 4,
            [[E], [], [], []],
        ),
        ({A: rule(1.1), B: rule()}, [False, True, True, True], [[A], [], [], []]),
        # The best single is the best one of each pair: Adam has 94 percent.
        (
            {A: rule() | {"adam": (1.0, 0.94, False)}, B: rule()},
            [True, False, True, True],
            [[], [A], [], []],
        ),
        ({A: rule(accuracy=0.898), B: rule(accuracy=0.9)}, [True, True, False, True], None),
        ({A: rule(accuracy=0.89)}, [True, False, False, True], [[], [A], [A], []]),
        ({A: rule(diverged=True), B: rule()}, [True, True, True, False], [[], [], [], [A]]),
        (
            {A: rule(diverged=True) | dict.fromkeys(SINGLES, (1.0, 0.9, True)), B: rule()},
            [True, True, True, True],
            None,
        ),
    ],
)
def test_the_bars(cases: dict[Pair, Values], met: list[bool], missed: Any) -> None:
    bars = bars_of(invented(cases), list(cases), RULE)
    assert [bar.met for bar in bars] == met
    if missed is not None:
        assert [bar.missed for bar in bars] == missed


def test_a_bar_says_what_was_measured() -> None:
    cases = {A: rule(1.1, 0.92), B: rule(accuracy=0.90)}
    bars = bars_of(invented(cases), list(cases), RULE)
    assert [bar.measured for bar in bars] == ["50% of 2", "+1.00", "+1.00", "0 of 2"]


def test_ratios_are_geometric_means_paired_by_seed() -> None:
    records = invented({A: rule(0.5), B: rule(2.0)})
    np.testing.assert_allclose(ratios_to_uniform(records, [A, B], RULE, "area"), [1, 1])
    np.testing.assert_allclose(ratios_to_uniform(records, [A], RULE, "area"), [0.5, 0.5])
    records["first", RULE]["results"]["0"]["area"] = [0.5]
    np.testing.assert_allclose(ratios_to_uniform(records, [A], RULE, "area"), [0.5])


def test_an_ablation_is_set_against_the_rule_on_its_own_seeds() -> None:
    cases = {A: rule(0.5, 0.9) | {FEATURES: (1.0, 0.92, True)}, B: rule(2.0, 0.9)}
    records = invented(cases)
    results = records["first", RULE]["results"]
    records["first", FEATURES]["results"]["1"] = {
        name: list(values) for name, values in results["1"].items() if name != "watched"
    }
    for measures in results.values():
        for name in (*MEASURES, "validation_accuracy"):
            measures[name].append(1e9)
    text = ablation_section(records, [A])
    row = "| rule with features | 2.000 ± 0.000 | 2.000 ± 0.000 | 2.000 ± 0.000 | "
    assert row + "2.000 ± 0.000 | 2.00 ± 0.00 | 1 |" in text
    both = ablation_section(records, [A, B])
    assert "| 2.000 ± 0.000 | 1.000 ± 0.000 | 1.414 ± 0.000 |" in both


def test_drift_is_judged_by_paired_differences() -> None:
    cases = {A: {RULE: (0.5, 0.92, False), FEATURES: (1.0, 0.9, False)}}
    records = invented(cases, "drift")
    results = records["first", FEATURES]["results"]["0"]
    results["area"] = [1.0, 1.2]
    results["validation_accuracy"] = [0.9, 0.94]
    cells = table(records, [A], FEATURES).rows[0]
    logs = 100 * np.log([0.5, 0.55 / 1.2])
    assert cells[1] == f"{logs.mean():+.2f} ± {abs(logs[0] - logs[1]) / 2:.2f}"
    assert cells[4] == "+0.00 ± 2.00"
    said = verdict(records, [A])
    assert "area better in 0 and worse in 1" in said
    assert "validation accuracy better in 0 and worse in 0" in said


def test_the_report_is_made_from_the_records(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_report, "_draw", lambda *_: None)  # pictures take their time
    records = invented({A: rule(), B: rule(1.1, 0.8)})
    text = report_of(records, tmp_path)
    assert "50% of 2 | **missed**" in text
    assert "not on first 1" in text
    assert "| mean | 90.00 | 90.00 | 90.00 | 90.00 | 90.00 | 85.50 |" in text
    assert "Test accuracy" not in text
    for arm in [*SINGLES, UNIFORM, RULE]:
        records["first", arm]["config"]["test"] = True
        for results in records["first", arm]["results"].values():
            results["test_accuracy"] = [0.75, 0.75]
    records["first", RULE]["results"]["1"]["test_accuracy"] = [0.79, 0.81]
    text = report_of(records, tmp_path)
    assert "| mean | 75.00 | 75.00 | 75.00 |" in text
    assert "is +2.50 points from that of the single" in text


def report_of(records: Records, folder: pathlib.Path) -> str:
    study_report.write(records, folder)
    return (folder / "README.md").read_text()
