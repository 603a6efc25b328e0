"""DAO-E's features against NumPy, their standardisation, and what an absence costs."""

import math
from collections.abc import Sequence
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dao_e_reference import Moments, batch_entries
from hypothesis import given, settings

import optabs
from optabs import features
from optabs.ensemble.features import Observation

MEASURED = optabs.Controller()
BATCH_COLUMNS, LOSS_COLUMNS = [1, 2, 3], [6, 7]
"""Of the controller's matrix, whose column 0 is the bias."""


RANDOM = np.random.default_rng(5)
IMAGES = RANDOM.gamma(2.0, size=(6, 5, 5, 3)).astype(np.float32)
TOKENS = RANDOM.integers(0, 50, (7, 9)).astype(np.int32)
BATCHES = {
    "images": IMAGES,
    "images and labels": (IMAGES, np.arange(6, dtype=np.int32) % 4),
    "several arrays": {"a": IMAGES - 9, "b": [RANDOM.normal(size=4).astype(np.float32)]},
    "tokens": TOKENS,
    "tokens beyond 128": 1000 * TOKENS,
    "negative integers": -TOKENS,
    "one token": np.full((3, 4), 7, np.int32),
    "bools": RANDOM.random((4, 8)) < 0.3,
    "bytes": RANDOM.integers(0, 256, (4, 30)).astype(np.uint8),
    "complex": (RANDOM.normal(size=30) + 2j * RANDOM.normal(size=30)).astype(np.complex64),
    "float16": RANDOM.normal(size=50).astype(np.float16),
    "not finite": np.array([1.0, np.nan, 3.0, np.inf, -np.inf, 4.5], np.float32),
    "huge": np.array([1e30, -1e30, 1e30, 5.0], np.float32),
    "constant": np.full(9, 2.5, np.float32),
    "zeros": np.zeros((2, 2), np.float32),
    "one number": np.float32(-3.0),
    "an empty array beside others": (np.zeros((0, 3), np.float32), IMAGES[:2]),
    "text beside arrays": {"x": IMAGES[:2], "id": "train"},
    "text beside arrays, a dtype": {"x": IMAGES[:2], "id": "float32"},
}


class TestOfTheBatch:
    @pytest.mark.parametrize("name", BATCHES)
    def test_formulas(self, name: str) -> None:
        batch = BATCHES[name]
        seen = Observation(batch=batch)
        numeric = {k: v for k, v in batch.items() if k != "id"} if "text" in name else batch
        entries, entropy = batch_entries(numeric)
        mean, variance, actual = (
            float(function(seen))
            for function in (
                features.batch_mean,
                features.batch_variance,
                features.batch_entropy,
            )
        )
        assert mean == pytest.approx(np.arcsinh(entries.mean()), rel=1e-5, abs=1e-6)
        assert variance == pytest.approx(np.log(entries.var() + 1e-30), rel=1e-4, abs=1e-4)
        assert actual == pytest.approx(entropy, rel=1e-5, abs=1e-6)

    @pytest.mark.parametrize("batch", [None, np.zeros((0, 3)), (np.zeros(0), [])], ids=repr)
    def test_a_batch_without_entries_has_none(self, batch: Any) -> None:
        for function, _ in features.BATCH:
            assert function(Observation(batch=batch)) is None

    def test_only_numbers_that_are_not_finite(self) -> None:
        seen = Observation(batch=np.full(4, np.nan, np.float32))
        for function, _ in features.BATCH:
            assert np.isfinite(function(seen))

    def test_the_entropy_of_a_large_array_is_that_of_its_thinned_entries(self) -> None:
        large = np.random.default_rng(6).normal(size=(64, 40, 50)).astype(np.float32)
        _, entropy = batch_entries(large)
        actual = float(features.batch_entropy(Observation(batch=large)))
        assert actual == pytest.approx(entropy, abs=0.02)
        assert actual != pytest.approx(entropy, abs=1e-6)

    @pytest.mark.parametrize("dtype", [np.float64, np.int64, np.uint64])
    def test_wide_numbers(self, dtype: Any) -> None:
        with jax.enable_x64(True):
            batch = np.array([3, 4, 4, 2**40], dtype)
            entries, entropy = batch_entries(batch)
            seen = Observation(batch=batch)
            assert float(features.batch_mean(seen)) == pytest.approx(
                np.arcsinh(entries.mean()), rel=1e-5
            )
            assert float(features.batch_entropy(seen)) == pytest.approx(entropy, rel=1e-5)


