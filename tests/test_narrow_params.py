"""Parameters in bfloat16 with 8 bits in the state: exact to the bit, and kept from harm."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from narrow_params_problem import (
    BF16,
    GIVEN,
    compiled_step,
    eager_step,
    nearest,
    quadratic,
    random_state,
    random_values,
    rounded,
    trained,
    words,
)

import optabs

LARGEST = float(jnp.finfo(BF16).max)


@pytest.mark.parametrize("mode", ["eager", "compiled"])
@pytest.mark.parametrize("octaves", [1, 12, 24], ids=lambda n: f"steps within {n} octaves")
def test_the_bits_are_those_of_the_reference(octaves: int, mode: str) -> None:
    values, params, state = random_state(20_000, 1)
    np.testing.assert_array_equal(optabs.exact_params(params, state), values)
    random = np.random.default_rng(2)
    relative = random.normal(size=values.size) * 2.0 ** random.uniform(
        -octaves, 0, values.size
    )
    steps = (values * relative).astype(np.float32)
    with np.errstate(over="ignore"):
        wanted = rounded((values + steps).astype(np.float32))
    run = compiled_step(GIVEN) if mode == "compiled" else functools.partial(eager_step, GIVEN)
    after, new = run(jnp.asarray(steps), state, params)
    ratio = np.abs(wanted / values)
    near = (ratio < 2.0**16) & (ratio > 2.0**-15)
    assert near.mean() > 0.99
    np.testing.assert_array_equal(np.asarray(after)[near], nearest(wanted)[near])
    exact = optabs.exact_params(after, new)
    np.testing.assert_array_equal(exact[near], wanted[near])
    # A cast rounds halves to even.
    cast = np.asarray(exact.astype(BF16)) == np.asarray(after)
    assert np.all(cast | (words(exact) & 0xFFFF == 0x8000))


@pytest.mark.parametrize("mode", ["eager", "compiled"])
@pytest.mark.parametrize("octaves", [-15, -17, -20, -24, -30, 15, 17, 30, 60])
def test_far_steps_keep_bits_of_what_is_reached(octaves: int, mode: str) -> None:
    values, params, state = random_state(5_000, 3, 60)
    wanted = rounded(values * random_values(values.size, 4, 1) * np.float32(2.0**octaves))
    steps = wanted - values  # in float32: values + steps is not everywhere what was wanted
    wanted = rounded(values + steps)
    run = compiled_step(GIVEN) if mode == "compiled" else functools.partial(eager_step, GIVEN)
    after, new = run(jnp.asarray(steps), state, params)
    reached = np.asarray(after)
    if octaves > -15:  # larger, by whatever, is arrived at
        np.testing.assert_array_equal(reached, nearest(wanted))
    exact = np.asarray(optabs.exact_params(after, new))
    np.testing.assert_array_equal(nearest(exact), reached)
    # Of the 256 values around what is reached the nearest; next to 0 there is only 0.
    lowest, highest = words(reached) - (128 << 8), words(reached) + (127 << 8)
    clipped = np.where(words(reached) == 0, 0, np.clip(words(wanted), lowest, highest))
    np.testing.assert_array_equal(words(exact), clipped)


def test_init_from_float32_keeps_24_bits() -> None:
    values = random_values(20_000, 5)
    ties = (words(values[:100]) & ~0xFFFF | 0x8000).astype(np.uint32).view(np.float32)
    values[:100] = ties  # which a cast rounds to even, and so some of them down
    state = GIVEN.init(jnp.asarray(values))
    narrow = jnp.asarray(values).astype(BF16)
    exact = np.asarray(optabs.exact_params(narrow, state))
    units = np.abs(words(exact) - words(values))
    assert np.quantile(units, 0.98) <= 0x80  # half of the last of 24 bits
    assert units.max() == 0x100  # 127 is kept where 128 is wanted
    # From bfloat16 there is nothing to keep.
    plain = GIVEN.init(narrow)
    assert not np.asarray(plain.bits).any()
    np.testing.assert_array_equal(optabs.exact_params(narrow, plain), narrow.astype("f4"))


def test_init_of_descriptions() -> None:
    for dtype in (jnp.float32, BF16):
        params = {"w": jnp.ones((3, 2), dtype), "s": jnp.ones((), dtype)}
        shapes = jax.eval_shape(lambda params=params: params)
        optimizer = optabs.narrow_params(optabs.adam(1e-3))
        wanted = jax.eval_shape(lambda params=params, own=optimizer: own.init(params))
        for state in (optimizer.init(shapes), jax.eval_shape(optimizer.init, shapes)):
            assert jax.tree.structure(state) == jax.tree.structure(wanted)
            for leaf, other in zip(*map(jax.tree.leaves, (state, wanted)), strict=True):
                assert (leaf.shape, leaf.dtype) == (other.shape, other.dtype)
        assert wanted.bits["w"].dtype == jnp.int8


def test_short_steps_add_up_in_the_long_run() -> None:
    """A thousand steps of a thousandth of bfloat16's own, and a control without the bits."""
    params = jnp.ones(4, BF16)
    grads = -jnp.asarray([1.0, 0.5, 0.25, -1.0])
    optimizer = optabs.narrow_params(optabs.sgd(2.0**-16))
    state = optimizer.init(params)
    control, bare = params, optabs.sgd(2.0**-16)
    step = compiled_step(optimizer)
    for _ in range(1024):
        params, state = step(grads, state, params)
        updates, _ = bare.update(grads, bare.init(control), control)
        control = optax.apply_updates(control, updates)
    np.testing.assert_array_equal(control, jnp.ones(4, BF16))
    exact = optabs.exact_params(params, state)
    # A step of 2**-18 is rounded off, as it says: next to 1, 24 bits are 2**-15 apart.
    np.testing.assert_array_equal(exact[2], 1.0)
    np.testing.assert_array_equal(exact[3], 1 - 1024 * 2.0**-16)
    assert exact[0] > 1


