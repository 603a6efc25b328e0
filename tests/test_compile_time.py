"""What the measurement of the time to compile measures; its results are no test's business."""

import json
import pathlib

import jax
import optax
import pytest

from benchmarks.compile_time import MAKERS, RIVAL, lowered_step, measure
from tests.commands import assert_refused, call


def test_every_optimizer_has_a_step() -> None:
    for make in MAKERS.values():
        assert "func.func public @main" in lowered_step(make(), 3).as_text()


def test_each_round_compiles_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    cleared = []
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(True))
    makers = {RIVAL: MAKERS[RIVAL], "sgd": lambda: optax.sgd(0.1)}
    found = measure(makers, 2, 3)
    assert len(cleared) == 6
    assert set(found["lines"]) == set(found["seconds"]) == set(makers)
    assert found["lines"]["sgd"] < found["lines"][RIVAL]
    assert all(len(times) == 3 for times in found["seconds"].values())
    assert found["ratio"][RIVAL]["median"] == 1


def test_command_writes_records_and_a_table(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"compile_time --leaves 2,3 --optimizers adam_abs --rounds 1 --out {tmp_path}"
    assert call(monkeypatch, line) == 0
    record = json.loads((tmp_path / "runs" / "3.json").read_text())
    assert set(record) == {"config", "results", "environment"}
    assert record["config"]["optimizers"] == [RIVAL, "adam_abs"]
    text = (tmp_path / "compile_time.md").read_text()
    assert text.count("| adam_abs | ") == 2
    assert f"over those of {RIVAL}" in text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--leaves 0", "leaves is '0'; pass whole numbers above 0, separated by commas."),
        ("--optimizers sgd", f"optimizers is 'sgd'; choose from {', '.join(MAKERS)}."),
        ("--rounds 0", "rounds is 0; pass a whole number above 0."),
    ],
)
def test_bad_input_is_one_sentence(
    options: str,
    sentence: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert_refused(f"compile_time {options}", sentence, tmp_path, monkeypatch, capsys)