class TestOfLearning:
    def test_formulas(self) -> None:
        seen = Observation(
            batch=None,
            value=jnp.float32(-2.0),
            last_value=jnp.float32(5.0),
            gradient_norm=jnp.float32(0.3),
            gradient_variance=jnp.float32(7.0),
        )
        wanted = [math.log(0.3), math.log(7.0), math.asinh(-2.0), math.asinh(7.0)]
        actual = [float(function(seen)) for function, _ in features.LEARNING]
        assert actual == pytest.approx(wanted, rel=1e-6)

    def test_what_was_not_passed_is_absent(self) -> None:
        nothing = Observation(batch=None)
        assert [function(nothing) for function, _ in features.DEFAULT] == [None] * 7


def walked(optimizer: Any, params: Any, grads: Any, state: Any = None, **each: Any) -> Any:
    """The states after every step; grads and `each` have one entry a step."""

    def step(state: Any, now: Any) -> Any:
        gradient, extra = now
        state = optimizer.update(gradient, state, params, **extra)[1]
        return state, state

    state = jax.jit(optimizer.init)(params) if state is None else state
    return jax.jit(lambda *xs: jax.lax.scan(step, *xs)[1])(state, (grads, each))


def two(
    *chosen: Any, controller: optabs.Controller = MEASURED
) -> optax.GradientTransformationExtraArgs:
    """A mixture of two experts."""
    both = {"slow": optabs.sgd(0.01), "fast": optabs.sgd(0.1)}
    return optabs.dao_e(experts=both, features=chosen, controller=controller)


def moved(matrix: Any) -> np.ndarray:
    """Which columns of the controller's matrix move between the steps: bool [1 + n]."""
    return np.any(np.diff(np.asarray(matrix), axis=0) != 0, axis=(0, 1, 2))


def numbers(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)


class TestStandardisation:
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
        optimizer = two((lambda seen: seen.batch, 4))
        states = walked(optimizer, jnp.ones(3), numbers(steps), batch=raw)
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
        raw = 7 + 1e-6 * numbers(30, 2)
        states = walked(two((lambda seen: seen.batch, 3)), jnp.ones(3), numbers(30), batch=raw)
        assert np.abs(states.controller.inputs[:, 1:]).max() < 0.01


class TestAbsence:
    @pytest.mark.parametrize("controller", [MEASURED, optabs.Controller.paper()])
    @pytest.mark.parametrize(
        ("missing", "columns"), [("batch", BATCH_COLUMNS), ("value", LOSS_COLUMNS)]
    )
    def test_a_column_rests_while_its_input_is_missing(
        self, missing: str, columns: Sequence[int], controller: optabs.Controller
    ) -> None:
        optimizer = two(*features.DEFAULT, controller=controller)
        params, grads = jnp.ones(3), numbers(24)
        each = {"value": numbers(24, 3)[:, 0], "batch": numbers(24, 4)}
        first, late = (
            jax.tree.map(lambda array, part=part: array[part], (grads, each))
            for part in (slice(12), slice(12, None))
        )
        full = walked(optimizer, params, first[0], **first[1])
        assert moved(full.controller.matrix[5:]).all()
        del late[1][missing]
        last = jax.tree.map(lambda leaf: leaf[-1], full)
        states = walked(optimizer, params, late[0], last, **late[1])
        # Its first step still learns from the last features that were known.
        still = moved(states.controller.matrix)
        assert not still[columns].any()
        assert np.delete(still, columns).all()
        for moment in states.controller.moments:  # of the rule "adam", which rest as well
            assert not moved(moment)[columns].any()
        inputs = states.controller.inputs
        assert np.all(inputs[:, columns] == 0)
        assert np.all(np.delete(inputs, columns, axis=1) != 0)

    def test_a_loss_that_is_not_finite_is_absent_for_its_steps(self) -> None:
        losses = np.float32([3, 2, 2.5, 1, 4, np.nan, 6, 5, np.inf, 2, 1, 7])
        optimizer = two(*features.LEARNING)
        states = walked(optimizer, jnp.ones(3), numbers(12), value=losses)
        bad = ~np.isfinite(losses)
        known = np.asarray(states.controller.known[:, 3:])
        assert not known[bad].any()
        assert known[~bad][5:].all()
        loss, decrease = np.asarray(states.observing.seen[-1])[2:]
        assert (loss, decrease) == (10, 9)  # the first step has no decrease
        # The decrease after a gap is measured from the last loss that was finite.
        falls = -np.diff(losses[~bad].astype(np.float64))
        wanted = np.arcsinh(falls).mean()
        assert float(states.observing.average[-1, 3]) == pytest.approx(wanted, rel=1e-5)
        for leaf in jax.tree.leaves(states):
            assert np.isfinite(leaf).all()

    def test_the_gradients_variance_is_unknown_in_the_first_step(self) -> None:
        """The mean of what is known later is not that of log(1e-30) and the rest."""
        optimizer = two((features.gradient_variance, 1))
        watch = walked(optimizer, jnp.ones(3), numbers(40)).observing
        assert list(watch.seen[:3, 0]) == [0, 1, 2]
        logs = np.log(watch.distance[1:])
        means = np.cumsum(logs) / np.arange(1, 40)
        np.testing.assert_allclose(watch.average[1:, 0], means, rtol=1e-4, atol=1e-4)


