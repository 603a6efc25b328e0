"""The multiplier of `dao_e` and `steered`: what it learns from, and what it survives."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dao_e_problem import GRADS, walked

import optabs
from optabs import Controller
from optabs.mixture import controller as control

WEIGH_NORM = control.weigh_norm


class TestWhatNormsTell:
    @staticmethod
    def followed(norms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The weight and how calm it is, and M and n, after each of some gradients."""

        def step(kept: jax.Array, norm: jax.Array) -> Any:
            *of_norm, kept = control.weigh_norm(norm, kept)
            return kept, (jnp.stack(of_norm), kept[:2])

        _, (of_norm, kept) = jax.lax.scan(step, jnp.zeros(3), jnp.asarray(norms, jnp.float32))
        return np.asarray(of_norm), np.asarray(kept)

    def test_half_exceed_the_median_and_fewer_the_largest_median(self) -> None:
        norms = np.exp(np.random.default_rng(0).normal(size=20_000))
        of_norm, kept = self.followed(norms)
        assert 0.45 < np.mean(of_norm[1000:, 0] == 1) < 0.55
        above = np.mean(norms[1000:] > kept[1000:, 1])
        assert 0.2 < above < 0.45

    @pytest.mark.parametrize(("size", "share"), [(10.0, 0.02), (10.0, 0.2), (0.01, 0.4)])
    def test_no_part_of_steady_norms_is_calm(self, size: float, share: float) -> None:
        """Rare large ones, many small ones; the controls are below."""
        norms = np.where(np.random.default_rng(0).uniform(size=10_000) < share, size, 1.0)
        of_norm, _ = self.followed(norms)
        assert np.mean(of_norm[1000:, 1]) < 0.1

    def test_what_has_fallen_is(self) -> None:
        norms = np.r_[np.ones(500), np.geomspace(1, 0.1, 200), np.full(300, 0.1)]
        of_norm, kept = self.followed(norms)
        assert np.all(of_norm[:500, 1] == 0)
        np.testing.assert_allclose(
            of_norm[-1, 1], 1 - kept[-1, 0] / control.CALM / kept[-1, 1], rtol=1e-4
        )
        assert of_norm[-1, 1] > 0.6

    def test_a_long_run_remembers_what_it_began_with(self) -> None:
        """Small sets that were learned by heart: the step would grow again."""
        norms = np.r_[np.ones(500), np.geomspace(1, 0.01, 500), np.full(20_000, 0.01)]
        assert self.followed(norms)[0][-1, 1] > 0.9

    @pytest.mark.parametrize("zeros", [0, 30])
    @pytest.mark.parametrize("at", [0, 20, 400])
    def test_one_outlier_makes_nothing_calm(self, at: int, zeros: int) -> None:
        norms = np.ones(1000)
        norms[at] = 1e6
        of_norm, kept = self.followed(np.r_[np.zeros(zeros), norms])
        assert np.all(kept[zeros : zeros + at] == 1)
        assert np.all(of_norm[zeros + at + 100 :, 1] == 0)
        assert np.all(kept[zeros + at + 100 :] < 2.1)

    def test_zeros_tell_nothing(self) -> None:
        norms = np.ones(100)
        norms[::3] = 0
        of_norm, kept = self.followed(norms)
        assert np.all(of_norm[:, 1] == 0)
        assert np.all(kept[0] == 0)
        assert np.all(kept[1:] == 1)

    def test_it_follows_what_lasts(self) -> None:
        norms = np.r_[np.ones(100), np.full(200, 1e3), np.full(8000, 1.0)]
        of_norm, kept = self.followed(norms)
        np.testing.assert_allclose(kept[299], 1e3, rtol=0.06)
        np.testing.assert_allclose(of_norm[500, 1], 1 - 1e-3 / 0.5 / 0.9, rtol=0.1)
        np.testing.assert_allclose(kept[-1, 0], 1, rtol=0.06)
        np.testing.assert_allclose(kept[-1, 1], 1e3 * (300 / 8300) ** 0.25, rtol=0.06)
        for size in (1e-44, 1e-30, 3e38):
            assert np.all(np.isfinite(np.stack(self.followed(np.full(30, size)))))

    @pytest.mark.parametrize("first", [1e-36, 3.5e-37])
    def test_norms_further_apart_than_float32_reaches(self, first: float) -> None:
        norms = np.r_[first, np.full(30, 120.0), first, 3e38]
        of_norm, kept = self.followed(norms)
        assert np.all(np.isfinite([of_norm, kept]))
        assert np.all((of_norm >= 0) & (of_norm <= 1))
        np.testing.assert_allclose(kept[19], np.exp(np.log(norms[:20]).mean()), rtol=1e-4)


