"""What a loss is given: predictions, targets and labels, checked and of one dtype."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jax.typing import ArrayLike

from optabs._numerics import widen


def over_classes(
    name: str,
    scores: ArrayLike,
    label_name: str,
    labels: ArrayLike,
    of_classes: Callable[[jax.Array, jax.Array], jax.Array],
    of_rows: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """A loss over the last axis, of class indices or of rows: the labels' shape decides."""
    values = _last_axis(name, floating(name, scores), "classes", 2)
    given = _real(label_name, labels)
    shape, number = values.shape, values.shape[-1]
    if given.shape == shape:
        return of_rows(values, jnp.asarray(given, values.dtype))
    if given.shape != shape[:-1]:
        raise ValueError(
            f"{label_name} have shape {given.shape} where {name} have {shape}; pass class "
            f"indices of shape {shape[:-1]} or rows of shape {shape}."
        )
    if not jnp.issubdtype(given.dtype, jnp.integer):
        raise ValueError(
            f"{label_name} are {given.dtype} in the shape of class indices, {given.shape}; "
            f"pass integers, or rows of shape {shape}."
        )
    # A class index beyond the labels' dtype would overflow in the comparison.
    last = min(number - 1, int(jnp.iinfo(given.dtype).max))
    valid = in_range(label_name, given, last, f"class indices from 0 to {number - 1}")
    classes = jnp.clip(jnp.asarray(given), 0, last).astype(jnp.int32)
    return of_classes(nan_where_invalid(values, valid), classes)


def in_range(
    name: str, labels: np.ndarray | jax.Array, last: int, wanted: str
) -> jax.Array | None:
    """Which traced labels are in [0, last]; None where all are, or ValueError, in NumPy."""
    message = f"{name} hold {{bad}}; pass {wanted}."
    if isinstance(labels, np.ndarray):
        wrong = labels[~((labels >= 0) & (labels <= last))]
        if wrong.size:
            raise ValueError(message.format(bad=wrong[0]))
        return None
    valid = (labels >= 0) & (labels <= last)
    # Reductions only: a mesh with explicit axes refuses to index a sharded array.
    low, high = jnp.min(labels, initial=0), jnp.max(labels, initial=0)
    checkify.debug_check(jnp.all(valid), message, bad=jnp.where(low < 0, low, high))
    return valid


def nan_where_invalid(scores: jax.Array, valid: jax.Array | None) -> jax.Array:
    """NaN for the scores of a label out of range, in value and in gradient."""
    if valid is None:
        return scores
    # A where would give them a gradient of 0, and the mistake would go unnoticed.
    factor = jnp.where(valid, 1.0, jnp.nan).astype(scores.dtype)
    return scores * jnp.expand_dims(factor, range(valid.ndim, scores.ndim))


def one_hot(classes: jax.Array, scores: jax.Array) -> jax.Array:
    return jax.nn.one_hot(classes, scores.shape[-1], dtype=bool)


def weighted_cost(costs: jax.Array, shares: jax.Array, ruled_out: jax.Array) -> jax.Array:
    """shares * costs; what is ruled out may cost infinity, and nothing at a share of 0."""
    # The difference of two finite scores may be infinite, too.
    nothing = (shares == 0) & (ruled_out | jnp.isinf(costs))
    return shares * jnp.where(nothing, 0.0, costs)


def vectors(predictions: ArrayLike, targets: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Both as arrays [..., d_y] of the dtype that the predictions decide."""
    values = floating("predictions", predictions)
    values = _last_axis("predictions", values, "entries", 1)
    targets = same_shape("predictions", values, "targets", targets)
    return values, jnp.asarray(targets, values.dtype)


def floating(name: str, value: ArrayLike) -> jax.Array:
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} are {array.dtype}; pass floating-point numbers.")
    return widen(array)


def _last_axis(name: str, array: jax.Array, what: str, least: int) -> jax.Array:
    if array.ndim == 0:
        raise ValueError(f"{name} are a scalar; pass a last axis of {what}.")
    if array.shape[-1] < least:
        raise ValueError(
            f"{name} have shape {array.shape}; pass a last axis of {least} or more {what}."
        )
    return array


def same_shape(
    name: str, array: jax.Array, other_name: str, other: ArrayLike
) -> np.ndarray | jax.Array:
    others = _real(other_name, other)
    if others.shape != array.shape:
        raise ValueError(
            f"{other_name} have shape {others.shape} where {name} have {array.shape}; pass "
            "the same shape for both."
        )
    return others


def _real(name: str, value: ArrayLike) -> np.ndarray | jax.Array:
    """Integers or floating-point numbers, left in NumPy where they can be read here."""
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    kinds = (jnp.integer, jnp.floating)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
        raise ValueError(f"{name} are {array.dtype}; pass integers or floating-point numbers.")
    return array
