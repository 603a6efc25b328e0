"""The arithmetic that all running statistics share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def toward(average: jax.Array, value: jax.Array, decay: ArrayLike) -> jax.Array:
    """decay * average + (1 - decay) * value, in the average's dtype."""
    decay = _decay(decay, average)
    return decay * average + (1 - decay) * value.astype(average.dtype)


def rise(size: jax.Array, value: jax.Array, decay: ArrayLike, count: jax.Array) -> jax.Array:
    """The bias-corrected average of values, but for the values below it."""
    decay = _decay(decay, size)
    weight = (1 - decay) / _one_minus_power(decay, count)
    return size + weight * jnp.maximum(value - size, 0)


def debias(average: jax.Array, decay: ArrayLike, count: jax.Array) -> jax.Array:
    """average / (1 - decay**count), for count >= 1."""
    return average / _one_minus_power(_decay(decay, average), count)


def _one_minus_power(decay: jax.Array, count: jax.Array) -> jax.Array:
    # 1 - decay**count cancels in float32 (decay near 1, small count); the other form of the
    # same number keeps all digits, and has an infinite logarithm at a decay of 0.
    near_one = -jnp.expm1(count * jnp.log1p(jnp.maximum(decay, 0.25) - 1))
    return jnp.where(decay < 0.5, 1 - decay**count, near_one)


def _decay(decay: ArrayLike, like: jax.Array) -> jax.Array:
    """The decay in the leaf's real dtype; raises where that makes it 1, if it can be read."""
    dtype = jnp.finfo(like.dtype).dtype
    if isinstance(decay, float | np.floating) and np.asarray(decay, dtype) >= 1:
        raise ValueError(
            f"decay is {float(decay)!r}, which is 1 in {dtype}; pass a smaller one."
        )
    return rounded(decay, like)


def rounded(number: ArrayLike, like: jax.Array) -> jax.Array:
    """A hyperparameter in the leaf's real dtype.

    Once, so that of a decay 1 - b and 1 - b**t agree; and never wider than the leaf, which a
    float64 number would widen.
    """
    return jnp.asarray(number, jnp.finfo(like.dtype).dtype)


def square(x: jax.Array) -> jax.Array:
    return jnp.real(x * jnp.conj(x))


def saturate(size: jax.Array) -> jax.Array:
    """A finite gradient may overflow when squared or summed; state stays finite."""
    # XLA repeats a minimum with a constant for every reader, which costs a copy of the
    # state; a select is computed once.
    largest = jnp.finfo(size.dtype).max
    return jnp.where(size > largest, largest, size)


def arrays(tree: Any) -> Any:
    """The tree with arrays for its Python numbers; what has a shape and dtype stays."""
    return jax.tree.map(
        lambda leaf: leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf), tree
    )


def real_zeros_like(param: Any) -> jax.Array:
    return jnp.zeros_like(param, dtype=jnp.finfo(param.dtype).dtype)


def new_count() -> jax.Array:
    return jnp.zeros([], jnp.int32)
