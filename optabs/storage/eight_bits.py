r"""Numbers in 8 bits: floating-point ones, as fine as the range of their row allows.

The bits of a positive float32, read as a whole number b, rise with it, and are
linear in it within an octave: to round b to a multiple of :math:`2^s` is to round the number
to one of :math:`2^k`, k = 23 - s, equal steps an octave. A row has a least number, whose bits
:math:`b_0` are those of a power of two, and a k,

.. math:: c = \lfloor (b + r) / 2^s \rfloor - b_0 / 2^s + \text{first}

with a random r below :math:`2^s`; code 0 is the number 0. Both are known before the step: the
codes of the step before choose them, with room at both ends, so no number waits for others.
The grids of all k are nested, so a row whose range changes does not round its numbers anew.
What outgrows its range becomes a whole number of octaves above it: a size the next larger, a
signed number the next smaller one. Below the range a size becomes the least number; a signed
one is read as 0, but has a code of its own, by which the range follows. So no encoding makes a
numerator over a denominator much larger.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optabs._numerics import INFINITY, leading_sharding

_NAN = 0x7FC00000
_FRACTION = 23
_OCTAVE = 1 << _FRACTION
# A row's range, from its lowest bit on: k, the octave of b_0, how many octaves its largest
# number of late is below the top, and whether no step has seen the row.
_K_BITS, _OCTAVE_BITS, _SPARE_BITS = 3, 8, 4
_SPARE_AT = _K_BITS + _OCTAVE_BITS
FIRST = 1 << (_SPARE_AT + _SPARE_BITS)
_NEW_K = 1  # where nothing is known of a row
_ROOM_BELOW, _ROOM_ABOVE = 2, 1  # octaves: what a row may fall and rise in a step
_HALVES = np.array([0x00FF, 0xFF00], np.uint16)
_FALLS = 8  # log2 of the steps in which what a row remembers of its largest falls an octave


class Rows(NamedTuple):
    """How the last axes of an array are divided into rows, each of which has a range."""

    shards: int = 1  # of the last axis: each on a device of its own
    axes: int = 1  # the last axes that make up a row; with several shards one


def rows_of(ranges: jax.Array) -> Rows:
    """Those of an array that has such ranges: one entry along each of a row's axes."""
    shards, axes = ranges.shape[-1], 1
    while shards == 1 and axes < ranges.ndim and ranges.shape[-1 - axes] == 1:
        axes += 1
    return Rows(shards, axes)


class Form(NamedTuple):
    """The codes of 8 bits of one kind of field.

    0 is the number 0, from `first` on `exact` steps lead to the top of the range, and up to
    `last` there are octaves above it; then come infinity and NaN.
    """

    sizes: bool  # nothing below 0, and no number above 0 has the code 0
    first: int
    exact: int
    last: int
    coarsest: int  # the least k of a row that is known
    finest: int
    digits: int  # binary ones, of the octaves above the range, after the first
    new: int  # the octave in which a row begins of which nothing is known, as in a float32

    def span(self, k: int) -> int:
        """The bits from the least number to the top."""
        return self.exact << (_FRACTION - k)

    @property
    def new_range(self) -> int:
        """That of a row of which nothing is known."""
        return (self.new << _K_BITS) + _NEW_K


# A new row reaches from 2^-40 to 2^18, and from 2^-80 to 2^33.5.
MEANS = Form(False, 2, 116, 126, coarsest=2, finest=4, digits=0, new=127 - 40)
SIZES = Form(True, 1, 227, 253, coarsest=3, finest=5, digits=2, new=127 - 80)


