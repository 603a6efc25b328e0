"""One evolution: its equations, its promises, and what is not finite."""

from typing import Any

import gadam_problem as networks
import gadam_quadratic as bowls
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gadam_quadratic import SIZE, unit_of
from trees import assert_close, assert_equal

import optabs
from optabs import genetics

KEY = jax.random.key(11)
STILL = optabs.sgd(0.0)  # children stay as they were born


def test_an_evolution_is_what_the_operators_say_bit_for_bit() -> None:
    learner = bowls.learner(STILL, mutation_rate=0.5, pressure=2.0)
    state = learner.init(KEY, bowls.init_fn)
    after, told = learner.evolve(state, bowls.loss_fn)
    _, _, birth_key, _, _ = jax.random.split(state.key, 5)
    parent_key, child_key = jax.random.split(birth_key)
    chances = genetics.selection_probabilities(told.losses, 2.0)
    pairs = genetics.select_parents(parent_key, chances, SIZE)
    np.testing.assert_array_equal(told.parents, pairs)
    normalized = genetics.normalize_losses(told.losses)

    @jax.jit
    def child(key: jax.Array, pair: jax.Array) -> Any:
        cross_key, mutate_key = jax.random.split(key)
        a, b = (unit_of(state.params, who) for who in pair)
        made = genetics.crossover(cross_key, a, b, normalized[pair[0]], normalized[pair[1]])
        rate = genetics.mutation_rate(0.5, chances[pair[0]], chances[pair[1]])
        return genetics.mutate(mutate_key, made, rate)

    keys = jax.random.split(child_key, SIZE)
    born = [child(*each) for each in zip(keys, pairs, strict=True)]
    everyone = [unit_of(state.params, index) for index in range(SIZE)] + born
    kept = genetics.survivors(told.trial_losses, SIZE)
    np.testing.assert_array_equal(told.survivors, kept)
    assert max(kept.tolist()) >= SIZE  # a child among them
    for place, who in enumerate(kept.tolist()):
        assert_equal(unit_of(after.params, place), everyone[who])
    np.testing.assert_array_equal(after.losses, told.trial_losses[kept])
    for params, loss in zip(everyone, told.trial_losses, strict=True):
        np.testing.assert_allclose(loss, bowls.loss_fn(params, None), rtol=1e-6)


def test_diversity_is_the_distance_from_the_mean() -> None:
    learner = bowls.learner(STILL)
    state, told = learner.evolve(learner.init(KEY, bowls.init_fn), bowls.loss_fn)
    entries = np.concatenate(
        [np.asarray(leaf).reshape(SIZE, -1) for leaf in jax.tree.leaves(state.params)], axis=1
    )
    wanted = np.sqrt(np.mean((entries - entries.mean(axis=0)) ** 2))
    np.testing.assert_allclose(told.diversity, wanted, rtol=1e-6)


@pytest.mark.parametrize("rate", [0.01, 3.0], ids=["training helps", "training harms"])
def test_one_unit_keeps_the_better_of_itself_and_its_trained_child(rate: float) -> None:
    learner = bowls.learner(optabs.sgd(rate), population_size=1, epochs=1)
    state = learner.init(KEY, bowls.init_fn)
    after, told = learner.evolve(state, bowls.loss_fn)
    learned, _ = learner.learn(state, bowls.loss_fn)
    assert told.parents.tolist() == [[0, 0]]
    better = learned if rate < 1 else state
    assert told.survivors.tolist() == [int(rate < 1)]
    assert_close(after.params, better.params, rtol=1e-6)
    assert_close(learner.best(after), unit_of(better.params, 0), rtol=1e-6)


def noisy(params: Any, batch: Any) -> jax.Array:
    """A loss that depends on which instances are judged."""
    return bowls.loss_fn(params, None) + 20 * jnp.mean(batch)


def test_the_best_is_never_above_the_best_parent_on_the_same_batch() -> None:
    learner = bowls.learner(optabs.sgd(0.001), validation_batch_size=4, batch_size=4)
    values = np.random.default_rng(0).normal(size=32).astype(np.float32)

    def judged(params: Any, batch: Any) -> jax.Array:
        return noisy(params, batch) * (1 + jnp.mean(batch))

    def one(key: jax.Array) -> Any:
        return learner.evolve(learner.init(key, bowls.init_fn), judged, values, values)

    state, told = jax.jit(jax.vmap(one))(jax.random.split(KEY, 200))
    trials = np.asarray(told.trial_losses)
    assert np.all(trials[:, :SIZE].min(axis=1) >= state.losses[:, 0])
    # And the first place goes to a child and to a parent, each often.
    children = np.mean(told.survivors[:, 0] >= SIZE)
    assert 0.05 < children < 0.95


