"""Codecs of 8 bits whose blocks keep the range or the scale of their own numbers.

What `optabs.narrow_state` had before its rows, whose ranges are known before the step: a block
is looked at whole before it is encoded.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optabs.storage.codecs import Salt, bits, salted

_ROW = 16  # entries of a row that is reduced at once: with fewer, XLA's loops do not fuse
_UPPER_ONE = 2032  # the upper 13 bits of 1.0
_SHARE_SHIFT = 19  # leaves a float32's exponent and 4 bits of its fraction
_INFINITY, _NAN = 0x7F800000, 0x7FC00000
_SMALLEST = 0x00800000  # the least normal number
_FRACTION = 23
_CHOICES = 4  # of k, for 2^k steps an octave
_LOW_BITS = 17  # the lower bits of a float32, which are 0 in every grid
_LARGEST = _INFINITY - 2**_LOW_BITS  # on the grids
_K_SHIFT = 14  # of k in the 16 bits of a block's range


class Blocks(NamedTuple):
    """An encoded array."""

    codes: jax.Array  # of 8 bits, like the parameter
    scales: jax.Array  # float32 or, of ranges, uint16, for each block along the last axis


class BlockCodec(NamedTuple):
    """A way of storing an array in blocks."""

    name: str
    sizes: bool  # for denominators: nothing below 0
    encode: Callable[[jax.Array, int, Salt | None], Blocks]  # (array, block, salt)
    decode: Callable[[Blocks], jax.Array]  # float32


class KeptState(NamedTuple):
    """State of `kept_in_blocks`."""

    draws: jax.Array  # uint32 []
    inner: Any  # its moments are float32, with the values of codes


def uniform(like: jax.Array, salt: Salt) -> jax.Array:
    """Numbers from [0, 1), one for each entry of an array: float32, like it."""
    # A signed number becomes a float in one operation.
    upper = (bits(like, salt) >> 8).astype(jnp.int32)
    return upper.astype(jnp.float32) * jnp.float32(2**-24)


def kept_in_blocks(
    transformation: optax.GradientTransformation, codecs: Mapping[str, str], block: int
) -> optax.GradientTransformation:
    """Rounds the fields of a state to a codec's numbers after each step."""

    def rounded(state: Any, draws: jax.Array) -> Any:
        for field, name in codecs.items():
            codec, salt = BLOCK_CODECS[name], salted(draws, 0)

            def there_and_back(
                value: jax.Array, codec: BlockCodec = codec, salt: Salt = salt
            ) -> jax.Array:
                return codec.decode(codec.encode(value, block, salt))

            moment = jax.tree.map(there_and_back, optax.tree.get(state, field))
            state = optax.tree.set(state, **{field: moment})
        return state

    def init_fn(params: Any) -> KeptState:
        return KeptState(jnp.uint32(0), transformation.init(params))

    def update_fn(updates: Any, state: KeptState, params: Any = None) -> Any:
        updates, inner = transformation.update(updates, state.inner, params)
        return updates, KeptState(state.draws + 1, rounded(inner, state.draws))

    return optax.GradientTransformation(init_fn, update_fn)


def block_length(kept: Blocks) -> int:
    """The length of the blocks."""
    return kept.codes.shape[-1] // kept.scales.shape[-1]


def split_blocks(array: jax.Array, block: int) -> jax.Array:
    """[..., n] -> [..., n / block, block]."""
    return array.reshape(*array.shape[:-1], -1, block)


def join_blocks(parts: jax.Array) -> jax.Array:
    """[..., n / block, block] -> [..., n]."""
    return parts.reshape(*parts.shape[:-2], -1)


def reduce_by_halves(
    operation: Callable[[jax.Array, jax.Array], jax.Array], parts: jax.Array
) -> jax.Array:
    """An operation over the halves of each block, again and again: [..., n, at most _ROW]."""
    # XLA:CPU vectorizes operations of whole arrays, but not reductions of short rows.
    while parts.shape[-1] > _ROW and parts.shape[-1] % 2 == 0:
        half = parts.shape[-1] // 2
        parts = operation(
            jax.lax.slice_in_dim(parts, 0, half, axis=-1),
            jax.lax.slice_in_dim(parts, half, 2 * half, axis=-1),
        )
    return parts


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


def _shares(name: str, codes: _Map, *, sizes: bool) -> BlockCodec:
    """Shares of each block's largest entry, rounded to neighbouring codes."""
    kind = jnp.uint8 if sizes else jnp.int8

    def encode(value: jax.Array, block: int, salt: Salt | None) -> Blocks:
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
        return Blocks(join_blocks(code.astype(kind)), scale[..., 0])

    def decode(kept: Blocks) -> jax.Array:
        parts = split_blocks(kept.codes, block_length(kept)).astype(jnp.float32)
        share = codes.share(jnp.abs(parts))
        if not sizes:
            share = jnp.where(parts < 0, -share, share)
        return join_blocks(share * kept.scales[..., None])

    return BlockCodec(name, sizes, encode, decode)


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


def _encoded(form: Form, parts: jax.Array, salt: Salt | None) -> tuple[jax.Array, jax.Array]:
    """Floating-point codes, as fine as the range of their block allows, and the ranges.

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


def _decoded(form: Form, codes: jax.Array, ranges: jax.Array) -> jax.Array:
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


def _floats(name: str, form: Form) -> BlockCodec:
    """Floating-point numbers between each block's least and largest."""

    def encode(value: jax.Array, block: int, salt: Salt | None) -> Blocks:
        codes, ranges = _encoded(form, split_blocks(value, block), salt)
        return Blocks(join_blocks(codes), ranges[..., 0])

    def decode(kept: Blocks) -> jax.Array:
        parts = split_blocks(kept.codes, block_length(kept))
        return join_blocks(_decoded(form, parts, kept.scales[..., None]))

    return BlockCodec(name, form.sizes, encode, decode)


_ALL = (
    _floats("int8", MEANS),
    _floats("uint8", SIZES),
    _shares("int8_linear", _power(1, zero=True, last=127), sizes=False),
    _shares("int8_square", _power(2, zero=True, last=127), sizes=False),
    _shares("int8_float", _floating(zero=True, last=127), sizes=False),
    _shares("uint8_linear", _power(1, zero=False, last=255), sizes=True),
    _shares("uint8_square", _power(2, zero=False, last=255), sizes=True),
    _shares("uint8_fourth", _power(4, zero=False, last=255), sizes=True),
    _shares("uint8_float", _floating(zero=False, last=255), sizes=True),
)
BLOCK_CODECS: Mapping[str, BlockCodec] = {codec.name: codec for codec in _ALL}
