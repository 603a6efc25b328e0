"""DAO-E's steps, weights and multiplier against its rule in NumPy."""

import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dao_e_problem import (
    FEATURES,
    GIVEN,
    GRADS,
    RATES,
    assert_follows,
    experts,
    flat,
    stacked,
    walk,
    walked,
)
from dao_e_reference import Step, mixture, proposals
from trees import params

import optabs
from optabs import Controller
from optabs.mixture import controller as control

CONTROLLERS = {
    "measured": Controller(),
    # A multiplier of 20, as at a rate of 1, would also multiply the weights' rounding.
    "no cap": Controller(cap=None, multiplier_rate=0.2),
    "no floor": Controller(floor=0.0),
    "no multiplier": Controller(multiplier_rate=None),
    "short steps": Controller(cap=0.004),
    "last update": Controller(gamma=0.0),
    "short trace": Controller(gamma=0.9),
    "frozen": Controller(rate=None),
    "uniform": Controller.uniform(),
    "paper": Controller.paper(),
    "other numbers": Controller(0.03, 0.1, 0.3, 0.05, 0.5, 0.2),
}
ALL, FEW = tuple(RATES), ("lion", "sgd")


def by_hand(
    controller: Controller,
    names: Sequence[str],
    *,
    with_features: bool = True,
) -> list[Step]:
    grads = list(map(flat, GRADS))
    return mixture(
        flat(params()),
        grads,
        [proposals(name, RATES[name], grads) for name in sorted(names)],
        controller,
        FEATURES if with_features else None,
    )


def numbers_of(controller: Controller) -> dict[str, float]:
    """Those of its settings that may be traced."""
    settings = controller._asdict().items()
    return {name: value for name, value in settings if isinstance(value, float)}


@functools.cache
def program(controller: Controller) -> Callable[..., Any]:
    """The compiled walk of a few experts, for any numbers in place of the controller's."""

    def run(numbers: dict[str, Any], *given: Any) -> Any:
        optimizer = optabs.dao_e(
            experts=experts(FEW),
            controller=controller._replace(**numbers),
            features=(GIVEN,),
            previous="float32",
        )
        return walk(optimizer, *given)

    return jax.jit(run)


class TestTheRule:
    @pytest.mark.slow
    @pytest.mark.parametrize("features", [(), (GIVEN,)], ids=["b", "W f + b"])
    @pytest.mark.parametrize("name", ["measured", "paper"])
    def test_the_defaults(self, name: str, features: Any) -> None:
        optimizer = optabs.dao_e(
            experts=experts(ALL),
            controller=CONTROLLERS[name],
            features=features,
            previous="float32",
        )
        positions, states = walked(optimizer, GRADS, batch=FEATURES)
        wanted = by_hand(CONTROLLERS[name], ALL, with_features=bool(features))
        assert_follows(wanted, positions, states)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", CONTROLLERS)
    def test_each_part_on_and_off(self, name: str) -> None:
        numbers = numbers_of(CONTROLLERS[name])
        # Those with the same parts share a program.
        compiled = program(CONTROLLERS[name]._replace(**dict.fromkeys(numbers, 0.5)))
        each = {"batch": FEATURES}
        positions, states = compiled(numbers, params(), stacked(GRADS), each)
        assert_follows(by_hand(CONTROLLERS[name], FEW), positions, states)

    @pytest.mark.parametrize("names", [("lion",), ("sgd", "adam"), ("sgd", "lion", "adam")])
    def test_any_number_of_experts(self, names: Sequence[str]) -> None:
        optimizer = optabs.dao_e(experts=experts(names), previous="float32")
        positions, states = walked(optimizer, GRADS)
        wanted = by_hand(Controller(), names, with_features=False)
        assert_follows(wanted, positions, states)

    def test_steps_outward(self) -> None:
        """Gradients that ask for larger parameters, in noise, and become small."""
        random = np.random.default_rng(5)

        def drawn(size: float) -> Any:
            return jax.tree.map(
                lambda p: jnp.asarray(size * (2 * random.normal(size=p.shape) - p)), params()
            )

        grads = [drawn(0.95**t) for t in range(40)]
        known = list(map(flat, grads))
        proposed = [proposals(name, RATES[name], known) for name in sorted(FEW)]
        wanted = mixture(flat(params()), known, proposed, Controller())
        optimizer = optabs.dao_e(experts=experts(FEW), previous="float32")
        positions, states = walked(optimizer, grads)
        assert_follows(wanted, positions, states)
        both = [
            [np.concatenate([x.ravel() for x in leaves]) for leaves in (s.step_trace, s.theta)]
            for s in wanted
        ]
        cosines = [s @ x / np.linalg.norm(s) / np.linalg.norm(x) for s, x in both]
        assert np.mean(np.array(cosines) > control.GROWTH) > 0.3

    @pytest.mark.slow
    def test_no_part_is_idle(self) -> None:
        """Each setting above ends elsewhere than every other, so none is checked in vain."""
        controllers = [c for c in CONTROLLERS.values() if c.rate is not None]
        runs = [by_hand(c, FEW, with_features=given) for c in controllers for given in (0, 1)]
        runs += [by_hand(c, FEW) for c in CONTROLLERS.values() if c.rate is None]
        ends = [np.stack([step.theta[0].ravel() for step in run]) for run in runs]
        for index, one in enumerate(ends):
            for other in ends[:index]:
                assert not np.allclose(one, other, rtol=1e-4, atol=1e-4)


