"""The study of the longest step from narrow moments."""

import pathlib

import numpy as np
import optax
import pytest
from commands import call

import optabs
from benchmarks import longest_step as study
from benchmarks.lab.records import Records


def test_the_longest_step_is_that_of_the_optimizer() -> None:
    (descent,) = study.longest(optabs.sgd(study.RATE), 3, [0])
    # A gradient of size 1 in every block, times its unit and the rate.
    np.testing.assert_allclose(descent[0], study.UNIT * study.RATE, rtol=1e-5)
    signs = study.longest(optax.sign_sgd(study.RATE), 3, [0, 1])
    np.testing.assert_allclose(signs, study.RATE, rtol=1e-5)


@pytest.mark.slow
def test_command_writes_records_and_tables(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"longest_step --quick --optimizers adam_abs --out {tmp_path}"
    assert call(monkeypatch, line) == 0
    records = Records(tmp_path)
    assert len(records) == len(study.FORMS) * len(study.COURSES) * 2
    bounded, former = (
        np.max([run.result["ratio"] for run in records.select(task="noisy", setting=form)])
        for form in study.FORMS
    )
    assert bounded < 1.5
    assert former > 10
    assert "| adam_abs |" in (tmp_path / "README.md").read_text()
