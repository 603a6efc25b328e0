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
from regression import loss_fn

import optabs
from optabs.training import loop, program
from optabs.training.checkpoints import Checkpoints

OPTIMIZER = optabs.adam(0.05)


def train(folder: pathlib.Path | None = None, **changed: Any) -> Any:
    given: dict[str, Any] = {
        "loss_fn": loss_fn,
        "params": regression.params(),
        "optimizer": OPTIMIZER,
        "data": regression.data(),
        "batch_size": 5,
        "epochs": 40,
        "key": jax.random.key(5),
        "tolerance": 1e-9,
        "params_tolerance": 1e-9,
        "validation_data": regression.data(4),
        "checkpoint_dir": folder,
        "checkpoint_seconds": 0.0,
    }
    return optabs.fit(**given | changed)


def assert_same(ours: Any, theirs: Any) -> None:
    assert ours._replace(params=0, opt_state=0, history=0) == theirs._replace(
        params=0, opt_state=0, history=0
    )
    for name in ("params", "opt_state", "history"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        jax.tree.map(np.testing.assert_array_equal, mine, other)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Stop(Exception):
    pass


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


def test_a_finished_run_is_read_and_not_trained_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tmp_path / "run")
    kept = contents(tmp_path / "run")
    monkeypatch.setattr(loop, "advance", None)
    assert_same(train(tmp_path / "run"), whole)
    assert contents(tmp_path / "run") == kept


def test_more_epochs_go_on(tmp_path: pathlib.Path) -> None:
    train(tmp_path / "run", epochs=10)
    assert_same(train(tmp_path / "run", epochs=20), train(epochs=20))


def test_inside_an_epoch(tmp_path: pathlib.Path) -> None:
    train(tmp_path / "run", max_steps=13)
    assert_same(train(tmp_path / "run"), train())


