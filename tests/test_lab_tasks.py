"""The tasks that studies share, the program that trains them, and functions of many minima."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optabs
from benchmarks.lab import tasks
from benchmarks.lab.functions import FUNCTIONS, NOISE, noisy
from benchmarks.lab.training import CEILING, FLOOR, Arm, Outcome, measures_of, program_of

ADAM = Arm("Adam", optabs.adam)


@pytest.mark.parametrize("read", [tasks.digits_splits, tasks.breast_cancer_splits])
def test_the_splits_are_fixed_and_apart(read: Any) -> None:
    one = read()
    tasks.image_splits.cache_clear()
    tasks.breast_cancer_splits.cache_clear()
    jax.tree.map(np.testing.assert_array_equal, one, read())
    cases = [{case.tobytes() for case in np.asarray(split.inputs)} for split in one]
    assert len(set.union(*cases)) == sum(map(len, cases))


def test_rows_are_held_out_in_turns() -> None:
    turns = [tasks.held_out_in_turns(np.arange(569), turn) for turn in range(tasks.TURNS)]
    for parts in turns:
        assert [*map(len, parts)] == [343, 113, 113]
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(569))
    validated = [set(parts[1].tolist()) for parts in turns]
    tested = set(np.concatenate([parts[2] for parts in turns]).tolist())
    assert set.union(*validated[:3]) == set.union(*validated) == set(range(285))
    assert tested == set(range(285, 569))


def test_a_seed_has_its_own_split() -> None:
    task = tasks.breast_cancer(in_turns=True)._replace(steps=2)
    program = program_of(task, Arm("still", lambda rate: optax.set_to_zero()), test=True)
    for seed in (1, 7):
        outcome, (_, *held_out) = program(1.0, seed), tasks.breast_cancer_splits(seed % 5)
        params, statistics = task.init(jax.random.split(jax.random.key(seed))[0])
        wanted = [task.evaluate(params, statistics, split) for split in held_out]
        np.testing.assert_allclose([outcome.validation, outcome.test], wanted, rtol=1e-5)
    assert not np.array_equal(held_out[1].labels, task.test.labels)


def test_large_images_are_halved() -> None:
    small = tasks.halved(np.arange(28 * 28.0).reshape(1, 28, 28, 1))
    assert small.shape == (1, 14, 14, 1)
    assert small[0, 0, 1, 0] == np.mean([2, 3, 30, 31])


@pytest.mark.slow
def test_a_program_is_what_a_hand_written_loop_gives() -> None:
    task = tasks.quadratic()._replace(steps=6)
    outcome = program_of(task, ADAM)(0.1, 3)
    start_key, feed_key = jax.random.split(jax.random.key(3))
    optimizer = optabs.adam(0.1)
    gradient = jax.jit(jax.value_and_grad(task.loss_fn, has_aux=True))
    params, _ = jax.jit(task.init)(start_key)
    state, losses = optimizer.init(params), []
    for noise in np.asarray(task.feed(feed_key, 6)):
        (loss, _), grads = gradient(params, {}, noise)
        (clean, _), slopes = gradient(params, {}, np.zeros_like(noise))
        np.testing.assert_allclose(grads["point"], slopes["point"] + noise, atol=1e-5)
        np.testing.assert_allclose(
            [loss, clean], task.evaluate(params, {}, ())[0], atol=1e-5
        )  # the noise is the gradient's alone
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    np.testing.assert_allclose(outcome.losses, losses, rtol=1e-5)
    validation = task.evaluate(params, {}, ())[0]
    np.testing.assert_allclose(outcome.validation[0], validation, rtol=1e-4)
    assert (outcome.test, outcome.watched) == (None, {})


@pytest.mark.slow
def test_a_training_by_steps_is_that_of_one_program() -> None:
    task = tasks.digits(tasks.mlp(64, 10), "softmax", steps=20)._replace(scored=True)
    one, other = (
        program_of(task._replace(by_steps=by_steps), ADAM, test=True)(0.01, 3)
        for by_steps in (False, True)
    )
    assert one.watched["validation_loss"].shape == (math.gcd(20, task.points),)
    assert one.best_test is None
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), one, other)
    np.testing.assert_allclose(one.watched["validation_loss"][-1], one.validation[0])


@pytest.mark.parametrize("by_steps", [False, True])
def test_the_test_data_are_seen_at_the_point_of_the_lowest_validation_loss(
    by_steps: bool,
) -> None:
    """A sawtooth: the parameter is the number of steps modulo 5, of which 3 is the best."""
    saw = optax.GradientTransformation(
        lambda params: jnp.zeros(()),
        lambda updates, at, params: ({"at": jnp.where(at == 4, -4.0, 1.0)}, (at + 1) % 5),
    )
    task = tasks.unscored(
        "a sawtooth", 12, lambda key: ({"at": jnp.zeros(())}, {}),
        lambda params, data: jnp.where(params["at"] == 1, jnp.nan, (params["at"] - 3) ** 2)
        + jnp.sum(data),
        feed=lambda key, steps: jnp.zeros((steps, 1)), batch=lambda train, item: item,
        train=jnp.zeros(1), validation=jnp.zeros(1), test=jnp.ones(1),
        points=12, scored=True, best_tested=True, by_steps=by_steps,
    )  # fmt: skip
    arm = Arm("saw", lambda rate: saw)
    outcome = program_of(task, arm, test=True)(1.0, 0)
    assert outcome.validation[0] == 1.0
    measures = measures_of(outcome)
    assert (measures["test_loss"], measures["best_test_loss"]) == (2.0, 1.0)
    unseen = program_of(task, arm)(1.0, 0)
    assert (unseen.test, unseen.best_test) == (None, None)


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
    for losses in ([2.0] + [1.0] * 18 + [np.nan], [2.0, np.nan, np.inf]):
        broken = measured(losses, np.nan)
        assert broken["final_loss"] == broken["validation_loss"] == 2 * CEILING
        assert broken["diverged"]


# As the literature has them, in float64.
LITERATURE: dict[str, Callable[[np.ndarray], float]] = {
    "rastrigin": lambda x: 10 * x.size + np.sum(x**2 - 10 * np.cos(2 * np.pi * x)),
    "ackley": lambda x: (-20 * np.exp(-0.2 * np.sqrt(np.mean(x**2)))
                         - np.exp(np.mean(np.cos(2 * np.pi * x))) + 20 + np.e),
    "griewank": lambda x: (np.sum(x**2) / 4000
                           - np.prod(np.cos(x / np.sqrt(np.arange(1, x.size + 1)))) + 1),
    "schwefel": lambda x: 418.9828872724338 * x.size - np.sum(x * np.sin(np.sqrt(np.abs(x)))),
    "styblinski_tang": lambda x: np.sum((x**4 - 16 * x**2 + 5 * x) / 2 + 39.16616570377142),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_the_literature_s_with_its_minimum_where_a_key_puts_it(
    name: str,
) -> None:
    function, key = FUNCTIONS[name], jax.random.key(0)
    points = jax.vmap(lambda key: function.start(key, 20))(jax.random.split(key, 200))
    assert np.abs(points).max() <= function.half_width
    for x in (points[0], points[1], points[2, :2], points[3, :2]):
        wanted = LITERATURE[name](np.asarray(x, np.float64))
        np.testing.assert_allclose(function.value(x), wanted, rtol=1e-4)
    values = []
    for rotated in (False, True):
        value, place = function.placed(key, 20, rotated=rotated)
        other, elsewhere = function.placed(jax.random.key(1), 20, rotated=rotated)
        assert np.abs(place).max() < function.half_width
        assert np.abs(place - elsewhere).max() > 0.01 * function.half_width
        assert abs(float(value(place))) < 2e-3
        found = jax.vmap(value)(jnp.concatenate([points, place[None] + 1e-2 * points]))
        assert float(found.min()) > float(value(place))
        assert float(other(place)) > 0.01
        turn = jax.random.orthogonal(jax.random.split(key)[1], 20) if rotated else np.eye(20)
        values.append(value(place + turn.T @ points[0] / 20))
    np.testing.assert_allclose(*values, rtol=1e-3, atol=1e-3)


def test_schwefel_does_not_fall_beyond_its_box() -> None:
    far = jnp.linspace(501.0, 3000.0, 2000)[:, None]
    assert jax.vmap(FUNCTIONS["schwefel"].value)(jnp.concatenate([far, -far])).min() > 100.0


@pytest.mark.slow
def test_noise_is_in_the_gradients_alone_and_another_one_at_every_point() -> None:
    function = FUNCTIONS["rastrigin"]
    value, _ = function.placed(jax.random.key(0), 8, rotated=False)
    keys = jax.random.split(jax.random.key(1), 500)
    points = jax.vmap(lambda key: function.start(key, 8))(keys)
    loss = noisy(value, jax.random.key(2), points)
    np.testing.assert_allclose(jax.vmap(loss)(points), jax.vmap(value)(points), rtol=1e-6)
    noises = jax.jit(jax.vmap(lambda x: jax.grad(loss)(x) - jax.grad(value)(x)))
    noise, beside = np.asarray(noises(points)), np.asarray(noises(points + 1e-4))
    size = NOISE * np.sqrt(np.mean(np.square(jax.vmap(jax.grad(value))(points))))
    np.testing.assert_allclose(noise.std(), size, rtol=0.05)
    assert abs(noise.mean()) < 0.1 * size
    assert len(np.unique(noise[:, 0])) == len(points)
    # Independent also of that at a neighbour, and the same at the same point.
    assert abs(np.corrcoef(noise.ravel(), beside.ravel())[0, 1]) < 0.1
    np.testing.assert_array_equal(noises(points), noise)
