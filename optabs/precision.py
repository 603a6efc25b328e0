"""The package's one dtype rule, as a wrapper around a transformation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optabs._alike import check_kind, check_shapes
from optabs._checks import as_transformation


def full_precision(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Runs a transformation in float32 where leaves are narrower than that.

    Leaves of float16 and bfloat16 enter as float32, others as they are; updates come
    back in the gradient's dtype (for a statistic of size: its real counterpart). Every
    public transformation of this package is wrapped in it, so a chain may be wrapped
    once more to round only once.

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
    inner = optax.with_extra_args_support(as_transformation("transformation", transformation))

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
        return jax.tree.map(_narrow, new_updates, updates), new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


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
      kind: the class of the state; any other one is refused in a sentence.
      moment: the field of it that is a tree like the parameters; updates of another one are
        refused likewise.
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
    dtype = jnp.promote_types(jnp.result_type(leaf), jnp.float32)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
    return jnp.asarray(leaf, dtype)


def _narrow(update: jax.Array, gradient: Any) -> jax.Array:
    dtype = jnp.result_type(gradient)
    if jnp.iscomplexobj(gradient) and not jnp.iscomplexobj(update):
        dtype = jnp.finfo(dtype).dtype
    return update.astype(dtype)
