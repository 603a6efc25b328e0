"""How one array is kept in 16 or 8 bits, and read again."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optabs._numerics import widen
from optabs._tree import boxed, unboxed
from optabs.storage import floats
from optabs.storage.blocks import block_length, join_blocks, reduce_by_halves, split_blocks
from optabs.storage.rounding import Salt, bits, uniform

FLOAT16_MAX, FLOAT16_STEP = 65504.0, 2.0**-24  # the largest number, and the least above 0
_BFLOAT16_MAX = 0x7F7F0000
_INFINITY = 0x7F800000
_UPPER_ONE = 2032  # the upper 13 bits of 1.0
_SHARE_SHIFT = 19  # leaves a float32's exponent and 4 bits of its fraction


class Values(NamedTuple):
    """Each entry by itself."""

    values: jax.Array  # of 16 bits, like the parameter

    def decoded_array(self) -> Any:
        """The array, in the box that the parts are in."""
        return decode(self)


class Blocks(NamedTuple):
    """Each entry as a share of the largest one of its block."""

    codes: jax.Array  # of 8 bits, like the parameter
    scales: jax.Array  # float32, a block's largest size, along the last axis

    def decoded_array(self) -> Any:
        """The array, in the box that the parts are in."""
        return decode(self)


class Floats(NamedTuple):
    """Each entry as a floating-point number, as fine as its block's range allows."""

    codes: jax.Array  # of 8 bits, like the parameter
    ranges: jax.Array  # uint16, a block's least number and its steps an octave

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
    """Signed numbers, in 4 to 32 steps an octave."""


class UInt8(Floats):
    """Sizes, in 8 to 64 steps an octave; above 0 they stay above 0."""


class Int8Linear(Blocks):
    """Signed numbers, in equal steps of the share."""


class Int8Square(Blocks):
    """Signed numbers, in equal steps of the share's root."""


class Int8Float(Blocks):
    """Signed numbers, in sixteen steps an octave."""


class UInt8Linear(Blocks):
    """Sizes, in equal steps of the share; no code is 0."""


class UInt8Square(Blocks):
    """Sizes, in equal steps of the share's root; no code is 0."""


class UInt8Fourth(Blocks):
    """Sizes, in equal steps of the share's fourth root; no code is 0."""


class UInt8Float(Blocks):
    """Sizes, in sixteen steps an octave; no code is 0."""


class Codec(NamedTuple):
    """A way of storing an array."""

    name: str
    node: type[Any]  # what stands in the state
    sizes: bool  # for denominators: nothing below 0
    blocks: bool  # entries share a scale or a range
    encode: Callable[[jax.Array, int, Salt | None], Any]  # (array, block, salt) -> node
    decode: Callable[[Any], jax.Array]  # node -> float32 array

    def block(self, node: Any) -> int:
        """The length of a node's blocks; 0 where there are none."""
        return block_length(*map(unboxed, node)) if self.blocks else 0


def _values(node: Any) -> jax.Array:
    return node.values.astype(jnp.float32)


def _to_bfloat16(value: jax.Array, block: int, salt: Salt | None) -> Bfloat16:
    del block
    word = jax.lax.bitcast_convert_type(value, jnp.uint32)
    # The probability of a carry is the share that the dropped bits have of a step.
    added = jnp.uint32(0x8000) if salt is None else bits(value, salt) >> 16
    up = (word + added) & jnp.uint32(0xFFFF0000)
    sign, size = up & jnp.uint32(0x80000000), up & jnp.uint32(0x7FFFFFFF)
    finite = sign | jnp.minimum(size, jnp.uint32(_BFLOAT16_MAX))
    special = (word & jnp.uint32(_INFINITY)) == _INFINITY
    chosen = jnp.where(special, _quiet(word), finite)
    upper = (chosen >> 16).astype(jnp.uint16)
    return Bfloat16(jax.lax.bitcast_convert_type(upper, jnp.bfloat16))


def _quiet(word: jax.Array) -> jax.Array:
    """A NaN with the bit set that keeps its upper half a NaN; other numbers as they are."""
    is_nan = (word & jnp.uint32(0x7FFFFFFF)) > _INFINITY
    return jnp.where(is_nan, word | jnp.uint32(0x00400000), word)


def _float16(value: jax.Array, salt: Salt | None) -> jax.Array:
    """The nearest, or one of the two nearest numbers of float16, as float32."""
    word = jax.lax.bitcast_convert_type(value, jnp.uint32) & jnp.uint32(_INFINITY)
    octave = jax.lax.bitcast_convert_type(word, jnp.float32)
    step = jnp.maximum(octave * 2.0**-10, FLOAT16_STEP)
    share = 0.5 if salt is None else uniform(value, salt)
    rounded = jnp.floor(value / step + share) * step
    rounded = jnp.clip(rounded, -FLOAT16_MAX, FLOAT16_MAX)
    return jnp.where(jnp.isfinite(value), rounded, value)


def _to_float16(value: jax.Array, block: int, salt: Salt | None) -> Float16:
    del block
    return Float16(_float16(value, salt).astype(jnp.float16))


