"""Gadam's units learn as their optimizer does alone, each on batches of its own."""

from typing import Any

import chex
import gadam_problem as networks
import gadam_quadratic as quadratic
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gadam_problem import ADAM, data, init_fn, loss_fn
from gadam_quadratic import unit_of
from trees import avals

import optabs
from optabs.evolution.state import UNEVALUATED

KEY = jax.random.key(3)


def keys_of(state: optabs.GadamState, size: int) -> jax.Array:
    """The keys that `learn` gives its units."""
    return jax.random.split(jax.random.split(state.key)[1], size)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [None, 7], ids=["whole", "batches"])
def test_a_population_of_one_learns_as_fit_does(batch_size: int | None) -> None:
    learner = networks.learner(population_size=1, batch_size=batch_size, epochs=4)
    state = learner.init(KEY, init_fn)
    wanted = optabs.fit(
        loss_fn,
        unit_of(state.params, 0),
        ADAM,
        data(),
        batch_size=batch_size,
        epochs=4,
        key=keys_of(state, 1)[0],
    )
    after, losses = learner.learn(state, loss_fn, data())
    chex.assert_trees_all_close(unit_of(after.params, 0), wanted.params, rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_close(
        unit_of(after.opt_state, 0), wanted.opt_state, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(losses[0], wanted.history["loss"][-1], rtol=1e-6)


@pytest.mark.slow
def test_a_population_of_one_is_its_optimizer_bit_for_bit() -> None:
    learner = quadratic.learner(ADAM, population_size=1, epochs=20)
    state = learner.init(KEY, quadratic.init_fn)
    wanted = optabs.fit(quadratic.loss_fn, unit_of(state.params, 0), ADAM, data(), epochs=20)
    after, _ = learner.learn(state, quadratic.loss_fn)
    chex.assert_trees_all_equal(unit_of(after.params, 0), wanted.params, strict=True)
    chex.assert_trees_all_equal(unit_of(after.opt_state, 0), wanted.opt_state, strict=True)


@pytest.mark.slow
def test_every_unit_learns_as_a_loop_of_optax_and_no_two_see_the_same_batches() -> None:
    learner = networks.learner()
    state = learner.init(KEY, init_fn)
    after, losses = learner.learn(state, loss_fn, data())
    assert after.losses is not None
    value_and_grad = jax.jit(jax.value_and_grad(loss_fn))
    update = jax.jit(ADAM.update)
    firsts = set()
    for index, key in enumerate(keys_of(state, networks.SIZE)):
        params, opt_state = unit_of(state.params, index), unit_of(state.opt_state, index)
        for epoch in range(5):
            order = jax.random.permutation(jax.random.fold_in(key, epoch), networks.COUNT)
            firsts.add(tuple(order[:8].tolist()))
            found = []
            for start in range(0, networks.COUNT, 8):
                rows = np.asarray(order[start : start + 8])
                loss, grads = value_and_grad(params, tuple(array[rows] for array in data()))
                updates, opt_state = update(grads, opt_state, params)
                params = optax.apply_updates(params, updates)
                found.append(loss)
        chex.assert_trees_all_close(unit_of(after.params, index), params, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(
            unit_of(after.opt_state, index), opt_state, rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(losses[index], np.mean(found), rtol=1e-5)
    assert len(firsts) == 5 * networks.SIZE
    assert np.all(after.losses == UNEVALUATED)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [3, 20])
def test_units_in_chunks_learn_and_evolve_the_same(chunk_size: int) -> None:
    wanted = networks.uninterrupted()
    ours = networks.run(learns={"chunk_size": chunk_size})
    assert ours.history["survivors"].tolist() == wanted.history["survivors"].tolist()
    chex.assert_trees_all_close(ours.params, wanted.params, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param("float16", marks=pytest.mark.slow),
        "bfloat16",
        pytest.param("float32", marks=pytest.mark.slow),
        "float64",
    ],
)
@pytest.mark.parametrize("inheritance", ["crossover", "fresh"])
def test_dtypes_stay(dtype: str, inheritance: Any) -> None:
    with jax.enable_x64(dtype == "float64"):
        learner = quadratic.learner(optabs.adam(0.01), inheritance=inheritance)

        def start(key: jax.Array) -> Any:
            return jax.tree.map(lambda leaf: leaf.astype(dtype), quadratic.init_fn(key))

        state = learner.init(KEY, start)
        initial_avals = avals(state)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {dtype}
        # Traced only: `evolve` compiles the same learning.
        learned, losses = jax.eval_shape(
            lambda state: learner.learn(state, quadratic.loss_fn), state
        )
        assert avals(learned) == initial_avals
        assert losses.dtype == jnp.float32
        after, evolution = learner.evolve(state, quadratic.loss_fn)
        assert avals(after) == initial_avals
        assert evolution.trial_losses.dtype == evolution.diversity.dtype == jnp.float32
        assert np.all(np.isfinite(evolution.trial_losses))
        assert float(evolution.diversity) > 0


@pytest.mark.slow
def test_training_losses_are_along_the_way_and_fitness_at_its_end() -> None:
    learner = quadratic.learner(epochs=1)
    state = learner.init(KEY, quadratic.init_fn)
    _, losses = learner.learn(state, quadratic.loss_fn)
    wanted = jax.vmap(lambda params: quadratic.loss_fn(params, None))(state.params)
    np.testing.assert_allclose(losses, wanted, rtol=1e-6)
    _, evolution = learner.evolve(state, quadratic.loss_fn)
    np.testing.assert_allclose(evolution.losses, wanted, rtol=1e-6)
