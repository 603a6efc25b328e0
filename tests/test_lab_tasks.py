"""The tasks that studies share, and the program that trains them."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optabs
from benchmarks.lab import tasks
from benchmarks.lab.training import CEILING, FLOOR, Arm, Outcome, measures_of, program_of

ADAM = Arm("Adam", optabs.adam)
SPLITS = (tasks.digits_splits, tasks.breast_cancer_splits)


@pytest.mark.parametrize("read", SPLITS)
def test_the_splits_are_fixed_and_apart(read: Any) -> None:
    one = read()
    tasks.image_splits.cache_clear()
    tasks.breast_cancer_splits.cache_clear()
    jax.tree.map(np.testing.assert_array_equal, one, read())
    cases = [{case.tobytes() for case in np.asarray(split.inputs)} for split in one]
    assert len(set.union(*cases)) == sum(map(len, cases))


def test_large_images_are_halved() -> None:
    small = tasks.halved(np.arange(28 * 28.0).reshape(1, 28, 28, 1))
    assert small.shape == (1, 14, 14, 1)
    assert small[0, 0, 1, 0] == np.mean([2, 3, 30, 31])


def test_a_program_is_what_a_hand_written_loop_gives() -> None:
    task = tasks.quadratic()._replace(steps=6)
    outcome = program_of(task, ADAM)(0.1, 3)
    start_key, feed_key = jax.random.split(jax.random.key(3))
    optimizer = optabs.adam(0.1)

    @jax.jit
    def step(params: Any, state: Any, noise: jax.Array) -> Any:
        (loss, _), grads = jax.value_and_grad(task.loss_fn, has_aux=True)(params, {}, noise)
        updates, state = optimizer.update(grads, state, params)
        # The noise is the gradient's alone.
        clean = jax.grad(task.loss_fn, has_aux=True)(params, {}, jnp.zeros_like(noise))[0]
        alike = (
            grads["point"] - clean["point"] - noise,
            loss - task.evaluate(params, {}, ())[0],
        )
        return optax.apply_updates(params, updates), state, loss, alike

    params, _ = jax.jit(task.init)(start_key)
    state, losses = optimizer.init(params), []
    for noise in np.asarray(task.feed(feed_key, 6)):
        params, state, loss, alike = step(params, state, noise)
        losses.append(float(loss))
        for difference in alike:
            np.testing.assert_allclose(difference, 0, atol=1e-5)
    np.testing.assert_allclose(outcome.losses, losses, rtol=1e-5)
    validation = task.evaluate(params, {}, ())[0]
    np.testing.assert_allclose(outcome.validation[0], validation, rtol=1e-4)
    assert outcome.test is None
    assert outcome.watched == {}


def test_a_training_by_steps_is_that_of_one_program() -> None:
    task = tasks.digits(tasks.mlp(64, 10), "softmax", steps=20)._replace(scored=True)
    one, other = (
        program_of(task._replace(by_steps=by_steps), ADAM, test=True)(0.01, 3)
        for by_steps in (False, True)
    )
    assert one.watched["validation_loss"].shape == (math.gcd(20, task.points),)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), one, other)
    np.testing.assert_allclose(one.watched["validation_loss"][-1], one.validation[0])


def test_divergence_is_bounded_and_seen():
    def measured(losses, loss=0.5):
        return measures_of(Outcome(np.array(losses, np.float32), (loss, 0.5), None, {}))

    good = measured([2.0] + [1.0] * 19)
    assert good["area"] == pytest.approx(1.05)
    assert (good["final_loss"], good["validation_loss"]) == (1.0, 0.5)
    assert (good["diverged"], "test_accuracy" in good) == (False, False)
    jump = measured([2.0] + [1e9] * 9 + [1.0] * 10)
    assert jump["area"] == pytest.approx((2 + 9 * 2 * CEILING + 10) / 20)
    assert not jump["diverged"]
    assert measured([2.0] + [3.0] * 19)["diverged"]
    assert measured([2.0] + [0.0] * 19, 0.0)["final_loss"] == pytest.approx(2 * FLOOR)
    broken = measured([2.0] + [1.0] * 18 + [np.nan], np.nan)
    assert broken["final_loss"] == broken["validation_loss"] == 2 * CEILING
    assert broken["diverged"]
