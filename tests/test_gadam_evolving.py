"""One evolution: its equations, its promises, and what is not finite."""

from typing import Any

import chex
import gadam_problem as networks
import gadam_quadratic as quadratic
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gadam_quadratic import SIZE, unit_of

import optabs
from optabs import genetics

KEY = jax.random.key(11)
FROZEN = optabs.sgd(0.0)  # children are not trained


@pytest.mark.slow
def test_an_evolution_is_what_the_operators_say_bit_for_bit() -> None:
    learner = quadratic.learner(FROZEN, mutation_rate=0.5, pressure=2.0)
    state = learner.init(KEY, quadratic.init_fn)
    after, evolution = learner.evolve(state, quadratic.loss_fn)
    _, _, birth_key, _, _ = jax.random.split(state.key, 5)
    parent_key, child_key = jax.random.split(birth_key)
    probabilities = genetics.selection_probabilities(evolution.losses, 2.0)
    pairs = genetics.select_parents(parent_key, probabilities, SIZE)
    np.testing.assert_array_equal(evolution.parents, pairs)
    normalized = genetics.normalize_losses(evolution.losses)

    @jax.jit
    def child(key: jax.Array, pair: jax.Array) -> Any:
        cross_key, mutate_key = jax.random.split(key)
        a, b = (unit_of(state.params, index) for index in pair)
        crossed = genetics.crossover(cross_key, a, b, normalized[pair[0]], normalized[pair[1]])
        rate = genetics.mutation_rate(0.5, probabilities[pair[0]], probabilities[pair[1]])
        return genetics.mutate(mutate_key, crossed, rate)

    keys = jax.random.split(child_key, SIZE)
    children = [child(*each) for each in zip(keys, pairs, strict=True)]
    candidates = [unit_of(state.params, index) for index in range(SIZE)] + children
    survivors = genetics.survivors(evolution.trial_losses, SIZE)
    np.testing.assert_array_equal(evolution.survivors, survivors)
    assert max(survivors.tolist()) >= SIZE  # a child among them
    for place, index in enumerate(survivors.tolist()):
        chex.assert_trees_all_equal(
            unit_of(after.params, place), candidates[index], strict=True
        )
    np.testing.assert_array_equal(after.losses, evolution.trial_losses[survivors])
    for params, loss in zip(candidates, evolution.trial_losses, strict=True):
        np.testing.assert_allclose(loss, quadratic.loss_fn(params, None), rtol=1e-6)


@pytest.mark.slow
def test_diversity_is_the_distance_from_the_mean() -> None:
    learner = quadratic.learner(FROZEN)
    state, evolution = learner.evolve(learner.init(KEY, quadratic.init_fn), quadratic.loss_fn)
    entries = np.concatenate(
        [np.asarray(leaf).reshape(SIZE, -1) for leaf in jax.tree.leaves(state.params)], axis=1
    )
    wanted = np.sqrt(np.mean((entries - entries.mean(axis=0)) ** 2))
    np.testing.assert_allclose(evolution.diversity, wanted, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.01, 3.0], ids=["training helps", "training harms"])
def test_one_unit_keeps_the_better_of_itself_and_its_trained_child(rate: float) -> None:
    learner = quadratic.learner(optabs.sgd(rate), population_size=1, epochs=1)
    state = learner.init(KEY, quadratic.init_fn)
    after, evolution = learner.evolve(state, quadratic.loss_fn)
    learned, _ = learner.learn(state, quadratic.loss_fn)
    assert evolution.parents.tolist() == [[0, 0]]
    better = learned if rate < 1 else state
    assert evolution.survivors.tolist() == [int(rate < 1)]
    chex.assert_trees_all_close(after.params, better.params, rtol=1e-6)
    chex.assert_trees_all_close(learner.best(after), unit_of(better.params, 0), rtol=1e-6)


def noisy(params: Any, batch: Any) -> jax.Array:
    """A loss that depends on the instances it is taken over."""
    return quadratic.loss_fn(params, None) + 20 * jnp.mean(batch)


@pytest.mark.slow
def test_the_best_is_never_above_the_best_parent_on_the_same_batch() -> None:
    learner = quadratic.learner(optabs.sgd(0.001), validation_batch_size=4, batch_size=4)
    values = np.random.default_rng(0).normal(size=32).astype(np.float32)

    def evaluated(params: Any, batch: Any) -> jax.Array:
        return noisy(params, batch) * (1 + jnp.mean(batch))

    def one(key: jax.Array) -> Any:
        return learner.evolve(learner.init(key, quadratic.init_fn), evaluated, values, values)

    state, evolution = jax.jit(jax.vmap(one))(jax.random.split(KEY, 200))
    trials = np.asarray(evolution.trial_losses)
    assert np.all(trials[:, :SIZE].min(axis=1) >= state.losses[:, 0])
    # And the first place goes to a child and to a parent, each often.
    children = np.mean(evolution.survivors[:, 0] >= SIZE)
    assert 0.05 < children < 0.95


