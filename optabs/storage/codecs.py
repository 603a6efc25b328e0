"""How one array is kept in 16 or 8 bits, and read again; random bits, from counters alone."""

from collections.abc import Callable, Mapping
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
    widen,
)
from optabs._tree import boxed, unboxed
from optabs.storage import eight_bits
from optabs.storage.eight_bits import FIRST, MEANS, SIZES, Form, Rows, rows_of

_BFLOAT16_MAX = 0x7F7F0000
_ROOT = 0x6A09E667  # 2**32 times the fraction of the root of 2: its multiples fill, too
_PERIOD = 10  # log2 of the steps after which the entries are hashed anew


class Salt(NamedTuple):
    """What the bits of a parameter's moments depend on in one step."""

    seed: jax.Array  # uint32 []: hashed with an entry's index
    offset: jax.Array  # uint32 []: added to all entries' hashes
    cache: dict[Any, jax.Array] | None = None  # bits by shape and sharding, of one update


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


class Bfloat16(NamedTuple):
    """The upper 16 bits of each float32."""

    values: jax.Array  # bfloat16, like the parameter

    def decoded_array(self) -> Any:
        """The array, in the box that the parts are in."""
        return decode(self)


class Floats(NamedTuple):
    """Each entry as a floating-point number, as fine as its row's range allows."""

    codes: jax.Array  # of 8 bits, like the parameter
    ranges: jax.Array  # uint16: one for each row, with an axis for each of the codes

    def decoded_array(self) -> Any:
        """The array, in the box that the parts are in."""
        return decode(self)


class Int8(Floats):
    """Signed numbers, in 4 to 16 steps an octave."""


class UInt8(Floats):
    """Sizes, in 8 to 32 steps an octave; above 0 they stay above 0."""


class Codec(NamedTuple):
    """A way of storing an array."""

    name: str
    node: type[Any]  # what stands in the state
    sizes: bool  # for denominators: nothing below 0
    # (array, ranges or the rows of an array without any, salt) -> node
    encode: Callable[[jax.Array, Any, Salt | None], Any]
    decode: Callable[[Any], jax.Array]  # node -> float32 array
    # (node, counter of steps) -> those of its array after a step
    next_ranges: Callable[[Any, jax.Array], jax.Array] | None = None

    @property
    def has_ranges(self) -> bool:
        """Whether the entries of a row share a range."""
        return self.next_ranges is not None

    def rows_in(self, node: Any) -> Rows:
        """How a node is divided into rows."""
        return rows_of(unboxed(node.ranges)) if self.has_ranges else Rows()


def _to_bfloat16(value: jax.Array, ranges: Any, salt: Salt | None) -> Bfloat16:
    """One of the two numbers of bfloat16 beside each float32; without a salt the nearest."""
    del ranges
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
    rounded = jax.lax.bitcast_convert_type(kept, jnp.float32).astype(jnp.bfloat16)
    return Bfloat16(rounded)


def _float_codec(name: str, node: type[Any], form: Form) -> Codec:
    """Floating-point numbers between the ends of each row's range."""

    def encode(value: jax.Array, ranges: Any, salt: Salt | None) -> Any:
        is_new = isinstance(ranges, Rows)
        rows = ranges if is_new else rows_of(ranges)
        parts = eight_bits.divided(value, rows.shards)
        if is_new:
            ranges = eight_bits.new_ranges(form, parts, rows.axes)
            ranges = ranges if rows.shards == 1 else ranges[..., 0]
        # The bits of an entry do not depend on how its row is divided.
        drawn = None if salt is None else eight_bits.divided(bits(value, salt), rows.shards)
        codes = eight_bits.encoded(form, parts, eight_bits.of_rows(ranges), drawn)
        return node(eight_bits.whole(codes, rows.shards), ranges)

    def decode(node: Any) -> jax.Array:
        shards = node.ranges.shape[-1]
        codes = eight_bits.divided(node.codes, shards)
        found = eight_bits.decoded(form, codes, eight_bits.of_rows(node.ranges))
        return eight_bits.whole(found, shards)

    def next_ranges(node: Any, counter: jax.Array) -> jax.Array:
        shards = node.ranges.shape[-1]
        codes = eight_bits.divided(node.codes, shards)
        found = eight_bits.next_ranges(form, codes, eight_bits.of_rows(node.ranges), counter)
        return found if shards == 1 else found[..., 0]

    return Codec(name, node, form.sizes, encode, decode, next_ranges)


def _wide(node: Any) -> jax.Array:
    return node.values.astype(jnp.float32)


_ALL = (
    Codec("bfloat16", Bfloat16, False, _to_bfloat16, _wide),
    _float_codec("int8", Int8, MEANS),
    _float_codec("uint8", UInt8, SIZES),
)
CODECS: Mapping[str, Codec] = {codec.name: codec for codec in _ALL}
BY_NODE: Mapping[type[Any], Codec] = {codec.node: codec for codec in _ALL}


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
      ranges: those of a node of the step, as `ready` gives it; or the rows of an array without
        ranges, which gets those of its own numbers.
      salt: of the rounding; None rounds to nearest.
    """
    node = codec.encode(widen(unboxed(value)), ranges, salt)
    return codec.node(*(boxed(part, like=value) for part in node))


def first(node: Any) -> Any:
    """A node that no step has seen: its numbers say nothing of those to come."""
    if not BY_NODE[type(node)].has_ranges:
        return node
    return node._replace(ranges=jax.tree.map(lambda each: each | FIRST, node.ranges))


def ready(node: Any, counter: jax.Array) -> tuple[Any, Any]:
    """A node for a step to read, and the ranges, or None, for its array after the step.

    Args:
      node: of the step before.
      counter: uint32 [], one more at each step.
    """
    codec = BY_NODE[type(node)]
    if codec.next_ranges is None:
        return node, None
    # What is read waits for the next ranges, or XLA fuses the search for them with half of the
    # step, which then writes float32 numbers for the other half.
    found = codec.next_ranges(codec.node(*map(unboxed, node)), counter)
    old, new = jax.lax.optimization_barrier((unboxed(node.ranges), found))
    return codec.node(node.codes, boxed(old, like=node.ranges)), new
