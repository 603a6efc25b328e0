"""A small problem for `fit`: 22 instances on a line with noise."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

import optabs

COUNT = 22


def data(count: int = COUNT) -> tuple[jax.Array, jax.Array]:
    """Inputs [count, 3] and targets [count, 2]."""
    inputs = jax.random.normal(jax.random.key(1), (count, 3))
    noise = jax.random.normal(jax.random.key(2), (count, 2))
    return inputs, inputs[:, :2] * jnp.array([[1.0, -2.0]]) + 0.1 * noise


def params() -> dict[str, jax.Array]:
    """Where training starts."""
    return {"w": jnp.ones((3, 2)), "b": jnp.zeros((1, 2))}


def loss_fn(params: Any, batch: Any) -> jax.Array:
    """The mean squared error of a linear model."""
    inputs, targets = batch
    return optabs.losses.mse(inputs @ params["w"] + params["b"], targets).mean()


KEY = jax.random.key(7)
# One object for many tests: a program is compiled once for an optimizer.
ADAM, SGD = optabs.adam(0.05), optabs.sgd(0.1)


@functools.cache
def _step_of(optimizer: optax.GradientTransformation) -> Any:
    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step


def by_hand(
    optimizer: optax.GradientTransformation, batches: list[Any]
) -> tuple[Any, list[float]]:
    """Parameters and losses after a step on each batch, one by one."""
    step = _step_of(optimizer)
    theta = params()
    state, losses = optimizer.init(theta), []
    for batch in batches:
        theta, state, loss = step(theta, state, batch)
        losses.append(float(loss))
    return theta, losses


def rows_of(batch: Any, rows: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[np.asarray(rows)], batch)


# Steps in one program and one by one round differently.
assert_close = functools.partial(chex.assert_trees_all_close, rtol=2e-5, atol=2e-6)


def shuffled(epochs: int, size: int) -> list[Any]:
    """The batches of `fit`'s epochs: a permutation each, the last batch short."""
    found = []
    for epoch in range(epochs):
        order = jax.random.permutation(jax.random.fold_in(KEY, epoch), COUNT)
        found += [order[start : start + size] for start in range(0, COUNT, size)]
    return [rows_of(data(), rows) for rows in found]
