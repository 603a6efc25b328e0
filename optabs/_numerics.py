"""The dtype rule and the arithmetic that all transformations share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from optabs._checks import as_transformation, check_kind, check_shapes, short


class FullPrecision(optax.GradientTransformationExtraArgs):
    """A transformation in full precision, which keeps the one it was made from."""

    kernel: optax.GradientTransformationExtraArgs

    def __repr__(self) -> str:
        # Messages show it, and users know it by optax's name.
        return repr(optax.GradientTransformationExtraArgs(*self))


def full_precision(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Runs a transformation in float32 where leaves are narrower than that.

    Leaves of float16 and bfloat16 enter as float32, others as they are; updates come
    back in the gradient's dtype (for a statistic of size: its real counterpart). Every
    public transformation of this package is wrapped in it; a chain that is wrapped once
    more rounds only once.

    Args:
      transformation: any optax transformation; its state is built from the widened
        parameters.

    Returns:
      The same transformation, its state unchanged in structure.

    Raises:
      ValueError: for what is no transformation, such as a function that makes one.

    Examples:
      >>> import jax.numpy as jnp, optax, optabs
      >>> precise = optabs.full_precision(optax.trace(0.9))
      >>> state = precise.init(jnp.zeros(2, jnp.bfloat16))
      >>> updates, state = precise.update(jnp.ones(2, jnp.bfloat16), state)
      >>> updates.dtype.name, state.trace.dtype.name
      ('bfloat16', 'float32')
    """
    inner = kernel_of(as_transformation("transformation", transformation))

    def init_fn(params: optax.Params) -> optax.OptState:
        return inner.init(jax.tree.map(widen, params))

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        wide, wide_params = jax.tree.map(widen, (updates, params))
        new_updates, new_state = inner.update(wide, state, wide_params, **extra_args)
        made: Any = jax.tree.structure(new_updates)
        # optax.lookahead makes updates of two trees, as its parameters are, from one.
        is_usual = params is None or made == jax.tree.structure(updates)
        return jax.tree.map(_narrow, new_updates, updates if is_usual else params), new_state

    wrapped = FullPrecision(init_fn, update_fn)
    wrapped.kernel = inner
    return wrapped


