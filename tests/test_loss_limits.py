"""Every loss at its limits: value, and slopes that all modes of differentiation agree on."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import NAMES

from optabs import losses

INF = math.inf
STEEPEST = 1 / float(jnp.finfo(jnp.float32).tiny)

# Of a logit of minus infinity beside 0.3 and 1.
SECOND, THIRD = (math.exp(x) / (math.exp(0.3) + math.e) for x in (0.3, 1.0))

# Name, first argument, second, the value, the slope in the first argument.
LIMITS: list[tuple[str, Any, Any, float, Any]] = [
    ("mse", [1.0, -2.0], [1.0, -2.0], 0.0, [0.0, 0.0]),
    ("mae", [1.0, -2.0], [1.0, -2.0], 0.0, [0.0, 0.0]),
    ("huber", [1.0, -2.0], [1.0, -2.0], 0.0, [0.0, 0.0]),
    ("huber", [1.0, 0.0], [0.0, 0.0], 0.25, [0.5, 0.0]),
    ("huber", [1e38, 0.0], [-1e38, 0.0], 1e38, [0.5, 0.0]),
    ("cosine_distance", [0.0, 0.0], [1.0, 2.0], 1.0, [0.0, 0.0]),
    ("cosine_distance", [1.0, 2.0], [0.0, 0.0], 1.0, [0.0, 0.0]),
    ("cosine_distance", [0.0, 0.0], [0.0, 0.0], 1.0, [0.0, 0.0]),
    ("cosine_distance", [3e38, 0.0], [0.0, 1e-37], 1.0, [0.0, 0.0]),
    ("hinge", [1.0, 0.0, 0.0], 0, 0.0, [0.0, 0.0, 0.0]),
    ("hinge", [-INF, 2.0, 0.0], 1, 0.0, [0.0, 0.0, 0.0]),
    ("hinge", [-INF, 2.0, 0.0], [0.0, 0.9, 0.1], 0.3, [0.0, 0.1, -0.1]),
    ("cross_entropy", [0.0, 0.5, 0.5], 1, math.log(2), [0.0, -2.0, 0.0]),
    ("cross_entropy", [0.0, 0.5, 0.5], [0.0, 1.0, 0.0], math.log(2), [0.0, -2.0, 0.0]),
    ("cross_entropy", [0.0, 0.5, 0.5], [0.0, 0.8, 0.2], math.log(2), [0.0, -1.6, -0.4]),
    ("cross_entropy", [0.0, 0.0, 1.0], 2, 0.0, [0.0, 0.0, -1.0]),
    ("cross_entropy", [0.0, 0.5, 0.5], 0, INF, [-STEEPEST, 0.0, 0.0]),
    ("cross_entropy", [0.0, 0.5, 0.5], [0.5, 0.5, 0.0], INF, [-STEEPEST / 2, -1.0, 0.0]),
    ("sigmoid_cross_entropy", 1e38, 0.0, 1e38, 1.0),
    ("sigmoid_cross_entropy", 1e38, 1.0, 0.0, 0.0),
    ("sigmoid_cross_entropy", INF, 1.0, 0.0, 0.0),
    ("sigmoid_cross_entropy", INF, 0.0, INF, 1.0),
    ("sigmoid_cross_entropy", INF, 0.25, INF, 0.75),
    ("sigmoid_cross_entropy", -INF, 0.0, 0.0, 0.0),
    ("sigmoid_cross_entropy", -INF, 1.0, INF, -1.0),
    ("softmax_cross_entropy", [1e4, 0.0, -1e4], 1, 1e4, [1.0, -1.0, 0.0]),
    ("softmax_cross_entropy", [1e4, 0.0, -1e4], [0.0, 1.0, 0.0], 1e4, [1.0, -1.0, 0.0]),
    ("softmax_cross_entropy", [-INF, 0.3, 1.0], 1, -math.log(SECOND), [0.0, -THIRD, THIRD]),
    (
        "softmax_cross_entropy",
        [-INF, 0.3, 1.0],
        [0.0, 1.0, 0.0],
        -math.log(SECOND),
        [0.0, -THIRD, THIRD],
    ),
    (
        "softmax_cross_entropy",
        [-INF, 0.3, 1.0],
        [0.0, 0.9, 0.1],
        -math.log(SECOND) - 0.07,
        [0.0, SECOND - 0.9, THIRD - 0.1],
    ),
    ("softmax_cross_entropy", [-INF, 0.3, 1.0], 0, INF, [-1.0, SECOND, THIRD]),
    (
        "softmax_cross_entropy",
        [-INF, 0.3, 1.0],
        [0.5, 0.5, 0.0],
        INF,
        [-0.5, SECOND - 0.5, THIRD],
    ),
    ("softmax_cross_entropy", [-INF, -INF, 1.0], 2, 0.0, [0.0, 0.0, 0.0]),
    ("softmax_cross_entropy", [-INF, -INF, 1.0], [0.0, 0.0, 1.0], 0.0, [0.0, 0.0, 0.0]),
]


def by_jvp(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    def slopes(x: jax.Array) -> jax.Array:
        along = [jax.jvp(function, (x,), (axis,))[1] for axis in axes(x)]
        return jnp.reshape(jnp.stack(along), x.shape)

    return slopes


def by_linearize(
    function: Callable[[jax.Array], jax.Array],
) -> Callable[[jax.Array], jax.Array]:
    def slopes(x: jax.Array) -> jax.Array:
        linear = jax.linearize(function, x)[1]
        return jnp.reshape(jnp.stack([linear(axis) for axis in axes(x)]), x.shape)

    return slopes


def eager(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def axes(x: jax.Array) -> jax.Array:
    return jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)


MODES = {
    "grad": jax.grad,
    "jacrev": jax.jacrev,
    "jacfwd": jax.jacfwd,
    "jvp": by_jvp,
    "linearize": by_linearize,
}


def test_every_loss_has_a_limit() -> None:
    assert {name for name, *_ in LIMITS} == set(NAMES)


@pytest.mark.parametrize(
    "compiled", [jax.jit, pytest.param(eager, marks=pytest.mark.slow)], ids=["jit", "eager"]
)
@pytest.mark.parametrize(
    ("name", "first", "second", "value", "slope"), LIMITS, ids=lambda v: str(v)[:24]
)
class TestLimits:
    def test_value(
        self, name: str, first: Any, second: Any, value: float, slope: Any, compiled: Any
    ) -> None:
        x, y = jnp.asarray(first), jnp.asarray(second)
        found = compiled(getattr(losses, name))(x, y)
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6)

    @pytest.mark.slow
    def test_slopes(
        self, name: str, first: Any, second: Any, value: float, slope: Any, compiled: Any
    ) -> None:
        x, y = jnp.asarray(first), jnp.asarray(second)

        def all_modes(x: jax.Array) -> list[jax.Array]:
            return [mode(lambda x: getattr(losses, name)(x, y))(x) for mode in MODES.values()]

        for found in compiled(all_modes)(x):
            np.testing.assert_allclose(found, slope, rtol=1e-5, atol=1e-6)

    def test_curvature(
        self, name: str, first: Any, second: Any, value: float, slope: Any, compiled: Any
    ) -> None:
        x, y = jnp.asarray(first), jnp.asarray(second)

        def loss(x: jax.Array) -> jax.Array:
            return getattr(losses, name)(x, y)

        modes = (jax.hessian(loss), jax.jacrev(jax.grad(loss)), jax.jacfwd(jax.jacfwd(loss)))
        forward, *others = compiled(lambda x: [mode(x) for mode in modes])(x)
        np.testing.assert_array_equal(np.isfinite(forward), True)
        for other in others:
            np.testing.assert_allclose(other, forward, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first"),
    [("softmax_cross_entropy", [-INF, 0.3, 1.0]), ("cross_entropy", [0.0, 0.25, 0.75])],
)
def test_the_slope_in_a_row_agrees_too(name: str, first: list[float]) -> None:
    """A class ruled out, which nobody asks for, has no slope in its share."""
    x, row = jnp.array(first), jnp.array([0.0, 0.5, 0.5])
    logs = jax.nn.log_softmax(x) if name == "softmax_cross_entropy" else jnp.log(x)
    for mode in MODES.values():
        slope = mode(lambda row: getattr(losses, name)(x, row))(row)
        np.testing.assert_allclose(slope, [0.0, -logs[1], -logs[2]], rtol=1e-5)


@pytest.mark.slow
def test_finite_scores_may_lie_further_apart_than_the_largest_number() -> None:
    scores = jnp.array([3e38, -3e38, 0.0])
    row = jnp.array([1.0, 0.0, 0.0])
    for loss in (losses.softmax_cross_entropy, losses.hinge):
        for labels in (0, row):
            assert loss(scores, labels) == 0
            for slope in (jax.grad, jax.jacfwd):
                np.testing.assert_array_equal(slope(loss)(scores, labels), jnp.zeros(3))
