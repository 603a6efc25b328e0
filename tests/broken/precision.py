"""Faults of dtypes and of numbers at their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optabs
from broken.registry import NOT_RAISED, beside, each, factory_for, fault_for, keeping


@fault_for("check_dtypes_are_stable")
def emits_float32(inner):
    return each(inner, lambda u: u.astype(jnp.float32))


@fault_for("check_dtypes_are_stable_under_x64", raises=TypeError)
def multiplies_by_a_numpy_number(inner):
    def wider(state):
        return jax.tree.map(
            lambda x: x * np.float64(1) if jnp.issubdtype(x.dtype, jnp.floating) else x, state
        )

    return keeping(inner, wider)


@fault_for("check_dtypes_are_stable_in_eager_mode")
def starts_weakly_typed(inner):
    return beside(inner, lambda params: jnp.asarray(1.0), lambda held: held * jnp.float32(1))


@fault_for("check_apply_if_finite", raises=TypeError)
def drifts_in_dtype(inner):
    return beside(inner, lambda params: jnp.ones([]), lambda held: held.astype(jnp.bfloat16))


@factory_for(
    "check_state_is_at_least_float32",
    "check_narrow_gradients_lose_only_their_own_rounding",
)
def computes_in_the_leafs_dtype(
    learning_rate: optax.ScalarOrSchedule, decay: float = 0.9
) -> optax.GradientTransformationExtraArgs:
    return optax.chain(optax.ema(decay), optax.scale_by_learning_rate(learning_rate))


@factory_for(
    "check_short_steps_add_up",
    dtype="bfloat16",
    keeps_dtype=False,
)
@factory_for(
    "check_wide_params_are_refused",
    raises=NOT_RAISED,
    dtype="bfloat16",
    keeps_dtype=False,
)
def forgets_what_is_rounded_off(
    learning_rate: optax.ScalarOrSchedule, decay: float = 0.9
) -> optax.GradientTransformationExtraArgs:
    del decay
    inner = optabs.sgd(learning_rate)

    def update(grads, state, params=None, **extra):
        wide = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        return inner.update(wide, state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)


@fault_for("check_debug_flags_stay_silent", raises=FloatingPointError)
def divides_under_a_where(inner):
    return each(inner, lambda u: jnp.where(u == 0, 0.0, u * (u / u)))


@fault_for("check_debug_flags_stay_silent_under_jit", raises=FloatingPointError)
def starts_at_infinity(inner):
    return beside(inner, lambda params: jnp.full([], jnp.inf), lambda least: least)


@fault_for("check_complex")
def forgets_the_phase(inner):
    return each(inner, lambda u: -jnp.abs(u))


@fault_for("check_zero_gradients_stay_finite")
def divides_by_zero(inner):
    return each(inner, lambda u: u / jnp.abs(u))


@factory_for("check_huge_gradients_leave_state_finite")
def overflows(
    learning_rate: optax.ScalarOrSchedule, decay: float = 0.9
) -> optax.GradientTransformationExtraArgs:
    return optax.rmsprop(learning_rate, decay)


@fault_for("check_nan_is_not_hidden")
def hides_nan(inner):
    return each(inner, jnp.nan_to_num)