def test_each_judgement_has_a_batch_of_its_own_shared_by_all() -> None:
    learner = bowls.learner(STILL, validation_batch_size=4, mutation_rate=0.0)
    values = np.random.default_rng(0).normal(size=32).astype(np.float32)
    state = learner.init(KEY, bowls.init_fn)
    _, told = learner.evolve(state, noisy, values, values)
    plain = jax.vmap(lambda params: bowls.loss_fn(params, None))(state.params)
    first = np.asarray(told.losses - plain)
    second = np.asarray(told.trial_losses[:SIZE] - plain)
    np.testing.assert_allclose(first, first[0], rtol=1e-3)
    np.testing.assert_allclose(second, second[0], rtol=1e-3)
    assert abs(first[0] - second[0]) > 0.1
    _, key, _, _, trial = jax.random.split(state.key, 5)
    for found, of in ((first[0], key), (second[0], trial)):
        drawn = jax.random.permutation(of, 32)[:4]
        np.testing.assert_allclose(found, 20 * values[np.asarray(drawn)].mean(), rtol=1e-3)


def test_units_are_judged_by_the_fitness_where_there_is_one() -> None:
    learner = bowls.learner()
    state = learner.init(KEY, bowls.init_fn)

    def far(params: Any, batch: Any) -> jax.Array:
        return -bowls.loss_fn(params, batch)

    after, told = learner.evolve(state, bowls.loss_fn, fitness_fn=far)
    wanted = jax.vmap(lambda params: far(params, None))(state.params)
    np.testing.assert_allclose(told.losses, wanted, rtol=1e-6)
    np.testing.assert_allclose(after.losses[0], np.min(told.trial_losses), rtol=1e-6)


def with_bad(bad: list[int], value: float) -> optabs.GadamState:
    state = bowls.learner().init(KEY, bowls.init_fn)
    params = jax.tree.map(lambda leaf: leaf.at[jnp.array(bad)].set(value), state.params)
    return state._replace(params=params)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_unit_that_diverged_is_no_parent_does_not_spread_and_is_replaced(
    value: float,
) -> None:
    learner = bowls.learner(mutation_rate=0.0)
    for seed in range(5):
        state = with_bad([1, 2], value)._replace(key=jax.random.key(seed))
        state, told = learner.evolve(state, bowls.loss_fn)
        assert not np.isin(told.parents, [1, 2]).any()
        assert not np.isin(told.survivors, [1, 2]).any()
        for leaf in jax.tree.leaves((state.params, state.opt_state, state.losses)):
            assert np.all(np.isfinite(leaf))


def test_a_population_that_diverged_stays_so_and_its_best_is_a_unit_of_it() -> None:
    learner = bowls.learner()
    state, told = learner.evolve(with_bad([0, 1, 2, 3], np.nan), bowls.loss_fn)
    assert told.survivors.tolist() == [0, 1, 2, 3]
    assert set(np.unique(told.parents)) <= {0, 1, 2, 3}
    assert np.all(np.isnan(told.trial_losses[:SIZE]))
    best = learner.best(state)
    assert best["w"].shape == (3, 2)
    assert np.all(np.isnan(best["w"]))


def test_equal_losses_keep_the_parents_and_draw_them_alike() -> None:
    learner = bowls.learner(STILL)

    def flat(params: Any, batch: Any) -> jax.Array:
        return jnp.zeros([]) * jnp.sum(params["b"])

    def one(key: jax.Array) -> Any:
        return learner.evolve(learner.init(key, bowls.init_fn), flat)[1]

    told = jax.jit(jax.vmap(one))(jax.random.split(KEY, 500))
    assert np.all(np.asarray(told.survivors) == np.arange(SIZE)[None])
    shares = np.bincount(np.asarray(told.parents).ravel(), minlength=SIZE) / told.parents.size
    np.testing.assert_allclose(shares, 1 / SIZE, atol=0.03)


def test_the_run_stops_where_the_sum_of_the_losses_stands_still() -> None:
    learner = bowls.learner(optabs.sgd(0.4), epochs=5)
    arguments = (KEY, bowls.init_fn, bowls.loss_fn, None, None)
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
    learner = networks.learner(unit=STILL, mutation_rate=0.0)
    result = networks.run(learns={"unit": STILL, "mutation_rate": 0.0}, relearn=False)
    state = learner.init(jax.random.key(3), networks.init_fn)
    for generation in range(2):
        state, told = learner.evolve(
            state, networks.loss_fn, networks.data(), networks.data(16, seed=1)
        )
        for name, value in told._asdict().items():
            np.testing.assert_allclose(
                result.history[name][generation], value, rtol=1e-6, atol=1e-7
            )
    assert_close(result.population, state.params, rtol=1e-6)
    again = networks.run(learns={"unit": STILL, "mutation_rate": 0.0})
    assert not np.array_equal(again.history["losses"], result.history["losses"])
