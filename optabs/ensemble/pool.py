"""Mean, variance and entropy over all entries of a batch's arrays."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

LARGEST = 1e12
COUNTED = 4096
REAL_BINS = 32
NAME_BINS = 128


class Pool(NamedTuple):
    """Statistics of all entries: float32 [] each, finite for any batch."""

    entries: jax.Array
    mean: jax.Array
    variance: jax.Array
    entropy: jax.Array  # nats


def pool(batch: Any) -> Pool | None:
    """The statistics of a batch, or None where it has no entry.

    Real entries count as themselves within ±LARGEST, and not at all where they are not
    finite. Integers and bools count as the share of their own value, modulo NAME_BINS,
    among the batch's integers.
    """
    arrays = [jnp.asarray(leaf) for leaf in arrays_of(batch)]
    arrays = [jnp.abs(x) if jnp.iscomplexobj(x) else x for x in arrays if x.size]
    real = [x for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)]
    names = [x for x in arrays if not jnp.issubdtype(x.dtype, jnp.floating)]
    pools = [of(kind) for of, kind in ((_of_reals, real), (_of_names, names)) if kind]
    return functools.reduce(_together, pools) if pools else None


def arrays_of(batch: Any) -> list[Any]:
    """The leaves of a batch that are numbers or arrays of numbers."""
    return [leaf for leaf in jax.tree.leaves(batch) if _is_numeric(leaf)]


def _is_numeric(leaf: Any) -> bool:
    if isinstance(leaf, str):  # which may be the name of a dtype
        return False
    try:
        dtype = jnp.result_type(leaf)
    except TypeError:
        return False
    return jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_


def _together(one: Pool, other: Pool) -> Pool:
    entries = one.entries + other.entries
    share = other.entries / jnp.maximum(entries, 1)

    def between(a: jax.Array, b: jax.Array) -> jax.Array:
        return a + share * (b - a)

    mean = between(one.mean, other.mean)
    apart = share * (1 - share) * jnp.square(other.mean - one.mean)
    variance = between(one.variance, other.variance) + apart
    return Pool(entries, mean, variance, between(one.entropy, other.entropy))


def _of_reals(arrays: Sequence[jax.Array]) -> Pool:
    finite = [jnp.isfinite(x) for x in arrays]
    values = [
        jnp.where(ok, jnp.clip(x.astype(jnp.float32), -LARGEST, LARGEST), 0)
        for x, ok in zip(arrays, finite, strict=True)
    ]
    entries = _total(finite)
    mean = _total(values) / jnp.maximum(entries, 1)
    squares = [
        jnp.where(ok, jnp.square(x - mean), 0) for x, ok in zip(values, finite, strict=True)
    ]
    variance = _total(squares) / jnp.maximum(entries, 1)
    # The bins cover four standard deviations on either side; the outer ones hold the tails.
    scale = REAL_BINS / 8 / jnp.sqrt(variance + 1e-30)

    def bins(x: jax.Array, ok: jax.Array) -> jax.Array:
        place = jnp.floor((_thin(x) - mean) * scale) + REAL_BINS // 2
        return jnp.where(_thin(ok), jnp.clip(place, 0, REAL_BINS - 1), -1)

    counted = [bins(x, ok) for x, ok in zip(values, finite, strict=True)]
    return Pool(entries, mean, variance, _entropy(_shares(counted, REAL_BINS)))


def _of_names(arrays: Sequence[jax.Array]) -> Pool:
    entries = jnp.asarray(float(sum(x.size for x in arrays)), jnp.float32)
    shares = _shares([_thin(x).astype(jnp.int32) % NAME_BINS for x in arrays], NAME_BINS)
    # A bin's share p is met by a share p of the entries.
    mean = jnp.sum(jnp.square(shares))
    variance = jnp.sum(shares * jnp.square(shares - mean))
    return Pool(entries, mean, variance, _entropy(shares))


def _total(terms: Sequence[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, [jnp.sum(term, dtype=jnp.float32) for term in terms])


def _shares(bins: Sequence[jax.Array], number: int) -> jax.Array:
    """How often each bin occurs: float32 [number], with a sum of 1 (or 0)."""
    counts = functools.reduce(
        jnp.add,
        [
            jnp.sum(
                x[..., None] == _numbered(number, x),
                axis=tuple(range(x.ndim)),
                dtype=jnp.float32,
            )
            for x in bins
        ],
    )
    return counts / jnp.maximum(jnp.sum(counts), 1)


def _numbered(number: int, like: jax.Array) -> jax.Array:
    return jnp.arange(number, dtype=like.dtype).reshape([1] * like.ndim + [number])


def _entropy(shares: jax.Array) -> jax.Array:
    return -jnp.sum(shares * jnp.log(jnp.where(shares > 0, shares, 1)))


def _thin(array: jax.Array) -> jax.Array:
    """About COUNTED entries, evenly spaced; the first axis stays, for it may be sharded."""
    spec = jax.typeof(array).sharding.spec
    for axis in sorted(range(1, array.ndim), key=lambda axis: -array.shape[axis]):
        stride = min(array.size // COUNTED, array.shape[axis])
        if stride > 1 and (axis >= len(spec) or spec[axis] is None):
            array = jax.lax.slice_in_dim(array, 0, array.shape[axis], stride, axis)
    return array
