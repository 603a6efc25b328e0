"""Rates and decays: ranges, injection, tracing, schedules."""

import functools
import inspect
import math
import typing

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import Case, with_compiled_update
from trees import (
    NARROW,
    assert_close,
    filled,
    gradients,
    params,
    plain,
    run,
    step,
    with_traced,
)

from checks.registry import check

_DECAY = (1.0, -0.1, math.nan, "high", True)
_SIZE = (-1e-3, math.nan, math.inf, "small", True)
BAD = {
    "learning_rate": (-0.1, math.nan, math.inf, "fast", True, np.float32(-1.0)),
    "decay": _DECAY,
    "b1": _DECAY,
    "b2": _DECAY,
    "eps": _SIZE,
    "eps_root": _SIZE,
    "weight_decay": _SIZE,
    "cap": (0, -1.0, math.nan, "tall", True),
    "floor": _DECAY,
    "rate": _SIZE,
    "gamma": _DECAY,
    "multiplier_rate": _SIZE,
    "max_ratio": (0, -1.0, math.nan, "tall", True),
    "mask": (True, False, 1),
}


@check()
def check_bad_values_are_named(case: Case) -> None:
    """One sentence: the argument, what was given, what to pass."""
    refused = set(case.parameters) & set(BAD)
    assert set(case.numbers) <= refused, "a number without a range"
    for name in refused:
        for value in BAD[name]:
            with pytest.raises(ValueError, match=rf"\b{name}\b") as error:
                _use(case, **{name: value})
            message = str(error.value)
            assert repr(value) in message, message
            assert "pass " in message, message
            assert message.endswith("."), message
            assert "\n" not in message, message


def _use(case: Case, **numbers: typing.Any) -> None:
    """A wrong number fails at construction or at the first trace."""
    run(case, case.make(**numbers))


@check()
def check_arrays_are_not_read(case: Case) -> None:
    """jax and NumPy scalars and tracers pass where Python numbers do."""
    names = ("learning_rate", *case.numbers)
    given = {"learning_rate": case.rate, **case.numbers}
    for kind in (jnp.float32, np.float32, jnp.asarray):
        case.make(**{name: kind(given[name]) for name in names})
    # Out of range and traced: its value is not known here, so nothing may be raised.
    jax.eval_shape(
        lambda numbers: run(case, case.make(**numbers)), dict.fromkeys(names, jnp.float32(-1))
    )


@check()
def check_rate_is_annotated(case: Case) -> None:
    """optax's own tests recognise a schedulable rate by this object."""
    assert case.parameters["learning_rate"].annotation is optax.ScalarOrSchedule
    assert inspect.signature(case.factory).return_annotation in (
        optax.GradientTransformationExtraArgs,
        optax.GradientTransformation,
    )


@functools.cache
def _injected(case: Case, dtype: typing.Any = None) -> typing.Any:
    factory = functools.partial(case.factory, **case.options)
    static = [name for name in ("mask", "experts") if name in case.parameters]
    inject = optax.inject_hyperparams(factory, static_args=static, hyperparam_dtype=dtype)
    optimizer = inject(learning_rate=case.rate)
    return with_compiled_update(optimizer) if case.large else optimizer


def _of_injected(case: Case) -> typing.Any:
    """The dtype of injected numbers, where that of the parameters is too coarse for them."""
    return jnp.float32 if case.dtype in NARROW else None


@check()
def check_injected_equals_plain(case: Case) -> None:
    updates, state = run(case, _injected(case, _of_injected(case)))
    plain_updates, plain_state = plain(case)
    assert_close(updates, plain_updates, rtol=1e-5)
    assert_close(state.inner_state, plain_state, rtol=1e-5)


def _emitted(case: Case, optimizer: typing.Any, dtype: typing.Any) -> typing.Any:
    """Updates of narrow parameters; a zero gradient tells an eps from none."""
    position = params(dtype)
    updates, _ = run(case, optimizer, position, [filled(position, 0.0), *gradients(1, dtype)])
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), updates)


@check(variants=NARROW)
def check_injected_in_float32_equals_plain_on_narrow_params(case: Case, dtype: str) -> None:
    updates = _emitted(case, _injected(case, jnp.float32), dtype)
    assert_close(updates, _emitted(case, case.make(), dtype), rtol=jnp.finfo(dtype).eps)


@check()
def check_injected_in_narrow_dtype_equals_plain_or_is_refused(case: Case) -> None:
    """Parameters' dtype is the default of inject_hyperparams; 0.999 is 1 in bfloat16."""
    for dtype in NARROW:
        try:
            updates = _emitted(case, _injected(case), dtype)
        except ValueError as error:
            message = str(error)
            assert "hyperparam_dtype" in message, message
            assert message.endswith("."), message
            assert "\n" not in message, message
            assert len(message) <= 300, message
        else:
            # The rate's rounding, and the update's on either side: half a last place each.
            wanted = _emitted(case, case.make(), dtype)
            assert_close(updates, wanted, rtol=jnp.finfo(dtype).eps)


def _nudged(numbers: dict[str, float]) -> dict[str, float]:
    return {name: 0.75 * value for name, value in numbers.items()}


@check()
def check_injected_change_compiles_once(case: Case) -> None:
    optimizer = _injected(case, _of_injected(case))
    chex.clear_trace_counter()  # it counts by a function's text, over all rows

    @jax.jit
    @chex.assert_max_traces(n=1)
    def update(grads, state, position):
        return step(case, optimizer, grads, state, position)

    position, grads = params(), gradients(1)[0]
    state = optimizer.init(position)
    for name, value in {"learning_rate": case.rate, **case.numbers}.items():
        before = update(grads, state, position)[0]
        changed = jnp.asarray(0.75 * value, state.hyperparams[name].dtype)
        state.hyperparams[name] = changed
        after, new = update(grads, state, position)
        assert new.hyperparams[name] == changed
        if name == "learning_rate":
            assert not jnp.array_equal(before["scale"], after["scale"])


@check()
def check_traced_numbers_compile_once(case: Case) -> None:
    """Rate and decays as arguments of a compiled function, twice, one compilation."""
    chex.clear_trace_counter()
    traced = with_traced(case, chex.assert_max_traces(n=1))
    given = {"learning_rate": case.rate, **case.numbers}
    for numbers in (given, _nudged(given)):
        optimizer = traced(**{name: jnp.float32(value) for name, value in numbers.items()})
        wanted = run(case, case.make(**numbers))[0]
        assert_close(run(case, optimizer)[0], wanted, rtol=2e-5)


@check()
def check_constant_schedule_equals_constant(case: Case) -> None:
    by_schedule = run(case, case.make(optax.constant_schedule(case.rate)))[0]
    assert_close(by_schedule, plain(case)[0])


@check()
def check_schedule_is_followed(case: Case) -> None:
    """A rate of 0 from the second step on stops the parameters there."""
    schedule = optax.piecewise_constant_schedule(case.rate, {0: 1.0, 1: 0.0})
    optimizer = case.make(schedule)
    position = params()
    state = optimizer.init(position)
    sizes = []
    for grads in gradients(4):
        updates, state = step(case, optimizer, grads, state, position)
        sizes.append(max(float(jnp.max(jnp.abs(u))) for u in jax.tree.leaves(updates)))
    assert sizes[0] > 0
    # A rule that trains a look-ahead point takes one more step back to the point itself.
    assert sizes[3] == 0
