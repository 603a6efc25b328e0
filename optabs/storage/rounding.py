"""Rounding to 16 bits, and random bits for it, from counters alone."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optabs._numerics import (
    GOLDEN,
    INFINITY,
    bits_of_upper_half,
    explicit_sharding,
    hash_uint32,
    leading_sharding,
)

_BFLOAT16_MAX = 0x7F7F0000

_ROOT = 0x6A09E667  # 2**32 times the fraction of the root of 2: likewise
_PERIOD = 10  # log2 of the steps after which the entries are hashed anew


class Salt(NamedTuple):
    """What the bits of a parameter's moments depend on in one step."""

    seed: jax.Array  # uint32 []: hashed with an entry's index
    offset: jax.Array  # uint32 []: added to all entries' hashes
    cache: dict[Any, jax.Array] | None = None  # bits by shape and sharding, of one update


def uniform(like: jax.Array, salt: Salt) -> jax.Array:
    """Numbers from [0, 1), one for each entry of an array: float32, like it."""
    # A signed number becomes a float in one operation.
    upper = (bits(like, salt) >> 8).astype(jnp.int32)
    return upper.astype(jnp.float32) * jnp.float32(2**-24)


def bits(like: jax.Array, salt: Salt) -> jax.Array:
    """32 bits for each entry of an array: uint32, like it. The upper ones are the best.

    A hash for each row, and along the last axis a sequence of its own. No generator is
    carried along: an entry's bits depend on its index and the salt alone, so it is the same
    under any sharding, and making it sends nothing.
    """
    if not like.ndim:
        return hash_uint32(salt.seed) + salt.offset
    if salt.cache is None:
        return _bits(like, salt)
    key = (like.shape, explicit_sharding(like))
    if key not in salt.cache:
        salt.cache[key] = _bits(like, salt)
    return salt.cache[key]


def _bits(like: jax.Array, salt: Salt) -> jax.Array:
    sharding = explicit_sharding(like)
    rows, of_rows = (*like.shape[:-1], 1), leading_sharding(like, like.ndim - 1)
    index, stride = jnp.uint32(0), 1
    for axis in reversed(range(like.ndim - 1)):
        along = jax.lax.broadcasted_iota(jnp.uint32, rows, axis, out_sharding=of_rows)
        index = index + along * jnp.uint32(stride)
        stride = stride * like.shape[axis] % 2**32
    first = hash_uint32(index ^ salt.seed) + salt.offset
    last = like.ndim - 1
    along = jax.lax.broadcasted_iota(jnp.uint32, like.shape, last, out_sharding=sharding)
    return first + along * jnp.uint32(_ROOT)


def salted(counter: jax.Array, parameter: int) -> Salt:
    """The salt of a step and a parameter, the same for all of the parameter's moments.

    An entry's bits of successive steps are a golden-ratio sequence, so that the rounding
    errors of a slow average cancel, and an entry's moments are rounded up or down together,
    so that their ratio keeps more digits than each of them.

    Args:
      counter: uint32 [], of the step.
      parameter: which one it is.
    """
    period = (counter >> _PERIOD) * jnp.uint32(GOLDEN)
    both = hash_uint32(np.array([parameter, parameter + 2**31], np.uint32))
    # XLA computes a sum once and hands it to the kernels of a leaf, which are then those of
    # all leaves of that shape, and are compiled once.
    seed = jnp.sum(hash_uint32(period ^ both), dtype=jnp.uint32)
    return Salt(seed, counter * jnp.uint32(GOLDEN))


def to_bfloat16(value: jax.Array, salt: Salt | None) -> jax.Array:
    """One of the two numbers of bfloat16 beside each float32; without a salt the nearest."""
    # The probability of a carry is the share that the dropped bits have of a step.
    added = jnp.uint32(0x8000) if salt is None else bits(value, salt) >> 16
    up = bits_of_upper_half(value, added)
    sign, size = up & jnp.uint32(0x80000000), up & jnp.uint32(0x7FFFFFFF)
    finite = sign | jnp.minimum(size, jnp.uint32(_BFLOAT16_MAX))
    word = jax.lax.bitcast_convert_type(value, jnp.uint32)
    # A NaN gets the bit that keeps its upper half one.
    is_nan = (word & jnp.uint32(0x7FFFFFFF)) > INFINITY
    quiet = jnp.where(is_nan, word | jnp.uint32(0x00400000), word)
    chosen = jnp.where((word & jnp.uint32(INFINITY)) == INFINITY, quiet, finite)
    # A cast is exact here, and XLA:TPU copies what a bitcast from 16 bits makes.
    kept = chosen & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(kept, jnp.float32).astype(jnp.bfloat16)
