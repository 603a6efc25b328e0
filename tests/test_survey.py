"""The survey study's command line: records, tables, pictures and bad input."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from commands import assert_refused, call, interrupt

from benchmarks.lab.landscapes import LANDSCAPES
from benchmarks.survey import command as survey
from benchmarks.survey.optimizers import ENTRIES
from benchmarks.survey.problems import (
    PROBLEMS,
    Problem,
)
from benchmarks.survey.study import RATES, Task, study

SMALL = "survey --problems saddle,breast_cancer --optimizers nag,adam --steps 20 --seeds 2"


def records(folder: pathlib.Path) -> dict[str, Any]:
    paths = sorted(folder.rglob("*.json"))
    return {str(path.relative_to(folder)): json.loads(path.read_text()) for path in paths}


def test_a_divergence_is_shown_as_one(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saddle = PROBLEMS["saddle"]()
    problem = saddle._replace(loss=lambda params: saddle.loss(params) / 0.0)
    record = study(Task("saddle", "sgd", ENTRIES["sgd"], 5, (0, 1)), problem)
    assert record["results"]["final_loss"] == [np.inf, np.inf]
    survey.write_tables({("saddle", "sgd"): record}, {"saddle": "a saddle"}, tmp_path)
    capsys.readouterr()
    text = (tmp_path / "survey.md").read_text()
    assert "| sgd | 1e-06* | 0/2 | - | diverged | diverged | diverged |" in text


def test_end_to_end_and_nothing_is_run_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, f"{SMALL} --out {tmp_path}") == 0
    shown = capsys.readouterr().out
    for words in ("A saddle: 20 steps", "test accuracy", "nag", "adam"):
        assert words in " ".join(shown.split())
    kept = records(tmp_path)
    assert list(kept) == [
        f"runs/{problem}/{name}.json"
        for problem in ("breast_cancer", "saddle")
        for name in ("adam", "nag")
    ]
    for record in kept.values():
        assert {"date", "versions", "device", "python"} <= record["environment"].keys()
        assert record["config"]["seeds"] == [0, 1]
        assert record["config"]["rates"] == list(RATES)
        assert np.shape(record["results"]["tuning_final_loss"]) == (len(RATES), 5)
        assert len(record["results"]["final_loss"]) == 2
    assert "test_accuracy" not in kept["runs/saddle/adam.json"]["results"]
    assert len(kept["runs/breast_cancer/adam.json"]["results"]["test_accuracy"]) == 2
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == ["landscape-saddle.png", "question-4-leaving-a-saddle.png"]
    assert (tmp_path / "landscape-saddle.png").read_bytes().startswith(b"\x89PNG")

    def run_again(*_: Any) -> Any:
        raise AssertionError("a finished record was made again")

    monkeypatch.setattr(survey, "study", run_again)
    assert call(monkeypatch, f"{SMALL} --out {tmp_path}") == 0
    assert records(tmp_path) == kept


def invented(task: Task, problem: Problem) -> dict[str, Any]:
    """A record of the right form, in no time; half of the rates do not arrive."""
    tried, arrives = len(RATES), np.arange(len(RATES)) % 2 == 0
    results = {
        "rate": 1e-3,
        "at_edge": False,
        "steps_to_target": [np.inf],
        "final_loss": [0.5],
        "curve_steps": [0, 5],
        "curve_loss": [1.0, 0.5],
        "tuning_steps": np.where(arrives, 3.0, np.inf).repeat(5).reshape(tried, 5).tolist(),
        "tuning_final_loss": np.full((tried, 5), 0.5).tolist(),
        "test_accuracy": [0.9],
    }
    return {"config": task.config(problem), "results": results}


@pytest.mark.slow
def test_all_pictures_are_drawn(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(survey, "study", invented)
    line = f"survey --optimizers adam_abs,sgd --steps 5 --seeds 1 --out {tmp_path}"
    assert call(monkeypatch, line) == 0
    capsys.readouterr()
    pictures = {path.stem for path in tmp_path.glob("*.png")}
    assert pictures == {
        *(f"landscape-{name}" for name in LANDSCAPES),
        "question-1-choosing-the-rate",
        "question-2-adjusting-the-rate",
        "question-3-one-rate-per-variable",
        "question-4-leaving-a-saddle",
        "family-momentum",
        "family-adam_absolute",
    }
    noisy = [path.stem for path in sorted((tmp_path / "runs" / "noisy").iterdir())]
    assert noisy == ["adam_abs", "adam_abs_cosine", "sgd", "sgd_cosine"]


def test_interruption_keeps_finished_records_and_resumes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = interrupt(monkeypatch, survey, "study", at=2)
    line = (
        f"survey --problems saddle --optimizers sgd,adam --steps 5 --seeds 1 --out {tmp_path}"
    )
    assert call(monkeypatch, line) == 130
    assert "finished records are kept" in capsys.readouterr().err
    assert list(records(tmp_path)) == ["runs/saddle/sgd.json"]
    assert call(monkeypatch, line) == 0
    assert len(calls) == 2 + 1
    assert len(records(tmp_path)) == 2


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("survey --problems saddle,foo", "problems is 'foo'; choose from rosenbrock, beale"),
        ("survey --optimizers foo", "optimizers is 'foo'; choose from sgd, momentum"),
        ("survey --optimizers sgd_cosine", "optimizers is 'sgd_cosine'; choose from sgd"),
        ("survey --steps 0", "steps is 0; pass a whole number above 0"),
        ("survey --seeds 0", "seeds is 0; pass a whole number above 0"),
        ("survey --seeds -1", "seeds is -1; pass a whole number above 0"),
        ("survey --out pyproject.toml/x", "output folder 'pyproject.toml/x' cannot be"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    line: str,
    sentence: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert_refused(line, sentence, tmp_path, monkeypatch, capsys)
