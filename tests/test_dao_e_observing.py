"""DAO-E's view of its features: standardised, absent at times, and always finite."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dao_e_reference import Moments
from hypothesis import given, settings

import optabs
from optabs import features

LOSS = (lambda seen: seen.value, 1)
SEEN = (*features.ALL, LOSS)
BATCH_COLUMNS, LOSS_COLUMNS = [1, 2, 3], [5]
"""Of the controller's matrix, whose column 0 is the bias."""
GIVEN = (lambda seen: seen.batch, 4)
"""A feature: the four numbers that are passed as the batch."""


@functools.cache
def walker(optimizer: Any) -> Callable[..., Any]:
    """Compiled: the states after every step; parameters do not move."""

    def walk(state: Any, params: Any, grads: Any, each: Any) -> Any:
        def step(state: Any, now: Any) -> Any:
            gradient, extra = now
            state = optimizer.update(gradient, state, params, **extra)[1]
            return state, state

        start = optimizer.init(params) if state is None else state
        return jax.lax.scan(step, start, (grads, each))[1]

    return jax.jit(walk)


def walked(optimizer: Any, params: Any, grads: Any, state: Any = None, **each: Any) -> Any:
    """The states after every step; grads and `each` have one entry a step."""
    return walker(optimizer)(state, params, grads, each)


@functools.cache
def two(
    controller: optabs.Controller, *chosen: features.Feature
) -> optax.GradientTransformationExtraArgs:
    """A mixture of two experts."""
    both = {"slow": optabs.sgd(0.01), "fast": optabs.sgd(0.1)}
    return optabs.dao_e(experts=both, features=chosen, controller=controller)


def moved(matrix: Any, decay: Any = 0.0) -> np.ndarray:
    """Which columns of the controller's matrix do not just decay: bool [1 + n]."""
    matrix = np.asarray(matrix)
    rest = np.isclose(matrix[1:], (1 - decay) * matrix[:-1], rtol=1e-6, atol=0)
    return np.any(~rest, axis=(0, 1, 2))


def numbers(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)


class TestStandardisation:
    @pytest.mark.slow
    def test_running_moments_against_numpy(self) -> None:
        """A drifting, a large, a rare and a never finite number."""
        steps = 300
        raw = numbers(steps)
        raw = np.stack(
            [
                raw[:, 0] + np.arange(steps) / 20,
                1e4 * (raw[:, 1] ** 3 + 5),
                raw[:, 2],
                raw[:, 2],
            ],
            axis=1,
        ).astype(np.float32)
        raw[::3, 2] = np.nan
        raw[:, 3] = np.inf
        states = walked(
            two(optabs.Controller(), GIVEN), jnp.ones(3), numbers(steps), batch=raw
        )
        by_hand = Moments(4)
        with np.errstate(invalid="ignore"):
            wanted = [by_hand.standardised(np.float64(row)) for row in raw]
        actual = np.asarray(states.controller.inputs[:, 1:])
        np.testing.assert_allclose(actual, wanted, atol=2e-3)
        assert np.all(actual[:3] == 0)
        assert np.all(actual[3, :2] != 0)
        for t in range(3, 20):  # at first the moments are those of all steps so far
            so_far = np.float64(raw[: t + 1, 0])
            scaled = (so_far[-1] - so_far.mean()) / so_far.std()
            assert actual[t, 0] == pytest.approx(np.clip(scaled, -3, 3), abs=1e-3)
        assert np.abs(actual).max() == 3
        known = np.asarray(states.controller.known[:, 1:])
        np.testing.assert_array_equal(known, (np.array(wanted) != 0))

    def test_a_number_that_hardly_moves_is_nearly_zero(self) -> None:
        raw = np.float32(7 + 1e-6 * np.random.default_rng(2).normal(size=(300, 4)))
        states = walked(two(optabs.Controller(), GIVEN), jnp.ones(3), numbers(300), batch=raw)
        assert np.abs(states.controller.inputs[:, 1:]).max() < 0.01


