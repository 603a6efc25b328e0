r"""How one array is kept in 16 or 8 bits, and read again.

**Eight bits.** The bits of a positive float32, read as a whole number b, rise with it, and are
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

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optabs._numerics import INFINITY, leading_sharding, widen
from optabs._tree import boxed, unboxed
from optabs.storage.rounding import FLOAT16_STEP, Salt, bits, to_bfloat16, to_float16

_NAN = 0x7FC00000
_FRACTION = 23
_OCTAVE = 1 << _FRACTION
_K_BITS = 3  # of k, the lower ones of a row's range; the upper ones are the octave of b_0
_NEW_K = 1  # where nothing is known of a row
_FIRST = 1 << 15  # in the range of a row that no step has seen
_ROOM_BELOW, _ROOM_ABOVE = 2, 1  # octaves: what a row may fall and rise in a step


class Values(NamedTuple):
    """Each entry by itself."""

    values: jax.Array  # of 16 bits, like the parameter

    def decoded_array(self) -> Any:
        """The array, in the box that the parts are in."""
        return decode(self)


class Floats(NamedTuple):
    """Each entry as a floating-point number, as fine as its row's range allows."""

    codes: jax.Array  # of 8 bits, like the parameter
    ranges: jax.Array  # uint16: of a row of each shard, its least octave and its k

    def decoded_array(self) -> Any:
        """The array, in the box that the parts are in."""
        return decode(self)


class Bfloat16(Values):
    """The upper 16 bits of each float32."""


class Float16(Values):
    """Signed numbers in float16."""


class Float16Size(Values):
    """Sizes in float16; above 0 they stay above 0."""


class Int8(Floats):
    """Signed numbers, in 4 to 16 steps an octave."""


class UInt8(Floats):
    """Sizes, in 8 to 32 steps an octave; above 0 they stay above 0."""


class Codec(NamedTuple):
    """A way of storing an array."""

    name: str
    node: type[Any]  # what stands in the state
    sizes: bool  # for denominators: nothing below 0
    rows: bool  # the entries of a row share a range
    # (array, ranges or the number of shards of an array without any, salt) -> node
    encode: Callable[[jax.Array, Any, Salt | None], Any]
    decode: Callable[[Any], jax.Array]  # node -> float32 array
    next_ranges: Callable[[Any], jax.Array] | None = None  # of the array after a step

    def shards(self, node: Any) -> int:
        """Into how many parts a node's rows are divided; 1 where there are no rows."""
        return int(unboxed(node.ranges).shape[-1]) if self.rows else 1


def _to_bfloat16(value: jax.Array, ranges: Any, salt: Salt | None) -> Bfloat16:
    del ranges
    return Bfloat16(to_bfloat16(value, salt))


def _to_float16(value: jax.Array, ranges: Any, salt: Salt | None) -> Float16:
    del ranges
    return Float16(to_float16(value, salt).astype(jnp.float16))


def _to_float16_size(value: jax.Array, ranges: Any, salt: Salt | None) -> Float16Size:
    del ranges
    rounded = jnp.maximum(to_float16(value, salt), FLOAT16_STEP)
    kept = jnp.where(value == 0, 0.0, rounded)
    return Float16Size(jnp.where(value < 0, jnp.nan, kept).astype(jnp.float16))


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