def divided(array: jax.Array, shards: int) -> jax.Array:
    """[..., n] -> [..., shards, n / shards], without sending anything; one shard as it is."""
    # A shape of its own would keep XLA:CPU from fusing what reads it.
    if shards == 1:
        return array
    shape = (*array.shape[:-1], shards, array.shape[-1] // shards)
    return jax.lax.reshape(array, shape, out_sharding=leading_sharding(array, array.ndim))


def whole(parts: jax.Array, shards: int) -> jax.Array:
    """The array of such rows."""
    if shards == 1:
        return parts
    shape = (*parts.shape[:-2], parts.shape[-2] * parts.shape[-1])
    return jax.lax.reshape(parts, shape, out_sharding=leading_sharding(parts, parts.ndim - 1))


def of_rows(ranges: jax.Array) -> jax.Array:
    """[..., shards] -> one for each row."""
    return ranges if ranges.shape[-1] == 1 else ranges[..., None]


def _sizes_in_bits(form: Form, parts: jax.Array) -> jax.Array:
    """The bits of the absolute numbers, int32; there is no size below 0."""
    size = jax.lax.bitcast_convert_type(parts, jnp.int32) & 0x7FFFFFFF
    return jnp.where(parts < 0, _NAN, size) if form.sizes else size


def encoded(
    form: Form, parts: jax.Array, ranges: jax.Array, drawn: jax.Array | None
) -> jax.Array:
    """Codes of float32 rows in their ranges, uint16, 1 along a row's axes: uint8 or int8.

    `drawn` are uint32 like the rows; None rounds to nearest.
    """
    size = _sizes_in_bits(form, parts)
    base, step = _read(ranges, parts.shape)
    share = jnp.full_like(size, 1 << 30) if drawn is None else (drawn >> 1).astype(jnp.int32)
    # The largest number is not rounded up to infinity.
    rounded = jnp.minimum(size + (share >> (31 - step)), INFINITY - 1)
    beyond = size - base - (form.exact << step)
    steps = (rounded - base) >> step
    code = form.first + jnp.where(beyond > 0, form.exact + _number(form, beyond), steps)
    code = jnp.where(size < base, (size != 0).astype(jnp.int32), code)
    code = jnp.where(size == INFINITY, form.last + 1, code)
    if form.sizes:
        return jnp.where(size > INFINITY, form.last + 2, code).astype(jnp.uint8)
    code = jnp.where(jax.lax.bitcast_convert_type(parts, jnp.int32) < 0, -code, code)
    return jnp.where(size > INFINITY, -128, code).astype(jnp.int8)


def decoded(form: Form, codes: jax.Array, ranges: jax.Array) -> jax.Array:
    """The numbers of codes: float32, like them."""
    code = codes.astype(jnp.int32)
    size = jnp.abs(code)
    word = _words(form, size, *_read(ranges, codes.shape))
    word = jnp.where(size < form.first, 0, word)
    special = jnp.where(size == form.last + 1, INFINITY, _NAN)
    word = jnp.where(size > form.last, special, word)
    value = jax.lax.bitcast_convert_type(word, jnp.float32)
    return value if form.sizes else jnp.where(code < 0, -value, value)


def _read(ranges: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The bits of the least number, and s: int32 of that shape each."""
    kept = jnp.broadcast_to(ranges, shape).astype(jnp.int32)
    octave, k = _field(kept, _K_BITS, _OCTAVE_BITS), _field(kept, 0, _K_BITS)
    return octave << _FRACTION, _FRACTION - k


def _field(kept: jax.Array, at: int, bits: int) -> jax.Array:
    return (kept >> at) & ((1 << bits) - 1)


def _words(form: Form, code: jax.Array, base: jax.Array, step: jax.Array) -> jax.Array:
    """The bits of finite numbers by their codes, from `first` on: int32."""
    steps = code - form.first
    octaves = jnp.where(steps > form.exact, _octaves(form, steps - form.exact), 0)
    above = (jnp.minimum(steps, form.exact) << step).astype(jnp.uint32)
    above = above + (octaves.astype(jnp.uint32) << _FRACTION)
    least = jnp.minimum(above, (INFINITY - 1 - base).astype(jnp.uint32))
    return base + least.astype(jnp.int32)


# Octaves above a range are numbered as floating-point numbers of few digits, d, are: for sizes
# 1, 2, 3, 4, 5, 7, 9, 11, 13, 17, ...; for means 1, 2, 4, 8, ....
def _octaves(form: Form, number: jax.Array) -> jax.Array:
    """The octaves above a range by their number from 1 on: int32."""
    d = form.digits
    word = (number - 1 + ((127 + d) << d)) << (_FRACTION - d)
    whole = jax.lax.bitcast_convert_type(word, jnp.float32).astype(jnp.int32)
    return whole - ((1 << d) - 1)


def _number(form: Form, beyond: jax.Array) -> jax.Array:
    """The number of the octaves that so many bits are above a range: int32.

    For sizes of those that are no less, for means of those that are no more: perhaps 0.
    """
    d, up = form.digits, int(form.sizes)
    octaves = (beyond + up * (_OCTAVE - 1)) >> _FRACTION
    whole = (octaves + ((1 << d) - 1)).astype(jnp.float32)
    word = jax.lax.bitcast_convert_type(whole, jnp.int32)
    shift = _FRACTION - d
    number = ((word + up * ((1 << shift) - 1)) >> shift) - ((127 + d) << d) + 1
    return jnp.maximum(number, 0)


def next_ranges(
    form: Form, codes: jax.Array, ranges: jax.Array, counter: jax.Array
) -> jax.Array:
    """The ranges of a step, uint16, from the codes of the one before it."""
    # In bytes, which the passes over them cost.
    size = codes if form.sizes else jnp.abs(codes).astype(jnp.uint8)  # -128 becomes 128
    last = jnp.uint8(form.last)
    axes = _last(rows_of(ranges).axes)
    largest = jnp.max(jnp.where(size > last, 0, size), axes, keepdims=True)
    least = jnp.min(jnp.where(size == 0, last, size), axes, keepdims=True)
    largest, least = largest.astype(jnp.int32), least.astype(jnp.int32)
    base, step = _read(ranges, ranges.shape)
    high, low = (
        _words(form, jnp.maximum(code, form.first), base, step)
        for code in (largest, jnp.minimum(least, form.last))
    )
    # A row that sleeps and wakes finds its range where it was: what a number outgrows it by is
    # lost to a mean. A row of which nothing was known has nothing to remember.
    spare = _field(ranges.astype(jnp.int32), _SPARE_AT, _SPARE_BITS)
    fallen = (counter & ((1 << _FALLS) - 1) == 0).astype(jnp.int32)
    k = _FRACTION - step
    late = (base >> _FRACTION) + (form.exact >> k) - spare - fallen
    late = jnp.where(k == _NEW_K, 0, late)
    found = _fitting(form, high, low, late, _ROOM_BELOW, _ROOM_ABOVE)
    if not form.sizes:
        # Where all that is there is below the range, another one begins below it.
        lower = (base - form.span(form.coarsest)) >> _FRACTION
        lower = _range(jnp.maximum(lower, 1), form.coarsest, (1 << _SPARE_BITS) - 1)
        found = jnp.where(largest < form.first, lower, found)
    # What an optimizer begins with tells nothing of the sizes to come.
    unknown = (largest == 0) | (ranges >= FIRST)
    chosen = jnp.where(unknown, form.new_range, found).astype(jnp.uint16)
    # XLA:CPU would repeat all this for every entry of the row; a sum it computes once.
    halves = _HALVES.reshape((1,) * (chosen.ndim - 1) + (2,))
    return jnp.sum(chosen & halves, -1, keepdims=True, dtype=jnp.uint16)


def new_ranges(form: Form, parts: jax.Array, axes: int) -> jax.Array:
    """The ranges of given numbers, in rows of so many axes: uint16."""
    size = _sizes_in_bits(form, parts)
    high = jnp.max(jnp.where(size >= INFINITY, 0, size), _last(axes), keepdims=True)
    low = jnp.min(jnp.where(size == 0, INFINITY, size), _last(axes), keepdims=True)
    found = _fitting(form, high, jnp.minimum(low, high), jnp.zeros_like(high), 0, 0)
    return jnp.where(high == 0, form.new_range, found).astype(jnp.uint16)


def _last(axes: int) -> tuple[int, ...]:
    return tuple(range(-axes, 0))


def _fitting(
    form: Form, high: jax.Array, low: jax.Array, late: jax.Array, below: int, above: int
) -> jax.Array:
    """The finest range for numbers, by their bits, with so many octaves to spare: int32.

    `late` is the octave of the largest number of late. Where even the coarsest steps are too
    many, the range has the largest numbers: signed ones of late, which tell what a mean will
    be when its row wakes, but sizes as they are, which must not be too large.
    """
    late = jnp.maximum(high >> _FRACTION, late)
    top = jnp.maximum(high, late << _FRACTION) + above * _OCTAVE
    must = high + above * _OCTAVE if form.sizes else top
    least = ((must - form.span(form.coarsest) - 1) >> _FRACTION) + 1
    octave = jnp.maximum(jnp.maximum((low >> _FRACTION) - below, 1), least)
    k = jnp.full_like(high, form.coarsest)
    for finer in range(form.coarsest + 1, form.finest + 1):
        k = jnp.where(top - (octave << _FRACTION) <= form.span(finer), finer, k)
    spare = octave + (form.exact >> k) - late
    return _range(octave, k, jnp.clip(spare, 0, (1 << _SPARE_BITS) - 1))


def _range(octave: jax.Array, k: Any, spare: Any) -> jax.Array:
    """As it is kept: int32."""
    return (spare << _SPARE_AT) + (octave << _K_BITS) + k
