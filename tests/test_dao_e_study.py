"""The DAO-E study as it runs: the command line, workers, interruption and bad input."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from commands import assert_refused, call, interrupt

from benchmarks.dao_e import settings, study, study_report, workers
from benchmarks.dao_e.arms import ARMS, FEATURES, RULE, SINGLES, UNIFORM, Arm
from benchmarks.dao_e.program import Outcome, Program, program_of
from benchmarks.dao_e.study import MAKERS, Plan, Unit
from benchmarks.lab.tasks import NEED_IMAGES, Task

EMBEDDED = [name for name in MAKERS if name not in NEED_IMAGES]
QUICK = "dao_e --study --quick --tasks quadratic --steps 10"
PROGRAMS: dict[Any, Program] = {}


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests share programs, and those of all others stay compiled, too."""

    def program(task: Task, arm: Arm, *, test: bool = False) -> Program:
        key = task.title, task.steps, arm.label, test
        if key not in PROGRAMS:
            PROGRAMS[key] = program_of(task, arm, test=test)
        return PROGRAMS[key]

    monkeypatch.setattr(study, "program_of", program)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)


def records_in(folder: pathlib.Path) -> dict[str, Any]:
    paths = sorted(folder.rglob("*.json"))
    return {str(path.relative_to(folder)): json.loads(path.read_text()) for path in paths}


def test_end_to_end_and_nothing_is_run_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, f"{QUICK} --out {tmp_path}") == 0
    assert "The measured rule" in capsys.readouterr().out
    kept = records_in(tmp_path)
    assert list(kept) == [
        *sorted(f"runs/quadratic/{arm}.json" for arm in [*SINGLES, UNIFORM, RULE]),
        *sorted(f"tuning/quadratic/{arm}.json" for arm in SINGLES),
    ]
    record = kept["runs/quadratic/rule.json"]
    assert {"date", "versions", "device", "python"} <= record["environment"].keys()
    assert record["results"].keys() == settings.SETTINGS.keys()
    assert all(len(results["area"]) == 2 for results in record["results"].values())
    assert "test_loss" not in record["results"]["tuned"]
    for name in ("ratios", "curves", "weights"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    def made_again(*_: Any) -> Any:
        raise AssertionError("a finished record was made again")

    with monkeypatch.context() as patched:
        patched.setattr(workers.study, "program_of", made_again)
        patched.setattr(study_report, "write", lambda *_: None)  # pictures take their time
        assert call(patched, f"{QUICK} --out {tmp_path}") == 0
    assert records_in(tmp_path) == kept


def small_plan(folder: pathlib.Path, **changes: Any) -> Plan:
    fields = {"tasks": ("quadratic",), "settings": ("same",), "arms": tuple(SINGLES)}
    return Plan(**{**fields, "seeds": 1, "folder": folder, "steps": 10, **changes})


def test_the_test_data_are_seen_by_finalists_with_final_only(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SINGLES:
        unit = Unit("quadratic", name, True)
        path = unit.path(tmp_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"results": {"best": 0.1}}')
    looks: list[bool] = []

    def program(task: Task, arm: Any, *, test: bool) -> Any:
        looks.append(test)
        scores = (0.5, 0.5)
        return lambda rates, seed: Outcome(np.ones(10), scores, scores if test else None, {})

    monkeypatch.setattr(study, "program_of", program)
    final = small_plan(tmp_path, final=True)
    before = small_plan(tmp_path)
    for arm, seen in (("adam", True), (FEATURES, False)):
        unit = Unit("quadratic", arm, False)
        study.make(unit, before)
        assert study.is_finished(unit, before)
        assert study.is_finished(unit, final) is not seen
        study.make(unit, final)
        assert study.is_finished(unit, final)
        assert study.is_finished(unit, before)
        results = study.read(final._replace(arms=(arm,)))["quadratic", arm]["results"]
        assert ("test_loss" in results["same"]) is seen
    assert looks == [False, True, False, False]


def test_ablations_have_fewer_seeds_but_for_the_drift_trial(tmp_path: pathlib.Path) -> None:
    def seeds(task: str, arm: str) -> int:
        unit = Unit(task, arm, False)
        for name in SINGLES:
            path = Unit(task, name, True).path(tmp_path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"results": {"best": 0.1}}')
        return study.config_of(unit, small_plan(tmp_path, seeds=5))["seeds"]

    assert seeds("quadratic", RULE) == seeds("brighter", RULE) == 5
    assert seeds("quadratic", FEATURES) == study.ABLATION_SEEDS
    assert seeds("brighter", FEATURES) == 5


def test_interruption_keeps_finished_records(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(monkeypatch, study, "make", at=2)
    line = f"{QUICK} --settings same --seeds 1 --out {tmp_path}"
    assert call(monkeypatch, line) == 130
    assert "finished records are kept" in capsys.readouterr().err
    assert len(records_in(tmp_path)) == 1


@pytest.mark.slow
def test_two_workers_make_the_same_records(tmp_path: pathlib.Path) -> None:
    plan = small_plan(tmp_path / "two")
    units = [Unit("quadratic", name, True) for name in ("sgd", "adam")]
    workers.make_all(units, plan, 2)
    alone = plan._replace(folder=tmp_path / "one")
    workers.make_all(units, alone, 1)
    for unit in units:
        one, two = (json.loads(unit.path(p.folder).read_text()) for p in (alone, plan))
        assert one["config"] == two["config"]
        assert one["results"]["best"] == two["results"]["best"]
        losses = [np.array(each["results"]["validation_loss"], float) for each in (one, two)]
        np.testing.assert_allclose(*losses, rtol=1e-4)
        assert np.isfinite(losses[0]).any()
        if hasattr(study.store.os, "sched_getaffinity"):
            assert two["environment"]["cores"] == 1


def test_what_needs_images_is_left_out_aloud(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plans: list[Plan] = []
    monkeypatch.setattr("benchmarks.dao_e.command.make_all", lambda *given: None)
    monkeypatch.setattr(study, "read", lambda plan: plans.append(plan) or {})
    monkeypatch.setattr(study_report, "write", lambda *given: None)
    assert call(monkeypatch, f"dao_e --study --out {tmp_path}") == 0
    assert "Left out" in (said := capsys.readouterr().out)
    assert ", ".join(NEED_IMAGES) in said
    assert plans[0].tasks == tuple(EMBEDDED)
    assert plans[0].arms == tuple(ARMS)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--tasks digits", "tasks is 'digits'; choose from quadratic, logistic"),
        ("--tasks mnist,long", "tasks has mnist, which need images; pass data, too"),
        ("--tasks mnist --data nowhere", "source 'nowhere' does not exist"),
        ("--settings worse", "settings is 'worse'; choose from tuned, same"),
        ("--arms muon", "arms is 'muon'; choose from sgd, adam"),
        ("--seeds 0", "seeds is 0; pass a whole number above 0"),
        ("--steps 0", "steps is 0; pass a whole number above 0"),
        ("--workers 0", "workers is 0; pass a whole number above 0"),
        ("--quick --steps -1", "steps is -1; pass a whole number above 0"),
        ("--out pyproject.toml/x", "output folder 'pyproject.toml/x' cannot be"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    line: str,
    sentence: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert_refused(f"dao_e --study {line}", sentence, tmp_path, monkeypatch, capsys)
