"""Blocks along the last axis that never cross from one device to another."""

from typing import Any

import jax
from jax.sharding import PartitionSpec

from optabs._sharding import explicit_sharding

FEWEST = 16  # entries: with fewer, the scales take what the codes save


def block_of(shape: tuple[int, ...], sharding: Any, largest: int) -> int | None:
    """The largest divisor of a shard's last extent up to `largest`; None below FEWEST.

    Args:
      shape: of the whole array.
      sharding: of the array; None, or one that is not known yet, counts as one device.
      largest: the block that is asked for.
    """
    if 0 in shape or not shape:
        return None
    extent = (shape if sharding is None else sharding.shard_shape(shape))[-1]
    fewest = min(FEWEST, largest)
    return next((n for n in range(largest, fewest - 1, -1) if extent % n == 0), None)


def length(codes: jax.Array, scales: jax.Array) -> int:
    """Of the blocks of such codes with such scales."""
    return codes.shape[-1] // scales.shape[-1]


def split(array: jax.Array, block: int) -> jax.Array:
    """[..., n] -> [..., n / block, block], without sending anything."""
    shape = (*array.shape[:-1], array.shape[-1] // block, block)
    return jax.lax.reshape(array, shape, out_sharding=_spec(array, array.ndim, None))


def joined(parts: jax.Array) -> jax.Array:
    """[..., n / block, block] -> [..., n]."""
    shape = (*parts.shape[:-2], parts.shape[-2] * parts.shape[-1])
    return jax.lax.reshape(parts, shape, out_sharding=_spec(parts, parts.ndim - 1))


def _spec(array: jax.Array, rank: int, *more: None) -> PartitionSpec | None:
    """What an Explicit mesh has to be told: where the result of a reshape lies."""
    sharding = explicit_sharding(array)
    if sharding is None:
        return None
    spec = tuple(sharding.spec) + (None,) * (array.ndim - len(sharding.spec))
    return PartitionSpec(*spec[:rank], *more)
