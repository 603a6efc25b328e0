"""Under optax.inject_hyperparams, 16-bit parameters make 16-bit hyperparameters."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import NAMED, OPTIONS, PARTS, Case
from trees import gradients, params

import optabs

NARROW = [jnp.bfloat16, jnp.float16]
COARSE = {"decay", "b1", "b2", "eps", "eps_root"}
ROWS = [case for case in [*NAMED, *OPTIONS, *PARTS] if COARSE & set(case.numbers)]


def injected(case: Case, **options: Any) -> Any:
    static = [name for name in ("mask",) if name in case.parameters]
    wrapped = optax.inject_hyperparams(case.factory, static_args=static, **options)
    return wrapped(case.rate, **case.options)


def step(optimizer: Any, dtype: Any) -> Any:
    position = params(dtype)
    return optimizer.update(gradients(1, dtype)[0], optimizer.init(position), position)[0]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("case", ROWS, ids=str)
def test_one_sentence_and_both_of_its_cures(case: Case, dtype: Any) -> None:
    with pytest.raises(ValueError, match=f"came as {jnp.dtype(dtype)}") as raised:
        injected(case).init(params(dtype))
    message = str(raised.value)
    assert message.split()[0] in COARSE & set(case.numbers)
    assert "hyperparam_dtype=jnp.float32" in message
    assert message.endswith(".")
    assert len(message) <= 300
    plain = step(case.make(), dtype)
    chex.assert_trees_all_equal(
        step(injected(case, hyperparam_dtype=jnp.float32), dtype), plain, strict=True
    )
    chex.assert_trees_all_equal(
        step(optabs.full_precision(injected(case)), dtype), plain, strict=True
    )


@pytest.mark.parametrize("dtype", NARROW)
def test_in_a_trace_too(dtype: Any) -> None:
    with pytest.raises(ValueError, match="b2 came as"):
        jax.eval_shape(lambda b2: optabs.adam(0.1, b2=b2).init(params()), jnp.zeros([], dtype))


@pytest.mark.parametrize("number", [np.float16(0.999), jnp.bfloat16(0.9), np.float16(1.0)])
def test_as_a_number(number: Any) -> None:
    with pytest.raises(ValueError, match="b2 came as"):
        optabs.adam(0.1, b2=number)


def test_a_rate_may_be_narrow() -> None:
    rates = jnp.array([0.125, 0.25], jnp.bfloat16)

    def first(rate: jax.Array) -> jax.Array:
        optimizer = optabs.adam(rate)
        return optimizer.update(jnp.ones(1), optimizer.init(jnp.ones(1)))[0][0]

    np.testing.assert_allclose(jax.vmap(first)(rates), -rates.astype(jnp.float32), rtol=1e-6)
    step(optax.inject_hyperparams(optabs.sgd)(0.125), jnp.bfloat16)


@pytest.mark.parametrize("name", ["adam", "adam_abs", "nadam", "nadam_abs"])
def test_a_decay_that_rounds_to_1(name: str) -> None:
    optimizer = getattr(optabs, name)(0.1, b2=1 - 1e-9)
    state = optimizer.init(jnp.ones(2))
    with pytest.raises(ValueError, match=r"decay is 0\.999999999, which is 1 in float32"):
        optimizer.update(jnp.ones(2), state)
    with jax.enable_x64(True):
        wide = jnp.ones(2, jnp.float64)
        assert np.isfinite(optimizer.update(wide, optimizer.init(wide))[0]).all()