class TestTheMultiplier:
    STEEP = Controller(cap=None, multiplier_rate=0.5)
    ONE = optabs.dao_e(experts={"sgd": optabs.sgd(0.01)}, controller=STEEP)

    @pytest.mark.slow
    @pytest.mark.parametrize(("sign", "end"), [(1.0, 3.0), (-1.0, -7.0)])
    def test_it_stays_in_its_range(self, sign: float, end: float) -> None:
        """Gradients that agree for ever, and gradients that turn around in every step."""
        grads = [jax.tree.map(lambda g, t=t: 1e6 * g * sign**t, GRADS[0]) for t in range(400)]
        _, states = walked(self.ONE, grads)
        path = np.asarray(states.multiplier.log_multiplier)
        # The trace of a sum that turns around and decays slowly has the last step's sign.
        np.testing.assert_allclose(np.sign(path[1:]), sign)
        np.testing.assert_allclose(path[-1], end, rtol=1e-6)

    @pytest.mark.parametrize(
        ("c", "cosines", "share", "wanted"),
        [
            (0.0, (0.3, 0.1), 0.25, -0.4),  # it is not below 0
            (2.0, (0.3, 0.1), 0.25, 1.6),
            (-1.0, (-0.3, 0.1), 0.25, -0.8),  # it rises by the last step
            (-1.0, (0.3, 0.1), 1.0, -1.4),
            (-1.0, (0.3, 0.1), 0.25, -1.0 - 0.3 * 0.25 - 0.1),
            (-1.0, (0.3, -0.1), 0.25, -1.0 - 0.3 * 0.25 + 0.1),
            (-2.0, (0.3, 0.1), 0.0, -2.1),  # the trace's counts whole
            (-6.9, (0.3, 0.1), 1.0, -7.0),
            (2.9, (-0.3, 0.1), 1.0, 3.0),
        ],
    )
    def test_what_shortens_by_the_last_step_has_its_share(
        self, c: float, cosines: tuple[float, float], share: float, wanted: float
    ) -> None:
        numbers = (jnp.float32(c), jnp.float32(cosines), jnp.float32(share))
        actual = control.update_multiplier(
            Controller(), *numbers, jnp.float32(0), *jnp.array([1.0, 0.0]), jnp.int32(0)
        )
        assert float(actual) == pytest.approx(wanted, rel=1e-6)

    @pytest.mark.parametrize(
        ("length", "mean", "by_weights", "by_multiplier"),
        [
            (0.0, 0.0, 0.0, 0.0),
            (1e-3, -1.0, 0.2, 0.0025),  # the shorter the step, the less
            (1e-2, 0.0, 1.0, 0.25),
            (0.02, 0.0, 1.0, 1.0),
            (np.inf, 0.0, 1.0, 1.0),
            (np.nan, 0.0, 1.0, 1.0),
            (1e-3, 0.0025, 0.25, 0.25),  # unless many steps together went too far
            (1e-3, 0.1, 1.0, 1.0),
        ],
    )
    def test_how_much_of_what_shortens_counts(
        self, length: float, mean: float, by_weights: float, by_multiplier: float
    ) -> None:
        means = jnp.array([mean, 0.0, 0.0], jnp.float32)
        kept, *actual = control.shares(
            Controller(), means, means, jnp.float32(length), jnp.int32(9)
        )
        np.testing.assert_allclose(kept, means, rtol=1e-6)
        np.testing.assert_allclose(actual[0][0], by_weights, rtol=1e-5)
        np.testing.assert_allclose(actual[1], by_multiplier, rtol=1e-5)

    @pytest.mark.parametrize(
        ("curvature", "too_far", "least", "most"),
        [(1.0, control.TOO_FAR, 0.0, 0.06), (1.0, 1e9, 0.12, 1.0), (1e-3, 0.005, 1.0, 4.0)],
    )
    def test_where_only_noise_is_left_short_steps_shorten(
        self,
        monkeypatch: pytest.MonkeyPatch,
        curvature: float,
        too_far: float,
        least: float,
        most: float,
    ) -> None:
        """At a bowl's floor; the controls are without a mean, and on the way down a valley."""
        monkeypatch.setattr(control, "TOO_FAR", too_far)
        optimizer = optabs.steered(optabs.sgd(0.03))

        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            params, state = carry
            grads = curvature * (params - 1) + 0.1 * jax.random.normal(key, params.shape)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = jnp.full(64, 2.0)
        keys = jax.random.split(jax.random.key(0), 2000)
        (_, state), _ = jax.lax.scan(step, (start, optimizer.init(start)), keys)
        assert least <= float(jnp.exp(state.multiplier.log_multiplier)) <= most

    @pytest.mark.parametrize(("gamma", "rate"), [(0.998, 0.002), (0.5, 0.5), (0.0, 1.0)])
    def test_the_mean_forgets_as_the_trace_does(self, gamma: float, rate: float) -> None:
        def after(steps: int) -> float:
            numbers = jnp.full(3, 0.4), jnp.full(3, -0.1), jnp.float32(1)
            kept, *_ = control.shares(Controller(gamma=gamma), *numbers, jnp.int32(steps))
            assert np.all(kept == kept[0])
            return float(kept[0])

        assert after(10_000) == pytest.approx(0.4 - 0.5 * rate, rel=1e-5)
        assert after(0) == after(1) == pytest.approx(-0.1, rel=1e-5)

    @pytest.mark.parametrize(
        ("growth", "of_norm", "wanted"),
        [
            (-1.0, (1.0, 1.0), -0.9),
            (0.5, (1.0, 1.0), -0.9),
            (0.8, (1.0, 1.0), -1.2),
            (0.8, (1.0, 0.5), -1.05),
            (1.0, (1.0, 0.0), -0.9),
            (1.0, (0.5, 0.0), -1.1),  # a small gradient tells less of the last five hundred
            (1.0, (0.0, 0.0), -1.3),
        ],
    )
    def test_small_gradients_and_steps_that_enlarge_the_parameters_shorten_them(
        self, growth: float, of_norm: tuple[float, float], wanted: float
    ) -> None:
        numbers = (jnp.float32(-1), jnp.float32([0.3, -0.4]), jnp.float32(1))
        actual = control.update_multiplier(
            Controller(), *numbers, jnp.float32(growth), *jnp.array(of_norm), jnp.int32(0)
        )
        assert float(actual) == pytest.approx(wanted, rel=1e-6)


