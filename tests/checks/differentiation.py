"""A gradient passes through updates: meta-learning of rates and starting points."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from cases import Case
from trees import params, tree

from checks.registry import check


def _after_updates(case: Case, start, rate, centre, steps=3, **numbers):
    """A sum of the parameters after steps of descent from start toward centre."""
    optimizer = case.make(rate, **numbers)

    def advance(carry, _):
        position, state = carry
        grads = jax.tree.map(lambda p, c: p - c, position, centre)
        updates, state = optimizer.update(grads, state, position, **case.extra)
        return (optax.apply_updates(position, updates), state), None

    position, _ = jax.lax.scan(advance, (start, optimizer.init(start)), length=steps)[0]
    return sum(jnp.sum(jnp.square(leaf + 1)) for leaf in jax.tree.leaves(position))


@check()
def check_gradient_through_updates(case: Case) -> None:
    start, centre = params(), tree(9)
    rate = 0.1 * case.rate

    def loss(start, rate):
        return _after_updates(case, start, rate, centre)

    with_slopes = jax.jit(jax.value_and_grad(loss, (0, 1)))
    _, (by_start, by_rate) = with_slopes(start, rate)
    chex.assert_tree_all_finite((by_start, by_rate))
    step = 0.03 * rate
    above, below = (with_slopes(start, rate + move)[0] for move in (step, -step))
    quotient = (above - below) / (2 * step)
    # A float32 difference of nearby losses has about this many digits; a row that keeps
    # rounded numbers steps from one to the next, which no slope shows.
    rtol = 5e-2 if case.full_width else 2e-1
    np.testing.assert_allclose(by_rate, quotient, rtol=rtol, atol=2e-3 / rate)
    assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(by_start))


@check()
def check_gradient_at_rest(case: Case) -> None:
    """At a zero gradient, where a root without eps_root has an infinite slope."""
    start = params()
    numbers = {"eps_root": 1e-8} if "eps_root" in case.numbers else {}

    def loss(start, rate):
        centre = jax.lax.stop_gradient(start)
        return _after_updates(case, start, rate, centre, **numbers)

    chex.assert_tree_all_finite(jax.jit(jax.grad(loss, (0, 1)))(start, case.rate))


@check()
def check_forward_mode_equals_reverse(case: Case) -> None:
    start, direction, centre = params(), tree(10), tree(9)

    def loss(move):
        moved = jax.tree.map(lambda p, d: p + move[0] * d, start, direction)
        rate = 0.1 * case.rate * (1 + move[1])
        return _after_updates(case, moved, rate, centre, steps=2)

    forward, reverse = jax.jit(lambda move: (jax.jacfwd(loss)(move), jax.grad(loss)(move)))(
        jnp.zeros(2)
    )
    chex.assert_tree_all_finite((forward, reverse))
    assert jnp.all(forward != 0)
    np.testing.assert_allclose(forward, reverse, rtol=1e-3)