class Seen(NamedTuple):
    """State of a transformation that looks at what it is given."""

    params: Any
    grads: Any


def spy() -> optax.GradientTransformation:
    def update(grads: Any, state: Any, params: Any = None) -> Any:
        return jax.tree.map(lambda p: -0.01 * p, params), Seen(params, grads)

    return optax.GradientTransformation(lambda params: Seen(params, params), update)


def test_the_transformation_sees_the_exact_parameters_and_float32_gradients() -> None:
    values = rounded(random_values(100, 6, 3))
    optimizer = optabs.narrow_params(spy())
    params, state = jnp.asarray(nearest(values)), optimizer.init(jnp.asarray(values))
    for _ in range(3):
        exact = optabs.exact_params(params, state)
        params, state = eager_step(optimizer, jnp.ones(100, BF16), state, params)
        np.testing.assert_array_equal(state.inner.params, exact)
        assert state.inner.params.dtype == state.inner.grads.dtype == jnp.float32
        wanted = rounded(np.asarray(exact) + np.float32(-0.01) * np.asarray(exact))
        np.testing.assert_array_equal(optabs.exact_params(params, state), wanted)


def test_it_trains_as_float32_does() -> None:
    """AdamW at a rate whose steps are half of bfloat16's; a control without the bits."""
    loss, start = quadratic(0)
    adamw = optabs.adamw(1e-3, weight_decay=1e-2)
    wide, _ = trained(adamw, start, loss, 1500, jnp.float32)
    narrow, state = trained(optabs.narrow_params(adamw), start, loss, 1500, BF16)
    control, _ = trained(adamw, start, loss, 1500, BF16)
    exact = optabs.exact_params(narrow, state)
    first, *losses = (float(loss(each)) for each in (start, wide, exact, control))
    assert losses[0] < 1e-4 * first
    assert losses[1] < 1e-4 * first
    assert losses[2] > 0.5 * first