def _float_codec(name: str, node: type[Any], form: Form) -> Codec:
    """Floating-point numbers between the ends of each row's range."""

    def encode(value: jax.Array, ranges: Any, salt: Salt | None) -> Any:
        shards = ranges if isinstance(ranges, int) else ranges.shape[-1]
        parts = _rows(value, shards)
        if isinstance(ranges, int):
            ranges = _new_ranges(form, _sizes_in_bits(form, parts))
            ranges = ranges if shards == 1 else ranges[..., 0]
        # The bits of an entry do not depend on how its row is divided.
        drawn = None if salt is None else _rows(bits(value, salt), shards)
        codes = _encoded(form, parts, _of_rows(ranges), drawn)
        return node(_whole(codes, shards), ranges)

    def decode(node: Any) -> jax.Array:
        shards = node.ranges.shape[-1]
        parts = _rows(node.codes, shards)
        return _whole(_decoded(form, parts, _of_rows(node.ranges)), shards)

    def next_ranges(node: Any) -> jax.Array:
        shards = node.ranges.shape[-1]
        found = _next_ranges(form, _rows(node.codes, shards), _of_rows(node.ranges))
        return found if shards == 1 else found[..., 0]

    return Codec(name, node, form.sizes, True, encode, decode, next_ranges)


