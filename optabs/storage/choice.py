"""Which codec a leaf of a state gets: by its field, by a predicate, or none."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optabs.storage.blocks import block_of
from optabs.storage.codecs import ALIASES, CODECS, Codec
from optabs.storage.fields import Place

FULL = "float32"
WIDE = (jnp.float32, jnp.bfloat16, jnp.float16)  # inside of a step they are float32
SIGNED = ("mu", "trace", "m")
SIZES = ("nu", "v", "sum_of_squares")
DEFAULTS: Mapping[str, str] = {
    **dict.fromkeys(SIGNED, "int8"),
    **dict.fromkeys(SIZES, "uint8"),
}
_OF_SIZES = {"float16": "float16_size"}  # what a denominator gets by the same name

Predicate = Callable[[str, Any], str | None]


class Choice(NamedTuple):
    """What the user asked for."""

    codecs: Mapping[str, str] | Predicate
    keep: Sequence[str]
    block_size: int
    min_size: int

    def wanted(self, place: Place, leaf: Any) -> Codec | None:
        """The codec for a leaf of this shape, whatever its blocks are; None for float32."""
        return self._named(place, leaf) if leaf.dtype in WIDE else None

    def left_alone(self, place: Place, leaf: Any) -> bool:
        """Whether a leaf would be encoded if its dtype were another."""
        return leaf.dtype not in WIDE and self._named(place, leaf) is not None

    def _named(self, place: Place, leaf: Any) -> Codec | None:
        if leaf.size < self.min_size or set(self.keep) & set(place.parameter):
            return None
        if not callable(self.codecs):
            return codec_of(self.codecs.get(place.field or "", FULL), place.field)
        shape = jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
        return codec_of(self.codecs(place.path, shape) or FULL, place.field)

    def block(self, codec: Codec, place: Place, leaf: Any) -> int | None:
        """The block of an encoded leaf, 0 where there are none; None: it stays float32."""
        if not codec.blocks:
            return 0
        return block_of(leaf.shape, place.sharding, self.block_size)


def checked(
    codecs: Mapping[str, str] | Predicate | None,
    keep: Sequence[str],
    block_size: int,
    min_size: int,
) -> Choice:
    """The choice; raises ValueError for what cannot be meant."""
    if isinstance(keep, str):
        raise ValueError(f"keep is {keep!r}, one string; pass a sequence of names.")
    for name, value, least in (("block_size", block_size, 2), ("min_size", min_size, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} is {value!r}; pass a whole number, {least} or more.")
    if codecs is None or isinstance(codecs, Mapping):
        codecs = {**DEFAULTS, **(codecs or {})}
        for field, name in codecs.items():
            codec_of(name, field)
    elif not callable(codecs):
        raise ValueError(
            f"codecs is {codecs!r}, a {type(codecs).__name__}; pass a mapping "
            "(field -> codec) or a function (path, shape -> codec)."
        )
    return Choice(codecs, tuple(keep), block_size, min_size)


def codec_of(name: object, field: str | None) -> Codec | None:
    """A codec by its name; raises ValueError where it is none, or none for the field."""
    if name == FULL:
        return None
    if field in SIZES and isinstance(name, str):
        name = _OF_SIZES.get(name, name)
    codec = CODECS.get(ALIASES.get(name, name)) if isinstance(name, str) else None
    if codec is None:
        known = ", ".join(map(repr, (FULL, *ALIASES, *CODECS)))
        raise ValueError(f"codecs gives {field} {name!r}; choose from {known}.")
    if codec.sizes and field in SIGNED:
        raise ValueError(
            f"codecs gives {field} {name!r}, which has nothing below 0; pass a signed one."
        )
    if codec.blocks and not codec.sizes and field in SIZES:
        raise ValueError(
            f"codecs gives {field} {name!r}, which rounds small denominators to 0; pass one "
            "for sizes, such as 'uint8'."
        )
    return codec
