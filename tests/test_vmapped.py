"""Stacked parameters, each unit with an optimizer of its own, in a loop of the user's."""

from typing import Any

import chex
import gadam_problem as networks
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from gadam_quadratic import unit_of
from trees import gradients, params

import optabs

TRANSFORMATIONS = {
    "adam": optabs.adam(0.1),
    "clip": optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1, momentum=0.9)),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "masked": optax.masked(optax.adam(0.1), {"layer": True, "scale": False}),
    "dao_e": optabs.dao_e(0.1),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=2),
}


def stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "dao_e" else ())
        for name in TRANSFORMATIONS
    ],
)
def test_it_is_a_loop_over_the_units(name: str) -> None:
    alone, together = TRANSFORMATIONS[name], optabs.vmapped(TRANSFORMATIONS[name])
    starts = [jax.tree.map(lambda leaf, i=i: (1.0 + i) * leaf, params()) for i in range(3)]
    theta, states = stacked(starts), [alone.init(start) for start in starts]
    state = together.init(theta)
    chex.assert_trees_all_equal(state, stacked(states), strict=True)
    update, each = jax.jit(together.update), jax.jit(alone.update)
    for grads in zip(gradients(3), gradients(6)[3:], gradients(9)[6:], strict=True):
        values = jnp.array([3.0, 2.0, 1.0])
        updates, state = update(stacked(list(grads)), state, theta, value=values)
        for index in range(3):
            wanted, states[index] = each(
                grads[index], states[index], unit_of(theta, index), value=values[index]
            )
            chex.assert_trees_all_close(unit_of(updates, index), wanted, rtol=1e-5, atol=1e-7)
            chex.assert_trees_all_close(
                unit_of(state, index), states[index], rtol=1e-5, atol=1e-7
            )
        theta = optax.apply_updates(theta, updates)


def test_units_that_are_clipped_do_not_know_of_each_other() -> None:
    together = optabs.vmapped(optax.clip_by_global_norm(1.0))
    grads = jnp.array([[3.0, 4.0], [0.3, 0.4]])
    updates, _ = together.update(grads, together.init(grads))
    np.testing.assert_allclose(updates, [[0.6, 0.8], [0.3, 0.4]], rtol=1e-6)


class Network(nnx.Module):
    """One hidden layer."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(networks.INPUTS, 8, rngs=rngs)
        self.last = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.last(nnx.tanh(self.first(inputs)))


GRAPH = nnx.split(Network(nnx.Rngs(0)))[0]


def init_fn(key: jax.Array) -> Any:
    return nnx.split(Network(nnx.Rngs(key)))[1]


def loss_fn(params: Any, batch: Any) -> jax.Array:
    inputs, targets = batch
    return jnp.mean((nnx.merge(GRAPH, params)(inputs) - targets) ** 2)


@pytest.mark.slow
def test_an_own_loop_with_an_evolution_between_its_epochs() -> None:
    with jax.numpy_rank_promotion("allow"):  # flax promotes
        learner = networks.learner(batch_size=None, epochs=10)
        optimizer = optabs.vmapped(networks.ADAM)
        data, validation = networks.data(), networks.data(16, seed=1)

        @jax.jit
        def step(params: Any, opt_state: Any) -> Any:
            grads = jax.vmap(jax.grad(loss_fn), in_axes=(0, None))(params, data)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        state = learner.init(jax.random.key(1), init_fn)
        chex.assert_trees_all_equal(state.opt_state, optimizer.init(state.params), strict=True)
        reference, best = state, []
        for _ in range(2):
            params, opt_state = state.params, state.opt_state
            for _ in range(10):
                params, opt_state = step(params, opt_state)
            state = state._replace(params=params, opt_state=opt_state)
            reference, _ = learner.learn(reference, loss_fn, data)
            # Learning takes a key of the state, which a loop of the user's own does not.
            state = state._replace(key=reference.key)
            chex.assert_trees_all_close(state.params, reference.params, rtol=1e-4, atol=1e-5)
            state, evolution = learner.evolve(state, loss_fn, data, validation)
            reference, _ = learner.evolve(reference, loss_fn, data, validation)
            best.append(float(evolution.trial_losses.min()))
        assert best[1] < best[0]
        model = nnx.merge(GRAPH, learner.best(state))
        inputs, targets = validation
        assert float(jnp.mean((model(inputs) - targets) ** 2)) < 1.5 * best[1]
