"""Faults of the factory."""

import jax
import jax.numpy as jnp
import optax

import optabs
from broken.registry import NOT_RAISED, each, factory_for


@factory_for("check_bad_values_are_named", raises=NOT_RAISED)
def unchecked(
    learning_rate: optax.ScalarOrSchedule, decay: float = 0.9
) -> optax.GradientTransformationExtraArgs:
    return optax.chain(optax.ema(decay), optax.scale_by_learning_rate(learning_rate))


@factory_for(
    "check_arrays_are_not_read",
    "check_injected_change_compiles_once",
    "check_vmap_over_rates_equals_loop",
    raises=jax.errors.ConcretizationTypeError,
)
def reads_the_rate(
    learning_rate: optax.ScalarOrSchedule, decay: float = 0.9
) -> optax.GradientTransformationExtraArgs:
    return optabs.momentum(float(learning_rate), decay)


@factory_for("check_rate_is_annotated")
def annotates_a_float(learning_rate: float, decay: float = 0.9):
    return optabs.momentum(learning_rate, decay)


@factory_for(
    "check_injected_equals_plain",
    "check_injected_in_float32_equals_plain_on_narrow_params",
    "check_traced_numbers_compile_once",
)
def distrusts_arrays(
    learning_rate: optax.ScalarOrSchedule, decay: float = 0.9
) -> optax.GradientTransformationExtraArgs:
    return optabs.momentum(learning_rate, 0.8 if isinstance(decay, jax.Array) else decay)


@factory_for("check_injected_in_narrow_dtype_equals_plain_or_is_refused")
def takes_a_rounded_decay(
    learning_rate: optax.ScalarOrSchedule, decay: float = 0.999
) -> optax.GradientTransformationExtraArgs:
    debiased = optax.ema(jnp.float32(decay), debias=True)
    return optabs.full_precision(optax.chain(debiased, optabs.sgd(learning_rate)))


@factory_for("check_constant_schedule_equals_constant")
def scales_schedules(
    learning_rate: optax.ScalarOrSchedule, decay: float = 0.9
) -> optax.GradientTransformationExtraArgs:
    inner = optabs.momentum(learning_rate, decay)
    return each(inner, lambda u: 2 * u) if callable(learning_rate) else inner


@factory_for("check_schedule_is_followed")
def keeps_the_first_rate(
    learning_rate: optax.ScalarOrSchedule, decay: float = 0.9
) -> optax.GradientTransformationExtraArgs:
    return optabs.momentum(learning_rate(0), decay)