class TestAbsence:
    @pytest.mark.slow
    @pytest.mark.parametrize("controller", [optabs.Controller(), optabs.Controller.paper()])
    @pytest.mark.parametrize(
        ("missing", "columns"), [("batch", BATCH_COLUMNS), ("value", LOSS_COLUMNS)]
    )
    def test_a_column_rests_while_its_input_is_missing(
        self, missing: str, columns: Sequence[int], controller: optabs.Controller
    ) -> None:
        optimizer = two(controller, *SEEN)
        params, grads = jnp.ones(3), numbers(80)
        each = {"value": numbers(80, 3)[:, 0], "batch": numbers(80, 4)}
        first, late = (
            jax.tree.map(lambda array, part=part: array[part], (grads, each))
            for part in (slice(40), slice(40, None))
        )
        full = walked(optimizer, params, first[0], **first[1])
        assert moved(full.controller.matrix[5:], controller.decay).all()
        del late[1][missing]
        last = jax.tree.map(lambda leaf: leaf[-1], full)
        states = walked(optimizer, params, late[0], last, **late[1])
        # Its first step still learns from the last features that were known.
        still = moved(states.controller.matrix, controller.decay)
        assert not still[columns].any()
        assert np.delete(still, columns).all()
        for moment in states.controller.moments:  # of the published rule, which rest as well
            assert not moved(moment)[columns].any()
        inputs = states.controller.inputs
        assert np.all(inputs[:, columns] == 0)
        assert np.all(np.delete(inputs, columns, axis=1) != 0)

    @pytest.mark.slow
    def test_a_loss_that_is_not_finite_is_absent_for_its_steps(self) -> None:
        losses = 3 * numbers(40, 5)[:, 0]
        losses[[5, 8, 20, 21]] = np.nan, np.inf, -np.inf, np.nan
        optimizer, params = two(optabs.Controller(), *SEEN), jnp.ones(3)
        start = optimizer.init(params)
        states = walked(optimizer, params, numbers(40), start, value=losses)
        bad = ~np.isfinite(losses)
        known = np.asarray(states.controller.known[:, LOSS_COLUMNS])
        assert not known[bad].any()
        assert known[~bad][5:].all()
        assert states.observing.seen[-1, -1] == 36
        wanted = losses[~bad].astype(np.float64).mean()
        assert float(states.observing.average[-1, -1]) == pytest.approx(wanted, rel=1e-5)
        for leaf in jax.tree.leaves(states):
            assert np.isfinite(leaf).all()


ANY = st.floats(width=32, allow_nan=True, allow_infinity=True)
HARMLESS = st.floats(-1e3, 1e3, width=32)
STEPS = 6
MIXED = two(optabs.Controller(), *SEEN)
ANYTHING = jax.jit(lambda *xs: walked(MIXED, xs[0], xs[1], value=xs[2], batch=xs[3]))


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    hnp.arrays(np.float32, (STEPS, 3), elements=ANY | HARMLESS),
    hnp.arrays(np.float32, (STEPS,), elements=ANY | HARMLESS),
    hnp.arrays(np.float32, (STEPS, 2, 4), elements=ANY | HARMLESS),
    hnp.arrays(np.int32, (STEPS, 5)),
)
def test_finite_for_anything(
    grads: np.ndarray, values: np.ndarray, images: np.ndarray, tokens: np.ndarray
) -> None:
    states = ANYTHING(np.ones(3, np.float32), grads, values, (images, tokens))
    inputs = np.asarray(states.controller.inputs)
    assert np.all(np.abs(inputs[:, 1:]) <= 3)
    for leaf in jax.tree.leaves(states):
        assert np.isfinite(leaf).all()
    np.testing.assert_allclose(states.controller.weights.sum(axis=-1), 1, rtol=1e-6)