def test_uniform_weights_are_the_same_whoever_is_asked_for_them() -> None:
    assert Controller.paper().uniform() == Controller.uniform()


class TestTheLargestMedianOfLate:
    @staticmethod
    def followed(norms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sizes and n after each of some gradients."""

        def step(kept: jax.Array, item: Any) -> Any:
            norm, number = item
            size, kept = control.size_of(norm, kept, number)
            return kept, (size, kept[1])

        items = jnp.asarray(norms, jnp.float32), jnp.arange(len(norms))
        _, (sizes, highs) = jax.lax.scan(step, jnp.zeros(2), items)
        return np.asarray(sizes), np.asarray(highs)

    def test_up_to_half_exceed_it(self) -> None:
        norms = np.exp(np.random.default_rng(0).normal(size=20_000))
        sizes, highs = self.followed(norms)
        assert 0.2 < np.mean(sizes[1000:] >= 0.999) < 0.5
        assert 1 < np.median(highs[1000:]) < 1.8

    @pytest.mark.parametrize("share", [0.02, 0.05, 0.2])
    def test_rare_large_ones_do_not_make_the_others_seem_small(self, share: float) -> None:
        norms = np.where(np.random.default_rng(0).uniform(size=10_000) < share, 10.0, 1.0)
        sizes, _ = self.followed(norms)
        assert np.all(sizes[1000:] > control.CALM)

    @pytest.mark.parametrize("at", [0, 20, 400])
    def test_one_outlier_does_not_make_the_others_seem_small(self, at: int) -> None:
        norms = np.ones(1000)
        norms[at] = 1e6
        sizes, highs = self.followed(norms)
        assert np.all(highs[:at] == 1)
        assert np.all(sizes[at + 21 :] > 0.4)
        assert np.all(sizes[at + 800 :] > 0.9)

    def test_zeros_tell_nothing(self) -> None:
        norms = np.ones(100)
        norms[::3] = 0
        sizes, highs = self.followed(norms)
        assert np.all(sizes == 1)
        assert highs[0] == 0
        assert np.all(highs[1:] == 1)

    def test_it_follows_what_lasts(self) -> None:
        norms = np.r_[np.ones(100), np.full(200, 1e3), np.full(8000, 1.0)]
        sizes, highs = self.followed(norms)
        assert highs[299] == pytest.approx(1e3, rel=0.06)
        assert sizes[300] == pytest.approx(1e-3, rel=0.06)
        assert highs[-1] == pytest.approx(1, rel=0.06)
        for size in (1e-44, 1e-30, 3e38):
            assert np.all(np.isfinite(self.followed(np.full(30, size))))

    @pytest.mark.parametrize("first", [1e-36, 3.5e-37])
    def test_norms_further_apart_than_float32_reaches(self, first: float) -> None:
        norms = np.r_[first, np.full(30, 120.0), first, 3e38]
        sizes, highs = self.followed(norms)
        assert np.all(np.isfinite([sizes, highs]))
        assert np.all(sizes <= 1)
        assert highs[19] == pytest.approx(np.exp(np.log(norms[:20]).mean()), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("largest", "least", "most"), [(False, 0.0, 0.03), (True, 0.1, 99.0)])
def test_rare_batches_of_ten_times_the_weight(
    monkeypatch: pytest.MonkeyPatch, largest: bool, least: float, most: float
) -> None:
    """A line from 0, inputs of several sizes; the control compares with the largest norm."""
    if largest:
        monkeypatch.setattr(control, "FIRST_NORMS", 0)
        own = control.size_of

        def of_largest(norm: jax.Array, kept: jax.Array, steps: jax.Array) -> Any:
            high = jnp.maximum(0.998 * kept[1], norm)
            return own(norm, jnp.stack([high, high]), steps + 1)

        monkeypatch.setattr(control, "size_of", of_largest)
    sizes = 0.01 ** (jnp.arange(20) / 38)
    truth = jax.random.normal(jax.random.key(7), (20,)) / sizes
    optimizer = optabs.dao_e(experts={"adam": optabs.adam(1e-2), "sgd": optabs.sgd(1e-2)})

    def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        params, state = carry
        of_inputs, of_noise, of_weight = jax.random.split(key, 3)
        inputs = sizes[None, :] * jax.random.normal(of_inputs, (32, 20))
        noise = 3 * jax.random.normal(of_noise, (32,))
        weight = jnp.where(jax.random.uniform(of_weight) < 0.05, 10.0, 1.0)
        grads = weight * (inputs @ (params - truth) - noise) @ inputs / 32
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), jnp.sum(jnp.square(sizes * (params - truth))) / 2

    start = jnp.zeros(20)
    keys = jax.random.split(jax.random.key(0), 12_000)
    _, losses = jax.lax.scan(step, (start, optimizer.init(start)), keys)
    assert least < float(jnp.mean(losses[-500:])) < most


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
            Controller(), *numbers, jnp.float32(0), jnp.float32(0), jnp.int32(0)
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
        ("growth", "size", "wanted"),
        [
            (-1.0, 0.0, -0.9),
            (0.5, 0.0, -0.9),
            (0.8, 0.0, -1.2),
            (0.8, 0.25, -1.05),
            (1.0, 0.5, -0.9),
            (1.0, 1.0, -0.9),
        ],
    )
    def test_small_gradients_and_steps_that_enlarge_the_parameters_shorten_them(
        self, growth: float, size: float, wanted: float
    ) -> None:
        numbers = (jnp.float32(-1), jnp.float32([0.3, -0.4]), jnp.float32(1))
        actual = control.update_multiplier(
            Controller(), *numbers, jnp.float32(growth), jnp.float32(size), jnp.int32(0)
        )
        assert float(actual) == pytest.approx(wanted, rel=1e-6)


class TestWhatStays:
    """The published form and uniform weights as they were before there were traces."""

    RECORD = json.loads(pathlib.Path(__file__).with_name("dao_e_record.json").read_text())

    @pytest.mark.slow
    @pytest.mark.parametrize("name", RECORD)
    def test_as_recorded(self, name: str) -> None:
        controller = getattr(Controller, name.split()[0])()
        features = (GIVEN,) if name == "paper" else ()
        optimizer = optabs.dao_e(
            experts=experts(ALL), controller=controller, features=features, previous="float32"
        )
        steps = len(self.RECORD[name]["params"])
        assert steps >= 10
        positions, states = walked(optimizer, GRADS[:steps], batch=FEATURES[:steps])
        leaves = [np.reshape(leaf, (steps, -1)) for leaf in jax.tree.leaves(positions)]
        wanted = self.RECORD[name]
        np.testing.assert_allclose(
            np.concatenate(leaves, axis=1), wanted["params"], rtol=1e-6, atol=1e-6
        )
        np.testing.assert_allclose(
            states.controller.weights[:, 0], wanted["weights"], rtol=1e-5
        )
