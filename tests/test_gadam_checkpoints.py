"""A run of Gadam, killed and started again, ends bit for bit where the whole one ends."""

import pathlib
import re
import signal
import subprocess
import sys
import time
from typing import Any

import chex
import gadam_problem as networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gadam_problem import data, whole

import optabs
from optabs.training.checkpoints import Checkpoints

SCRIPT = """
import sys, numpy as np, jax
sys.path.insert(0, {tests!r})
import gadam_problem as here
result = here.run(checkpoint_dir=sys.argv[1], generations=60)
leaves = jax.tree.leaves((result.params, result.population, result.state.opt_state))
np.savez(sys.argv[2], *map(np.asarray, leaves), **result.history)
"""


class Stop(Exception):
    pass


def assert_same(ours: optabs.GadamResult, theirs: optabs.GadamResult) -> None:
    def numbers(result: optabs.GadamResult) -> Any:
        return result._replace(state=result.state._replace(key=()), message=())

    chex.assert_trees_all_equal(numbers(ours), numbers(theirs), strict=True)
    assert ours.message == theirs.message


@pytest.mark.slow
@pytest.mark.parametrize("made", [1, 2])
def test_interrupted_between_generations(
    made: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = networks.uninterrupted(3)
    folder, save = tmp_path / "run", Checkpoints.save

    def stopping(self: Checkpoints, step: int, *arguments: Any) -> None:
        save(self, step, *arguments)
        if step == made:
            raise Stop

    monkeypatch.setattr(Checkpoints, "save", stopping)
    with pytest.raises(Stop):
        networks.run(generations=3, checkpoint_dir=folder)
    assert newest(folder) == made
    monkeypatch.undo()
    assert_same(networks.run(generations=3, checkpoint_dir=folder), wanted)


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: pathlib.Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(tests=str(pathlib.Path(__file__).parent)))

    def start(folder: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, script, tmp_path / folder, tmp_path / f"{folder}.npz"]
        return subprocess.Popen(command)

    whole, killed = start("whole"), 0
    # Moments that move through generations and the writing of files.
    for generation, delay in ((1, 0.0), (25, 0.07)):
        process = start("killed")
        while process.poll() is None and newest(tmp_path / "killed") < generation:
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 1
    assert start("killed").wait() == 0
    assert whole.wait() == 0
    ours, theirs = np.load(tmp_path / "killed.npz"), np.load(tmp_path / "whole.npz")
    assert len(theirs["survivors"]) == 60
    for name in theirs.files:
        np.testing.assert_array_equal(ours[name], theirs[name])


def newest(folder: pathlib.Path) -> int:
    steps = [path.name.removeprefix("step_") for path in folder.glob("step_*")]
    return max((int(step) for step in steps if step.isdecimal()), default=0)


@pytest.mark.slow
def test_a_finished_run_is_read_and_more_generations_go_on(tmp_path: pathlib.Path) -> None:
    first = networks.run(checkpoint_dir=tmp_path / "run")
    assert_same(networks.run(checkpoint_dir=tmp_path / "run"), first)
    longer = networks.run(checkpoint_dir=tmp_path / "run", generations=4)
    assert_same(longer, networks.uninterrupted(4))
    with pytest.raises(ValueError, match="holds this run after 4 generations; pass no smal"):
        networks.run(checkpoint_dir=tmp_path / "run")


def test_a_damaged_checkpoint_is_announced_and_the_one_before_taken(
    tmp_path: pathlib.Path,
) -> None:
    folder = tmp_path / "run"
    networks.run(checkpoint_dir=folder, generations=3)
    for path in (folder / "step_3").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:3])
    with pytest.warns(UserWarning, match="checkpoint 3 in .* cannot be read .*; going on fr"):
        result = networks.run(checkpoint_dir=folder, generations=3)
    assert_same(result, networks.uninterrupted(3))
    assert list(folder.glob("unread_step_3_*"))


def offset_loss(offset: float) -> Any:
    numbers = jnp.full([1], offset)
    return lambda params, batch: networks.loss_fn(params, batch) + numbers[0]


def wider(key: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: 2 * leaf, networks.init_fn(key))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "learns", "name"),
    [
        ({"key": jax.random.key(8)}, {}, "key"),
        ({"init_fn": wider}, {}, "init_fn"),
        ({"loss_fn": offset_loss(2.0)}, {}, "loss_fn, unit or setting of gadam"),
        ({"train_data": data(seed=7)}, {}, "train_data"),
        ({"validation_data": data(16, seed=7)}, {}, "validation_data"),
        ({"tolerance": 1e-3}, {}, "tolerance"),
        ({"relearn": False}, {}, "loss_fn, unit or setting of gadam"),
        ({}, {"mutation_rate": 0.06}, "mutation_rate or pressure"),
        ({}, {"unit": optabs.adam(0.03)}, "loss_fn, unit or setting of gadam"),
        ({}, {"epochs": 6}, "loss_fn, unit or setting of gadam"),
        ({}, {"inheritance": "fresh"}, "loss_fn, unit or setting of gadam"),
        ({}, {"population_size": 4}, "population_size"),
    ],
)
def test_checkpoints_of_another_run_are_refused(
    changed: dict[str, Any],
    learns: dict[str, Any],
    name: str,
    kept: pathlib.Path,
) -> None:
    given = {"loss_fn": OFFSET} | changed
    sentence = f"checkpoint_dir {str(kept)!r} holds a run with another {name}; pass another"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        networks.run(learns=learns, checkpoint_dir=kept, **given)


OFFSET = offset_loss(1.0)  # closes over an array


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("kept") / "run"
    networks.run(loss_fn=OFFSET, checkpoint_dir=folder, generations=1)
    return folder


@pytest.mark.slow
def test_the_same_run_is_known_from_functions_written_again(kept: pathlib.Path) -> None:
    again = networks.run(
        loss_fn=offset_loss(1.0),
        init_fn=lambda key: networks.init_fn(key),
        checkpoint_dir=kept,
        generations=1,
    )
    assert len(again.history["losses"]) == 1


@pytest.mark.slow
def test_a_run_goes_on_on_other_devices(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "run"
    mesh = jax.make_mesh((4,), ("population",), devices=jax.devices()[:4])
    networks.run(learns={"mesh": mesh}, checkpoint_dir=folder, generations=1)
    ours = whole(networks.run(checkpoint_dir=folder))
    wanted = whole(networks.uninterrupted())
    np.testing.assert_array_equal(ours["survivors"], wanted["survivors"])
    np.testing.assert_allclose(ours["trial_losses"], wanted["trial_losses"], atol=1e-4)
    back = jax.make_mesh((8,), ("population",))
    third = networks.run(learns={"mesh": back}, checkpoint_dir=folder, generations=3)
    assert len(third.population["w"].sharding.device_set) == 8
    assert np.all(np.isfinite(third.history["trial_losses"]))