def _rows(array: jax.Array, shards: int) -> jax.Array:
    """[..., n] -> [..., shards, n / shards], without sending anything; one shard as it is."""
    # A shape of its own would keep XLA:CPU from fusing what reads it.
    if shards == 1:
        return array
    shape = (*array.shape[:-1], shards, array.shape[-1] // shards)
    return jax.lax.reshape(array, shape, out_sharding=leading_sharding(array, array.ndim))


def _whole(parts: jax.Array, shards: int) -> jax.Array:
    """The array of such rows."""
    if shards == 1:
        return parts
    shape = (*parts.shape[:-2], parts.shape[-2] * parts.shape[-1])
    return jax.lax.reshape(parts, shape, out_sharding=leading_sharding(parts, parts.ndim - 1))


def _of_rows(ranges: jax.Array) -> jax.Array:
    """[..., shards] -> one for each row."""
    return ranges if ranges.shape[-1] == 1 else ranges[..., None]


def _sizes_in_bits(form: Form, parts: jax.Array) -> jax.Array:
    """The bits of the absolute numbers, int32; there is no size below 0."""
    size = jax.lax.bitcast_convert_type(parts, jnp.int32) & 0x7FFFFFFF
    return jnp.where(parts < 0, _NAN, size) if form.sizes else size


def _encoded(
    form: Form, parts: jax.Array, ranges: jax.Array, drawn: jax.Array | None
) -> jax.Array:
    """Codes of float32 rows [..., n] in their ranges, uint16 [..., 1]: uint8 or int8.

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


def _decoded(form: Form, codes: jax.Array, ranges: jax.Array) -> jax.Array:
    """The numbers of codes: float32 [..., n]; ranges are uint16 [..., 1]."""
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
    octave, k = (kept & (_FIRST - 1)) >> _K_BITS, kept & ((1 << _K_BITS) - 1)
    return octave << _FRACTION, _FRACTION - k


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


def _next_ranges(form: Form, codes: jax.Array, ranges: jax.Array) -> jax.Array:
    """The ranges of a step, uint16 [..., 1], from the codes of the one before it."""
    # In bytes, which the passes over them cost.
    size = codes if form.sizes else jnp.abs(codes).astype(jnp.uint8)  # -128 becomes 128
    last = jnp.uint8(form.last)
    largest = jnp.max(jnp.where(size > last, 0, size), axis=-1, keepdims=True)
    least = jnp.min(jnp.where(size == 0, last, size), axis=-1, keepdims=True)
    largest, least = largest.astype(jnp.int32), least.astype(jnp.int32)
    base, step = _read(ranges, ranges.shape)
    high, low = (
        _words(form, jnp.maximum(code, form.first), base, step)
        for code in (largest, jnp.minimum(least, form.last))
    )
    found = _fitting(form, high, low, _ROOM_BELOW, _ROOM_ABOVE)
    if not form.sizes:
        # Where all that is there is below the range, a coarse one begins below it.
        lower = (base - form.span(_NEW_K)) >> _FRACTION
        lower = (jnp.maximum(lower, 1) << _K_BITS) + _NEW_K
        found = jnp.where(largest < form.first, lower, found)
    # What an optimizer begins with tells nothing of the sizes to come.
    unknown = (largest == 0) | (ranges >= _FIRST)
    return jnp.where(unknown, form.new_range, found).astype(jnp.uint16)


def _new_ranges(form: Form, size: jax.Array) -> jax.Array:
    """The ranges of given numbers, by their bits: uint16 [..., 1]."""
    high = jnp.max(jnp.where(size >= INFINITY, 0, size), axis=-1, keepdims=True)
    low = jnp.min(jnp.where(size == 0, INFINITY, size), axis=-1, keepdims=True)
    found = _fitting(form, high, jnp.minimum(low, high), 0, 0)
    return jnp.where(high == 0, form.new_range, found).astype(jnp.uint16)


def _fitting(form: Form, high: jax.Array, low: jax.Array, below: int, above: int) -> jax.Array:
    """The finest range for numbers, by their bits, with so many octaves to spare: int32.

    Where even the coarsest steps are too many, it has the largest numbers.
    """
    top = high + above * _OCTAVE
    octave = jnp.maximum((low >> _FRACTION) - below, 1)
    k = jnp.full_like(high, form.coarsest)
    for finer in range(form.coarsest + 1, form.finest + 1):
        k = jnp.where(top - (octave << _FRACTION) <= form.span(finer), finer, k)
    least = ((top - form.span(form.coarsest) - 1) >> _FRACTION) + 1
    return (jnp.maximum(octave, least) << _K_BITS) + k


def _wide(node: Any) -> jax.Array:
    return node.values.astype(jnp.float32)


_ALL = (
    Codec("bfloat16", Bfloat16, False, False, _to_bfloat16, _wide),
    Codec("float16", Float16, False, False, _to_float16, _wide),
    _float_codec("int8", Int8, MEANS),
    _float_codec("uint8", UInt8, SIZES),
)
FLOAT16_SIZE = Codec("float16_size", Float16Size, True, False, _to_float16_size, _wide)
CODECS: Mapping[str, Codec] = {codec.name: codec for codec in _ALL}
BY_NODE: Mapping[type[Any], Codec] = {codec.node: codec for codec in (*_ALL, FLOAT16_SIZE)}


def is_node(value: Any) -> bool:
    """Whether it is an encoded array."""
    return type(value) in BY_NODE


def decode(value: Any) -> Any:
    """The array of a node, in the box that the node's parts are in; all else as it is."""
    if not is_node(value):
        return value
    parts = type(value)(*map(unboxed, value))
    return boxed(BY_NODE[type(value)].decode(parts), like=value[0])


def encode(codec: Codec, value: Any, ranges: Any, salt: Salt | None) -> Any:
    """The node of an array, its parts in the box that the array is in.

    Args:
      codec: how.
      value: a real array, perhaps in a box.
      ranges: those of a node of the step, as `ready` gives it; or over how many devices the
        last axis is divided, for an array without ranges, which gets those of its own numbers.
      salt: of the rounding; None rounds to nearest.
    """
    node = codec.encode(widen(unboxed(value)), ranges, salt)
    return codec.node(*(boxed(part, like=value) for part in node))


def first(node: Any) -> Any:
    """A node that no step has seen: its numbers say nothing of those to come."""
    if not BY_NODE[type(node)].rows:
        return node
    return node._replace(ranges=jax.tree.map(lambda each: each | _FIRST, node.ranges))


def ready(node: Any) -> tuple[Any, Any]:
    """A node for a step to read, and the ranges, or None, for its array after the step."""
    codec = BY_NODE[type(node)]
    if codec.next_ranges is None:
        return node, None
    # What is read waits for the next ranges, or XLA fuses the search for them with half of the
    # step, which then writes float32 numbers for the other half.
    found = codec.next_ranges(codec.node(*map(unboxed, node)))
    old, new = jax.lax.optimization_barrier((unboxed(node.ranges), found))
    return codec.node(node.codes, boxed(old, like=node.ranges)), new
