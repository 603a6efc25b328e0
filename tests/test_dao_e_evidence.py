"""DAO-E's controller learns at any scale of the loss, and only from experts that moved."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optabs
from optabs import Controller
from optabs.mixture import controller as control
from optabs.mixture.state import gradient_norm

STEPS = 30
CONTROLLERS = {
    "measured": Controller(),
    "last update": Controller(gamma=0.0),
    "by adam": Controller.paper()._replace(multiplier_rate=0.1),
}


@pytest.fixture(scope="module", params=CONTROLLERS)
def run(request: pytest.FixtureRequest) -> Any:
    """Compiled: weights, multiplier and parameters after training at a scale that jumps."""
    controller = CONTROLLERS[request.param]

    @jax.jit
    def train(scale: jax.Array, jump: jax.Array) -> Any:
        optimizer = optabs.dao_e(
            experts={
                "adam_abs": optabs.adam_abs(0.02, eps=0.0),
                "lion": optax.lion(0.01, weight_decay=0.0),
                "sgd": optabs.sgd(0.05 / scale),
            },
            controller=controller,
        )
        params = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.array([4.0, -1.0])}

        def step(carry: Any, t: jax.Array) -> Any:
            params, state = carry
            now = jnp.where(t < STEPS // 2, scale, scale * jump)
            grads = jax.tree.map(lambda p: now * (p - jnp.sin(3.0 * t)), params)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = params, optimizer.init(params)
        (params, state), _ = jax.lax.scan(step, start, jnp.arange(STEPS))
        return state.controller.weights, jnp.exp(state.multiplier.log_multiplier), params

    return train


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-20, 1e-10, 2.0**-60, 2.0**60, 1e10, 1e20])
def test_the_scale_of_the_loss_changes_nothing(run: Any, scale: float) -> None:
    wanted, ours = run(1.0, 1.0), run(scale, 1.0)
    assert np.abs(wanted[0] - 1 / 3).max() > 0.02
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), ours, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("jump", [1e-20, 1e20])
def test_a_scale_that_jumps_leaves_everything_finite(run: Any, jump: float) -> None:
    weights, multiplier, params = run(1.0, jump)
    np.testing.assert_allclose(np.sum(weights, axis=1), 1, rtol=1e-5)
    assert np.exp(-7) <= multiplier <= np.exp(3) * 1.001
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


class TestNorms:
    @pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-20, 1e-12, 1.0, 1e15, 1e20, 1e37])
    def test_at_any_scale(self, scale: float) -> None:
        leaves = [np.float32(scale) * np.ones((2, 2), np.float32), np.float32([0.0, scale])]
        _, norm, finite = gradient_norm(list(map(jnp.asarray, leaves)))
        assert bool(finite)
        assert float(norm) == pytest.approx(np.sqrt(5) * scale, rel=1e-5, abs=1e-30)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
    def test_one_entry_that_is_not_finite(self, bad: float, scale: float) -> None:
        leaves = [jnp.full(3, scale), jnp.array([scale, bad])]
        assert not bool(gradient_norm(leaves)[2])

    def test_numbers_that_float32_does_not_have(self) -> None:
        with jax.enable_x64(True):
            assert bool(gradient_norm([jnp.array([1e200, 1.0])])[2])
            assert not bool(gradient_norm([jnp.array([1e200, jnp.inf])])[2])


class TestOneThatMadeNoUpdate:
    """The next gradient says nothing about an update that was not made."""

    @staticmethod
    def learned(
        controller: Controller, keep: slice, third: float = 0.0
    ) -> control.ControllerState:
        """After a step of those experts, and what the next gradient says of it."""
        bias = jnp.array([[0.4, -0.1, -0.3]])[:, keep, None]
        products = jnp.array([[-0.3, 0.2, third]])[:, keep]
        state = control.init(controller, 1, bias.shape[1], 1)._replace(matrix=bias)
        empty = jnp.zeros(0)
        state = control.update_weights(controller, state, empty, empty.astype(bool))
        # Of the published rule it is the weight that makes the evidence.
        share = state.weights[:, :2] / jnp.sum(state.weights[:, :2])
        state = state._replace(weights=state.weights.at[:, :2].set(share))
        alike = jnp.ones_like(products)
        return control.learn(controller, state, products, jnp.int32(7), alike, None)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", CONTROLLERS)
    def test_the_others_learn_as_if_it_did_not_exist(self, name: str) -> None:
        controller = CONTROLLERS[name]._replace(floor=0.0, multiplier_rate=None, decay=0.0)
        three, two = self.learned(controller, np.s_[:]), self.learned(controller, np.s_[:2])
        apart = [float(s.matrix[0, 0, 0] - s.matrix[0, 1, 0]) for s in (three, two)]
        assert apart[0] == pytest.approx(apart[1], rel=1e-5)
        assert apart[0] > 0.5001
        # Its own bias moves with the centre of all alone: theirs moved by as much up as down.
        assert float(three.matrix[0, 2, 0]) == pytest.approx(-0.3, abs=1e-6)

    @pytest.mark.slow
    def test_a_small_product_would_have_been_evidence(self) -> None:
        """A control: one of an expert that did move counts."""
        controller = Controller(floor=0.0, multiplier_rate=None, decay=0.0)
        moved = self.learned(controller, np.s_[:], 1e-9)
        assert abs(float(moved.matrix[0, 2, 0]) + 0.3) > 1e-3


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_parameters_that_are_not_finite_do_not_count_for_the_cap(bad: float) -> None:
    """As in a buffer that nothing trains, or a mask."""
    params = {"w": jnp.ones(4), "mask": jnp.full(3, bad)}
    grads = {"w": jnp.ones(4), "mask": jnp.zeros(3)}
    optimizer = optabs.steered(optabs.sgd(1e3))
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = jax.jit(optimizer.update)(grads, state, params)
        assert 0 < float(jnp.linalg.norm(updates["w"])) <= 0.05 * 2 * 1.0001
        assert not np.any(updates["mask"])


@pytest.mark.slow
def test_complex_numbers_of_double_precision() -> None:
    with jax.enable_x64(True):
        params = jnp.asarray([1.0 + 2.0j, -1.0j], jnp.complex128)
        for optimizer in (optabs.steered(optabs.sgd(0.01)), optabs.dao_e(0.01)):
            state = optimizer.init(params)
            kinds = [leaf.dtype for leaf in jax.tree.leaves(state)]
            for update in (jax.jit(optimizer.update), optimizer.update):
                updates, state = update(params, state, params)
                assert updates.dtype == jnp.complex128
                assert [leaf.dtype for leaf in jax.tree.leaves(state)] == kinds


def _noise(updates: Any, params: Any = None) -> Any:
    """Of another draw for every gradient."""
    seed = jax.lax.bitcast_convert_type(updates[0], jnp.int32)
    return 1e-2 * jax.random.normal(jax.random.key(seed), updates.shape)


class TestWhatAsksForShorterSteps:
    """It counts by the length of the step: the shorter that is, the less."""

    @staticmethod
    def learned(
        products: Sequence[float],
        norms: Sequence[float],
        length: float,
        too_far: Sequence[int] = (),
    ) -> np.ndarray:
        """What b gains from an advantage of the smaller products: float64 [K]."""
        controller = Controller(decay=0.0)
        state = control.init(controller, 1, len(products), 1)
        state = state._replace(inputs=jnp.ones(1), known=jnp.ones(1, bool))
        judged = jnp.array([products]), jnp.int32(1)
        means = jnp.zeros(1 + len(products))
        for each in too_far:
            means = means.at[1 + each].set(1.0)
        _, share, _ = control.shares(controller, means, means, jnp.float32(length), judged[1])
        given = jnp.array([norms]), share
        after = control.learn(controller, state, *judged, *given)
        return np.asarray(after.matrix[0, :, 0], np.float64)

    SHORT_IS_BETTER, LONG_IS_BETTER = (-0.2, 0.4), (0.4, -0.2)
    NORMS = (0.1, 10.0)

    def test_a_long_step_learns_all_of_it(self) -> None:
        wanted = self.learned(self.SHORT_IS_BETTER, (1.0, 1.0), 1e-4)
        assert wanted[0] > 0.1
        for length in (control.SHORT_STEP, 1.0, np.inf, np.nan):
            actual = self.learned(self.SHORT_IS_BETTER, self.NORMS, length)
            np.testing.assert_allclose(actual, wanted, rtol=1e-6)

    @pytest.mark.parametrize("share", [0.0, 0.25, 0.7])
    def test_a_short_one_its_share(self, share: float) -> None:
        whole = self.learned(self.SHORT_IS_BETTER, self.NORMS, 1.0)
        # Of two experts all of a signal goes along the lengths, of which 0.05 do not count.
        logs = np.log(self.NORMS)
        own = np.sum((logs - logs.mean()) ** 2)
        left = 1 - (1 - share) * own / (own + control.ALIKE)
        actual = self.learned(self.SHORT_IS_BETTER, self.NORMS, share * control.SHORT_STEP)
        np.testing.assert_allclose(actual, left * whole, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("length", [0.0, 1e-4, 1.0])
    def test_what_asks_for_longer_ones_counts_whole(self, length: float) -> None:
        wanted = self.learned(self.LONG_IS_BETTER, (1.0, 1.0), 1.0)
        actual = self.learned(self.LONG_IS_BETTER, self.NORMS, length)
        np.testing.assert_allclose(actual, wanted, rtol=1e-6)

    def test_and_so_does_what_has_nothing_to_do_with_lengths(self) -> None:
        products, norms = (-0.2, 0.4, -0.2), (1.0, 1.0, 0.01)
        change = self.learned(products, norms, 0.0) - self.learned(products, norms, 1.0)
        logs = np.log(norms) - np.log(norms).mean()
        np.testing.assert_allclose(change / change[2], logs / logs[2], rtol=1e-4)

    @pytest.mark.parametrize("unknown", [np.inf, np.nan])
    def test_a_length_that_is_not_known_is_left_out(self, unknown: float) -> None:
        wanted = self.learned(self.SHORT_IS_BETTER, self.NORMS, 1.0)
        actual = self.learned(self.SHORT_IS_BETTER, (0.1, unknown), 0.0)
        np.testing.assert_allclose(actual, wanted, rtol=1e-6)

    @pytest.mark.parametrize(("too_far", "counted"), [((), 0.0), ((1,), 0.5), ((0,), 0.0)])
    def test_all_counts_against_a_long_one_that_goes_too_far(
        self, too_far: tuple[int, ...], counted: float
    ) -> None:
        """But not for the short one, number 0; whether that goes too far is not asked."""
        whole = self.learned(self.SHORT_IS_BETTER, self.NORMS, 1.0)
        logs = np.log(self.NORMS)
        own = np.sum((logs - logs.mean()) ** 2)
        left = 1 - (1 - counted) * own / (own + control.ALIKE)
        actual = self.learned(self.SHORT_IS_BETTER, self.NORMS, 0.0, too_far)
        np.testing.assert_allclose(actual, left * whole, rtol=1e-4, atol=1e-6)

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["climbing", "noise"])
    @pytest.mark.parametrize(("off", "least", "most"), [(False, 0.0, 0.18), (True, 0.25, 9.0)])
    def test_the_longer_of_two_does_harm(
        self, monkeypatch: pytest.MonkeyPatch, kind: str, off: bool, least: float, most: float
    ) -> None:
        """At a bowl's floor; the control does not know each expert's own gain."""
        own = control.shares
        if off:
            monkeypatch.setattr(
                control, "shares", lambda c, m, x, *rest: own(c, m, x.at[1:].set(0), *rest)
            )
        harm = {"climbing": optax.scale(3e-3), "noise": optax.stateless(_noise)}[kind]
        optimizer = optabs.dao_e(experts={"good": optabs.sgd(1e-3), "harmful": harm})

        def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
            params, state = carry
            grads = params - truth + jax.random.normal(key, params.shape)
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), jnp.sum(jnp.square(params - truth)) / 2

        truth = 3 * jax.random.normal(jax.random.key(1), (200,))
        start = truth + 0.3
        keys = jax.random.split(jax.random.key(0), 6000)
        _, losses = jax.lax.scan(step, (start, optimizer.init(start)), keys)
        assert least < float(jnp.mean(losses[-500:])) < most

    @pytest.mark.parametrize(("rate", "least", "most"), [(1.0, 0.4, 1.0), (None, 0.0, 0.1)])
    def test_in_noise_an_expert_that_hardly_moves_does_not_end_short_steps(
        self, rate: float | None, least: float, most: float
    ) -> None:
        """A bowl's floor, where no step gains anything; the control has no multiplier."""
        optimizer = optabs.dao_e(
            experts={"moving": optabs.sgd(1e-3), "still": optabs.sgd(1e-7)},
            controller=Controller(multiplier_rate=rate),
        )

        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            params, state = carry
            grads = 100 * (params - 1) + jax.random.normal(key, params.shape)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = jnp.ones(64)
        keys = jax.random.split(jax.random.key(0), 2000)
        (_, state), _ = jax.lax.scan(step, (start, optimizer.init(start)), keys)
        assert least <= float(optabs.mixing_weights(state)["moving"]) <= most
