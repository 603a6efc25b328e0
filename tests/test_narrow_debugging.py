"""jax_debug_nans and jax_debug_infs have no complaint about a codec of healthy numbers."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optabs
from optabs.storage.codecs import CODECS

SHAPE = (8, 128)
PARAMS = {"w": jnp.ones(SHAPE)}
NOISE = jax.random.normal(jax.random.key(0), SHAPE)
GRADIENTS = {
    "zeros": jnp.zeros(SHAPE),
    "noise": NOISE,
    "one in a block": jnp.zeros(SHAPE).at[:, ::64].set(1.0),
    "wide": NOISE * 10.0 ** -(jnp.arange(128.0)[None] ** 0.5),
    "tiny": 1e-18 * NOISE,
    "denormal": jnp.full(SHAPE, 1e-41),
    "large": 1e18 * NOISE,
}


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    with jax.debug_nans(True), jax.debug_infs(True):
        yield


def eager(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@pytest.mark.parametrize(
    "compiled", [jax.jit, pytest.param(eager, marks=pytest.mark.slow)], ids=["jit", "eager"]
)
@pytest.mark.parametrize("name", CODECS)
def test_init_and_updates_of_healthy_gradients(name: str, compiled: Any) -> None:
    field = "nu" if CODECS[name].sizes else "mu"
    optimizer = optabs.narrow_state(optabs.adam_abs(1e-3), {field: name}, min_size=1)
    init, update = compiled(optimizer.init), compiled(optimizer.update)
    again = compiled(lambda state: optabs.encode_state(optabs.decode_state(state), state))
    for gradients in GRADIENTS.values():
        state = init(PARAMS)
        for grads in (gradients, jnp.zeros(SHAPE), gradients):
            updates, state = update({"w": grads}, state, PARAMS)
            assert np.all(np.isfinite(updates["w"]))
        again(state)


@pytest.mark.slow
def test_the_default_is_silent_eagerly_too() -> None:
    optimizer = optabs.narrow_state(optabs.adam_abs(1e-3), min_size=1)
    state = optimizer.init(PARAMS)
    for grads in (jnp.zeros(SHAPE), NOISE, jnp.zeros(SHAPE)):
        _, state = optimizer.update({"w": grads}, state, PARAMS)


@pytest.mark.slow
def test_a_fault_of_the_gradients_is_still_found() -> None:
    optimizer = optabs.narrow_state(optabs.adam_abs(1e-3), min_size=1)
    state = optimizer.init(PARAMS)
    grads = np.full(SHAPE, 0.5, "f4")
    grads[0, 0] = np.nan
    with pytest.raises(FloatingPointError):
        jax.jit(optimizer.update)({"w": grads}, state, PARAMS)
