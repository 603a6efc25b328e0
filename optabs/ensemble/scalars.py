"""Numbers of which there are a few a leaf, kept apart from what is done to whole leaves."""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def barrier(tree: Tree) -> Tree:
    """The same numbers, which XLA's passes up to fusion do not merge with their readers.

    On a CPU it is taken away before fusion; what keeps arithmetic on one number a leaf out of
    every leaf's kernels there is `divided`.
    """
    # One array at a time: under shard_map not all of them vary over the same axes.
    return jax.tree.map(_barrier, tree)


@jax.custom_jvp
def _barrier(array: jax.Array) -> jax.Array:
    return jax.lax.optimization_barrier(array)


@_barrier.defjvp
def _barrier_slope(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    # JAX's own rule does not take the tangents of integers and bools.
    return _barrier(*primals), tangents[0]


def stacked(numbers: Sequence[jax.Array], empty: jax.typing.DTypeLike) -> jax.Array:
    """Scalars, one for each leaf, as one array [L]; `empty` is the dtype of none."""
    return barrier(jnp.stack(barrier(list(numbers)))) if numbers else jnp.zeros(0, empty)


def divided(numbers: jax.Array, by: jax.Array) -> jax.Array:
    """numbers / by, for numbers of 0 or more: the last step on the way to a weight.

    XLA:CPU repeats all arithmetic on weights in every leaf's kernels but that before a true
    division; one by a broadcast number it turns into a product.
    """
    return numbers / jnp.where(numbers > 0, by, 1)
