"""`fit` killed and started again ends bit for bit where the uninterrupted run ends."""

import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import regression
from kept_runs import assert_same, contents, train

from optabs.training import loop, program
from optabs.training.checkpoints import Checkpoints


class Stop(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("calls", [1, 2, 3, 4])
def test_interrupted_after_some_calls(
    calls: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train()
    left = [calls]

    def advance(*args: Any) -> Any:
        if not left[0]:
            raise Stop
        left[0] -= 1
        return program.advance(*args)

    monkeypatch.setattr(loop, "advance", advance)
    with pytest.raises(Stop):
        train(tmp_path / "run")
    left[0] = 1000
    assert_same(train(tmp_path / "run"), whole)


@pytest.mark.slow
def test_a_finished_run_is_read_and_not_trained_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tmp_path / "run")
    kept = contents(tmp_path / "run")
    monkeypatch.setattr(loop, "advance", None)
    assert_same(train(tmp_path / "run"), whole)
    assert contents(tmp_path / "run") == kept


@pytest.mark.slow
def test_more_epochs_go_on(tmp_path: pathlib.Path) -> None:
    train(tmp_path / "run", epochs=10)
    assert_same(train(tmp_path / "run", epochs=20), train(epochs=20))


@pytest.mark.slow
def test_inside_an_epoch(tmp_path: pathlib.Path) -> None:
    train(tmp_path / "run", max_steps=13)
    assert_same(train(tmp_path / "run"), train())


SCRIPT = """
import sys, numpy as np, jax
sys.path.insert(0, {tests!r})
import kept_runs as here
result = here.train(sys.argv[1], epochs=300)
leaves = jax.tree.leaves((result.params, result.opt_state, result.history))
np.savez(sys.argv[2], *map(np.asarray, leaves))
"""


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: pathlib.Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(tests=str(pathlib.Path(__file__).parent)))

    def start(folder: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, script, tmp_path / folder, tmp_path / f"{folder}.npz"]
        return subprocess.Popen(command)

    whole = start("whole")
    killed = 0
    # Kill at moments that move through start-up, compilation, steps and the writing of files.
    for delay in (0.0, 0.06, 0.02):
        process = start("killed")
        while process.poll() is None and not any((tmp_path / "killed").glob("step_*")):
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 1
    last = start("killed")
    assert last.wait() == 0
    assert whole.wait() == 0
    ours, theirs = np.load(tmp_path / "killed.npz"), np.load(tmp_path / "whole.npz")
    for name in theirs.files:
        np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.slow
def test_a_damaged_checkpoint_is_announced_and_the_one_before_taken(
    tmp_path: pathlib.Path,
) -> None:
    train(tmp_path / "run", max_steps=7)
    train(tmp_path / "run", max_steps=13)
    for path in (tmp_path / "run" / "step_13").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:3])
    with pytest.warns(
        UserWarning, match="checkpoint 13 in .* cannot be read .*; going on from"
    ):
        result = train(tmp_path / "run")
    assert_same(result, train())


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside_and_never_deleted(tmp_path: pathlib.Path) -> None:
    train(tmp_path / "run", max_steps=7)
    train(tmp_path / "run", max_steps=13)
    notes = tmp_path / "run" / "step_13" / "notes" / "metadata"
    notes.write_text("{")
    with pytest.warns(UserWarning, match="checkpoint 13 in"):
        train(tmp_path / "run", epochs=4)
    aside = [path.name for path in (tmp_path / "run").glob("unread_*")]
    assert [name.rsplit("_", 1)[0] for name in aside] == ["unread_step_13"]


@pytest.mark.slow
def test_other_folders_beside_the_checkpoints_are_left_alone(tmp_path: pathlib.Path) -> None:
    train(tmp_path / "run", max_steps=7)
    for name in ("3", "2024", "notes"):
        (tmp_path / "run" / name).mkdir()
        (tmp_path / "run" / name / "mine.txt").write_text(name)
    assert_same(train(tmp_path / "run"), train())
    for name in ("3", "2024", "notes"):
        assert (tmp_path / "run" / name / "mine.txt").read_text() == name


def test_a_full_disk_costs_the_checkpoint_and_not_the_result(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "_set_aside", full)
    with pytest.warns(UserWarning, match=r"could not be written .*No space left"):
        result = train(tmp_path / "run", epochs=2)
    assert_same(result, train(epochs=2))


def test_damaged_checkpoints_only(tmp_path: pathlib.Path) -> None:
    train(tmp_path / "run", max_steps=1)
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read .*; pass another"):
        train(tmp_path / "run")


@pytest.mark.slow
def test_a_bad_loss_leaves_the_last_good_checkpoint(tmp_path: pathlib.Path) -> None:
    inputs, targets = regression.data()
    poisoned = (inputs.at[3].set(jnp.nan), targets)
    options: dict[str, Any] = {"data": poisoned, "batch_size": 1, "validation_data": None}
    with pytest.warns(RuntimeWarning, match="not finite") as first:
        train(tmp_path / "run", **options)
    with pytest.warns(RuntimeWarning, match="not finite") as again:
        train(tmp_path / "run", **options)
    assert str(first[0].message) == str(again[0].message)


def test_any_tree_of_arrays_is_kept(tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run", {"name": 1})
    tree = (
        {"a": jnp.arange(3), "none": None},
        jax.random.key(2),
        jnp.zeros((0, 4)),
        optax.EmptyState(),
        jnp.ones(2, jnp.bfloat16),
    )
    assert checkpoints.restore(tree) is None
    checkpoints.save(4, tree, {"loss": [1.0, float("nan")]})
    found, notes = checkpoints.restore(jax.tree.map(jnp.zeros_like, tree)) or (None, {})
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(
            *(jax.random.key_data(x) if x.ndim == 0 else x for x in (ours, theirs))
        )
    assert notes["loss"][0] == 1.0
    assert np.isnan(notes["loss"][1])
