"""A small problem for `fit`: 22 instances on a line with noise."""

from typing import Any

import jax
import jax.numpy as jnp

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
