"""Random bits for rounding, from counters alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from optabs._sharding import explicit_sharding

_GOLDEN = 0x9E3779B9  # odd, so that every counter has a place of its own


class Salt(NamedTuple):
    """What the bits of a leaf depend on in one step."""

    word: jax.Array  # uint32 []


def uniform(like: jax.Array, salt: Salt) -> jax.Array:
    """Numbers from [0, 1), one for each entry of an array: float32, like it.

    No generator is carried along: a number depends on its entry's index and the salt alone,
    so it is the same under any sharding, and making it sends nothing.
    """
    return (bits(like, salt) >> 8).astype(jnp.float32) * jnp.float32(2**-24)


def bits(like: jax.Array, salt: Salt) -> jax.Array:
    """32 bits for each entry of an array: uint32, like it."""
    sharding = explicit_sharding(like)
    index, stride = jnp.uint32(0), 1
    for axis in reversed(range(like.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, like.shape, axis, out_sharding=sharding)
        index = index + along * jnp.uint32(stride)
        stride = stride * like.shape[axis] % 2**32
    return mixed(index ^ salt.word)


def salted(counter: jax.Array, index: int) -> Salt:
    """The salt of a step and a leaf."""
    return Salt(mixed(counter * jnp.uint32(_GOLDEN) + mixed(jnp.uint32(index))))


def mixed(word: jax.Array) -> jax.Array:
    """A bijection of uint32 after which every bit depends on every bit.

    Source: C. Wellons's "lowbias32", found by search for the least bias.
    """
    word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
    return word ^ (word >> 16)
