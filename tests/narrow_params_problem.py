"""Numbers of 24 bits by whole numbers, and a problem to train on, for narrow_params."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax

import optabs

BF16 = jnp.bfloat16
GIVEN = optabs.narrow_params(optax.identity())  # the gradient is the step


# The reference: numbers as whole numbers, float32 by its 32 bits and bfloat16 by 16.


def words(values: Any) -> np.ndarray:
    """A float's bits but its sign."""
    wide = np.asarray(values).astype(np.float32).view(np.uint32).astype(np.int64)
    return wide & 0x7FFFFFFF


def rounded(values: np.ndarray) -> np.ndarray:
    """To 24 bits, as float32."""
    kept = np.minimum((words(values) + 0x80) >> 8 << 8, 0x7F7F7F00)
    return np.copysign(kept.astype(np.uint32).view(np.float32), values)


def nearest(values: np.ndarray) -> np.ndarray:
    """The bfloat16 of 24 bits, halves away from zero."""
    upper = ((words(values) + 0x8000) >> 16).astype(np.uint16)
    sign = np.signbit(values).astype(np.uint16) << 15
    return (upper | sign).view(ml_dtypes.bfloat16)


def random_values(size: int, seed: int, octaves: int = 100) -> np.ndarray:
    random = np.random.default_rng(seed)
    sizes = random.uniform(1, 2, size) * 2.0 ** random.integers(-octaves, octaves, size)
    return (sizes * random.choice([-1.0, 1.0], size)).astype(np.float32)


def random_state(size: int, seed: int, octaves: int = 100) -> tuple[np.ndarray, Any, Any]:
    """24-bit values, and the parameters and state that hold them."""
    values = rounded(random_values(size, seed, octaves))
    # A cast rounds halves to even and GIVEN rounds them up, so that some have no bits.
    values[words(values) & 0xFFFF == 0x8000] = 1.0
    state = GIVEN.init(jnp.asarray(values))
    return values, jnp.asarray(values).astype(BF16), state


@functools.cache
def compiled_step(optimizer: Any) -> Any:
    def step(grads: Any, state: Any, params: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step)


def eager_step(optimizer: Any, grads: Any, state: Any, params: Any) -> Any:
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def quadratic(seed: int) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    inputs = jnp.asarray(random.normal(size=(64, 8)), jnp.float32)
    start = {"w": jnp.asarray(random.normal(size=(8, 3)), jnp.float32), "b": jnp.ones(3) / 4}
    targets = inputs @ (start["w"] + jnp.asarray(random.uniform(-0.5, 0.5, (8, 3)), "f4"))

    def loss(params: Any) -> Any:
        out = inputs @ params["w"].astype(jnp.float32) + params["b"].astype(jnp.float32)[None]
        return jnp.mean(jnp.square(out - targets))

    return loss, start


def trained(optimizer: Any, start: Any, loss: Any, count: int, dtype: Any) -> Any:
    @jax.jit
    def run(params: Any, state: Any) -> Any:
        def advance(carry: Any, _: Any) -> Any:
            params, state = carry
            return eager_step(optimizer, jax.grad(loss)(params), state, params), None

        return jax.lax.scan(advance, (params, state), length=count)[0]

    return run(optax.tree.cast(start, dtype), optimizer.init(start))
