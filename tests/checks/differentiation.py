"""A gradient passes through updates: meta-learning of rates and starting points."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from cases import Case
from trees import params, tree

from checks.registry import check


def _after_updates(case: Case, numbers: dict[str, float]) -> Callable[..., jax.Array]:
    """(start, rate, centre) -> a sum of the parameters after three steps toward the centre."""

    def loss(start, rate, centre):
        optimizer = case.make(rate, **numbers)

        def advance(carry, _):
            position, state = carry
            grads = jax.tree.map(lambda p, c: p - c, position, centre)
            updates, state = optimizer.update(grads, state, position, **case.extra)
            return (optax.apply_updates(position, updates), state), None

        position, _ = jax.lax.scan(advance, (start, optimizer.init(start)), length=3)[0]
        return sum(jnp.sum(jnp.square(leaf + 1)) for leaf in jax.tree.leaves(position))

    return loss


@functools.cache
def _with_slopes(case: Case, **numbers: float) -> Any:
    """The loss and its slopes by start and rate, compiled once for all checks."""
    return jax.jit(jax.value_and_grad(_after_updates(case, numbers), (0, 1)))


@check()
def check_gradient_through_updates(case: Case) -> None:
    start, centre = params(), tree(9)
    rate = 0.1 * case.rate
    with_slopes = _with_slopes(case)
    _, (by_start, by_rate) = with_slopes(start, rate, centre)
    chex.assert_tree_all_finite((by_start, by_rate))
    step = 0.03 * rate
    above, below = (with_slopes(start, rate + move, centre)[0] for move in (step, -step))
    quotient = (above - below) / (2 * step)
    # A float32 difference of nearby losses has about this many digits; a row that keeps
    # rounded numbers steps from one to the next, which no slope shows.
    rtol = 5e-2 if case.full_width else 2e-1
    if case.keeps_dtype:
        np.testing.assert_allclose(by_rate, quotient, rtol=rtol, atol=2e-3 / rate)
    assert by_rate != 0
    assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(by_start))


@check()
def check_gradient_at_rest(case: Case) -> None:
    """At a zero gradient, where a root without eps_root has an infinite slope."""
    numbers = {"eps_root": 1e-8} if "eps_root" in case.numbers else {}
    _, slopes = _with_slopes(case, **numbers)(params(), case.rate, params())
    chex.assert_tree_all_finite(slopes)


@check()
def check_forward_mode_equals_reverse(case: Case) -> None:
    """Along a direction: of the start alone, and of the rate alone."""
    start, direction, centre = params(), tree(10), tree(9)
    rate = 0.1 * case.rate
    loss = _after_updates(case, {})

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def along(centre, move):
        of_start = jax.tree.map(lambda d: (move[0] * d).astype(d.dtype), direction)
        tangents = of_start, move[1] * rate
        return jax.jvp(lambda *at: loss(*at, centre), (start, rate), tangents)[1]

    forward = along(centre, jnp.eye(2))
    _, (by_start, by_rate) = _with_slopes(case)(start, rate, centre)
    reverse = [optax.tree.vdot(by_start, direction), by_rate * rate]
    chex.assert_tree_all_finite((forward, reverse))
    assert jnp.all(forward != 0)
    rtol = 1e-3 if case.dtype == "float32" else 2.0**-5
    np.testing.assert_allclose(forward, reverse, rtol=rtol)