@pytest.mark.slow
def test_each_evaluation_has_one_batch_for_all_units() -> None:
    learner = quadratic.learner(FROZEN, validation_batch_size=4, mutation_rate=0.0)
    values = np.random.default_rng(0).normal(size=32).astype(np.float32)
    state = learner.init(KEY, quadratic.init_fn)
    _, evolution = learner.evolve(state, noisy, values, values)
    plain = jax.vmap(lambda params: quadratic.loss_fn(params, None))(state.params)
    first = np.asarray(evolution.losses - plain)
    second = np.asarray(evolution.trial_losses[:SIZE] - plain)
    np.testing.assert_allclose(first, first[0], rtol=1e-3)
    np.testing.assert_allclose(second, second[0], rtol=1e-3)
    assert abs(first[0] - second[0]) > 0.1
    _, key, _, _, trial = jax.random.split(state.key, 5)
    for found, of in ((first[0], key), (second[0], trial)):
        drawn = jax.random.permutation(of, 32)[:4]
        np.testing.assert_allclose(found, 20 * values[np.asarray(drawn)].mean(), rtol=1e-3)


@pytest.mark.slow
def test_fitness_fn_replaces_the_loss_in_selection() -> None:
    learner = quadratic.learner()
    state = learner.init(KEY, quadratic.init_fn)

    def far(params: Any, batch: Any) -> jax.Array:
        return -quadratic.loss_fn(params, batch)

    after, evolution = learner.evolve(state, quadratic.loss_fn, fitness_fn=far)
    wanted = jax.vmap(lambda params: far(params, None))(state.params)
    np.testing.assert_allclose(evolution.losses, wanted, rtol=1e-6)
    np.testing.assert_allclose(after.losses[0], np.min(evolution.trial_losses), rtol=1e-6)


def with_bad(bad: list[int], value: float) -> optabs.GadamState:
    state = quadratic.learner().init(KEY, quadratic.init_fn)
    params = jax.tree.map(lambda leaf: leaf.at[jnp.array(bad)].set(value), state.params)
    return state._replace(params=params)


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_unit_that_diverged_is_no_parent_does_not_spread_and_is_replaced(
    value: float,
) -> None:
    learner = quadratic.learner(mutation_rate=0.0)
    for seed in range(5):
        state = with_bad([1, 2], value)._replace(key=jax.random.key(seed))
        state, evolution = learner.evolve(state, quadratic.loss_fn)
        assert not np.isin(evolution.parents, [1, 2]).any()
        assert not np.isin(evolution.survivors, [1, 2]).any()
        for leaf in jax.tree.leaves((state.params, state.opt_state, state.losses)):
            assert np.all(np.isfinite(leaf))


@pytest.mark.slow
def test_a_population_that_diverged_stays_so_and_its_best_is_a_unit_of_it() -> None:
    learner = quadratic.learner()
    state, evolution = learner.evolve(with_bad([0, 1, 2, 3], np.nan), quadratic.loss_fn)
    assert evolution.survivors.tolist() == [0, 1, 2, 3]
    assert set(np.unique(evolution.parents)) <= {0, 1, 2, 3}
    assert np.all(np.isnan(evolution.trial_losses[:SIZE]))
    best = learner.best(state)
    assert best["w"].shape == (3, 2)
    assert np.all(np.isnan(best["w"]))


@pytest.mark.slow
def test_equal_losses_keep_the_parents_and_select_them_uniformly() -> None:
    learner = quadratic.learner(FROZEN)

    def flat(params: Any, batch: Any) -> jax.Array:
        return jnp.zeros([]) * jnp.sum(params["b"])

    def one(key: jax.Array) -> Any:
        return learner.evolve(learner.init(key, quadratic.init_fn), flat)[1]

    evolution = jax.jit(jax.vmap(one))(jax.random.split(KEY, 500))
    assert np.all(np.asarray(evolution.survivors) == np.arange(SIZE)[None])
    shares = (
        np.bincount(np.asarray(evolution.parents).ravel(), minlength=SIZE)
        / evolution.parents.size
    )
    np.testing.assert_allclose(shares, 1 / SIZE, atol=0.03)


@pytest.mark.slow
def test_the_run_stops_where_the_sum_of_the_losses_converges() -> None:
    learner = quadratic.learner(optabs.sgd(0.4), epochs=5)
    arguments = (KEY, quadratic.init_fn, quadratic.loss_fn, None, None)
    result = learner.run(*arguments, generations=50, tolerance=1e-3)
    made = len(result.history["losses"])
    assert result.converged
    assert 2 <= made < 50
    survived = np.take_along_axis(
        result.history["trial_losses"], result.history["survivors"], axis=1
    ).sum(axis=1)
    changes = np.abs(np.diff(survived))
    assert np.all(changes[:-1] > 1e-3)
    assert changes[-1] <= 1e-3
    assert result.message == (
        f"converged: the sum of the losses changed by no more than 0.001 in generation {made}."
    )
    longer = learner.run(*arguments, generations=3)
    assert not longer.converged
    assert longer.message == "not converged: stopped after 3 generations."


@pytest.mark.slow
def test_without_relearning_only_children_learn() -> None:
    learner = networks.learner(unit=FROZEN, mutation_rate=0.0)
    result = networks.run(learns={"unit": FROZEN, "mutation_rate": 0.0}, relearn=False)
    state = learner.init(jax.random.key(3), networks.init_fn)
    for generation in range(2):
        state, evolution = learner.evolve(
            state, networks.loss_fn, networks.data(), networks.data(16, seed=1)
        )
        for name, value in evolution._asdict().items():
            np.testing.assert_allclose(
                result.history[name][generation], value, rtol=1e-6, atol=1e-7
            )
    chex.assert_trees_all_close(result.population, state.params, rtol=1e-6)
    again = networks.run(learns={"unit": FROZEN, "mutation_rate": 0.0})
    assert not np.array_equal(again.history["losses"], result.history["losses"])
