"""The longest step from moments of 8 bits, next to the longest from those of 32."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optabs
from benchmarks.lab.block_codecs import kept_in_blocks

RATE, STEPS, ROW = 1e-3, 2000, 64
SPREADS = 10.0 ** -np.arange(12.0)  # of a row's other entries, next to its largest
LARGEST = 1e6  # of the gradients: epsilon bounds no step
KINDS = ("constant", "noisy", "spikes", "sleep", "sparse")
BOUNDS = np.array([1.5, 1.5, 1.55, 1.5, 1.5])
FORMER = {"mu": "int8_square", "nu": "uint8_fourth"}
OPTIMIZERS = {
    "adam_abs": optabs.adam_abs(RATE),
    "adam": optabs.adam(RATE),
    "nadam_abs": optabs.nadam_abs(RATE),
    "rmsprop_abs": optabs.rmsprop_abs(RATE),
    "adam_abs, steady": optabs.adam_abs(RATE, steady=True),
    "adam, steady": optabs.adam(RATE, steady=True),
    "nadam_abs, steady": optabs.nadam_abs(RATE, steady=True),
    "rmsprop_abs, steady": optabs.rmsprop_abs(RATE, steady=True),
    "lion": optax.lion(RATE),
    "adamw": optax.adamw(RATE),
}
ABS_AND_CLASSIC = ("adam_abs", "adam")


def gradients(step: jax.Array) -> jax.Array:
    """[kinds, spreads, entries]."""
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), step), (1, ROW))
    awake = step // 300 % 2 == 0
    made = jnp.stack(
        [
            jnp.ones_like(noise),
            noise,
            jnp.where(step % 89 == 0, 100.0, 1.0) * noise,
            jnp.where(awake, noise, 0.0),
            jnp.where(step % 100 == 0, noise, 0.0),
        ]
    )
    sizes = np.tile(SPREADS[:, None], ROW).astype("f4")
    sizes[:, 0] = 1.0
    return made * LARGEST * sizes[None]


def longest(optimizer: Any) -> np.ndarray:
    """[kinds, spreads]: of all steps and entries."""
    params = jnp.zeros((len(KINDS), len(SPREADS), ROW))

    def step(carry: Any, number: jax.Array) -> tuple[Any, None]:
        state, largest = carry
        updates, state = optimizer.update(gradients(number), state, params)
        return (state, jnp.maximum(largest, jnp.abs(updates).max(-1))), None

    @jax.jit
    def run(state: Any) -> jax.Array:
        largest = jnp.zeros(params.shape[:-1])
        return jax.lax.scan(step, (state, largest), jnp.arange(STEPS))[0][1]

    return np.asarray(run(optimizer.init(params)))


def ratios(name: str, narrow: Any) -> np.ndarray:
    """[kinds]: the worst of all spreads."""
    optimizer = OPTIMIZERS[name]
    return (longest(narrow(optimizer)) / longest(optimizer)).max(-1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codecs", "bounds"), [(None, BOUNDS), ("bfloat16", 1.1)], ids=["8 bits", "bfloat16"]
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_step_is_much_longer_than_in_float32(name: str, codecs: Any, bounds: Any) -> None:
    found = ratios(name, lambda inner: optabs.narrow_state(inner, codecs, min_size=1))
    assert np.all(found <= bounds), dict(zip(KINDS, found, strict=True))
    assert np.all(found >= 0.9)  # nothing stands still either


@pytest.mark.slow
@pytest.mark.parametrize("name", ABS_AND_CLASSIC)
def test_shares_of_a_block_have_no_such_bound(name: str) -> None:
    found = ratios(name, lambda inner: kept_in_blocks(inner, FORMER, ROW))
    assert found.max() > 10, dict(zip(KINDS, found, strict=True))
