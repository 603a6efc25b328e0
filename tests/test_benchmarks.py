"""Every study's bad input and committed tables; the runs of optimabs, steady and narrow."""

import errno
import os
import pathlib
import sys

import jax
import numpy as np
import optax
import pytest
from commands import assert_refused, assert_reported, call, interrupt

from benchmarks import longest_step, narrow, optimabs, steady
from benchmarks.lab import study
from benchmarks.lab.records import FILE, Key, Records
from benchmarks.lab.study import command_of
from benchmarks.lab.tasks import Split, classification, digits_splits, mlp
from benchmarks.lab.training import Arm, Task


@pytest.mark.slow
def test_an_interrupted_study_goes_on_and_a_finished_one_makes_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ones = np.ones((1, len(longest_step.COURSES), len(longest_step.SPREADS)))
    monkeypatch.setattr(longest_step, "longest", lambda *_: ones)
    line = f"longest_step --quick --seeds 1 --out {tmp_path}"
    calls = interrupt(monkeypatch, longest_step, "rounded", at=2)
    assert call(monkeypatch, line) == 130
    assert "finished runs are kept" in capsys.readouterr().err
    assert len(Records(tmp_path)) == 1
    assert call(monkeypatch, line) == 0
    assert len(Records(tmp_path)) == len(calls) - 1 == 10
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {FILE, "README.md"}
    assert call(monkeypatch, line) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.slow
