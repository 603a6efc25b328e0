"""The problems on which every optimizer has to arrive: start, end, loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Target(NamedTuple):
    start: Any
    end: Any
    loss: Callable[[Any], jax.Array]


def _squared_distance(start: Any, end: Any) -> Target:
    start, end = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (start, end))

    def loss(params: Any) -> jax.Array:
        parts = jax.tree.map(lambda p, e: jnp.sum(jnp.square(p - e)), params, end)
        return jax.tree.reduce(jnp.add, parts)

    return Target(start, end, loss)


def parabola() -> Target:
    return _squared_distance(jnp.array([-1.0, 10.0, 1.0]), jnp.array([1.0, -1.0, 1.0]))


def rosenbrock() -> Target:
    def loss(params: jax.Array) -> jax.Array:
        x, y = params
        return jnp.square(1 - x) + 100 * jnp.square(y - jnp.square(x))

    return Target(jnp.zeros(2), jnp.ones(2), loss)


def matrix() -> Target:
    return _squared_distance(jnp.zeros((2, 2)), jnp.array([[3.0, -2.0], [1.0, 4.0]]))


def leaves() -> Target:
    end = (jnp.array([1.0, -1.0]), jnp.array([[1.0, 0.0], [1.0, 1.0]]))
    return _squared_distance((jnp.zeros(2), jnp.zeros((2, 2))), end)


TARGETS = {f.__name__: f for f in (parabola, rosenbrock, matrix, leaves)}