def kernel_of(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """The transformation inside of `full_precision`, for parts of one that is itself wrapped.

    A second wrapper would convert every leaf from float32 to float32.
    """
    if isinstance(transformation, FullPrecision):
        # jax.tree.map and _replace make copies without the attribute.
        return getattr(transformation, "kernel", transformation)
    return optax.with_extra_args_support(transformation)


def transformation(
    init_fn: Callable[..., Any],
    update_fn: Callable[..., Any],
    kind: type | None = None,
    moment: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    """A transformation of two functions, in full precision.

    Args:
      init_fn: parameters -> state.
      update_fn: (updates, state, params, **extra_args) -> (updates, state).
      kind: the class of the state; any other one raises ValueError.
      moment: the field of it that is a tree like the parameters; so do updates of another
        tree.
    """

    def checked_update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        if kind is not None:
            check_kind(state, kind)
        if moment is not None:
            check_shapes("updates", updates, f"the state's {moment}", getattr(state, moment))
        return update_fn(updates, state, params, **extra_args)

    return full_precision(optax.GradientTransformationExtraArgs(init_fn, checked_update))


def widen(leaf: Any) -> Any:
    """An array, or its shape and dtype, in float32 where it is narrower."""
    try:
        dtype = jnp.promote_types(jnp.result_type(leaf), jnp.float32)
    except (TypeError, ValueError):  # a text, a function, a key, float0
        raise ValueError(
            f"a leaf of the parameters or gradients is {short(leaf)}, which has no numbers; "
            "keep it out of the tree, or out of the optimizer by optax.masked."
        ) from None
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
    return jnp.asarray(leaf, dtype)


def _narrow(update: jax.Array, gradient: Any) -> jax.Array:
    dtype = jnp.result_type(gradient)
    if jnp.iscomplexobj(gradient) and not jnp.iscomplexobj(update):
        dtype = jnp.finfo(dtype).dtype
    return update.astype(dtype)


def update_moment(average: jax.Array, value: jax.Array, decay: ArrayLike) -> jax.Array:
    """decay * average + (1 - decay) * value, in the average's dtype."""
    decay = _decay(decay, average)
    return decay * average + (1 - decay) * value.astype(average.dtype)


def update_rising(
    size: jax.Array, value: jax.Array, decay: ArrayLike, count: jax.Array
) -> jax.Array:
    """The bias-corrected moving average, left as it is by values below it."""
    decay = _decay(decay, size)
    weight = (1 - decay) / _one_minus_power(decay, count)
    return size + weight * jnp.maximum(value - size, 0)


def correct_bias(average: jax.Array, decay: ArrayLike, count: jax.Array) -> jax.Array:
    """average / (1 - decay**count), for count >= 1."""
    return average / _one_minus_power(_decay(decay, average), count)


def _one_minus_power(decay: jax.Array, count: jax.Array) -> jax.Array:
    # 1 - decay**count cancels in float32 (decay near 1, small count). The other form of the
    # same number keeps all digits; below 0.5 it is not used, and 0.25 keeps its logarithm and
    # its derivative finite there.
    near_one = -jnp.expm1(count * jnp.log1p(jnp.maximum(decay, 0.25) - 1))
    return jnp.where(decay < 0.5, 1 - decay**count, near_one)


def _decay(decay: ArrayLike, like: jax.Array) -> jax.Array:
    """The decay in the leaf's real dtype; raises where that makes it 1, if it can be read."""
    dtype = jnp.finfo(like.dtype).dtype
    if isinstance(decay, float | np.floating) and np.asarray(decay, dtype) >= 1:
        raise ValueError(
            f"decay is {float(decay)!r}, which is 1 in {dtype}; pass a smaller one."
        )
    return cast_like(decay, like)


def cast_like(number: ArrayLike, like: jax.Array) -> jax.Array:
    """A hyperparameter in the leaf's real dtype.

    Once, so that of a decay 1 - b and 1 - b**t agree; and never wider than the leaf, which a
    float64 number would widen.
    """
    return jnp.asarray(number, jnp.finfo(like.dtype).dtype)


def abs_square(x: jax.Array) -> jax.Array:
    return jnp.real(x * jnp.conj(x))


def clip_to_finite(size: jax.Array) -> jax.Array:
    """The size, or the largest finite number where a square or a sum has overflowed."""
    # XLA repeats a minimum with a constant for every reader, which costs a copy of the
    # state; a select is computed once.
    largest = jnp.finfo(size.dtype).max
    return jnp.where(size > largest, largest, size)


def arrays(tree: Any) -> Any:
    """The tree with arrays for its Python numbers; what has a shape and dtype stays."""
    return jax.tree.map(
        lambda leaf: leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf), tree
    )


def real_zeros_like(param: Any) -> jax.Array:
    return jnp.zeros_like(param, dtype=jnp.finfo(param.dtype).dtype)


def new_count() -> jax.Array:
    return jnp.zeros([], jnp.int32)


INFINITY = 0x7F800000  # the bits of float32's
GOLDEN = 0x9E3779B9  # 2**32 over the golden ratio: multiples of it fill a circle evenly


def bits_of_upper_half(value: jax.Array, added: jax.Array) -> jax.Array:
    """The bits of a bfloat16 beside each float32: uint32, the lower half 0.

    Args:
      value: float32; numbers that are not finite need a look of their own.
      added: uint32 below 2**16, to the bits: what carries decides.
    """
    word = jax.lax.bitcast_convert_type(value, jnp.uint32)
    return (word + added) & jnp.uint32(0xFFFF0000)


def hash_uint32(word: Any) -> Any:
    """A bijection of uint32 after which every bit depends on every bit.

    Source: C. Wellons's "lowbias32", found by search for the least bias.
    """
    word = (word ^ (word >> 16)) * np.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * np.uint32(0x846CA68B)
    return word ^ (word >> 16)


def explicit_sharding(array: jax.Array) -> NamedSharding | None:
    """The sharding of an array on an Explicit mesh; None where the compiler sees to it."""
    sharding: NamedSharding = jax.typeof(array).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def leading_sharding(array: jax.Array, axes: int) -> NamedSharding | None:
    """That of an array with the same first axes, and others that are not sharded."""
    sharding = explicit_sharding(array)
    if sharding is None:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:axes]))
