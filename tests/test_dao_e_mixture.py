"""What DAO-E is for one, equal, any and failing experts, and what its cap leaves alone."""

import inspect
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dao_e_problem import (
    FEATURES,
    GIVEN,
    GRADS,
    MAKERS,
    RATES,
    assert_follows,
    experts,
    flat,
    stacked,
    walk,
    walked,
)
from dao_e_reference import mixture, proposals
from trees import assert_close, assert_equal, avals, filled, gradients, params

import optabs
from optabs import Controller
from optabs.mixture.experts import DEFAULT

PLAIN = Controller(cap=None, multiplier_rate=None)
ADAM = optabs.adam(0.05)
# One leaf of the problem, for what has nothing to do with leaves.
START, SLOPES = params()["layer"]["b"], [gradient["layer"]["b"] for gradient in GRADS]


def programs(optimizer: Any) -> list[str]:
    """What XLA is given to compile for the state and for an update."""
    state = jax.eval_shape(optimizer.init, params())
    return [
        jax.jit(optimizer.init).lower(params()).as_text(),
        jax.jit(optimizer.update).lower(params(), state, params()).as_text(),
    ]


class TestOneAndEqualExperts:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "features"),
        [("adam", ()), ("lion", ()), ("sgd", optabs.features.ALL)],
    )
    def test_one_is_that_expert_exactly(self, name: str, features: Any) -> None:
        alone = MAKERS[name](RATES[name])
        mixed = optabs.dao_e(experts={"only": alone}, controller=PLAIN, features=features)
        # Leaves of one shape: the operations below compile once for all of them.
        position, *grads = (
            dict(zip("abc", gradient["layer"]["w"], strict=True))
            for gradient in (params(), *gradients(2))
        )
        state, mixed_state = alone.init(position), mixed.init(position)
        # One operation at a time: compiled programs may round a product and a sum at once.
        for gradient in grads:
            wanted, state = alone.update(gradient, state, position)
            updates, mixed_state = mixed.update(gradient, mixed_state, position, value=1.0)
            assert_equal(updates, wanted)
            position = optax.apply_updates(position, updates)
        assert_equal(mixed_state.experts["only"].inner, state)

    @pytest.mark.slow
    @pytest.mark.parametrize("controller", [PLAIN, Controller.paper()], ids=["plain", "paper"])
    def test_equal_ones_are_that_expert(self, controller: Controller) -> None:
        same = dict.fromkeys("abc", ADAM)
        positions, states = walked(optabs.dao_e(experts=same, controller=controller), GRADS)
        wanted, _ = walked(ADAM, GRADS)
        assert_close(positions, wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(states.controller.weights, 1 / 3, atol=1e-3)

    @pytest.mark.slow
    def test_the_order_of_the_mapping_is_free(self) -> None:
        forth, back = (
            programs(optabs.dao_e(experts=dict(order)))
            for order in (experts().items(), reversed(experts().items()))
        )
        assert forth == back

    @pytest.mark.slow
    def test_the_default_experts_are_the_papers(self) -> None:
        named = {name: make(1e-3) for name, make in MAKERS.items()}
        runs = [
            walked(optimizer, GRADS[:5])
            for optimizer in (
                optabs.dao_e(experts=named), optabs.dao_e(), optabs.dao_e(1e-3, MAKERS),
                optabs.dao_e(2e-3),
            )
        ]  # fmt: skip
        positions = [position for position, _ in runs]
        assert_close(positions[1:3], positions[:1] * 2, rtol=1e-6)
        assert not np.allclose(positions[3]["scale"], positions[0]["scale"], rtol=1e-4)
        assert programs(optabs.dao_e(1e-3)) == programs(optabs.dao_e())


class TestSteered:
    @pytest.mark.parametrize("name", ["adam", "lion", "sgd"])
    def test_it_is_dao_e_with_one_expert_bit_for_bit(self, name: str) -> None:
        alone = MAKERS[name](RATES[name])
        ours, _ = walked(optabs.steered(alone), GRADS[:20])
        wanted, _ = walked(optabs.dao_e(experts={"one": alone}), GRADS[:20])
        assert_equal(ours, wanted)

    def test_its_settings_are_the_controllers(self) -> None:
        numbers = {"cap": 0.1, "multiplier_rate": 0.3, "gamma": 0.5}
        alone = optabs.sgd(0.4)
        ours, _ = walked(optabs.steered(alone, **numbers), GRADS[:20])
        mixed = optabs.dao_e(experts={"one": alone}, controller=Controller(**numbers))
        wanted, _ = walked(mixed, GRADS[:20])
        assert_equal(ours, wanted)
        defaults = inspect.signature(optabs.steered).parameters
        for setting in numbers:
            assert defaults[setting].default == getattr(Controller(), setting)

    def test_a_quarter_of_a_byte_beside_the_optimizers_state(self) -> None:
        shape = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)
        sizes = [
            sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
            for state in (
                jax.eval_shape(optimizer.init, shape)
                for optimizer in (optabs.adam(0.1), optabs.steered(optabs.adam(0.1)))
            )
        ]
        assert sizes[1] - sizes[0] == pytest.approx(0.25 * 1024**2, rel=1e-3)

    def test_what_is_no_transformation(self) -> None:
        with pytest.raises(ValueError, match="transformation is the function adam; pass what"):
            optabs.steered(optabs.adam)

    def test_the_multiplier_is_not_left_out(self) -> None:
        with pytest.raises(ValueError, match=r"multiplier_rate is None.*; pass a finite"):
            optabs.steered(optabs.adam(0.1), multiplier_rate=None)  # type: ignore[arg-type]


