"""From the codes of 8 bits to shares of a block's largest entry, and back."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

_ONE = 2032  # the upper 13 bits of 1.0
_SHIFT = 19  # leaves a float32's exponent and 4 bits of its fraction


class Map(NamedTuple):
    """An increasing function of the codes 0 to `last`, the last of which is 1."""

    last: int
    share: Callable[[jax.Array], jax.Array]  # float32 code -> share in [0, 1]
    code: Callable[[jax.Array], jax.Array]  # share -> its real-valued code, at most one off


def power(exponent: int, *, zero: bool, last: int) -> Map:
    """Equal steps in a root of the share: 1, 2 or 4; with or without a code for 0."""
    first = 0 if zero else 1
    steps = last + first

    def share(code: jax.Array) -> jax.Array:
        root = (code + first) * jnp.float32(1 / steps)
        return root**exponent

    def code(share: jax.Array) -> jax.Array:
        root = share
        for _ in range(exponent.bit_length() - 1):
            root = jnp.sqrt(root)
        return root * steps - first

    return Map(last, share, code)


def floating(*, zero: bool, last: int) -> Map:
    """Sixteen equal steps in each octave, as floating-point numbers have them."""
    first = _ONE - last

    def share(code: jax.Array) -> jax.Array:
        bits = (code.astype(jnp.int32) + first) << _SHIFT
        value = jax.lax.bitcast_convert_type(bits, jnp.float32)
        return jnp.where(code < 1, 0.0, value) if zero else value

    def code(share: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(share, jnp.int32)
        return jnp.maximum((bits >> _SHIFT) - first, 0).astype(jnp.float32)

    return Map(last, share, code)
