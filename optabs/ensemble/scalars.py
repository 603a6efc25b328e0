"""Norms and other numbers of which there are a few a leaf, kept out of leaves' kernels."""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

# In a smaller sum of squares, squares that were flushed to 0 may matter.
SMALLEST_SQUARE = 1e-22
# A power of two, so that scaling by it is exact.
HUGE = 2.0**80

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


def stack_scalars(numbers: Sequence[jax.Array], empty: jax.typing.DTypeLike) -> jax.Array:
    """Scalars, one for each leaf, as one array [L]; `empty` is the dtype of none."""
    return barrier(jnp.stack(barrier(list(numbers)))) if numbers else jnp.zeros(0, empty)


def divided(numbers: jax.Array, by: jax.Array) -> jax.Array:
    """numbers / by, for numbers of 0 or more: the last step on the way to a weight.

    XLA:CPU repeats all arithmetic on weights in every leaf's kernels but that before a true
    division; one by a broadcast number it turns into a product.
    """
    return numbers / jnp.where(numbers > 0, by, 1)


def squared_norms(leaves: list[jax.Array]) -> jax.Array:
    """The sum of the squares of each array: float32 [L]."""
    sums = [jnp.sum(jnp.real(x * jnp.conj(x))).astype(jnp.float32) for x in leaves]
    return stack_scalars(sums, jnp.float32)


def squared_norm(leaves: list[jax.Array]) -> jax.Array:
    """The sum of all squares: float32 []."""
    return barrier(jnp.sum(squared_norms(leaves)))


def root(square: jax.Array) -> jax.Array:
    """The norm of that square, with a finite slope at 0: float32, like it."""
    return jnp.sqrt(jnp.maximum(square, 1e-30))  # any normal number: the slope stays finite


def scaled(factor: ArrayLike, leaf: jax.Array) -> jax.Array:
    """A leaf times a real number, in the leaf's dtype."""
    return leaf * jnp.asarray(factor).astype(leaf.real.dtype)


def all_finite(leaves: list[jax.Array]) -> jax.Array:
    """Whether all entries of all arrays are finite: bool []."""
    flags = [jnp.all(jnp.isfinite(leaf)) for leaf in leaves]
    return barrier(jnp.all(stack_scalars(flags, jnp.bool_)))


def norm_and_finite(leaves: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The norm of all arrays, at any scale that float32 has, float32 []; and `all_finite`."""
    square = squared_norm(leaves)

    def usual() -> tuple[jax.Array, jax.Array]:
        return root(square), jnp.isfinite(square)

    def rescaled() -> tuple[jax.Array, jax.Array]:
        unit = jnp.where(square > 1, 1 / HUGE, HUGE)
        again = squared_norm([scaled(unit, leaf) for leaf in leaves])
        # The squares of wider numbers may be infinite even so.
        wide = [leaf for leaf in leaves if jnp.finfo(leaf.dtype).bits > 32]
        return root(again) / unit, all_finite(leaves) if wide else jnp.isfinite(again)

    # Squares of finite numbers may be infinite, or 0; only then another pass is needed.
    measured = jnp.isfinite(square) & (square > SMALLEST_SQUARE)
    return barrier(jax.lax.cond(measured, usual, rescaled)) if leaves else usual()