@pytest.mark.parametrize("unroll", [False, True], ids=["scan", "unrolled"])
def test_many_steps_in_one_program_are_the_same(unroll: bool) -> None:
    """XLA may leave out that a float32 was a bfloat16 in between."""
    loss, start = quadratic(1)
    optimizer = optabs.narrow_params(optabs.sgd(1e-2))
    apart = optax.tree.cast(start, BF16), optimizer.init(start)
    for _ in range(6):
        grads = jax.jit(jax.grad(loss))(apart[0])
        apart = eager_step(optimizer, grads, apart[1], apart[0])
    if unroll:

        @jax.jit
        def run(params: Any, state: Any) -> Any:
            for _ in range(6):
                params, state = eager_step(optimizer, jax.grad(loss)(params), state, params)
            return params, state

        together = run(optax.tree.cast(start, BF16), optimizer.init(start))
    else:
        together = trained(optimizer, start, loss, 6, BF16)
    found, wanted = (optabs.exact_params(*each) for each in (together, apart))
    for leaf, other in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=2.0**-14, atol=2.0**-20)


BAD = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("bad", BAD)
def test_an_update_that_is_not_finite_is_seen_and_can_be_left_out(bad: float) -> None:
    values, params, state = random_state(4, 7)
    steps = jnp.asarray(values) * jnp.asarray([0.1, bad, 0.1, 0.1])
    updates, new = GIVEN.update(steps, state, params)
    after = np.asarray(optax.apply_updates(params, updates)).astype("f4")
    np.testing.assert_array_equal(np.isfinite(after), [True, False, True, True])
    np.testing.assert_array_equal(np.isnan(after), np.isnan(np.asarray(steps)))
    # Where an update is replaced by 0 the parameter goes on as it was.
    cleaned = optax.apply_updates(params, jnp.where(jnp.isfinite(updates), updates, 0.0))
    np.testing.assert_array_equal(optabs.exact_params(cleaned, new)[1], values[1])


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("bits", [-128, -1, 0, 1, 127])
def test_parameters_that_are_not_finite_stay_so(bad: float, bits: int) -> None:
    params = jnp.asarray([bad, -bad, 0.0, -0.0, LARGEST, -LARGEST], BF16)
    state = GIVEN.init(params)._replace(bits=jnp.full(6, bits, jnp.int8))
    for _ in range(3):
        exact = np.asarray(optabs.exact_params(params, state))
        np.testing.assert_array_equal(exact[:2], [bad, -bad])
        np.testing.assert_array_equal(exact[2:4], [0.0, 0.0])
        assert np.isfinite(exact[4:]).all()
        params, state = eager_step(GIVEN, jnp.zeros(6), state, params)
    np.testing.assert_array_equal(np.asarray(params[:2]).astype("f4"), [bad, -bad])


def test_a_finite_step_stays_finite() -> None:
    """What would be rounded up to infinity is the largest bfloat16."""
    params = jnp.asarray([LARGEST, -LARGEST], BF16)
    beyond = float(jnp.finfo(jnp.float32).max) - LARGEST
    after, state = eager_step(
        GIVEN, jnp.asarray([beyond, -beyond]), GIVEN.init(params), params
    )
    np.testing.assert_array_equal(after, params)
    assert np.isfinite(np.asarray(optabs.exact_params(after, state))).all()


def test_guards_go_inside() -> None:
    """There they see float32 alone; around it they want gradients of that dtype."""
    optimizer = optabs.narrow_params(optax.apply_if_finite(optabs.adam(0.1), 3))
    values, params, state = random_state(8, 8)
    state = optimizer.init(jnp.asarray(values))
    updates, state = jax.jit(optimizer.update)(jnp.full(8, jnp.nan, BF16), state, params)
    assert not np.asarray(updates).any()
    np.testing.assert_array_equal(optabs.exact_params(params, state), values)


@pytest.mark.slow
def test_fit_trains_them() -> None:
    loss, start = quadratic(2)
    optimizer = optabs.narrow_params(optabs.adam(1e-2))
    narrow = optax.tree.cast(start, BF16)
    data = jnp.zeros((1, 1))
    result = optabs.fit(lambda p, _: loss(p), narrow, optimizer, data, epochs=200)
    assert result.params["w"].dtype == BF16
    assert loss(optabs.exact_params(result.params, result.opt_state)) < 1e-2 * loss(start)
