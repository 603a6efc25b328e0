"""Blocks along the last axis that never cross from one device to another."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from optabs._numerics import leading_sharding
from optabs._tree import axis_names, unboxed

FEWEST = 16  # entries of a block: with fewer, the ranges take what the codes save
_ROW = 16  # entries of a row that is reduced at once: with fewer, XLA's loops do not fuse


def block_of(extent: int, largest: int) -> int | None:
    """The largest divisor of a shard's extent up to `largest`; None below FEWEST."""
    if not extent:
        return None
    fewest = min(FEWEST, largest)
    return next((n for n in range(largest, fewest - 1, -1) if extent % n == 0), None)


def shards_of(parameter: Any) -> int:
    """Over how many devices the last axis of a parameter is, or will be, divided.

    Args:
      parameter: an array or a description of one, or a box around either. Where its sharding
        is not known, as inside of jit on an Auto mesh, the box's names of axes tell: by the
        box's mesh or the one that is set, else over all devices.
    """
    array = unboxed(parameter)
    shape = jnp.shape(array)
    if not shape:
        return 1
    traced = isinstance(array, jax.core.Tracer)
    sharding = jax.typeof(array).sharding if traced else getattr(array, "sharding", None)
    if isinstance(sharding, NamedSharding):
        known = _size(_last(tuple(sharding.spec), len(shape)), sharding.mesh)
    elif sharding is None or not shape[-1]:
        known = 1
    else:
        known = shape[-1] // sharding.shard_shape(shape)[-1]
    if known > 1:
        return known
    names = _last(axis_names(parameter), len(shape))
    for mesh in (getattr(parameter, "mesh", None), jax.sharding.get_abstract_mesh()):
        if mesh is not None and set(names) <= set(mesh.shape):
            return math.gcd(shape[-1], _size(names, mesh))
    # No mesh has these names: as many devices as leave room for a block.
    shards = math.gcd(shape[-1], jax.device_count())
    while shards > 1 and shape[-1] // shards < FEWEST:
        shards = next(n for n in range(shards - 1, 0, -1) if shards % n == 0)
    return shards


def _last(spec: tuple[Any, ...], rank: int) -> tuple[str, ...]:
    """The mesh axes that the last axis of an array is divided over."""
    entry = spec[rank - 1] if len(spec) >= rank else None
    entries = entry if isinstance(entry, tuple) else (entry,)
    return tuple(name for name in entries if isinstance(name, str))


def _size(names: tuple[str, ...], mesh: Any) -> int:
    return math.prod(mesh.shape[name] for name in names)


def block_length(codes: jax.Array, scales: jax.Array) -> int:
    """The length of the blocks of such codes with such scales."""
    return codes.shape[-1] // scales.shape[-1]


def split_blocks(array: jax.Array, block: int) -> jax.Array:
    """[..., n] -> [..., n / block, block], without sending anything."""
    shape = (*array.shape[:-1], array.shape[-1] // block, block)
    return jax.lax.reshape(array, shape, out_sharding=leading_sharding(array, array.ndim))


def join_blocks(parts: jax.Array) -> jax.Array:
    """[..., n / block, block] -> [..., n]."""
    shape = (*parts.shape[:-2], parts.shape[-2] * parts.shape[-1])
    return jax.lax.reshape(parts, shape, out_sharding=leading_sharding(parts, parts.ndim - 1))


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
