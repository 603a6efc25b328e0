"""Dtypes in, dtypes out, and finite numbers all the way."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from cases import Case
from trees import (
    NARROW,
    assert_close,
    assert_equal,
    avals,
    compiled,
    filled,
    gradients,
    params,
    plain,
    run,
    step,
)

from checks.registry import check

REAL = (*NARROW, "float32")


def _mixed(tree: Any, wide: Any) -> Any:
    layer = {"w": tree["layer"]["w"].astype(wide), "b": tree["layer"]["b"]}
    return {"layer": layer, "scale": tree["scale"].astype(jnp.bfloat16)}


def _keeps_avals(case: Case, position: Any, dtype: Any = None) -> None:
    """Shapes, dtypes and weak types, traced: through updates, cond and scan."""
    optimizer = case.make()
    # A gradient's dtype is its parameter's, as jax.grad gives it, if none is given.
    grads = jax.tree.map(lambda p: (p + 1).astype(dtype or p.dtype), position)

    def twice(grads, state, position):
        updates, first = step(case, optimizer, grads, state, position)
        _, second = step(case, optimizer, grads, first, position)
        kept = jax.lax.cond(True, lambda: second, lambda: state)
        carried, _ = jax.lax.scan(
            lambda s, _: (step(case, optimizer, grads, s, position)[1], None), kept, length=2
        )
        return updates, (first, second, kept, carried)

    state = optimizer.init(position)
    updates, later = jax.eval_shape(twice, grads, state, position)
    assert avals(updates) == _emitted_avals(case, grads)
    for each in later:
        assert avals(each) == avals(state)
    assert avals(jax.eval_shape(optimizer.init, position)) == avals(state)


def _emitted_avals(case: Case, grads: Any) -> Any:
    """Those of the updates for such gradients."""
    return jax.tree.map(lambda g: (g.shape, case.emitted(g.dtype).name, False), grads)


@check(variants=(*REAL, "mixed"))
def check_dtypes_are_stable(case: Case, dtype: str) -> None:
    _keeps_avals(case, _mixed(params(), "float16") if dtype == "mixed" else params(dtype))


@check(variants=(*REAL, "float64", "mixed", "narrow_gradients"))
def check_dtypes_are_stable_under_x64(case: Case, dtype: str) -> None:
    with jax.enable_x64(True):
        if dtype == "narrow_gradients":
            _keeps_avals(case, params("float64"), "float32")
        else:
            mixed = dtype == "mixed"
            _keeps_avals(case, _mixed(params(), "float64") if mixed else params(dtype))


@check()
def check_dtypes_are_stable_in_eager_mode(case: Case) -> None:
    """Constants that are weakly typed only outside of a trace show up here."""
    optimizer = case.make_eager()
    position, grads = params(jnp.bfloat16), gradients(2, jnp.bfloat16)
    state = optimizer.init(position)
    updates, later = run(case, optimizer, position, grads, state)
    assert [avals(u) for u in updates] == [_emitted_avals(case, g) for g in grads]
    assert avals(later) == avals(state)


def _widths(state: Any) -> list[int]:
    leaves = jax.tree.leaves(state)
    return [
        jnp.finfo(leaf.dtype).bits
        for leaf in leaves
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.ndim
    ]


@check(where="full_width")
def check_state_is_at_least_float32(case: Case) -> None:
    for dtype in REAL:
        assert set(_widths(case.make().init(params(dtype)))) <= {32}
    with jax.enable_x64(True):
        assert set(_widths(case.make().init(params(jnp.float32)))) <= {32}
        assert set(_widths(case.make().init(params(jnp.float64)))) <= {64}


@check(instead_of=check_state_is_at_least_float32)
def check_state_is_narrow(case: Case) -> None:
    """A row that declares narrow storage has fewer bytes than float32 would take."""
    position = params()
    leaves = jax.tree.leaves(case.make().init(position))
    arrays = [p for p in jax.tree.leaves(position) if p.ndim]
    held = sum(leaf.nbytes for leaf in leaves if leaf.shape in {p.shape for p in arrays})
    full = sum(case.moments.values()) * sum(p.nbytes for p in arrays)
    assert held < full


@check(where="keeps_dtype")
def check_narrow_gradients_lose_only_their_own_rounding(case: Case) -> None:
    """bfloat16 in: what float32 gives for the same numbers, rounded once."""
    narrow = [params(jnp.bfloat16), *gradients(3, jnp.bfloat16)]
    position, *grads = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow)
    optimizer = case.make(case.rate / 100)
    state, wide_state = optimizer.init(narrow[0]), optimizer.init(position)
    for gradient, wide in zip(narrow[1:], grads, strict=True):
        updates, state = step(case, optimizer, gradient, state, narrow[0])
        wanted, wide_state = step(case, optimizer, wide, wide_state, position)
        rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), wanted)
        as_float = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (updates, rounded))
        assert_close(*as_float, rtol=0.0)


@check(instead_of=check_narrow_gradients_lose_only_their_own_rounding)
def check_short_steps_add_up(case: Case) -> None:
    """A row that trains narrow parameters: steps add up that are rounded off one by one."""
    optimizer = case.make()
    start = params(jnp.bfloat16)
    state = optimizer.init(start)
    ones = filled(start, 1.0)
    first, _ = step(case, case.make(2.0**-4), ones, state, start)
    length = min(float(jnp.min(jnp.abs(u))) for u in jax.tree.leaves(first)) * 2.0**4
    optimizer = compiled(case.make(2.0**-12 / length))
    position = start
    for _ in range(64):
        updates, state = step(case, optimizer, ones, state, position)
        position = optax.apply_updates(position, updates)
    moved = jax.tree.map(lambda p, s: p.astype(jnp.float32) - s, position, start)
    for leaf in jax.tree.leaves(moved):
        # 64 steps of 2**-12, and at most half a step of bfloat16 between 1 and 2.
        assert jnp.all(jnp.abs(leaf + 2.0**-6) <= 2.0**-8 + 2.0**-10)


@check(where="complex_ok")
def check_complex(case: Case) -> None:
    """Numerators complex, sizes real; a real problem in complex dress gives the same."""
    position, grads = params(), gradients()
    dressed = jax.tree.map(lambda leaf: leaf.astype(jnp.complex64), [position, *grads])
    _keeps_avals(case, dressed[0])
    updates, _ = run(case, case.make(), dressed[0], dressed[1:])
    wanted, _ = plain(case)
    real, imaginary = (jax.tree.map(part, updates) for part in (jnp.real, jnp.imag))
    assert_close(real, wanted, rtol=1e-5)
    assert_close(imaginary, filled(wanted, 0.0))
    # A turn of the plane turns the steps with it.
    turned = [jax.tree.map(lambda leaf: leaf * 1j, leaf) for leaf in dressed]
    spun, _ = run(case, case.make(), turned[0], turned[1:])
    assert_close(spun, jax.tree.map(lambda leaf: leaf * 1j, updates), rtol=1e-5, atol=1e-6)


@check(instead_of=check_complex)
def check_complex_is_refused(case: Case) -> None:
    position = params(jnp.complex64)
    optimizer = case.make()
    with pytest.raises((ValueError, TypeError), match="complex"):
        step(case, optimizer, position, optimizer.init(position), position)


@check(variants=REAL)
def check_zero_gradients_stay_finite(case: Case, dtype: str) -> None:
    position, ones = params(dtype), gradients(1, dtype)[0]
    zero = filled(position, 0.0)
    for grads in ([zero, zero], [zero, ones, zero]):
        chex.assert_tree_all_finite(run(case, case.make(), position, grads))


_HUGE = {"float32": (1e30, 3e38), "bfloat16": (1e38,), "float16": (6e4,)}


@check(variants=tuple(_HUGE))
def check_huge_gradients_leave_state_finite(case: Case, dtype: str) -> None:
    position = params(dtype)
    optimizer = case.make()
    for size in _HUGE[dtype]:
        state = optimizer.init(position)
        huge = filled(position, size)
        for _ in range(3):
            _, state = step(case, optimizer, huge, state, position)
            chex.assert_tree_all_finite(state)


@check(where="passes_nan")
def check_nan_is_not_hidden(case: Case) -> None:
    """A NaN gradient reaches the updates, where optax's own guards look for it."""
    position = params()
    optimizer = case.make()
    bad = filled(position, jnp.nan)
    updates, _ = step(case, optimizer, bad, optimizer.init(position), position)
    assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(updates))


@check(instead_of=check_nan_is_not_hidden)
def check_nan_is_skipped(case: Case) -> None:
    """A row that guards itself: no step, and not one number of its state is touched."""
    position, good = params(), gradients(2)
    optimizer = case.make()
    _, state = run(case, optimizer, position, good)
    for entry in (jnp.nan, jnp.inf, -jnp.inf):
        bad = jax.tree.map(jnp.copy, good[0])
        bad["layer"]["w"] = bad["layer"]["w"].at[1, 1].set(entry)
        updates, after = step(case, optimizer, bad, state, position)
        assert_equal(updates, filled(position, 0.0))
        assert_equal(after, state)
