"""Inside optax's own wrappers it does what it does alone."""

import chex
import jax
import jax.numpy as jnp
import optax
from cases import Case, with_compiled_update
from trees import (
    assert_close,
    assert_equal,
    compiled,
    filled,
    gradients,
    params,
    plain,
    run,
    step,
)

from checks.registry import check


@check()
def check_multi_steps(case: Case) -> None:
    optimizer = case.make()
    every = 3
    accumulating = optax.MultiSteps(optimizer, every).gradient_transformation()
    position = params()
    state = accumulating.init(position)
    accumulating = with_compiled_update(accumulating)  # else conditionals compile at each call
    wanted, wanted_state = run(case, optimizer, grads=gradients(2))
    for gradient, full in zip(gradients(2), wanted, strict=True):
        for micro in range(every):
            updates, state = step(case, accumulating, gradient, state, position)
            if micro < every - 1:
                assert_equal(updates, filled(position, 0.0))
        assert_close(updates, full, rtol=1e-5)
        position = optax.apply_updates(position, updates)
    assert_close(state.inner_opt_state, wanted_state, rtol=1e-5)


def _with_rest(tree):
    return {"trained": tree, "rest": jnp.ones(2)}


@check()
def check_masked(case: Case) -> None:
    masked = optax.masked(case.make(), {"trained": True, "rest": False})
    updates, _ = run(case, masked, _with_rest(params()), list(map(_with_rest, gradients())))
    wanted, _ = plain(case)
    assert_equal(updates, [_with_rest(each) for each in wanted])


@check()
def check_partition(case: Case) -> None:
    labels = {"trained": "trained", "rest": "frozen"}
    parts = {"trained": case.make(), "frozen": optax.set_to_zero()}
    optimizer = optax.partition(parts, labels)
    updates, _ = run(case, optimizer, _with_rest(params()), list(map(_with_rest, gradients())))
    wanted, _ = plain(case)
    assert_equal(updates, [{"trained": each, "rest": jnp.zeros(2)} for each in wanted])


@check()
def check_chain(case: Case) -> None:
    chained = optax.chain(optax.identity(), case.make(), optax.scale(2.0))
    position, grads = params(), gradients(1)
    updates, _ = run(case, chained, position, grads)
    wanted = plain(case)[0][:1]
    assert_close(updates, jax.tree.map(lambda leaf: 2 * leaf, wanted))


@check()
def check_apply_if_finite(case: Case) -> None:
    """A NaN gradient in the middle touches nothing."""
    optimizer = case.make()
    guarded = optax.apply_if_finite(optimizer, max_consecutive_errors=2)
    position = params()
    # It skips by zeros of the gradient's dtype, which must be that of the updates.
    good = jax.tree.map(lambda g: g.astype(case.emitted(g.dtype)), gradients())
    with_bad = [good[0], filled(good[0], jnp.nan), *good[1:]]
    updates, state = run(case, with_compiled_update(guarded), position, with_bad)
    wanted, wanted_state = plain(case)
    assert_equal(updates[1], filled(position, 0.0))
    assert_close([updates[0], *updates[2:]], wanted, rtol=1e-5)
    assert_close(state.inner_state, wanted_state, rtol=1e-5)


@check(where="without_value")
def check_lookahead(case: Case) -> None:
    """optax.lookahead passes no extra arguments, so it suits rows that need none."""
    optimizer = optax.lookahead(case.make(), sync_period=3, slow_step_size=0.5)
    position = optax.LookaheadParams.init_synced(params())
    state = optimizer.init(position)
    wanted, _ = plain(case)
    for gradient, each in zip(gradients(), wanted, strict=True):
        before = position
        updates, state = optimizer.update(gradient, state, position)
        position = optax.apply_updates(position, updates)
        if each is not wanted[-1]:
            assert_close(updates.fast, each, rtol=1e-5, atol=1e-6)
    halfway = jax.tree.map(
        lambda slow, fast, step: slow + 0.5 * (fast + step - slow),
        before.slow,
        before.fast,
        wanted[-1],
    )
    assert_close(position.slow, halfway, rtol=1e-5, atol=1e-6)
    assert_close(position.fast, position.slow, atol=1e-6)


@check(instead_of=check_lookahead)
def check_chain_passes_the_value_on(case: Case) -> None:
    """A row that needs the loss hears it through a chain."""
    run(case, optax.chain(optax.identity(), case.make()))


@check(where="element_wise")
def check_flatten(case: Case) -> None:
    updates, _ = run(case, optax.flatten(case.make()))
    assert_close(updates, plain(case)[0])


@check(instead_of=check_flatten)
def check_flatten_stays_finite(case: Case) -> None:
    """A row that is not element-wise sees one vector, and may step otherwise."""
    chex.assert_tree_all_finite(run(case, compiled(optax.flatten(case.make()))))
