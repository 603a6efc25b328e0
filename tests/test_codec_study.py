"""The study of codecs: exact averages, their errors, and its command."""

import pathlib

import numpy as np
import pytest
from commands import call

from benchmarks import codecs
from benchmarks.codecs import Kept, Setting
from benchmarks.lab.records import Records

SETTING = Setting("mean_size", "normal", 0.9, 1.0)


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "COORDINATES", 128)


def test_the_exact_average_is_that_of_the_gradients() -> None:
    kept = (Kept("bfloat16", "stochastic", 0),)
    exact, old, now, before = codecs.simulated(SETTING, kept, 2)
    assert exact.shape == old.shape == (2, 128)
    assert now.shape == before.shape == (1, 2, 128)
    # After 300 steps at 0.9 the mean size of a normal number, per coordinate's scale.
    scaled = exact / np.asarray(codecs.scales_of(SETTING, 2))
    assert scaled.mean() == pytest.approx((2 / np.pi) ** 0.5, rel=0.05)
    np.testing.assert_allclose(now[0], exact, rtol=0.05)


@pytest.mark.slow
def test_errors_are_those_of_the_codec_and_a_frozen_average_is_seen() -> None:
    """To nearest in bfloat16 a mean that is steady in the end stood still on its way there."""
    found = codecs.measured(
        SETTING, [Kept("bfloat16", "nearest", 0), Kept("uint8_linear", "nearest", 32)], 3
    )
    assert list(found) == ["bfloat16, nearest", "uint8_linear, 32, nearest"]
    assert {len(values) for errors in found.values() for values in errors.values()} == {3}
    fine, coarse = (np.mean(each["median_error"]) for each in found.values())
    assert 0 < fine < 0.01
    assert coarse > 2 * fine
    slow = Setting("mean_square", "sparse", 0.999, 0.0)
    kept = [Kept("bfloat16", rounding, 0) for rounding in codecs.ROUNDINGS]
    nearest, stochastic = (
        np.mean(each["median_error"]) for each in codecs.measured(slow, kept, 2).values()
    )
    assert nearest > 10 * stochastic


@pytest.mark.slow
def test_command_writes_records_tables_and_a_picture(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codecs, "FEWEST_STEPS", 30)
    assert call(monkeypatch, f"codecs --quick --out {tmp_path}") == 0
    records = Records(tmp_path)
    assert {record.key.setting for record in records} == {"student_t4, decay 0.9, spread 1"}
    assert {len(record.result["bias"]) for record in records} == {2}
    text = (tmp_path / "README.md").read_text()
    assert all(part in text for part in ("mean of |g|", "| uint8, stochastic |"))
    assert (tmp_path / "codecs.png").stat().st_size > 1000