SCRIPT = """
import sys, numpy as np, jax
sys.path.insert(0, {tests!r})
import test_fit_checkpoints as here
result = here.train(sys.argv[1], epochs=300)
leaves = jax.tree.leaves((result.params, result.opt_state, result.history))
np.savez(sys.argv[2], *map(np.asarray, leaves))
"""


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


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"optimizer": optabs.adam(0.06)}, "optimizer"),
        ({"optimizer": optabs.adam_abs(0.05)}, "optimizer"),
        ({"optimizer": optabs.sgd(0.05)}, "optimizer"),
        ({"loss_fn": lambda params, batch: 2 * loss_fn(params, batch)}, "loss_fn"),
        ({"batch_size": 6}, "batch_size"),
        ({"sampling": "random"}, "sampling"),
        ({"key": jax.random.key(6)}, "key"),
        ({"data": regression.data(21)}, "data set"),
        ({"tolerance": 1e-8}, "tolerance or params_tolerance"),
        ({"data": jax.tree.map(lambda leaf: 2 * leaf, regression.data())}, "data set"),
        ({"params": jax.tree.map(lambda leaf: leaf + 1, regression.params())}, "start"),
        ({"opt_state": OPTIMIZER.init(regression.params())}, "start"),
        ({"validation_data": None}, "validation_data"),
        ({"validation_data": regression.data(3)}, "validation_data"),
        ({"metrics": {"half": lambda *given: loss_fn(*given) / 2}}, "metrics"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_left_alone(
    changed: dict[str, Any], name: str, tmp_path: pathlib.Path
) -> None:
    train(tmp_path / "run", epochs=2)
    kept = contents(tmp_path / "run")
    with pytest.raises(
        ValueError, match=f"holds a run with another {name}.*; pass another fol"
    ):
        train(tmp_path / "run", **changed)
    assert contents(tmp_path / "run") == kept


def test_a_checkpoint_of_another_model(tmp_path: pathlib.Path) -> None:
    def loss(params: Any, batch: Any) -> jax.Array:
        inputs, targets = batch
        return optabs.losses.mse(inputs @ params["w"], targets).mean()

    train(tmp_path / "run", epochs=2)
    with pytest.raises(ValueError, match="holds a run with another model"):
        train(tmp_path / "run", params={"w": jnp.ones((3, 2))}, loss_fn=loss)


def test_constants_of_the_loss_are_part_of_the_run(tmp_path: pathlib.Path) -> None:
    def weighted(weights: jax.Array) -> Any:
        return lambda params, batch: loss_fn(params, batch) * weights.sum()

    train(tmp_path / "run", epochs=2, loss_fn=weighted(jnp.arange(3.0)))
    train(tmp_path / "run", epochs=2, loss_fn=weighted(jnp.arange(3.0)))
    with pytest.raises(ValueError, match="with another loss_fn;"):
        train(tmp_path / "run", epochs=2, loss_fn=weighted(jnp.ones(3)))


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


def test_a_damaged_checkpoint_is_set_aside_and_never_deleted(tmp_path: pathlib.Path) -> None:
    train(tmp_path / "run", max_steps=7)
    train(tmp_path / "run", max_steps=13)
    notes = tmp_path / "run" / "step_13" / "notes" / "metadata"
    notes.write_text("{")
    with pytest.warns(UserWarning, match="checkpoint 13 in"):
        train(tmp_path / "run", epochs=4)
    aside = [path.name for path in (tmp_path / "run").glob("unread_*")]
    assert [name.rsplit("_", 1)[0] for name in aside] == ["unread_step_13"]


def test_other_folders_beside_the_checkpoints_are_left_alone(tmp_path: pathlib.Path) -> None:
    train(tmp_path / "run", max_steps=7)
    for name in ("3", "2024", "notes"):
        (tmp_path / "run" / name).mkdir()
        (tmp_path / "run" / name / "mine.txt").write_text(name)
    assert_same(train(tmp_path / "run"), train())
    for name in ("3", "2024", "notes"):
        assert (tmp_path / "run" / name / "mine.txt").read_text() == name


@pytest.mark.parametrize("changed", [{"epochs": 3}, {"max_steps": 7}])
def test_a_shorter_run_than_the_one_kept_is_refused(
    changed: dict[str, int], tmp_path: pathlib.Path
) -> None:
    train(tmp_path / "run", epochs=6)
    kept = contents(tmp_path / "run")
    with pytest.raises(ValueError, match="after 6 epochs and 30 steps; pass no smaller"):
        train(tmp_path / "run", **changed)
    assert contents(tmp_path / "run") == kept


def test_losses_with_checks_resume_whatever_was_traced_before(tmp_path: pathlib.Path) -> None:
    inputs, targets = regression.data()
    classes = (targets[:, 0] > 0).astype(jnp.int32)

    def loss(params: Any, batch: Any) -> jax.Array:
        inputs, classes = batch
        logits = inputs @ params["w"] + params["b"]
        return optabs.losses.softmax_cross_entropy(logits, classes).mean()

    options: dict[str, Any] = {
        "loss_fn": loss,
        "data": (inputs, classes),
        "validation_data": (inputs, classes),
    }
    train(tmp_path / "run", max_steps=13, **options)
    jax.jit(jax.grad(loss))(regression.params(), (inputs, classes))
    optabs.losses.hinge(inputs, classes)
    assert_same(train(tmp_path / "run", **options), train(**options))


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


def test_a_bad_loss_leaves_the_last_good_checkpoint(tmp_path: pathlib.Path) -> None:
    inputs, targets = regression.data()
    poisoned = (inputs.at[3].set(jnp.nan), targets)
    options: dict[str, Any] = {"data": poisoned, "batch_size": 1, "validation_data": None}
    with pytest.warns(RuntimeWarning, match="not finite") as first:
        train(tmp_path / "run", **options)
    with pytest.warns(RuntimeWarning, match="not finite") as again:
        train(tmp_path / "run", **options)
    assert str(first[0].message) == str(again[0].message)


@pytest.mark.parametrize("inner", ["", "deeper"])
def test_a_folder_that_is_a_file(inner: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match=r"checkpoint_dir .* is a file, or below one; pass a"):
        train(tmp_path / "run" / inner)


@pytest.mark.parametrize("folder", ["", 3])
def test_a_folder_that_is_no_path(folder: Any) -> None:
    with pytest.raises(ValueError, match=r"checkpoint_dir is .*; pass the path of a folder"):
        train(folder)


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