class TestLion:
    """dao_e's own, without the slow form of jnp.sign."""

    @pytest.mark.parametrize("rate", [0.03, optax.linear_schedule(0.1, 0.0, 5)])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "complex64"])
    def test_it_is_optax_lion_bit_for_bit(self, dtype: str, rate: Any) -> None:
        with jax.enable_x64(dtype == "float64"):
            ours = DEFAULT["lion"](rate)
            wanted = optabs.full_precision(optax.lion(rate, weight_decay=0.0))
            position = params(dtype)
            state, other = ours.init(position), wanted.init(position)
            for gradient in (
                filled(position, 0.0),
                *gradients(4, dtype),
                filled(position, 0.0),
            ):
                updates, state = ours.update(gradient, state, position)
                exact, other = wanted.update(gradient, other, position)
                assert_equal(updates, exact)
                assert_equal(state[0].mu, other[0].mu)
            assert avals(updates) == avals(exact)

    def test_a_gradient_that_is_not_a_number_shows(self) -> None:
        ours, position = DEFAULT["lion"](0.1), jnp.ones(2)
        updates, _ = ours.update(jnp.array([jnp.nan, 1.0]), ours.init(position), position)
        np.testing.assert_array_equal(updates, np.float32([np.nan, -0.1]))


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
    @pytest.mark.slow
    def test_uniform_is_the_mean_and_each_keeps_its_own_state(self) -> None:
        optimizer = optabs.dao_e(experts=ANY_KIND, controller=Controller.uniform())

        @jax.jit
        def step(gradient: Any, state: Any, alone: Any, position: Any, value: Any) -> Any:
            updates, state = optimizer.update(gradient, state, position, value=value)
            each, kept = [], {}
            for name, expert in ANY_KIND.items():
                update = optax.with_extra_args_support(expert).update
                own, kept[name] = update(gradient, alone[name], position, value=value)
                each.append(own)
            mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *each)
            return updates, state, mean, kept

        position = params()
        state = optimizer.init(position)
        alone = {name: expert.init(position) for name, expert in ANY_KIND.items()}
        for gradient, loss in zip(gradients(4), (4.0, 5.0, 6.0, 7.0), strict=True):
            updates, state, mean, alone = step(gradient, state, alone, position, loss)
            assert_close(updates, mean, rtol=1e-5, atol=1e-7)
            position = optax.apply_updates(position, updates)
        for name, own in alone.items():
            assert_close(state.experts[name].inner, own, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("factories", [None, {"sgd": optabs.sgd, "adam": optabs.adam}])
    def test_a_common_schedule_reaches_the_factories(self, factories: Any) -> None:
        """A rate of 0 from the sixth step on stops the parameters."""
        optimizer = optabs.dao_e(falling(), factories)
        path, _ = walked(optimizer, SLOPES[:8], START)
        assert not np.array_equal(path[3], path[4])
        assert np.array_equal(path[5], path[7])

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
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "controller", [Controller(), Controller.paper()], ids=["measured", "paper"]
    )
    def test_one_counts_as_zero_in_that_step(self, controller: Controller) -> None:
        grads, bad = GRADS[:20], 8
        sick = np.arange(20) == bad
        optimizer = optabs.dao_e(
            experts=experts(("adam", "lion")) | {"sgd": fragile(RATES["sgd"])},
            controller=controller,
            features=(GIVEN,),
            previous="float32",
        )
        each = {"batch": FEATURES[:20]}
        positions, states = walked(optimizer, grads, sick=sick, **each)
        numbers = list(map(flat, grads))
        proposed = [proposals(name, RATES[name], numbers) for name in ("adam", "lion", "sgd")]
        proposed[2][bad] = [np.full_like(leaf, np.nan) for leaf in numbers[bad]]
        start = flat(params())
        wanted = mixture(start, numbers, proposed, controller, FEATURES[:20])
        assert_follows(wanted, positions, states)
        chex.assert_tree_all_finite(states)

    def test_the_others_go_on_and_lost_entries_start_anew(self) -> None:
        """Entries of a state, and of an update, that are lost; the rest is as it would be."""
        given = {"a": optabs.momentum(0.1), "b": optabs.sgd(0.1)}
        optimizer = optabs.dao_e(experts=given, controller=PLAIN._replace(rate=None))
        position, (first, second) = params(), gradients(2)
        update = jax.jit(optimizer.update)
        _, state = update(first, optimizer.init(position), position)
        kept, *_ = state.experts["a"].inner
        broken = optax.tree.set(
            state,
            mu=jax.tree.map(lambda m: m.at[..., 0].set(jnp.nan) if m.ndim else m, kept.mu),
        )
        updates, after = update(second, broken, position)
        _, healthy = update(second, state, position)
        _, anew = update(second, optimizer.init(position), position)
        chex.assert_tree_all_finite((updates, after))
        ours, whole, fresh = (
            optax.tree.get(s, "mu")["layer"]["w"] for s in (after, healthy, anew)
        )
        np.testing.assert_array_equal(ours[:, 0], fresh[:, 0])
        np.testing.assert_array_equal(ours[:, 1], whole[:, 1])

    @pytest.mark.slow
    def test_all_fail_and_nothing_moves(self) -> None:
        optimizer = optabs.dao_e(
            experts={"a": fragile(0.1), "b": fragile(0.2)}, features=optabs.features.ALL
        )
        sick = np.arange(10) % 3 == 2
        path, states = walked(optimizer, SLOPES[:10], START, sick=sick)
        for t in np.flatnonzero(sick):
            assert_equal(path[t], path[t - 1])
        chex.assert_tree_all_finite(states)
        assert not np.array_equal(path[-1], path[-3])

    @pytest.mark.slow
    def test_a_gradient_that_is_not_finite_changes_nothing(self) -> None:
        not_a_number, infinite = (
            jax.tree.map(lambda leaf, x=entry: leaf.at[(0,) * leaf.ndim].set(x), GRADS[5])
            for entry in (jnp.nan, -jnp.inf)
        )
        with_bad = [*GRADS[:5], not_a_number, infinite, *GRADS[5:9]]
        optimizer = optabs.dao_e(
            experts=experts(("adam", "lion")), features=optabs.features.ALL
        )
        runs = [walked(optimizer, grads) for grads in (with_bad, GRADS[:11])]
        for ours, wanted in ((4, 4), (5, 4), (6, 4), (7, 5), (10, 8)):
            assert_equal(
                *(
                    jax.tree.map(lambda leaf, t=t: leaf[t], run)
                    for run, t in zip(runs, (ours, wanted), strict=True)
                )
            )


