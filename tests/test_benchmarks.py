"""The studies optimabs, steady and narrow: their command lines, records and arithmetic."""

import errno
import os
import pathlib
from typing import Any

import jax
import numpy as np
import optax
import pytest
from commands import assert_refused, assert_reported, call, interrupt

from benchmarks import narrow, optimabs, steady
from benchmarks.lab import study
from benchmarks.lab.records import Key, Records
from benchmarks.lab.report import Table, errors_above, mean_and_spread
from benchmarks.lab.study import command_of
from benchmarks.lab.tasks import Split, classification, digits_splits, mlp
from benchmarks.lab.training import Arm, Task, state_bytes


def test_optimabs_is_interrupted_goes_on_and_reports(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"optimabs --quick --arms adam_abs_steady --out {tmp_path}"
    calls = interrupt(monkeypatch, study, "curves_of", at=2)
    assert call(monkeypatch, line) == 130
    assert "finished runs are kept" in capsys.readouterr().err
    assert len(Records(tmp_path).select(kind="run")) == 1
    assert call(monkeypatch, line) == 0
    assert len(calls) == 2 + 1
    shown = capsys.readouterr().out
    for words in ("Seconds per epoch", "Test accuracy", "Swing", "AdamABS, steady", "8.00"):
        assert words in shown
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
    kept = Records(tmp_path)
    assert len(kept) == 1 + 2
    for record in kept.select(kind="run"):
        assert {"versions", "device", "python"} <= record.environment.keys()
        assert 0.1 < record.result["test_accuracy"] <= 1.0
        assert record.result["rate"] == 1e-3
        assert np.all(np.diff(record.result["curves"]["loss"][::10]) < 0)
    for record in kept.select(kind="time"):
        assert len(record.result["epoch_seconds"]) == optimabs.ROUNDS
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert call(monkeypatch, line) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_leaves_finished_runs_and_nothing_half_written(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace, calls = os.replace, []

    def full(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(*arguments)

    monkeypatch.setattr(os, "replace", full)
    assert call(monkeypatch, f"steady --quick --arms adam --seeds 1 --out {tmp_path}") == 2
    message = capsys.readouterr().err
    assert "No space left on device" in message
    assert "Traceback" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl.gz"]
    kept = Records(tmp_path)
    assert {record.key.setting for record in kept} == {"constant rate", "cosine decay"}
    assert not any("test_accuracy" in record.result for record in kept)


@pytest.mark.parametrize("name", ["optimabs", "steady", "narrow"])
def test_the_committed_records_give_the_committed_tables(
    name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        ("steady --seeds 0", "seeds is 0; pass a whole number above 0"),
        ("steady --arms foo", "arms is 'foo'; choose from"),
        ("steady --tasks easy", "tasks is 'easy'; choose from digits, digits-permuted,"),
        ("survey --tasks saddle,foo", "tasks is 'foo'; choose from rosenbrock, beale"),
        ("survey --arms foo", "arms is 'foo'; choose from sgd, momentum"),
        ("dao_e --tasks digits", "tasks is 'digits'; choose from quadratic, logistic"),
        ("dao_e --tasks mnist,long", "tasks has mnist, which need images; pass data, too"),
        ("dao_e --tasks mnist --data nowhere", "source 'nowhere' does not exist"),
        ("dao_e --arms muon", "arms is 'muon'; choose from sgd, adam"),
        ("dao_e --seeds 0", "seeds is 0; pass a whole number above 0"),
        ("dao_e --workers 0", "workers is 0; pass a whole number above 0"),
        ("dao_e --quick --steps -1", "steps is -1; pass a whole number above 0"),
        ("dao_e --out pyproject.toml/x", "output folder 'pyproject.toml/x' cannot be"),
        ("dao_e_cifar10 --arms adam,adamax", "arms is 'adamax'; choose from sgd, adam"),
        ("narrow --tasks cifar", "tasks is 'cifar'; choose from mnist,"),
        ("narrow --arms sgd", "arms is 'sgd'; choose from adam,"),
        ("narrow --seeds 0", "seeds is 0; pass a whole number above 0."),
        ("narrow --tasks mnist", "tasks has mnist, which need images; pass data, too."),
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


def test_all_arms_are_timed_together() -> None:
    task = optimabs.TASKS["digits-64"](None)
    (unit,) = optimabs.STUDY.timings([("digits-64", task)], ["adam", "adam_abs"])
    assert unit.keys == tuple(
        Key("digits-64", arm, kind="time") for arm in ("adam", "adam_abs")
    )
    assert unit.config["steps"] == 1300 // 64


def test_an_epoch_visits_every_image_once_in_an_order_of_its_own() -> None:
    task = optimabs.TASKS["digits-64"](None)
    rows = np.asarray(task.feed(jax.random.key(0), 2 * 20)).reshape(2, 20 * 64)
    assert [len(np.unique(epoch)) for epoch in rows] == [20 * 64] * 2
    assert (rows[0] != rows[1]).mean() > 0.9


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


def test_a_rate_that_is_given_is_not_chosen() -> None:
    (unit,) = steady.STUDY._replace(settings={"": lambda task: task}).units(
        ["digits"], ["adam"], seeds=2, steps=6
    )
    assert [key.kind for key in unit.keys] == ["run", "run"]
    assert unit.config["rate"] == 1e-3
    assert "grid" not in unit.config


def small(source: pathlib.Path | None) -> Task:
    return classification("digits", mlp(64, 32, 10), digits_splits(), steps=20, batch_size=32)


def test_bytes_are_those_of_the_state() -> None:
    task = small(None)
    assert state_bytes(task, narrow.ARMS["adam"]) == pytest.approx(8, rel=0.01)
    # 64 x 32 entries in blocks of 32; 32 x 10 and the biases stay float32.
    encoded, kept = 64 * 32, 32 * 10 + 32 + 10
    wanted = 2 * (encoded * (1 + 2 / 32) + 4 * kept) / (encoded + kept)
    found = state_bytes(task, narrow.ARMS["adam_abs_8bit"])
    assert found == pytest.approx(wanted, rel=0.01)


def test_errors_are_of_the_difference() -> None:
    own, other = np.array([1.0, 1.1, 1.2]), np.array([0.9, 1.0, 1.1])
    # 0.1 over the root of 0.01/3 + 0.01/3.
    assert errors_above(own, other) == pytest.approx(1.2247, rel=1e-3)


def test_narrow_judges_what_it_trained(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = narrow.STUDY._replace(
        tasks={"mnist": small}, need_images=(), grid=study.Grid(-6, -4)
    )
    monkeypatch.setattr(narrow, "STUDY", own)
    monkeypatch.setattr(narrow, "command", command_of(own))
    line = f"narrow --arms adam_abs,adam_abs_8bit --seeds 2 --out {tmp_path}"
    assert call(monkeypatch, line) == 0
    kept = Records(tmp_path)
    full, eight = (
        [run.result["area"] for run in kept.select(kind="run", arm=arm)]
        for arm in ("adam_abs", "adam_abs_8bit")
    )
    np.testing.assert_allclose(eight, full, rtol=0.05)
    text = (tmp_path / "README.md").read_text()
    for part in ("| adam_abs, 8bit |", "bytes a parameter", "at most 2.2 |"):
        assert part in text
    assert "missed" in text.splitlines()[-1]  # these layers are too small for 2.2 bytes


def test_a_table_in_markdown() -> None:
    table = Table("Title", ["name", "value"], [["adam", "1.0"]])
    assert (
        table.markdown() == "**Title**\n\n| name | value |\n| --- | ---: |\n| adam | 1.0 |\n"
    )
    assert mean_and_spread([1.0, 3.0]) == "2.00 ± 1.41"
