"""A problem for DAO-E with gradients known in advance, and the path of an optimizer on it."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from dao_e_reference import Leaves, Step
from trees import params

import optabs

STEPS = 60
RATES = {"adam": 0.05, "lion": 0.03, "rmsprop": 0.02, "sgd": 0.4}
MAKERS: Mapping[str, Any] = {
    "adam": optabs.adam,
    "lion": lambda rate: optax.lion(rate, weight_decay=0.0),
    "rmsprop": optabs.rmsprop,
    "sgd": optabs.sgd,
}
GIVEN = (lambda seen: seen.batch, 2)
"""A feature: the two numbers that are passed as the batch."""


def experts(names: Sequence[str] = tuple(RATES)) -> dict[str, Any]:
    return {name: MAKERS[name](RATES[name]) for name in names}


def problem() -> tuple[list[Any], np.ndarray]:
    """Noisy gradients of a bowl that moves away at half time, and two features.

    At first, and once later, the gradient turns around as it does across a valley; one is
    huge. They are fixed numbers, so that a difference in rounding is not fed back.
    """
    random = np.random.default_rng(3)
    start, structure = jax.tree.flatten(params())
    theta = [np.asarray(leaf, np.float64) for leaf in start]
    size = np.where(np.arange(STEPS) < 10, (-1.0) ** np.arange(STEPS), 1.0)
    size[[24, STEPS - 4]] = -1.0, 300.0
    runs = []
    for t in range(STEPS):
        slopes = [3.0 * (x - (0.0 if t < STEPS // 2 else 4.0)) for x in theta]
        pulls = [s + random.normal(size=s.shape) for s in slopes]
        runs.append([jnp.asarray(size[t] * pull) for pull in pulls])
        theta = [x - 0.05 * pull for x, pull in zip(theta, pulls, strict=True)]
    grads = [jax.tree.unflatten(structure, leaves) for leaves in runs]
    features = random.normal(size=(STEPS, 2)) * [1.0, 50.0] + [0.0, 300.0]
    return grads, np.float32(features)


GRADS, FEATURES = problem()


def drawn(shapes: Any) -> Any:
    """Arrays of such shapes: the draws of a network's own start take seconds to compile."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(0, 0.3, leaf.shape), leaf.dtype), shapes
    )


def flat(node: Any) -> Leaves:
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(node)]


def walk(optimizer: Any, position: Any, grads: Any, each: Any) -> tuple[Any, Any]:
    """Parameters and states after every step; grads and `each` have one entry a step."""

    def step(carry: Any, now: Any) -> Any:
        position, state = carry
        gradient, extra = now
        updates, state = optimizer.update(gradient, state, position, **extra)
        carry = optax.apply_updates(position, updates), state
        return carry, carry

    return jax.lax.scan(step, (position, optimizer.init(position)), (grads, each))[1]


@functools.cache
def walker(optimizer: Any) -> Callable[..., Any]:
    return jax.jit(functools.partial(walk, optimizer))


def stacked(grads: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *grads)


def walked(
    optimizer: Any, grads: Sequence[Any], start: Any = None, **each: Any
) -> tuple[Any, Any]:
    """The compiled walk from `start`, which is `params()` if it is not given."""
    position = params() if start is None else start
    return walker(optimizer)(position, stacked(grads), each)


EXACT = 7
"""Steps without a number that lies, but for its last float32 digits, between two bfloat16; but
for a few after the first EQUAL."""
EQUAL = 6


def assert_follows(wanted: Sequence[Step], positions: Any, states: Any) -> None:
    """Parameters, weights, traces in float32, multiplier and cosines: to 2e-5.

    With a multiplier later steps only to 2e-3 of a path's size: a tie in bfloat16, of what it
    learns from, may be broken otherwise.
    """
    kept = states.multiplier

    def close(actual: Any, path: Any, atol: float = 2e-5) -> None:
        actual, path = np.asarray(actual, np.float64), np.asarray(path)
        np.testing.assert_allclose(actual[:EXACT], path[:EXACT], rtol=2e-5, atol=atol)
        later = 2e-3 * np.abs(path).max() if kept else atol
        np.testing.assert_allclose(actual, path, rtol=2e-5, atol=later)

    for leaf, path in enumerate(zip(*(step.theta for step in wanted), strict=True)):
        close(jax.tree.leaves(positions)[leaf], np.stack(path))
    close(states.controller.weights, [step.weights for step in wanted])
    for k, expert in enumerate(states.experts.values()):
        for leaf, actual in enumerate(jax.tree.leaves(expert.trace)):
            close(actual, [step.traces[k][leaf] for step in wanted], 2e-4)
    if not kept:
        return
    close(np.exp(kept.log_multiplier), [step.multiplier for step in wanted])
    close(kept.cosines, [step.cosines for step in wanted])
    own = np.shape(kept.mean_cosines)[-1]
    close(kept.mean_cosines, [step.mean_cosines[:own] for step in wanted])
    for name in ("step", "step_trace"):
        for leaf, actual in enumerate(jax.tree.leaves(getattr(kept, name))):
            path = np.stack([getattr(step, name)[leaf] for step in wanted])
            actual = np.asarray(actual, np.float64)
            np.testing.assert_allclose(
                actual, path, rtol=2**-7, atol=5e-3 * np.abs(path).max()
            )
            # What nearly cancels has few digits in float32 to begin with.
            has_digits = np.abs(path[:EXACT]) > 1e-4 * np.abs(path).max()
            equal = (actual[:EXACT] == path[:EXACT]) | ~has_digits
            assert np.all(equal[:EQUAL])
            assert np.mean(equal) > 0.96