@jax.jit
def capped(cap: Any, grads: Any) -> Any:
    """The path of a single expert under that cap."""
    optimizer = optabs.dao_e(
        experts={"sgd": optabs.sgd(0.1)}, controller=PLAIN._replace(cap=cap)
    )
    return walk(optimizer, params(), grads, {})[0]


class TestTheCap:
    @pytest.mark.parametrize("cap", [1e3, 1e20, 1e30])
    def test_one_that_is_never_reached_is_none(self, cap: float) -> None:
        grads = stacked(GRADS[:3])
        assert_close(capped(cap, grads), capped(None, grads))

    def test_parameters_of_any_size(self) -> None:
        optimizer = optabs.dao_e(experts={"sgd": optabs.sgd(0.1)})
        position = jax.tree.map(lambda leaf: 1e20 * leaf, params())
        updates, _ = jax.jit(optimizer.update)(GRADS[0], optimizer.init(position), position)
        assert_close(updates, jax.tree.map(lambda g: -0.1 * g, GRADS[0]))

    def test_no_step_is_longer_while_the_multiplier_rises(self) -> None:
        position = np.full(4, 10.0, np.float32)
        optimizer = optabs.steered(optabs.sgd(100.0))
        grads = np.ones((5, 4), np.float32)
        path, states = walk(optimizer, position, grads, {})
        assert float(states.multiplier.log_multiplier[-1]) > 1.5
        before = np.concatenate([position[None], np.asarray(path)[:-1]])
        steps = np.linalg.norm(np.asarray(path) - before, axis=1)
        np.testing.assert_allclose(steps, 0.05 * np.linalg.norm(before, axis=1), rtol=1e-5)

    @pytest.mark.parametrize("row", [0, 1])
    def test_a_few_rows_of_a_large_leaf_are_capped_as_they_are(self, row: int) -> None:
        """Though of its traces every 16th row is kept: 0 is one of these, and 1 is not."""
        position = np.ones((5000, 8), np.float32)
        gradient = np.zeros_like(position)
        gradient[row] = 1e4
        optimizer = optabs.steered(optabs.sgd(0.1))
        updates, _ = jax.jit(optimizer.update)(gradient, optimizer.init(position), position)
        wanted = 0.05 * np.linalg.norm(position)
        assert np.linalg.norm(updates) == pytest.approx(wanted, rel=1e-5)
        assert np.count_nonzero(updates) == 8


def test_the_cosine_is_of_all_entries_though_large_leaves_are_thinned() -> None:
    """Four fifths of the square point downhill, in a leaf of which a sixteenth is kept."""
    sizes = {"large": 2**16, "small": 64}
    share = {"large": np.sqrt(0.8), "small": np.sqrt(0.2)}
    first = {k: jnp.full(n, share[k] / np.sqrt(n), jnp.float32) for k, n in sizes.items()}
    second = {"large": first["large"], "small": -first["small"]}
    optimizer = optabs.steered(optabs.sgd(0.1))
    position = jax.tree.map(jnp.ones_like, first)
    state = optimizer.update(first, optimizer.init(position), position)[1]
    state = optimizer.update(second, state, position)[1]
    np.testing.assert_allclose(state.multiplier.cosines, -0.6, rtol=1e-2)
