r"""Floating-point codes of 8 bits, as fine as the range of their block allows.

The bits of a positive float32, read as a whole number b, rise with it, and are linear in it
within an octave: to round b to a multiple of :math:`2^s` is to round the number to one of
:math:`2^k`, k = 23 - s, equal steps an octave. A block has the largest k of four for which
there are codes enough from its least number to its largest,

.. math:: c = \lfloor (b + r) / 2^s \rfloor - m + 1, \qquad
          m = \lfloor b_{\min} / 2^s \rfloor

with a random r below :math:`2^s`; code 0 is the number 0. The grids of all k are nested, so a
block whose range changes does not round its numbers anew.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from optabs.storage.blocks import reduce_by_halves

from optabs.storage.rounding import Salt, bits

_INFINITY, _NAN = 0x7F800000, 0x7FC00000
_SMALLEST = 0x00800000  # the least normal number
_FRACTION = 23
_CHOICES = 4  # of k
_LOW_BITS = 17  # the lower bits of b, which are 0 in every grid
_LARGEST = _INFINITY - 2**_LOW_BITS  # on the grids
_K_SHIFT = 14  # of k in the 16 bits of a block's range


class Form(NamedTuple):
    """The codes of one kind of field."""

    sizes: bool  # nothing below 0, and no number above 0 has the code 0
    finest: int  # the largest k
    last: int  # the largest code
    reach: int  # the codes in use where even the coarsest grid is too fine for the block

    @property
    def coarsest(self) -> int:
        """The largest s."""
        return _FRACTION - self.finest + _CHOICES - 1


MEANS = Form(sizes=False, finest=5, last=127, reach=127)
# A denominator's reach is shorter than its numerator's, so that where a small numerator is
# raised to its least code, its denominator is raised further.
SIZES = Form(sizes=True, finest=6, last=255, reach=240)


def encode(form: Form, parts: jax.Array, salt: Salt | None) -> tuple[jax.Array, jax.Array]:
    """Codes and ranges of blocks.

    Args:
      form: of the field.
      parts: float32 [..., n, block].
      salt: of the rounding; None rounds to nearest.

    Returns:
      The codes, uint8 or int8 like `parts`, and uint16 [..., n, 1].
    """
    word = jax.lax.bitcast_convert_type(parts, jnp.int32)
    size = word & 0x7FFFFFFF
    # Any NaN becomes the one that stays a NaN after the rounding is added.
    size = jnp.where(size > _INFINITY, _NAN, size)
    if form.sizes:
        size = jnp.where(parts < 0, _NAN, size)
    ranges = _ranges(form, size)
    base, step = _read(form, ranges, parts.shape)
    # In a block that holds NaN or infinity code 1 is infinity, and those above it NaN.
    # Elsewhere the largest number is not rounded up to infinity.
    nonfinite = base >= _INFINITY
    limit = jnp.where(nonfinite, _NAN, _INFINITY - 1)
    lowest = jnp.where(nonfinite, 2, 0)

    if salt is None:
        share = jnp.full_like(size, 1 << 30)
    else:
        share = (bits(parts, salt) >> 1).astype(jnp.int32)
    rounded = size + (share >> (31 - step))
    code = ((jnp.minimum(rounded, limit) - base) >> (step & 31)) + 1
    if form.sizes:
        raised = size != 0
    else:
        # A number below the least one becomes that or 0, with its own mean.
        rest = 1 - share.astype(jnp.float32) * jnp.float32(2**-31)
        raised = jnp.abs(parts) > rest * jax.lax.bitcast_convert_type(base, jnp.float32)
    code = jnp.where(size < base, raised.astype(jnp.int32) + lowest, code)
    if form.sizes:
        return code.astype(jnp.uint8), ranges.astype(jnp.uint16)
    return jnp.where(word < 0, -code, code).astype(jnp.int8), ranges.astype(jnp.uint16)


def _ranges(form: Form, size: jax.Array) -> jax.Array:
    """The least number and the k of blocks, from the bits of their numbers: int32."""
    high = jnp.max(reduce_by_halves(jnp.maximum, size), axis=-1, keepdims=True)
    above_zero = jnp.where(size == 0, _INFINITY, size)
    low = jnp.min(reduce_by_halves(jnp.minimum, above_zero), axis=-1, keepdims=True)
    nonfinite = high >= _INFINITY
    high = jnp.minimum(high, _LARGEST)
    low = jnp.clip(low, _SMALLEST, jnp.maximum(high, _SMALLEST))

    # One column for each k, the coarsest first.
    finer = np.arange(_CHOICES, dtype=np.int32).reshape([1] * (size.ndim - 1) + [_CHOICES])
    step = form.coarsest - finer
    top, bottom = (high + ((1 << step) - 1)) >> step, low >> step
    fits = top - bottom < form.last
    bottom = jnp.where(fits, bottom, top - (form.reach - 1))
    base = jnp.where(nonfinite, _INFINITY >> _LOW_BITS, bottom << (step - _LOW_BITS))
    made = jnp.where(fits | (finer == 0), base + (finer << _K_SHIFT), 0)
    # XLA does not repeat a reduction for every entry that reads it.
    return jnp.max(made, axis=-1, keepdims=True)


def _read(
    form: Form, ranges: jax.Array, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """The bits of the least number, and s: int32 of that shape each."""
    kept = jnp.broadcast_to(ranges, shape).astype(jnp.int32)
    return (kept & ((1 << _K_SHIFT) - 1)) << _LOW_BITS, form.coarsest - (kept >> _K_SHIFT)


def decode(form: Form, codes: jax.Array, ranges: jax.Array) -> jax.Array:
    """The numbers of blocks: float32 [..., n, block].

    Args:
      form: of the field.
      codes: [..., n, block].
      ranges: uint16 [..., n, 1].
    """
    base, step = _read(form, ranges, codes.shape)
    code = codes.astype(jnp.int32)
    size = jnp.abs(code)
    word = jnp.where(size == 0, 0, base + ((size - 1) << step))
    value = jax.lax.bitcast_convert_type(word, jnp.float32)
    return value if form.sizes else jnp.where(code < 0, -value, value)
