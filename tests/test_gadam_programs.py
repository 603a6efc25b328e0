"""Gadam's programs: compiled once, donated where nobody holds them, the same for a key."""

import logging
from typing import Any

import chex
import gadam_problem as networks
import gadam_quadratic as quadratic
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gadam_problem import data

import optabs

KEY = jax.random.key(2)


def counted(traces: list[int]) -> Any:
    def loss_fn(params: Any, batch: Any) -> jax.Array:
        traces.append(1)
        return quadratic.loss_fn(params, batch)

    return loss_fn


@pytest.mark.slow
@pytest.mark.parametrize("spread", [False, True], ids=["one device", "mesh"])
def test_one_compilation_for_all_generations_and_rates(
    spread: bool, caplog: pytest.LogCaptureFixture
) -> None:
    traces: list[int] = []
    loss_fn = counted(traces)
    mesh = jax.make_mesh((4,), ("population",), devices=jax.devices()[:4]) if spread else None
    unit = optabs.adam(0.1)

    def learner(**changed: Any) -> optabs.Gadam:
        return quadratic.learner(unit, mesh=mesh, **changed)

    def generations(learner: optabs.Gadam, count: int) -> None:
        state = learner.init(KEY, quadratic.init_fn)
        for _ in range(count):
            state, _ = learner.learn(state, loss_fn)
            state, _ = learner.evolve(state, loss_fn)

    generations(learner(), 1)
    first_traces = len(traces)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        generations(learner(), 3)
        generations(learner(mutation_rate=0.5, pressure=3.0), 2)
        generations(learner(mutation_rate=jnp.float32(0.1), pressure=np.float64(1.5)), 2)
    assert len(traces) == first_traces
    compiled = [record.getMessage() for record in caplog.records]
    assert not [line for line in compiled if "_learn" in line or "_evolve" in line]
    other = learner(epochs=3)
    state = other.init(KEY, quadratic.init_fn)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        other.learn(state, loss_fn)  # and what is compiled is seen
    compiled = [record.getMessage() for record in caplog.records]
    assert [line for line in compiled if "_learn" in line]
    assert len(traces) > first_traces


@pytest.mark.slow
def test_a_run_compiles_no_second_program() -> None:
    traces: list[int] = []
    loss_fn = counted(traces)
    unit = optabs.adam(0.1)

    def run(generations: int, rate: float) -> int:
        before = len(traces)
        learner = quadratic.learner(unit, mutation_rate=rate)
        learner.run(KEY, quadratic.init_fn, loss_fn, None, None, generations=generations)
        return len(traces) - before

    first, second, third = run(2, 0.1), run(2, 0.1), run(6, 0.3)
    assert second == third < first  # the checks before it trace the loss


@pytest.mark.slow
def test_a_run_takes_nothing_from_its_user() -> None:
    key, train = jax.random.key(4), jax.tree.map(jnp.asarray, data())
    unit = optax.chain(optabs.dao_e(0.05))  # keeps parameters in its state
    learner = networks.learner(unit=unit)
    arguments = (key, networks.init_fn, networks.loss_fn, train, train)
    first = learner.run(*arguments, generations=2)
    kept = jax.device_get((first.population, first.params, first.state.opt_state))
    second = learner.run(*arguments, generations=3)
    for leaf in jax.tree.leaves((train, key, first.state, first.params, second.state)):
        assert not leaf.is_deleted()
    chex.assert_trees_all_equal(
        jax.device_get((first.population, first.params, first.state.opt_state)),
        kept,
        strict=True,
    )
    learner.evolve(first.state, networks.loss_fn, train, train)
    learner.learn(first.state, networks.loss_fn, train)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(first.state))


@pytest.mark.slow
def test_the_same_key_gives_the_same_run_and_another_one_another() -> None:
    first, second = networks.uninterrupted(), networks.run()
    chex.assert_trees_all_equal(first.population, second.population, strict=True)
    for name in first.history:
        np.testing.assert_array_equal(first.history[name], second.history[name])
    other = networks.run(key=jax.random.key(99))
    assert not np.array_equal(first.history["losses"], other.history["losses"])
    old = networks.run(key=jax.random.PRNGKey(3))
    np.testing.assert_allclose(old.history["losses"], first.history["losses"], rtol=1e-5)


@pytest.mark.slow
def test_a_run_is_its_steps() -> None:
    result, learner = networks.uninterrupted(), networks.learner()
    state = learner.init(jax.random.key(3), networks.init_fn)
    for generation in range(2):
        state, _ = learner.learn(state, networks.loss_fn, data())
        state, evolution = learner.evolve(state, networks.loss_fn, data(), data(16, seed=1))
        for name, value in evolution._asdict().items():
            np.testing.assert_allclose(
                result.history[name][generation], value, rtol=1e-5, atol=1e-6
            )
    chex.assert_trees_all_close(result.params, learner.best(state), rtol=1e-5, atol=1e-6)
    assert int(result.state.generation) == 2


@pytest.mark.slow
def test_populations_of_populations_by_jit_and_vmap() -> None:
    learner = quadratic.learner(optabs.adam(0.1))

    def whole(key: jax.Array) -> Any:
        state = learner.init(key, quadratic.init_fn)
        state, learned = learner.learn(state, quadratic.loss_fn)
        state, evolution = learner.evolve(state, quadratic.loss_fn)
        return state._replace(key=()), learned, evolution, learner.best(state)

    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(whole))(keys)
    for index in range(3):
        alone = whole(keys[index])
        ours = jax.tree.map(lambda leaf, i=index: leaf[i], together)
        chex.assert_trees_all_close(ours, alone, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(together[2].losses[0], together[2].losses[1])


def test_the_default_unit_is_shared() -> None:
    assert optabs.gadam().plan == optabs.gadam(mutation_rate=0.5).plan