def _to_float16_size(value: jax.Array, block: int, salt: Salt | None) -> Float16Size:
    del block
    rounded = jnp.maximum(_float16(value, salt), FLOAT16_STEP)
    kept = jnp.where(value == 0, 0.0, rounded)
    return Float16Size(jnp.where(value < 0, jnp.nan, kept).astype(jnp.float16))


def _float_codec(name: str, node: type[Any], form: floats.Form) -> Codec:
    """Floating-point numbers between each block's least and largest."""

    def encode(value: jax.Array, block: int, salt: Salt | None) -> Any:
        codes, ranges = floats.encode(form, split_blocks(value, block), salt)
        return node(join_blocks(codes), ranges[..., 0])

    def decode(node: Any) -> jax.Array:
        parts = split_blocks(node.codes, block_length(*node))
        return join_blocks(floats.decode(form, parts, node.ranges[..., None]))

    return Codec(name, node, form.sizes, True, encode, decode)


class _Map(NamedTuple):
    """An increasing function of the codes 0 to `last`, the last of which is 1."""

    last: int
    share: Callable[[jax.Array], jax.Array]  # float32 code -> share in [0, 1]
    code: Callable[[jax.Array], jax.Array]  # share -> its real-valued code, at most one off


def _power(exponent: int, *, zero: bool, last: int) -> _Map:
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

    return _Map(last, share, code)


def _floating(*, zero: bool, last: int) -> _Map:
    """Sixteen equal steps in each octave, as floating-point numbers have them."""
    first = _UPPER_ONE - last

    def share(code: jax.Array) -> jax.Array:
        bits = (code.astype(jnp.int32) + first) << _SHARE_SHIFT
        value = jax.lax.bitcast_convert_type(bits, jnp.float32)
        return jnp.where(code < 1, 0.0, value) if zero else value

    def code(share: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(share, jnp.int32)
        return jnp.maximum((bits >> _SHARE_SHIFT) - first, 0).astype(jnp.float32)

    return _Map(last, share, code)


def _block_codec(name: str, node: type[Any], codes: _Map, *, sizes: bool) -> Codec:
    """Shares of each block's largest entry, rounded to neighbouring codes."""
    kind = jnp.uint8 if sizes else jnp.int8

    def encode(value: jax.Array, block: int, salt: Salt | None) -> Any:
        parts = split_blocks(value, block)
        # There is no code below 0: a block with such a number becomes NaN.
        size = jnp.abs(jnp.where(parts < 0, jnp.nan, parts) if sizes else parts)
        # Compared as integers, which have the same order: XLA:CPU's maximum may drop a NaN.
        word = reduce_by_halves(jnp.maximum, jax.lax.bitcast_convert_type(size, jnp.int32))
        word = jnp.max(word, axis=-1, keepdims=True)
        scale = jax.lax.bitcast_convert_type(word, jnp.float32)
        share = jnp.where(size == scale, 1.0, size / jnp.where(scale == 0, 1.0, scale))
        low = jnp.clip(jnp.floor(codes.code(share)), 0, codes.last - 1)
        below, above = codes.share(low), codes.share(low + 1)
        part = 0.5 if salt is None else uniform(parts, salt)
        code = low + (share - below > part * (above - below)).astype(jnp.float32)
        if not sizes:
            code = jnp.where(parts < 0, -code, code)
        return node(join_blocks(code.astype(kind)), scale[..., 0])

    def decode(node: Any) -> jax.Array:
        parts = split_blocks(node.codes, block_length(*node)).astype(jnp.float32)
        share = codes.share(jnp.abs(parts))
        if not sizes:
            share = jnp.where(parts < 0, -share, share)
        return join_blocks(share * node.scales[..., None])

    return Codec(name, node, sizes, True, encode, decode)


_ALL = (
    Codec("bfloat16", Bfloat16, False, False, _to_bfloat16, _values),
    Codec("float16", Float16, False, False, _to_float16, _values),
    Codec("float16_size", Float16Size, True, False, _to_float16_size, _values),
    _float_codec("int8", Int8, floats.MEANS),
    _float_codec("uint8", UInt8, floats.SIZES),
    _block_codec("int8_linear", Int8Linear, _power(1, zero=True, last=127), sizes=False),
    _block_codec("int8_square", Int8Square, _power(2, zero=True, last=127), sizes=False),
    _block_codec("int8_float", Int8Float, _floating(zero=True, last=127), sizes=False),
    _block_codec("uint8_linear", UInt8Linear, _power(1, zero=False, last=255), sizes=True),
    _block_codec("uint8_square", UInt8Square, _power(2, zero=False, last=255), sizes=True),
    _block_codec("uint8_fourth", UInt8Fourth, _power(4, zero=False, last=255), sizes=True),
    _block_codec("uint8_float", UInt8Float, _floating(zero=False, last=255), sizes=True),
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


def encode(codec: Codec, value: Any, block: int, salt: Salt | None) -> Any:
    """The node of an array, its parts in the box that the array is in."""
    node = codec.encode(widen(unboxed(value)), block, salt)
    return codec.node(*(boxed(part, like=value) for part in node))