ANY = st.floats(width=32, allow_nan=True, allow_infinity=True)
HARMLESS = st.floats(-1e3, 1e3, width=32)
STEPS = 6
MIXED = two(*features.DEFAULT)
ANYTHING = jax.jit(lambda *xs: walked(MIXED, xs[0], xs[1], value=xs[2], batch=xs[3]))


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
    np.testing.assert_allclose(states.controller.mixing.sum(axis=-1), 1, rtol=1e-6)


class TestGradientVariance:
    """Its estimate from one projection a leaf, against the distance itself."""

    SHAPES = ((40, 30), (30,), (5, 4, 6))

    def measured(self, grads: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The averaged distance as estimated and as it is, for runs [S, T, ...] a leaf."""
        optimizer = optabs.dao_e(
            experts={"sgd": optabs.sgd(0.1)}, features=((features.gradient_variance, 1),)
        )
        params = [jnp.ones(leaf.shape[2:]) for leaf in grads]

        def last(run: Any) -> jax.Array:
            def step(state: Any, gradient: Any) -> Any:
                return optimizer.update(gradient, state, params)[1], None

            state, _ = jax.lax.scan(step, optimizer.init(params), run)
            return state.observing.distance

        estimate = jax.jit(jax.vmap(last))(list(map(jnp.asarray, grads)))
        true = np.zeros(len(grads[0]))
        means = [np.zeros_like(leaf[:, 0], np.float64) for leaf in grads]
        for t in range(grads[0].shape[1]):
            aways = [leaf[:, t] - mean for leaf, mean in zip(grads, means, strict=True)]
            square = sum(np.sum(a.reshape(len(a), -1) ** 2, axis=1) for a in aways)
            true += max(1 / t, 0.01) * (square - true) if t else 0.0
            rate = max(1 / (t + 1), 0.01)
            means = [mean + rate * away for mean, away in zip(means, aways, strict=True)]
        return np.asarray(estimate), true

    def test_independent_noise_about_a_mean(self) -> None:
        random = np.random.default_rng(7)
        runs = [
            (random.normal(size=(1, 1, *shape)) + random.normal(size=(40, 30, *shape)))
            for shape in self.SHAPES
        ]
        estimate, true = self.measured([run.astype(np.float32) for run in runs])
        # The mean of about 1200 squares of normal numbers.
        assert estimate.mean() == pytest.approx(true.mean(), rel=0.15)

    def test_noise_along_one_direction_of_one_sign(self) -> None:
        """Where the plain sum of a leaf would be off by its number of entries."""
        random = np.random.default_rng(8)
        size = random.normal(size=(300, 8))
        runs = [
            size.reshape(300, 8, *[1] * len(shape)) * random.gamma(1.0, size=(300, 1, *shape))
            for shape in self.SHAPES
        ]
        estimate, true = self.measured([run.astype(np.float32) for run in runs])
        ratio = np.median(estimate / true)
        assert 0.2 < ratio < 5

    def test_numbers_are_measured_exactly(self) -> None:
        random = np.random.default_rng(9)
        estimate, true = self.measured(list(np.float32(random.normal(size=(3, 2, 150)))))
        np.testing.assert_allclose(estimate, true, rtol=1e-4)
