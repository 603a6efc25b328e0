"""How the updates of the step before are kept until the next gradient judges them."""

import functools
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

Storage = Literal["bfloat16", "float32", "int8", "thinned"]

STRIDE = 16
SMALL = 4096
_TINY = 1e-30


class Scaled(NamedTuple):
    """An array in 8 bits: codes times scale."""

    codes: jax.Array  # int8, like the parameter
    scale: jax.Array  # float32 []


Kept = jax.Array | Scaled


def check_storage(storage: object) -> None:
    """Refuses an unknown storage in one sentence."""
    if storage not in get_args(Storage):
        known = ", ".join(map(repr, get_args(Storage)))
        raise ValueError(f"previous is {storage!r}; pass one of {known}.")


def is_kept(node: object) -> bool:
    """Whether a node of a tree is one kept array, whatever it consists of."""
    return isinstance(node, jax.Array | Scaled)


def keep(update: jax.Array, storage: Storage) -> Kept:
    """An update as it is kept.

    Args:
      update: any shape, float32 or wider.
      storage: `"float32"` as it is; `"bfloat16"` rounded; `"int8"` in 255 even steps of the
        leaf's largest entry; `"thinned"` every 16th entry of leaves of 4096 and more.
    """
    if storage == "float32":
        return update
    if storage == "thinned":
        axis = _axis(update)
        return update if axis is None else _thinned(update, axis)
    if jnp.iscomplexobj(update):
        round_part = functools.partial(jax.lax.reduce_precision, exponent_bits=8)
        return jax.lax.complex(
            round_part(update.real, mantissa_bits=7), round_part(update.imag, mantissa_bits=7)
        )
    if storage == "bfloat16":
        return update.astype(jnp.bfloat16)
    largest = jnp.max(jnp.abs(update), initial=0.0).astype(jnp.float32)
    codes = jnp.round(update * (127 / jnp.maximum(largest, _TINY)))
    return Scaled(codes.astype(jnp.int8), largest / 127)


def product(gradient: jax.Array, kept: Kept) -> jax.Array:
    """The inner product of a gradient with a kept update, real: float32 []."""
    if isinstance(kept, Scaled):
        return kept.scale * _inner(gradient, kept.codes)
    if kept.shape == gradient.shape:
        return _inner(gradient, kept)
    axis = _axis(gradient)
    thinned = gradient if axis is None else _thinned(gradient, axis)
    if axis is None or thinned.shape != kept.shape:
        raise ValueError(
            f"state keeps an update of shape {kept.shape} where grads hold {gradient.shape}; "
            "pass update the state that this optimizer's init made of these parameters."
        )
    ratio = gradient.shape[axis] / kept.shape[axis]
    return ratio * _inner(thinned, kept)


def _inner(gradient: jax.Array, update: jax.Array) -> jax.Array:
    # Not jnp.vdot, which refuses sharded leaves under an Explicit mesh.
    terms = jnp.real(jnp.conj(gradient) * update.astype(gradient.dtype))
    return jnp.sum(terms).astype(jnp.float32)


def _thinned(array: jax.Array, axis: int) -> jax.Array:
    return jax.lax.slice_in_dim(array, 0, array.shape[axis], STRIDE, axis)


def _axis(array: jax.Array) -> int | None:
    """The longest axis that lies on one device, if thinning it is worth while."""
    spec = jax.typeof(array).sharding.spec
    free = [
        axis
        for axis in range(array.ndim)
        if array.shape[axis] >= STRIDE and (axis >= len(spec) or spec[axis] is None)
    ]
    if array.size < SMALL or not free:
        return None
    return max(free, key=lambda axis: array.shape[axis])
