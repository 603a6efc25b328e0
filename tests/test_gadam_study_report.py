"""The study of Gadam from the command line: records, reports and refusals."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from commands import assert_refused, call, interrupt

from benchmarks import store
from benchmarks.gadam import pictures, records, study

TINY = (
    "gadam --functions rastrigin --dimensions 2 --conditions noisy --networks none --quick "
    "--arms best_of_g,tuned --out {out}"
)


def kept(folder: pathlib.Path, task: str, arm: str, final: list[float], label: str) -> None:
    record = {"config": {"arm": {"label": label}}, "results": {"final": final}}
    store.write_json(folder / "runs" / task / f"{arm}.json", record)


@pytest.mark.slow
def test_a_study_is_interrupted_goes_on_and_reports(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = TINY.format(out=tmp_path)
    made = interrupt(monkeypatch, study, "make", at=2)
    assert call(monkeypatch, line) == 130
    assert "goes on from there" in capsys.readouterr().err
    assert len(list(tmp_path.rglob("*.json"))) == 1
    assert call(monkeypatch, line) == 0
    assert [unit.arm for unit, _ in made] == ["best_of_g", "tuned", "tuned"]
    text = (tmp_path / "README.md").read_text()
    for part in ("Gadam, tuned", "noisy", "rastrigin, 2", "1,600"):
        assert part in text
    assert not (tmp_path / "tried").exists()
    for name in ("curves", "diversity", "lineage"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    tuned = json.loads((tmp_path / "runs/rastrigin-2-noisy/tuned.json").read_text())
    results = tuned["results"]
    assert results["gradients"] == 16 * 100
    assert results["looks"][-1] == 16 * 100
    assert np.median(results["final"]) == pytest.approx(results["curves"][1][-1], rel=1e-3)
    assert tuned["environment"]["versions"]["jax"]
    assert call(monkeypatch, line) == 0
    assert len(made) == 3
    (tmp_path / "README.md").unlink()
    assert call(monkeypatch, line + " --report") == 0
    assert (tmp_path / "README.md").read_text() == text
    assert call(monkeypatch, line + " --steps 120 --report") == 0
    assert len(made) == 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--functions sphere", "functions is 'sphere'; choose from rastrigin,"),
        ("--dimensions 2,x", "dimensions is '2,x'; pass whole numbers above 0"),
        ("--conditions calm", "conditions is 'calm'; choose from shifted,"),
        ("--networks digits --arms sgd", "arms is 'sgd'; choose from best_of_g,"),
        ("--networks mnist", "networks has mnist, which needs images; pass data, too."),
        ("--functions none --networks none", "functions and networks are both none"),
        (
            "--steps 10",
            "steps is 10, too few for a generation of every arm; pass 100 or more.",
        ),
        ("--epochs 1", "epochs is 1, too few for a generation of every arm; pass 10 or more."),
        ("--processes -1", "processes is -1; pass a whole number above 0."),
        ("--seeds 0", "seeds is 0; pass a whole number above 0."),
        ("--networks digits --report", "which has no records; call without --report first."),
    ],
)
def test_bad_arguments_end_in_one_sentence(
    options: str,
    sentence: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert_refused(f"gadam {options}", sentence, tmp_path, monkeypatch, capsys)


def made_up(folder: pathlib.Path, lowered: int) -> records.Records:
    """Five functions, `lowered` of them lowered elevenfold, and a network 2 errors above."""
    for index, name in enumerate(records.FUNCTIONS):
        task = study.name_of(name, 30, "shifted")
        low = 100.0 / (11 if index < lowered else 9)
        kept(folder, task, "best_of_g", [90.0, 100.0, 300.0], "best")
        kept(folder, task, "tuned", [low, 1e-9, 1e9], "rule")
    kept(folder, "digits", "best_of_g", [0.9, 1.0, 1.1], "best")
    kept(folder, "digits", "tuned", [1.0, 1.1, 1.2], "rule")
    return records.read(folder)


@pytest.mark.parametrize("lowered", [3, 4])
def test_bars_are_medians_ratios_and_standard_errors(
    tmp_path: pathlib.Path, lowered: int
) -> None:
    made = made_up(tmp_path, lowered)
    functions, networks = records.bars_of(made, "tuned")
    assert functions.measured == f"{lowered} of 5"
    assert functions.met == (lowered == 4)
    # 0.1 over the root of 0.01/3 + 0.01/3.
    assert records.standard_errors(made, "digits", "tuned") == pytest.approx(1.2247, rel=1e-3)
    assert not networks.met
    assert records.ratio(made, "rastrigin-30-shifted", "tuned") == pytest.approx(11)
    tiny: dict[str, Any] = {"final": [0.0, 0.0, -1e-6]}
    made["ackley-30-shifted", "tuned"]["results"] = tiny
    assert records.median(made, "ackley-30-shifted", "tuned") == records.FLOOR


def test_a_lineage_follows_survivors_and_both_parents() -> None:
    parents = np.array([[0, 1], [2, 2], [1, 0]])
    edges = pictures.edges_of(parents, np.array([3, 0, 4]))
    assert sorted(edges) == [(0, 0, False), (0, 1, True), (1, 0, False), (2, 2, False)]


@pytest.mark.slow
def test_two_processes_learn_without_sending_and_write_one_record(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, f"gadam --processes 2 --out {tmp_path}") == 0
    results = store.read_json(tmp_path / "spread" / "2.json")["results"]
    assert (results["processes"], results["devices"]) == (2, 8)
    assert results["learning_receives"] == 0
    # The parents with their optimizers' states reach every device, and so do the children.
    assert 1.9 < results["share"] < 2.3
    assert results["best"][-1] < 0.5 * results["best"][0]
