"""What the measurement of a population's time measures; its results are no test's business."""

import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optabs
from benchmarks import population_time as timed
from benchmarks.lab.data import load
from benchmarks.population_time import (
    ADAM,
    ALONE,
    CHUNKS,
    EVOLVE,
    FIT,
    ITSELF,
    LEARNING,
    RESTING,
    VMAP,
    Setting,
)
from tests.commands import assert_refused, call

SMALL = "--sides 8 --hidden 4 --populations 2 --batch-size 650 --epochs 2 --rounds 2"


@pytest.mark.slow
def test_command_writes_records_and_tables(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, f"population_time {SMALL} --out {tmp_path}") == 0
    record = json.loads((tmp_path / "runs" / "mlp-64-4-10-g2-b650.json").read_text())
    assert set(record) == {"config", "results", "environment"}
    results = record["results"]
    assert results["steps"] == 4
    assert set(results["seconds"]) == {*LEARNING, EVOLVE, ITSELF}
    assert all(len(times) == 2 for times in results["seconds"].values())
    text = (tmp_path / "population_time.md").read_text()
    assert text.count("| 64-4-10 | 2 |") == 2


@pytest.mark.slow
def test_ratios_and_shares_are_those_of_the_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {
        VMAP: [2.0, 4.0],
        CHUNKS: [4.0, 4.0],
        ALONE: [8.0, 8.0],
        FIT: [16.0, 8.0],
        ITSELF: [1.0, 2.0],
    }
    monkeypatch.setattr(timed.timing, "in_turns", lambda *_: clock)
    found = timed.compare(Setting(8, 4, 2, 650, 1, 1), load("digits"), 2)
    assert found["ratio"][f"{VMAP} / {ALONE}"]["median"] == 0.375
    assert found["ratio"][f"{VMAP} / {FIT}"]["low"] == 0.125 + (0.5 - 0.125) / 4
    assert found["ratio"][f"{CHUNKS} / {ALONE}"]["median"] == 0.5
    assert found["share_of_generation"]["median"] == 0.2  # 1 of 1 + 2 + 2
    # 2 steps take 2 seconds: 19 steps take 19 times the evolution's second.
    assert found["steps_for_share"]["median"] == pytest.approx(19.0)


@pytest.mark.slow
def test_all_contenders_learn_alike() -> None:
    found = timed.compare(Setting(8, 16, 4, 65, 3, 2), load("digits"), 1)
    losses = found["loss"]
    assert set(losses) == set(LEARNING)
    assert losses[CHUNKS] == pytest.approx(losses[VMAP], rel=1e-5)
    first = np.log(10)
    assert all(loss < first for loss in losses.values())
    np.testing.assert_allclose(list(losses.values()), losses[FIT], rtol=0.1)


@pytest.mark.slow
def test_a_resting_population_evolves_and_learns_nothing() -> None:
    problem = timed.problem_of(Setting(8, 4, 4, 650, 1, 2), load("digits"))
    learner, resting = optabs.gadam(ADAM, 4, 0.0), optabs.gadam(RESTING, 4, 0.0)
    state = learner.init(jax.random.key(0), problem.init_fn)
    rested, _ = resting.learn(state, timed._nothing)
    chex.assert_trees_all_equal(rested.units, state.units, strict=True)
    ended, told = resting.evolve(
        state, timed._nothing, None, problem.validation, fitness_fn=problem.loss_fn
    )
    # Without mutation or learning every entry is one of the first population's.
    for new, old in zip(
        jax.tree.leaves(ended.params), jax.tree.leaves(state.params), strict=True
    ):
        assert bool(jnp.all(jnp.any(new[:, None] == old[None], axis=1)))
    judged = jax.vmap(problem.loss_fn, in_axes=(0, None))(ended.params, problem.validation)
    np.testing.assert_allclose(ended.losses, judged, rtol=1e-5)
    assert np.ptp(np.asarray(told.losses)) > 0


def test_images_are_stretched_to_the_side() -> None:
    problem = timed.problem_of(Setting(28, 16, 1, 64, 1, 1), load("digits"))
    assert problem.train[0].shape == (1300, 28, 28, 1)
    shapes = {leaf.shape for leaf in jax.tree.leaves(problem.init_fn(jax.random.key(0)))}
    assert shapes == {(784, 16), (16,), (16, 10), (10,)}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--hidden 0", "hidden is '0'; pass whole numbers above 0"),
        ("--populations 8,x", "populations is '8,x'; pass whole numbers above 0"),
        ("--sides 0", "sides is '0'; pass whole numbers above 0"),
        ("--epochs 0", "epochs is 0; pass a whole number above 0"),
        ("--chunk-size 0", "chunk-size is 0; pass a whole number above 0"),
        ("--rounds 0", "rounds is 0; pass a whole number above 0"),
        ("--batch-size 1301", "batch-size is 1301, but digits has 1300 training images"),
    ],
)
def test_bad_input_is_one_sentence(
    line: str,
    sentence: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert_refused(f"population_time {line}", sentence, tmp_path, monkeypatch, capsys)
