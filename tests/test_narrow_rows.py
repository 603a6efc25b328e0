"""Rows: how an array is divided into them, and what they remember while they sleep."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optabs
from optabs.storage import eight_bits
from optabs.storage.codecs import decode, is_node

ENTRIES, STEPS = 64, 3000
PERIODS = np.array([1, 10, 30, 100, 300])
OPTIMIZERS = {
    "adam": optax.adam(1.0),
    "adam, slow": optax.adam(1.0, 0.99),
    "adam_abs": optabs.adam_abs(1.0),
    "sgd": optax.sgd(1.0, momentum=0.9),
    "lion": optax.lion(1.0),
}


def moved(optimizer: Any) -> np.ndarray:
    """How far rows go in all whose gradient comes once in so many steps: [periods]."""
    params = jnp.zeros((len(PERIODS), ENTRIES))
    sizes = jnp.exp(jax.random.normal(jax.random.key(1), (ENTRIES,)))

    def step(carry: Any, number: jax.Array) -> tuple[Any, None]:
        params, state = carry
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(2), number), (ENTRIES,))
        awake = number % PERIODS[:, None] == 0
        grads = jnp.where(awake, sizes * (1 + noise / 2), 0.0)
        updates, state = optimizer.update(grads, state, params)
        return (params + updates, state), None

    @jax.jit
    def run(state: Any) -> jax.Array:
        (end, _), _ = jax.lax.scan(step, (params, state), jnp.arange(STEPS))
        return end.sum(1)

    return np.asarray(run(optimizer.init(params)))


def share(name: str) -> np.ndarray:
    optimizer = OPTIMIZERS[name]
    return moved(optabs.narrow_state(optimizer, min_size=1)) / moved(optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_that_sleep_and_wake_move_as_in_float32(name: str) -> None:
    """Rare rows of an embedding: the mean of one that wakes is not lost above its range."""
    np.testing.assert_allclose(share(name), 1, atol=0.06)


@pytest.mark.slow
def test_ranges_that_follow_at_once_lose_what_wakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A control."""
    monkeypatch.setattr(eight_bits, "_FALLS", 0)
    assert share("adam")[PERIODS == 100] < 0.5


@pytest.mark.parametrize(
    ("shape", "ranges"),
    [
        ((64, 128), (64, 1)),
        ((512, 8), (512, 1)),
        ((1024, 7), (1, 1)),
        ((5000, 1), (1, 1)),
        ((128, 128, 1, 1), (128, 1, 1, 1)),
        ((64, 64, 3, 3), (64, 64, 1, 1)),
        ((4096,), (1,)),
    ],
    ids=str,
)
def test_short_axes_are_rows_together(shape: Any, ranges: Any) -> None:
    optimizer = optabs.narrow_state(optax.adam(1e-3))
    params = jax.random.normal(jax.random.key(0), shape)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for _ in range(2):
        _, state = update(params, state, params)
    for node in filter(is_node, jax.tree.leaves(state, is_leaf=is_node)):
        assert node.codes.shape == shape
        assert node.ranges.shape == ranges
    mean = decode(optax.tree.get(state, "mu"))
    np.testing.assert_allclose(mean, 0.19 * params, rtol=0.5, atol=1e-5)
    again = optabs.encode_state(optabs.decode_state(state), optimizer.init(params))
    np.testing.assert_allclose(decode(optax.tree.get(again, "mu")), mean, rtol=0.2, atol=1e-5)