def _linear(sizes: jax.Array, batch: int, noise: float) -> Callable[..., Any]:
    """Gradients of a regression, and what its loss has above the least."""

    def found(params: jax.Array, truth: jax.Array, key: jax.Array) -> Any:
        of_inputs, of_noise = jax.random.split(key)
        inputs = sizes[None, :] * jax.random.normal(of_inputs, (batch, len(sizes)))
        away = inputs @ (params - truth) - noise * jax.random.normal(of_noise, (batch,))
        return away @ inputs / batch, jnp.sum(jnp.square(sizes * (params - truth))) / 2

    return found


def _weigh_by_n(norm: jax.Array, kept: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As if every gradient weighed the same, and were calm below half of n, which falls."""
    *_, after = WEIGH_NORM(norm, kept)
    high = jnp.maximum(0.999 * kept[1], after[0])
    return jnp.ones([]), jnp.maximum(1 - norm / 0.5 / high, 0), after.at[1].set(high)


def _weigh_by_largest(
    norm: jax.Array, kept: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As if n were the largest norm, which is kept alone."""
    largest = jnp.maximum(0.998 * kept[1], norm)
    calm = jnp.maximum(1 - norm / 0.5 / largest, 0)
    return jnp.ones([]), calm, kept.at[1].set(largest)


@pytest.mark.slow
@pytest.mark.parametrize("as_before", [False, True])
@pytest.mark.parametrize(
    ("sizes", "batch", "noise", "weights", "most"),
    [
        # Of rare batches the norm is ten times as large, and of many a hundredth.
        (0.01 ** (np.arange(20) / 38), 32, 3.0, (0.05, 10.0), 0.03),
        (np.ones(200), 8, 10.0, (0.4, 0.01), 2.5),
        (np.ones(200), 1, 10.0, (0.0, 1.0), 11.0),
    ],
    ids=["rare large batches", "small batches", "single examples"],
)
def test_norms_that_vary_do_not_end_the_training(
    monkeypatch: pytest.MonkeyPatch,
    as_before: bool,
    sizes: np.ndarray,
    batch: int,
    noise: float,
    weights: tuple[float, float],
    most: float,
) -> None:
    """Regressions from 0; the controls take the norms as the rules before did."""
    if as_before:
        before = _weigh_by_largest if weights[1] > 1 else _weigh_by_n
        monkeypatch.setattr(control, "weigh_norm", before)
    rate = 1e-2 if batch == 32 else 1e-3
    experts = {"adam": optabs.adam(rate), "sgd": optabs.sgd(rate)}
    optimizer = optabs.dao_e(experts=experts)
    found = _linear(jnp.asarray(sizes, jnp.float32), batch, noise)
    truth = jax.random.normal(jax.random.key(7), sizes.shape) / sizes

    def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        params, state = carry
        of_weight, of_batch = jax.random.split(key)
        weight = jnp.where(jax.random.uniform(of_weight) < weights[0], weights[1], 1.0)
        grads, loss = found(params, truth, of_batch)
        updates, state = optimizer.update(weight * grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    start = jnp.zeros(sizes.shape)
    keys = jax.random.split(jax.random.key(0), 3000)
    _, losses = jax.lax.scan(step, (start, optimizer.init(start)), keys)
    assert (float(jnp.mean(losses[-500:])) < most) != as_before
