"""The experiments' command line: results, resumption, interruption and bad input."""

import errno
import json
import os
import pathlib
import sys
from typing import Any

import numpy as np
import pytest
from commands import assert_refused, call, interrupt

from benchmarks import __main__ as command_line
from benchmarks import runs, store
from benchmarks.lab import report

SMALL = "--epochs 2 --seeds 2 --time-rounds 1 --optimizers adam,adam_abs_steady"


def records(folder: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("*-s*.json"))]


def test_optimabs_end_to_end(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, f"optimabs {SMALL} --out {tmp_path}") == 0
    shown = capsys.readouterr().out
    for words in ("Seconds per epoch", "Test accuracy", "Swing", "AdamABS, steady", "8.00"):
        assert words in shown
    assert (tmp_path / "digits-e2-constant.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "digits-e2-constant.svg").read_text()
    kept = records(tmp_path)
    assert len(kept) == 4
    for record in kept:
        assert {"date", "versions", "device", "python"} <= record["environment"].keys()
        assert len(record["results"]["validation_accuracy"]) == 2
        assert 0.1 < record["results"]["test_accuracy"] <= 1.0

    def trained_again(*_: Any) -> Any:
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(runs, "train", trained_again)
    assert call(monkeypatch, f"optimabs {SMALL} --out {tmp_path}") == 0
    assert records(tmp_path) == kept


@pytest.mark.slow
def test_seeds_together_give_the_results_of_seeds_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "optimabs --epochs 2 --seeds 2 --time-rounds 0 --optimizers adam_abs"
    assert call(monkeypatch, f"{line} --no-together --out {tmp_path / 'alone'}") == 0
    assert call(monkeypatch, f"{line} --together --out {tmp_path / 'together'}") == 0
    for one, other in zip(
        records(tmp_path / "alone"), records(tmp_path / "together"), strict=True
    ):
        assert one["config"] == other["config"]
        losses = [record["results"]["loss"] for record in (one, other)]
        np.testing.assert_allclose(*losses, rtol=1e-3)


def test_interruption_keeps_finished_runs_and_resumes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = interrupt(monkeypatch, runs, "train", at=3)
    assert call(monkeypatch, f"optimabs {SMALL} --out {tmp_path}") == 130
    assert "finished runs are kept" in capsys.readouterr().err
    assert len(records(tmp_path)) == 2
    assert call(monkeypatch, f"optimabs {SMALL} --out {tmp_path}") == 0
    assert len(calls) == 3 + 2
    assert len(records(tmp_path)) == 4


def test_a_full_disk_leaves_finished_runs_and_nothing_half_written(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace, calls = os.replace, []

    def full(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(*arguments)

    line = f"optimabs --epochs 1 --seeds 2 --time-rounds 0 --optimizers adam --out {tmp_path}"
    monkeypatch.setattr(os, "replace", full)
    assert call(monkeypatch, line) == 2
    message = capsys.readouterr().err
    assert "No space left on device" in message
    assert "Traceback" not in message
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["adam-s0.json"]
    json.loads(files[0].read_text())


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("optimabs --learning-rate -1", "learning_rate is -1.0; pass a finite number"),
        ("optimabs --learning-rate nan", "learning_rate is nan; pass a finite number"),
        ("optimabs --batch-size 0", "batch-size is '0'; pass whole numbers above 0"),
        ("optimabs --batch-size 9999", "batch-size is 9999, but digits has 1300 training"),
        ("optimabs --seeds 0", "seeds is '0'; pass whole numbers above 0"),
        ("optimabs --seeds 2,3", "seeds is '2,3'; pass one number, or one for each"),
        ("steady --seeds 0", "seeds is 0; pass a whole number above 0"),
        ("optimabs --epochs -3", "epochs is -3; pass a whole number above 0"),
        ("optimabs --time-rounds -1", "time-rounds is -1; pass 0 or more"),
        ("optimabs --schedule step", "schedule is 'step'; choose from constant, cosine"),
        ("optimabs --optimizers adam,foo", "optimizers is 'foo'; choose from"),
        ("optimabs --dataset imagenet", "data set 'imagenet' is not known; name one of"),
        ("optimabs --dataset mnist --data no/such", "source 'no/such' does not exist"),
        ("optimabs --out pyproject.toml/x", "output folder 'pyproject.toml/x' cannot be"),
        ("steady --rules foo", "rules is 'foo'; choose from"),
        ("steady --task easy", "task is 'easy'; choose from stationary, permuted, scaled"),
        ("fit_time --models resnet", "models is 'resnet'; choose from logistic, mlp-256-128"),
        ("fit_time --rounds 0", "rounds is 0; pass a whole number above 0"),
        ("fit_time --batch-sizes 1301", "batch-size is 1301, but digits has 1300 training"),
        ("steady --batch-size 9999", "batch-size is 9999, but digits has 1300 training"),
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


@pytest.mark.slow
def test_steady_study_end_to_end(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for task in ("stationary", "permuted", "scaled"):
        line = (
            f"steady --task {task} --epochs 3 --seeds 1 --schedules constant --out {tmp_path}"
        )
        monkeypatch.setattr(
            sys, "argv", ["benchmarks", *line.split(), "--rules", "adam;adam_abs"]
        )
        with pytest.raises(SystemExit) as stopped:
            command_line.main()
        assert not stopped.value.code
    assert len(records(tmp_path)) == 6
    assert all("test_accuracy" not in record["results"] for record in records(tmp_path))
    assert "adam_abs" in capsys.readouterr().out


def test_fit_time_end_to_end(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = (
        f"fit_time --models logistic --batch-sizes 400 --epochs 1 --rounds 1 --out {tmp_path}"
    )
    assert call(monkeypatch, line) == 0
    assert "logistic" in capsys.readouterr().out
    for name in ("logistic-b400", "logistic-ball"):
        record = json.loads((tmp_path / "runs" / f"{name}.json").read_text())
        assert record["results"]["largest_difference"] < 1e-5  # both do the same work
        assert set(record["results"]["seconds"]) == {"optabs.fit", "by hand"}


def test_a_damaged_record_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(store.StoreError, match=r"x.json' is not a readable record"):
        store.read_json(tmp_path / "x.json")


def test_numbers_that_are_not_finite_become_null(tmp_path: pathlib.Path) -> None:
    store.write_json(tmp_path / "x.json", {"loss": [1.0, float("nan")], "names": []})
    assert json.loads((tmp_path / "x.json").read_text()) == {"loss": [1.0, None], "names": []}


def test_a_table_in_markdown() -> None:
    table = report.Table("Title", ["name", "value"], [["adam", "1.0"]])
    assert (
        table.markdown() == "**Title**\n\n| name | value |\n| --- | ---: |\n| adam | 1.0 |\n"
    )
    assert report.mean_and_spread([1.0, 3.0]) == "2.00 ± 1.41"
