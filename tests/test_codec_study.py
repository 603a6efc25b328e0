"""The study of codecs: exact averages, their errors, and the tables."""

import pathlib

import numpy as np
import pytest
from commands import assert_refused, assert_reported, call

from benchmarks import codecs
from benchmarks.codecs import Kept, Setting
from benchmarks.lab.records import Records

SETTING = Setting("mean_size", "normal", 0.9, 1.0)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "COORDINATES", 128)


@pytest.mark.usefixtures("few")
def test_the_exact_average_is_that_of_the_gradients() -> None:
    kept = (Kept("bfloat16", "stochastic", 0),)
    exact, old, now, before = codecs.simulated(SETTING, kept, 2)
    assert exact.shape == old.shape == (2, 128)
    assert now.shape == before.shape == (1, 2, 128)
    # After 300 steps at 0.9 the mean size of a normal number, per coordinate's scale.
    scaled = exact / np.asarray(codecs.scales_of(SETTING, 2))
    assert scaled.mean() == pytest.approx((2 / np.pi) ** 0.5, rel=0.05)
    np.testing.assert_allclose(now[0], exact, rtol=0.05)


@pytest.mark.usefixtures("few")
def test_errors_are_those_of_the_codec() -> None:
    kept = [Kept("bfloat16", "nearest", 0), Kept("uint8_linear", "nearest", 32)]
    found = codecs.measured(SETTING, kept, 3)
    assert list(found) == ["bfloat16, nearest", "uint8_linear, 32, nearest"]
    for errors in found.values():
        assert {len(values) for values in errors.values()} == {3}
    assert 0 < np.mean(found["bfloat16, nearest"]["median_error"]) < 0.01
    worse = found["uint8_linear, 32, nearest"]["median_error"]
    assert np.mean(worse) > 2 * np.mean(found["bfloat16, nearest"]["median_error"])


@pytest.mark.usefixtures("few")
def test_a_frozen_average_is_seen() -> None:
    """To nearest in bfloat16 a mean that is steady in the end stood still on its way there."""
    slow = Setting("mean_square", "sparse", 0.999, 0.0)
    kept = [Kept("bfloat16", rounding, 0) for rounding in codecs.ROUNDINGS]
    found = codecs.measured(slow, kept, 2)
    nearest, stochastic = (np.mean(each["median_error"]) for each in found.values())
    assert nearest > 10 * stochastic


@pytest.mark.usefixtures("few")
def test_command_writes_records_tables_and_a_picture(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codecs, "FEWEST_STEPS", 30)
    line = f"codecs --quick --out {tmp_path}"
    assert call(monkeypatch, line) == 0
    records = Records(tmp_path)
    assert {record.key.setting for record in records} == {"student_t4, decay 0.9, spread 1"}
    assert {len(record.result["bias"]) for record in records} == {2}
    text = (tmp_path / "README.md").read_text()
    for part in ("mean of |g|", "| uint8, 32, stochastic |"):
        assert part in text
    assert (tmp_path / "codecs.png").stat().st_size > 1000


def test_the_committed_records_give_the_committed_tables(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_reported("codecs", tmp_path, monkeypatch)


def test_no_seeds_end_in_one_sentence(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = "seeds is 0; pass a whole number above 0."
    assert_refused("codecs --seeds 0", sentence, tmp_path, monkeypatch, capsys)