def test_optimabs_trains_times_and_reports(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"optimabs --quick --arms adam_abs_steady --out {tmp_path}"
    assert call(monkeypatch, line) == 0
    shown = capsys.readouterr().out
    for words in ("Seconds per epoch", "Test accuracy", "Swing", "AdamABS, steady", "8.00"):
        assert words in shown
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
    (time,), runs = (Records(tmp_path).select(kind=kind) for kind in ("time", "run"))
    assert len(time.result["epoch_seconds"]) == optimabs.ROUNDS
    assert len(runs) == len(Records(tmp_path)) - 1 == 2  # a rate that is given is not chosen
    for run in runs:
        assert {"versions", "device", "python"} <= run.environment.keys()
        assert 0.1 < run.result["test_accuracy"] <= 1.0
        assert run.result["rate"] == run.config["rate"] == 1e-3
        assert "grid" not in run.config
        assert np.all(np.diff(run.result["curves"]["loss"][::10]) < 0)


@pytest.mark.slow
def test_a_full_disk_leaves_finished_runs_and_nothing_half_written(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    interrupt(monkeypatch, os, "replace", at=2, error=full)
    assert call(monkeypatch, f"steady --quick --arms adam --seeds 1 --out {tmp_path}") == 2
    message = capsys.readouterr().err
    assert "No space left on device" in message
    assert "Traceback" not in message
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    kept = Records(tmp_path)
    assert {record.key.setting for record in kept} == {"constant rate", "cosine decay"}
    assert not any("test_accuracy" in record.result for record in kept)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["optimabs", "steady", "narrow", "codecs", "longest_step", "gadam"]
)
def test_the_committed_records_give_the_committed_tables(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its panels take ten times as long as the rest.
    monkeypatch.setattr("benchmarks.gadam.report.curves_figure", lambda *_, **__: None)
    assert_reported(name, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("optimabs --seeds 0", "seeds is 0; pass a whole number above 0"),
        ("optimabs --steps -3", "steps is -3; pass a whole number above 0"),
        ("optimabs --workers 0", "workers is 0; pass a whole number above 0"),
        ("optimabs --arms adam,foo", "arms is 'foo'; choose from rmsprop, rmsprop_abs,"),
        ("optimabs --tasks imagenet", "tasks is 'imagenet'; choose from digits-64, mnist-64,"),
        ("optimabs --tasks mnist-64 --data no/such", "source 'no/such' does not exist"),
        ("optimabs --out pyproject.toml/x", "output folder 'pyproject.toml/x' cannot be"),
        ("steady --arms foo", "arms is 'foo'; choose from"),
        ("steady --tasks easy", "tasks is 'easy'; choose from digits, digits-permuted,"),
        ("survey --tasks saddle,foo", "tasks is 'foo'; choose from rosenbrock, beale"),
        ("survey --arms foo", "arms is 'foo'; choose from sgd, momentum"),
        ("dao_e --tasks digits", "tasks is 'digits'; choose from quadratic, logistic"),
        ("dao_e --tasks mnist --data nowhere", "source 'nowhere' does not exist"),
        ("dao_e --arms muon", "arms is 'muon'; choose from dao_e, sgd"),
        ("dao_e --seeds 0", "seeds is 0; pass a whole number above 0"),
        ("dao_e --workers 0", "workers is 0; pass a whole number above 0"),
        ("dao_e --quick --steps -1", "steps is -1; pass a whole number above 0"),
        ("dao_e --out pyproject.toml/x", "output folder 'pyproject.toml/x' cannot be"),
        ("dao_e_cifar10 --arms adam,adamax", "arms is 'adamax'; choose from sgd, adam"),
        ("narrow --tasks cifar", "tasks is 'cifar'; choose from mnist,"),
        ("narrow --arms sgd", "arms is 'sgd'; choose from adam,"),
        ("codecs --seeds 0", "seeds is 0; pass a whole number above 0."),
        ("codecs --report", "without records; call without --report first."),
        ("longest_step --optimizers adem", "optimizers is 'adem'; choose from adam,"),
        ("longest_step --seeds 0", "seeds is 0; pass a whole number above 0."),
        ("gadam --tasks sphere-*", "tasks is 'sphere-*'; choose from rastrigin-2-shifted,"),
        ("gadam --tasks digits --arms sgd", "arms is 'sgd'; choose from best_of_g,"),
        ("gadam --tasks digits --seeds 0", "seeds is 0; pass a whole number above 0."),
        ("gadam --tasks digits --report", "without records; call without --report first."),
        ("gadam --tasks digits --peers", 'call `pip install "optabs[peers]"`.'),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    line: str, sentence: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "evosax", None)
    monkeypatch.delitem(sys.modules, "evosax.algorithms", raising=False)
    assert_refused(line, sentence, tmp_path, monkeypatch, capsys)


def test_an_epoch_visits_every_image_once_and_is_timed_for_all_arms_together() -> None:
    task, arms = optimabs.TASKS["digits-64"](None), ("adam", "adam_abs")
    rows = np.asarray(task.feed(jax.random.key(0), 2 * 20)).reshape(2, 20 * 64)
    assert [len(np.unique(epoch)) for epoch in rows] == [20 * 64] * 2
    assert (rows[0] != rows[1]).mean() > 0.9
    (unit,) = optimabs.STUDY.timings([("digits-64", task)], arms)
    assert unit.keys == tuple(Key("digits-64", arm, kind="time") for arm in arms)
    assert unit.config["steps"] == 1300 // 64


@pytest.mark.slow
def test_permuted_pixels_are_those_of_the_phase() -> None:
    plain, task = steady.TASKS["digits"](None), steady.TASKS["digits-permuted"](None)
    params, statistics = task.init(jax.random.key(0))
    rows, phases = task.feed(jax.random.key(1), 6)
    assert phases.tolist() == [0, 0, 1, 1, 2, 2]
    inputs, labels = task.validation
    random = np.random.default_rng(0)
    orders = [np.arange(64), random.permutation(64), random.permutation(64)]
    for step, phase in ((0, 0), (3, 1), (5, 2)):
        batch = task.batch(task.train, (rows[step], phases[step]))
        _, statistics = task.loss_fn(params, statistics, batch)
        seen = inputs.reshape(len(inputs), -1)[:, orders[phase]]
        expected = plain.evaluate(params, {}, Split(seen, labels))
        np.testing.assert_allclose(
            task.evaluate(params, statistics, task.validation), expected
        )


def test_gradients_and_decay_are_scaled_by_the_phase() -> None:
    task = steady.TASKS["digits-scaled"](None)
    optimizer = task.optimizer(Arm("SGD", optax.sgd), 0.5)
    params, grads = {"w": np.float32(2)}, {"w": np.float32(3)}
    state = optimizer.init(params)
    for phase, scale in enumerate((100.0, 1.0, 0.01)):
        batch = steady.Batch(0, 0, np.int32(phase))
        updates, state = optimizer.update(grads, state, params, batch=batch)
        np.testing.assert_allclose(updates["w"], -0.5 * scale * (3 + 1e-4 * 2), rtol=1e-6)


def small(source: pathlib.Path | None) -> Task:
    return classification("digits", mlp(64, 32, 10), digits_splits(), steps=20, batch_size=32)


def test_one_gradient_of_the_spiked_setting_is_too_large() -> None:
    ((_, setting),) = [each for each in narrow.SETTINGS.items() if each[0]]
    task = setting(small(None))._replace(schedule=lambda rate, steps: rate)
    optimizer = task.optimizer(Arm("SGD", optax.sgd), 0.5)
    params = {"w": np.float32(2)}
    state, update, moved = optimizer.init(params), jax.jit(optimizer.update), []
    for _ in range(narrow.SPIKE + 2):
        updates, state = update({"w": np.float32(3)}, state, params)
        moved.append(float(updates["w"]))
    assert moved == [-1.5] * narrow.SPIKE + [-150.0, -1.5]


@pytest.mark.slow
def test_narrow_judges_what_it_trained(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, settings = study.Grid(-6, -4), {"": narrow.SETTINGS[""]}
    own = narrow.STUDY._replace(
        tasks={"mnist": small}, need_images=(), grid=grid, settings=settings
    )
    monkeypatch.setattr(narrow, "STUDY", own)
    monkeypatch.setattr(narrow, "command", command_of(own))
    arms = "adam", narrow.CORRECTED, narrow.UNCORRECTED, "adam_abs", "adam_abs_8bit"
    line = f"narrow --arms {','.join(arms)} --seeds 2 --out {tmp_path}"
    assert call(monkeypatch, line) == 0
    kept = Records(tmp_path)
    adam, corrected, uncorrected, full, eight = (
        np.array([run.result["area"] for run in kept.select(kind="run", arm=arm)])
        for arm in arms
    )
    np.testing.assert_allclose(eight, full, rtol=0.05)
    np.testing.assert_allclose(corrected, adam, rtol=0.01)
    assert np.all(np.abs(uncorrected - adam) > np.abs(corrected - adam))
    # A byte an entry and two a row; the biases stay float32.
    encoded = 64 * (32 + 2) + 32 * (10 + 2)
    wanted = [8, 9, 8, 8, 2 * (encoded + 4 * (32 + 10)) / (64 * 32 + 32 * 10 + 32 + 10)]
    sizes = [kept.select(kind="tuning", arm=arm)[0].result["bytes"] for arm in arms]
    np.testing.assert_allclose(sizes, wanted, rtol=0.01)
    text = (tmp_path / "README.md").read_text()
    for part in ("| adam_abs, 8bit |", "bytes a parameter", "at most 2.2 |"):
        assert part in text
    assert "missed" in text.splitlines()[-1]  # these layers are too small for 2.2 bytes
