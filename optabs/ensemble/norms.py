"""Norms of trees, and whether all their entries are finite."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optabs.ensemble.scalars import barrier, stacked

# Below it, squares that have become 0 would be missed in a sum of squares.
SMALLEST_SQUARE = 1e-22
# A power of two, which rounds nothing.
HUGE = 2.0**80


def squared_norms(leaves: list[jax.Array]) -> jax.Array:
    """The sum of the squares of each array: float32 [L]."""
    sums = [jnp.sum(jnp.real(x * jnp.conj(x))).astype(jnp.float32) for x in leaves]
    return stacked(sums, jnp.float32)


def squared_norm(leaves: list[jax.Array]) -> jax.Array:
    """The sum of all squares: float32 []."""
    return barrier(jnp.sum(squared_norms(leaves)))


def root(square: jax.Array) -> jax.Array:
    """The norm of that square, with a finite slope at 0: float32, like it."""
    return jnp.sqrt(jnp.maximum(square, 1e-30))


def scaled(factor: ArrayLike, leaf: jax.Array) -> jax.Array:
    """A leaf times a real number, in the leaf's dtype."""
    return leaf * jnp.asarray(factor).astype(leaf.real.dtype)


def finite(leaves: list[jax.Array]) -> jax.Array:
    """Whether all entries of all arrays are finite: bool []."""
    flags = [jnp.all(jnp.isfinite(leaf)) for leaf in leaves]
    return barrier(jnp.all(stacked(flags, jnp.bool_)))


def norm_and_finite(leaves: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The norm of all arrays, at any scale that float32 has, float32 []; and `finite`."""
    square = squared_norm(leaves)

    def usual() -> tuple[jax.Array, jax.Array]:
        return root(square), jnp.isfinite(square)

    def rescaled() -> tuple[jax.Array, jax.Array]:
        unit = jnp.where(square > 1, 1 / HUGE, HUGE)
        again = squared_norm([scaled(unit, leaf) for leaf in leaves])
        # The squares of wider numbers may be infinite even so.
        wide = [leaf for leaf in leaves if jnp.finfo(leaf.dtype).bits > 32]
        return root(again) / unit, finite(leaves) if wide else jnp.isfinite(again)

    # Squares of finite numbers may be infinite, or 0; only then another pass is needed.
    measured = jnp.isfinite(square) & (square > SMALLEST_SQUARE)
    return barrier(jax.lax.cond(measured, usual, rescaled)) if leaves else usual()
