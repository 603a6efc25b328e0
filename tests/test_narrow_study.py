"""The study of narrow states in training: bytes, verdicts, records and refusals."""

import pathlib
from typing import Any

import numpy as np
import pytest
from commands import assert_refused, call, interrupt

from benchmarks import narrow, store
from benchmarks.lab import report
from benchmarks.lab.tasks import classification, mlp
from benchmarks.lab.tasks_data import digits


def small(source: pathlib.Path | None) -> Any:
    return classification("digits", mlp(64, 32, 10), digits(), steps=20, batch_size=32)


def test_bytes_are_those_of_the_state() -> None:
    task = small(None)
    assert narrow.bytes_of(task, narrow.arm_of("adam")) == pytest.approx(8, rel=0.01)
    # 64 x 32 entries in blocks of 32; 32 x 10 and the biases stay float32.
    encoded, kept = 64 * 32, 32 * 10 + 32 + 10
    wanted = 2 * (encoded * (1 + 2 / 32) + 4 * kept) / (encoded + kept)
    found = narrow.bytes_of(task, narrow.arm_of("adam_abs_8bit"))
    assert found == pytest.approx(wanted, rel=0.01)


def test_errors_are_of_the_difference() -> None:
    own, other = np.array([1.0, 1.1, 1.2]), np.array([0.9, 1.0, 1.1])
    # 0.1 over the root of 0.01/3 + 0.01/3.
    assert report.errors_above(own, other) == pytest.approx(1.2247, rel=1e-3)


def test_a_study_is_interrupted_goes_on_and_reports(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrow, "TASKS", {"mnist": small})
    monkeypatch.setattr(narrow, "NEED_IMAGES", ())
    line = f"narrow --tasks mnist --arms adam_abs,adam_abs_8bit --seeds 2 --out {tmp_path}"
    interrupt(monkeypatch, narrow, "make", at=2)
    assert call(monkeypatch, line) == 130
    assert call(monkeypatch, line) == 0
    full, eight = (
        store.read_json(tmp_path / "runs" / "mnist" / f"{arm}.json")["results"]
        for arm in ("adam_abs", "adam_abs_8bit")
    )
    assert eight["bytes"] < 0.5 * full["bytes"]
    assert len(eight["validation_loss"]) == len(eight["test_accuracy"]) == 2
    np.testing.assert_allclose(eight["area"], full["area"], rtol=0.05)
    text = (tmp_path / "narrow.md").read_text()
    bars = "(wanted: at most 1, ", "(wanted: at most 2.2, missed)"
    for part in ("adam_abs, 8bit", "bytes a parameter", *bars):
        assert part in text


def test_bad_arguments_end_in_one_sentence(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, sentence in (
        ("--tasks cifar", "tasks is 'cifar'; choose from mnist,"),
        ("--arms sgd", "arms is 'sgd'; choose from adam,"),
        ("--seeds 0", "seeds is 0; pass a whole number above 0."),
        ("--tasks mnist", "tasks has mnist, which need images; pass data, too."),
    ):
        assert_refused(f"narrow {options}", sentence, tmp_path, monkeypatch, capsys)
