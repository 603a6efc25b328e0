"""The same numbers by another road: jit, vmap, another order or grouping of leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cases import Case
from trees import (
    assert_close,
    assert_equal,
    compiled,
    gradients,
    params,
    run,
    trained,
    tree,
    with_traced,
)

from checks.registry import check


@check()
def check_jit_equals_eager(case: Case) -> None:
    optimizer = case.make_eager()
    assert_close(run(case, compiled(optimizer)), run(case, optimizer), rtol=1e-5)


def _stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@check()
def check_vmap_over_params_equals_loop(case: Case) -> None:
    optimizer = case.make()
    starts = [tree(20 + i) for i in range(3)]
    grads = [[tree(30 + 3 * i + t) for t in range(3)] for i in range(3)]
    mapped = optax.GradientTransformationExtraArgs(
        jax.jit(jax.vmap(optimizer.init)), jax.jit(jax.vmap(optimizer.update))
    )
    stacked = [_stacked(each) for each in zip(*grads, strict=True)]
    together = run(case, mapped, _stacked(starts), stacked)
    alone = compiled(optimizer)
    apart = [run(case, alone, *each) for each in zip(starts, grads, strict=True)]
    assert_close(together, _stacked(apart), rtol=1e-5)


@check()
def check_vmap_over_rates_equals_loop(case: Case) -> None:
    rates = case.rate * jnp.array([0.5, 1.0, 2.0])
    start, *grads = (_stacked(3 * [tree]) for tree in (params(), *gradients()))
    together = run(case, with_traced(case, jax.vmap)(learning_rate=rates), start, grads)
    alone = with_traced(case)
    apart = [run(case, alone(learning_rate=rate)) for rate in rates]
    assert_close(together, _stacked(apart), rtol=1e-5)


def _arrays(count: int) -> list[jax.Array]:
    random = np.random.default_rng(40)
    return list(trained(jnp.asarray(random.normal(size=(count, 4)), jnp.float32)))


@check(where="apart")
def check_order_of_leaves_is_free(case: Case) -> None:
    optimizer = case.make()
    arrays = _arrays(12)
    position, grads = arrays[:4], (arrays[4:8], arrays[8:])
    names = ("abcd", "cadb")
    first, second = (
        run(
            case,
            optimizer,
            dict(zip(order, position, strict=True)),
            [dict(zip(order, gradient, strict=True)) for gradient in grads],
        )[0]
        for order in names
    )
    for one, other in zip(first, second, strict=True):
        assert_equal([one[n] for n in names[0]], [other[n] for n in names[1]])


@check(where="element_wise")
def check_split_leaf_changes_nothing(case: Case) -> None:
    optimizer = case.make()
    position, *grads = _arrays(4)

    def halves(array):
        return {"left": array[:2], "right": array[2:]}

    whole, _ = run(case, optimizer, position, grads)
    split, _ = run(case, optimizer, halves(position), list(map(halves, grads)))
    assert_close(split, list(map(halves, whole)))


@check(instead_of=check_order_of_leaves_is_free)
def check_leaves_are_coupled(case: Case) -> None:
    """A row that declares coupling: a leaf steps otherwise among others than alone."""
    optimizer = compiled(case.make())
    position, other, gradient = _arrays(3)
    pair, _ = run(case, optimizer, [position, other], 3 * [[gradient, 9 * other]])
    alone, _ = run(case, optimizer, [position], 3 * [[gradient]])
    assert not np.allclose(pair[-1][0], alone[-1][0], rtol=1e-5)


@check(instead_of=check_split_leaf_changes_nothing)
def check_entries_are_coupled(case: Case) -> None:
    """A row that is not element-wise: half a leaf steps otherwise than within the whole."""
    optimizer = compiled(case.make())
    position, *grads = _arrays(4)
    whole, _ = run(case, optimizer, position, grads)
    half, _ = run(case, optimizer, position[:2], [gradient[:2] for gradient in grads])
    assert not all(np.allclose(w[:2], h, rtol=1e-5) for w, h in zip(whole, half, strict=True))
