"""DAO-E against its rule in NumPy, and what it is for one, equal and failing experts."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dao_e_reference import Leaves, Step, mixture, proposals
from trees import assert_close, assert_equal, gradients, params, tree

import optabs
from optabs import Controller

STEPS = 60
RATES = {"adam": 0.05, "lion": 0.03, "rmsprop": 0.02, "sgd": 0.4}
MAKERS: Mapping[str, Any] = {
    "adam": optabs.adam,
    "lion": lambda rate: optax.lion(rate, weight_decay=0.0),
    "rmsprop": optabs.rmsprop,
    "sgd": optabs.sgd,
}
PLAIN = Controller(cap=None, multiplier_rate=None)
GIVEN = (lambda seen: seen.batch, 2)


def experts(names: Sequence[str] = tuple(RATES)) -> dict[str, Any]:
    return {name: MAKERS[name](RATES[name]) for name in names}


def problem() -> tuple[list[Any], np.ndarray, np.ndarray]:
    """Noisy gradients of a bowl that moves away at half time, their losses, two features.

    At first, and once later, the gradient turns around as it does across a valley, while the
    loss rises, then falls; one gradient is huge. They are fixed numbers, so that a difference
    in rounding is not fed back.
    """
    random = np.random.default_rng(3)
    start, structure = jax.tree.flatten(params())
    theta = [np.asarray(leaf, np.float64) for leaf in start]
    size = np.where(np.arange(STEPS) < 10, (-1.0) ** np.arange(STEPS), 1.0)
    size[[24, STEPS - 4]] = -1.0, 300.0
    runs, losses = [], []
    for t in range(STEPS):
        slopes = [3.0 * (x - (0.0 if t < STEPS // 2 else 4.0)) for x in theta]
        losses.append(sum(float(np.sum(s**2)) for s in slopes) / 6 * min(1.0, (t + 2) / 4))
        pulls = [s + random.normal(size=s.shape) for s in slopes]
        runs.append([jnp.asarray(size[t] * pull) for pull in pulls])
        theta = [x - 0.05 * pull for x, pull in zip(theta, pulls, strict=True)]
    grads = [jax.tree.unflatten(structure, leaves) for leaves in runs]
    features = random.normal(size=(STEPS, 2)) * [1.0, 50.0] + [0.0, 300.0]
    return grads, np.float32(losses), np.float32(features)


GRADS, LOSSES, FEATURES = problem()


def flat(node: Any) -> Leaves:
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(node)]


@functools.cache
def walker(optimizer: Any) -> Callable[..., Any]:
    """Compiled: parameters and states after every step, from the start of `params`."""

    def step(carry: Any, now: Any) -> Any:
        position, state = carry
        gradient, extra = now
        updates, state = optimizer.update(gradient, state, position, **extra)
        carry = optax.apply_updates(position, updates), state
        return carry, carry

    @jax.jit
    def walk(position: Any, grads: Any, each: Any) -> Any:
        return jax.lax.scan(step, (position, optimizer.init(position)), (grads, each))[1]

    return walk


def walked(optimizer: Any, grads: Sequence[Any], **each: Any) -> tuple[Any, Any]:
    """Parameters and states after every step; `each` has one entry a step."""
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *grads)
    return walker(optimizer)(params(), stacked, each)


def assert_follows(wanted: Sequence[Step], positions: Any, states: Any) -> None:
    """Parameters within 2e-5 of their size, weights within 2e-5, the multiplier, too."""
    for leaf, path in enumerate(zip(*(step.theta for step in wanted), strict=True)):
        actual = jax.tree.leaves(positions)[leaf]
        np.testing.assert_allclose(actual, np.stack(path), rtol=2e-5, atol=2e-5)
    weights = np.stack([step.weights for step in wanted])
    np.testing.assert_allclose(states.controller.mixing, weights, atol=2e-5)
    multipliers = [step.multiplier for step in wanted]
    actual = np.exp(states.controller.log_multiplier)
    np.testing.assert_allclose(actual, multipliers, rtol=2e-5)


def by_hand(
    controller: Controller,
    names: Sequence[str],
    *,
    with_features: bool = True,
    with_loss: bool = True,
) -> list[Step]:
    grads = list(map(flat, GRADS))
    return mixture(
        flat(params()),
        grads,
        [proposals(name, RATES[name], grads) for name in sorted(names)],
        controller,
        list(LOSSES) if with_loss else None,
        FEATURES if with_features else None,
    )


CONTROLLERS = {
    "measured": Controller(),
    "one set": Controller(per_leaf=False),
    "no cap": Controller(cap=None),
    "no floor": Controller(floor=0.0),
    "no multiplier": Controller(multiplier_rate=None),
    "not gated": Controller(gated=False),
    "frozen": Controller(rate=None),
    "uniform": Controller.uniform(),
    "by adam": Controller(rule="adam", rate=0.05, feature_rate=0.05, decay=0.0),
    "paper": Controller.paper(),
    "other numbers": Controller(True, 0.05, 0.1, "relative", 0.3, 0.05, 0.1, 0.02),
}


ALL, FEW = tuple(RATES), ("lion", "sgd")


class TestTheRule:
    @pytest.mark.parametrize("features", [(), (GIVEN,)], ids=["b", "W f + b"])
    @pytest.mark.parametrize("name", ["measured", "paper"])
    def test_the_defaults(self, name: str, features: Any) -> None:
        self.follows(CONTROLLERS[name], ALL, features)

    @pytest.mark.parametrize("name", CONTROLLERS)
    def test_each_part_on_and_off(self, name: str) -> None:
        self.follows(CONTROLLERS[name], FEW, (GIVEN,))

    def follows(self, controller: Controller, names: Sequence[str], features: Any) -> None:
        optimizer = optabs.dao_e(
            experts=experts(names),
            controller=controller,
            features=features,
            previous="float32",
        )
        positions, states = walked(optimizer, GRADS, value=LOSSES, batch=FEATURES)
        wanted = by_hand(controller, names, with_features=bool(features))
        assert_follows(wanted, positions, states)

    @pytest.mark.parametrize("names", [("lion",), ("sgd", "adam"), ("sgd", "lion", "adam")])
    def test_any_number_of_experts_and_no_loss(self, names: Sequence[str]) -> None:
        optimizer = optabs.dao_e(experts=experts(names), features=(GIVEN,), previous="float32")
        positions, states = walked(optimizer, GRADS, batch=FEATURES)
        assert_follows(by_hand(Controller(), names, with_loss=False), positions, states)

    def test_no_part_is_idle(self) -> None:
        """Each setting above ends elsewhere than every other, so none is checked in vain."""
        controllers = [c for c in CONTROLLERS.values() if c.rate is not None]
        runs = [by_hand(c, FEW, with_features=given) for c in controllers for given in (0, 1)]
        runs += [by_hand(c, FEW) for c in CONTROLLERS.values() if c.rate is None]
        ends = [np.stack([step.theta[0].ravel() for step in run]) for run in runs]
        for index, one in enumerate(ends):
            for other in ends[:index]:
                assert not np.allclose(one, other, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(("sign", "end"), [(1.0, 3.0), (-1.0, -7.0)])
    def test_the_multiplier_stays_in_its_range(self, sign: float, end: float) -> None:
        """Gradients that agree for ever, and gradients that turn around in every step."""
        grads = [jax.tree.map(lambda g, t=t: g * sign**t, GRADS[0]) for t in range(90)]
        optimizer = optabs.dao_e(
            experts={"sgd": optabs.sgd(0.01)}, features=(), previous="float32"
        )
        _, states = walked(optimizer, grads)
        path = np.asarray(states.controller.log_multiplier)
        np.testing.assert_allclose(path[10], sign, rtol=1e-5)
        np.testing.assert_allclose(path[-1], end, rtol=1e-6)

    def test_the_gate_follows_the_loss(self) -> None:
        """Every step calls for a shorter one, which it gets but where the loss falls well."""
        grads = [jax.tree.map(lambda g, t=t: g * (-1.0) ** t, GRADS[0]) for t in range(STEPS)]
        losses = np.float32(1 + 0.1 * np.sin(np.arange(STEPS) / 3))
        optimizer = optabs.dao_e(
            experts={"sgd": optabs.sgd(0.01)}, features=(), previous="float32"
        )
        positions, states = walked(optimizer, grads, value=losses)
        numbers = list(map(flat, grads))
        wanted = mixture(
            flat(params()),
            numbers,
            [proposals("sgd", 0.01, numbers)],
            Controller(),
            list(losses),
        )
        assert_follows(wanted, positions, states)
        held = np.diff(states.controller.log_multiplier) == 0
        assert 10 < held.sum() < 50


class TestOneAndEqualExperts:
    @pytest.mark.parametrize(
        ("name", "features"),
        [("adam", ()), ("lion", ()), ("sgd", optabs.features.LEARNING)],
    )
    def test_one_is_that_expert_exactly(self, name: str, features: Any) -> None:
        alone = MAKERS[name](RATES[name])
        mixed = optabs.dao_e(experts={"only": alone}, controller=PLAIN, features=features)
        position, state, mixed_state = params(), alone.init(params()), mixed.init(params())
        # One operation at a time: compiled programs may round a product and a sum at once.
        for gradient in gradients(2):
            wanted, state = alone.update(gradient, state, position)
            updates, mixed_state = mixed.update(gradient, mixed_state, position, value=1.0)
            assert_equal(updates, wanted)
            position = optax.apply_updates(position, updates)
        assert_equal(mixed_state.experts["only"].inner, state)

    @pytest.mark.parametrize("rule", ["relative", "adam"])
    def test_equal_ones_are_that_expert(self, rule: Any) -> None:
        controller = PLAIN._replace(rule=rule)
        same = {name: optabs.adam(0.05) for name in "abc"}
        positions, states = walked(
            optabs.dao_e(experts=same, controller=controller, features=()), GRADS
        )
        wanted, _ = walked(optabs.adam(0.05), GRADS)
        assert_close(positions, wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(states.controller.mixing, 1 / 3, atol=1e-3)

    def test_the_order_of_the_mapping_is_free(self) -> None:
        forth, back = (
            walked(optabs.dao_e(experts=dict(order), features=()), GRADS[:3])
            for order in (experts().items(), reversed(experts().items()))
        )
        assert_equal(forth, back)

    def test_the_default_experts_are_the_papers(self) -> None:
        named = {name: make(1e-3) for name, make in MAKERS.items()}
        wanted, *ours = (
            walked(optimizer, GRADS[:3])
            for optimizer in (
                optabs.dao_e(experts=named, features=()),
                optabs.dao_e(features=()),
                optabs.dao_e(1e-3, MAKERS, features=()),
            )
        )
        for each in ours:
            assert_equal(each, wanted)


def falling() -> optax.Schedule:
    return optax.linear_schedule(0.1, 0.0, 5)


ANY_KIND: Mapping[str, Any] = {
    "muon": optax.contrib.muon(0.02),
    "adam_abs": optabs.adam_abs(0.02),
    "schedule": optabs.momentum(falling()),
    "chain": optax.chain(
        optax.clip_by_global_norm(1.0), optax.add_decayed_weights(0.1), optabs.sgd(0.1)
    ),
    "plateau": optax.chain(optabs.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1)),
}


class TestAnyExpert:
    def test_uniform_is_the_mean_and_each_keeps_its_own_state(self) -> None:
        optimizer = optabs.dao_e(experts=ANY_KIND, controller=Controller.uniform())
        position = params()
        state = optimizer.init(position)
        update = jax.jit(optimizer.update)
        alone = {name: expert.init(position) for name, expert in ANY_KIND.items()}
        one_update = {
            name: jax.jit(optax.with_extra_args_support(expert).update)
            for name, expert in ANY_KIND.items()
        }
        for gradient, loss in zip(gradients(4), (4.0, 5.0, 6.0, 7.0), strict=True):
            updates, state = update(gradient, state, position, value=jnp.float32(loss))
            each = []
            for name in ANY_KIND:
                own, alone[name] = one_update[name](
                    gradient, alone[name], position, value=jnp.float32(loss)
                )
                each.append(own)
            mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *each)
            assert_close(updates, mean, rtol=1e-5, atol=1e-7)
            position = optax.apply_updates(position, updates)
        for name, own in alone.items():
            assert_close(state.experts[name].inner, own, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("factories", [None, {"sgd": optabs.sgd, "adam": optabs.adam}])
    def test_a_common_schedule_reaches_the_factories(self, factories: Any) -> None:
        """A rate of 0 from the sixth step on stops the parameters."""
        optimizer = optabs.dao_e(falling(), factories, features=())
        positions, _ = walked(optimizer, GRADS[:8])
        for leaf in jax.tree.leaves(positions):
            assert not np.array_equal(leaf[3], leaf[4])
            assert np.array_equal(leaf[5], leaf[7])

    def test_extra_arguments_are_forwarded(self) -> None:
        seen: list[Any] = []

        def listening(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
            seen.append(extra)
            return updates, state

        listener = optax.GradientTransformationExtraArgs(optax.init_empty_state, listening)
        optimizer = optabs.dao_e(experts={"sgd": optabs.sgd(0.1), "ear": listener})
        position = params()
        state = optimizer.init(position)
        for extra in ({}, {"value": 2.0, "batch": np.ones(3), "epoch": 7}):
            jax.eval_shape(
                lambda told=extra: optimizer.update(position, state, position, **told)
            )
            assert seen.pop() == extra


def fragile(rate: float) -> optax.GradientTransformationExtraArgs:
    """SGD that counts its steps, and fails where it is told to."""

    def update(
        updates: Any, state: Any, params: Any = None, *, sick: Any, **_: Any
    ) -> tuple[Any, Any]:
        return jax.tree.map(lambda g: jnp.where(sick, jnp.nan, -rate * g), updates), state + 1

    return optax.GradientTransformationExtraArgs(lambda _: jnp.zeros([], jnp.int32), update)


class TestFailingExperts:
    @pytest.mark.parametrize("name", ["measured", "paper"])
    def test_one_is_shut_out_for_that_step_and_comes_back(self, name: str) -> None:
        grads, bad = GRADS[:20], 8
        sick = np.arange(20) == bad
        members = {"adam": optabs.adam(0.05), "lion": MAKERS["lion"](0.03)}
        optimizer = optabs.dao_e(
            experts={**members, "sgd": fragile(0.4)},
            controller=CONTROLLERS[name],
            features=(GIVEN,),
            previous="float32",
        )
        each = {"value": LOSSES[:20], "batch": FEATURES[:20]}
        positions, states = walked(optimizer, grads, sick=sick, **each)
        numbers = list(map(flat, grads))
        proposed = [proposals(name, RATES[name], numbers) for name in ("adam", "lion", "sgd")]
        proposed[2][bad] = [np.full_like(leaf, np.nan) for leaf in numbers[bad]]
        start = flat(params())
        wanted = mixture(
            start, numbers, proposed, CONTROLLERS[name], list(LOSSES[:20]), FEATURES[:20]
        )
        assert_follows(wanted, positions, states)
        shares = states.controller.mixing[:, :, 2]
        assert np.all(shares[bad] == 0)
        assert np.all(np.delete(shares, bad, axis=0) > 0)
        # Its own count stops for the step, the others' do not.
        assert int(states.experts["sgd"].inner[-1]) == 19
        counts = optax.tree.get_all_with_path(states.experts["adam"].inner, "count")
        assert {int(count[-1]) for _, count in counts} == {20}

    def test_all_are_shut_out_and_nothing_moves(self) -> None:
        optimizer = optabs.dao_e(
            experts={"a": fragile(0.1), "b": fragile(0.2)}, features=optabs.features.LEARNING
        )
        sick = np.arange(10) % 3 == 2
        positions, states = walked(optimizer, GRADS[:10], sick=sick, value=LOSSES[:10])
        for t in np.flatnonzero(sick):
            now, before = (
                jax.tree.map(lambda leaf, at=at: leaf[at], (positions, states))
                for at in (t, t - 1)
            )
            assert_equal(now, before)
        assert int(states.count[-1]) == 10 - sick.sum()

    def test_a_gradient_that_is_not_finite_changes_nothing(self) -> None:
        not_a_number, infinite = (
            jax.tree.map(lambda leaf, x=entry: leaf.at[(0,) * leaf.ndim].set(x), GRADS[5])
            for entry in (jnp.nan, -jnp.inf)
        )
        with_bad = [*GRADS[:5], not_a_number, infinite, *GRADS[5:9]]
        optimizer = optabs.dao_e(experts=experts(), features=optabs.features.LEARNING)
        runs = [walked(optimizer, grads) for grads in (with_bad, GRADS[:11])]
        for ours, wanted in ((4, 4), (5, 4), (6, 4), (7, 5), (10, 8)):
            assert_equal(
                *(
                    jax.tree.map(lambda leaf, t=t: leaf[t], run)
                    for run, t in zip(runs, (ours, wanted), strict=True)
                )
            )

    def test_the_weights_of_the_rest_may_be_tiny(self) -> None:
        """A share of 1 is lost for a step; the step is then the others', whatever they had."""
        optimizer = optabs.dao_e(
            experts={"a": fragile(0.1), "b": optabs.sgd(0.1)},
            controller=Controller.paper(),
            features=(),
        )
        position = params()
        state = optimizer.init(position)
        bias = jnp.array([[[100.0], [-100.0]]])
        state = state._replace(controller=state.controller._replace(matrix=bias))
        gradient = tree(9)
        updates, state = jax.jit(optimizer.update)(gradient, state, position, sick=True)
        assert_close(updates, jax.tree.map(lambda g: -0.1 * g, gradient))
        assert int(state.count) == 1


class TestTheCap:
    @pytest.mark.parametrize("cap", [1e3, 1e20, 1e30])
    def test_one_that_is_never_reached_is_none(self, cap: float) -> None:
        mixed, alone = (
            optabs.dao_e(
                experts={"sgd": optabs.sgd(0.1)},
                controller=PLAIN._replace(cap=rho),
                features=(),
            )
            for rho in (cap, None)
        )
        assert_close(walked(mixed, GRADS[:3])[0], walked(alone, GRADS[:3])[0])

    def test_parameters_of_any_size(self) -> None:
        optimizer = optabs.dao_e(experts={"sgd": optabs.sgd(0.1)}, features=())
        position = jax.tree.map(lambda leaf: 1e20 * leaf, params())
        updates, _ = jax.jit(optimizer.update)(GRADS[0], optimizer.init(position), position)
        assert_close(updates, jax.tree.map(lambda g: -0.1 * g, GRADS[0]))
