"""Gadam breeds what any optax transformation keeps, and compiles once for it."""

import functools
from typing import Any

import chex
import gadam_problem as networks
import gadam_quadratic as quadratic
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from gadam_quadratic import unit_of
from trees import avals

import optabs
from optabs import genetics
from optabs.evolution.generation import breed
from optabs.evolution.state import Unit

KEY = jax.random.key(5)
UNITS: dict[str, Any] = {
    "sgd": optax.sgd(0.1),
    "adam": optabs.adam(0.1),
    "chain": optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(0.1, 50))
    ),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "masked": optax.chain(
        optax.masked(optax.adam(0.1), {"w": True, "b": False}),
        optax.masked(optax.sgd(0.1), {"w": False, "b": True}),
    ),
    "partition": optax.partition(
        {"a": optax.adam(0.1), "b": optax.sgd(0.1)}, {"w": "a", "b": "b"}
    ),
    "several steps": optax.MultiSteps(optax.adam(0.1), 2),
    "dao_e": optabs.dao_e(0.1),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=2),
    "noise": optax.chain(optax.add_noise(0.01, 0.5, jax.random.key(0)), optax.sgd(0.1)),
    "lbfgs": optax.lbfgs(),
    "plateau": optax.chain(optax.adam(0.1), optax.contrib.reduce_on_plateau()),
    "narrow moment": optax.adam(0.1, mu_dtype=jnp.bfloat16),
}


QUICK = {"sgd", "chain", "masked", "several steps"}


@pytest.mark.parametrize(
    ("name", "inheritance"),
    [
        *(
            pytest.param(name, "crossover", marks=() if name in QUICK else pytest.mark.slow)
            for name in UNITS
        ),
        ("masked", "fresh"),
        pytest.param("lbfgs", "fresh", marks=pytest.mark.slow),
    ],
)
def test_any_transformation(name: str, inheritance: Any) -> None:
    traces = []

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        traces.append(1)
        return quadratic.loss_fn(params, batch)

    learner = quadratic.learner(UNITS[name], inheritance=inheritance)
    state = learner.init(KEY, quadratic.init_fn)
    initial_avals, trace_counts, best = avals(state), [], []
    for generation in range(3):
        state, evolution = learner.evolve(state, loss_fn)
        trace_counts.append(len(traces))
        assert avals(state) == initial_avals
        assert int(state.generation) == generation + 1
        assert np.all(np.isfinite(evolution.trial_losses))
        best += [float(evolution.losses.min()), float(evolution.trial_losses.min())]
    assert trace_counts[0] == trace_counts[-1]  # one program for all generations
    assert best[-1] < best[0]


def bred(inheritance: str, losses: list[float], unit: Any = networks.ADAM) -> Any:
    """Children of units whose optimizer states differ in every entry."""
    learner = networks.learner(
        unit=unit, population_size=len(losses), inheritance=inheritance, mutation_rate=0.0
    )
    state = learner.init(KEY, networks.init_fn)

    def numbered(leaf: jax.Array) -> jax.Array:
        return jnp.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape)

    units = Unit(state.params, jax.tree.map(numbered, state.opt_state), ())
    rates = learner.hyperparams
    compiled = jax.jit(functools.partial(breed, learner.plan, rates))
    children, pairs = compiled(KEY, units, jnp.array(losses))
    return units, children, np.asarray(pairs)


@pytest.mark.slow
def test_the_optimizers_state_follows_the_parameters() -> None:
    losses = [0.5, 0.1, 0.9, 0.3]
    units, children, pairs = bred("crossover", losses)
    normalized = genetics.normalize_losses(jnp.array(losses))
    keys = jax.random.split(jax.random.split(KEY)[1], 4)
    mixed = 0
    for child, (a, b) in enumerate(pairs):
        mask = genetics.crossover_mask(
            jax.random.split(keys[child])[0],
            unit_of(units.params, 0),
            normalized[a],
            normalized[b],
        )
        better = a if losses[a] <= losses[b] else b
        for tree, found in (
            (units.params, children.params),
            (units.opt_state[0].numerator.mu, children.opt_state[0].numerator.mu),
            (units.opt_state[0].denominator.nu, children.opt_state[0].denominator.nu),
        ):
            wanted = jax.tree.map(jnp.where, mask, unit_of(tree, a), unit_of(tree, b))
            chex.assert_trees_all_equal(unit_of(found, child), wanted, strict=True)
        for name in ("numerator", "denominator"):
            counts = getattr(units.opt_state[0], name).count
            assert getattr(children.opt_state[0], name).count[child] == counts[better]
        mixed += a != b
    assert mixed >= 2


@pytest.mark.slow
def test_what_is_not_shaped_like_the_parameters_comes_from_the_better_parent() -> None:
    losses = [0.5, 0.1, 0.9, 0.3]
    unit = optax.adafactor(0.1, min_dim_size_to_factor=2)
    units, children, pairs = bred("crossover", losses, unit)
    rows = units.opt_state[0].v_row["w"]
    assert rows.shape != units.params["w"].shape
    for child, (a, b) in enumerate(pairs):
        better = a if losses[a] <= losses[b] else b
        np.testing.assert_array_equal(children.opt_state[0].v_row["w"][child], rows[better])


@pytest.mark.slow
def test_a_fresh_state_is_that_of_init() -> None:
    _, children, _ = bred("fresh", [0.5, 0.1, 0.9, 0.3])
    wanted = jax.vmap(networks.ADAM.init)(children.params)
    chex.assert_trees_all_equal(children.opt_state, wanted, strict=True)


class Normed(nnx.Module):
    """A network with BatchNorm."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(networks.INPUTS, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.5, rngs=rngs)
        self.last = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.last(nnx.relu(self.norm(self.first(inputs))))


GRAPH = nnx.split(Normed(nnx.Rngs(0)), nnx.Param, nnx.BatchStat)[0]


def normed_init(key: jax.Array) -> tuple[Any, Any]:
    _, params, statistics = nnx.split(Normed(nnx.Rngs(key)), nnx.Param, nnx.BatchStat)
    return params, statistics


def normed_loss(params: Any, statistics: Any, batch: Any) -> tuple[jax.Array, Any]:
    inputs, targets = batch
    model = nnx.merge(GRAPH, params, statistics, copy=True)
    loss = jnp.mean((model(inputs) - targets) ** 2)
    return loss, nnx.state(model, nnx.BatchStat)


def normed_fitness(params: Any, statistics: Any, batch: Any) -> tuple[jax.Array, Any]:
    inputs, targets = batch
    model = nnx.merge(GRAPH, params, statistics, copy=True)
    model.eval()
    return jnp.mean((model(inputs) - targets) ** 2), statistics


@pytest.mark.slow
def test_batch_norm_trains_and_its_means_come_from_the_better_parent() -> None:
    with jax.numpy_rank_promotion("allow"):  # flax promotes
        learner = networks.learner(stateful=True, epochs=8, validation_batch_size=None)
        result = learner.run(
            KEY,
            normed_init,
            normed_loss,
            networks.data(),
            networks.data(),
            generations=3,
            fitness_fn=normed_fitness,
        )
        evaluated = result.history["trial_losses"].min(axis=1)
        assert evaluated[-1] < result.history["losses"][0].min()
        means = jax.tree.leaves(result.model_state)
        assert any(float(jnp.abs(mean).max()) > 0.05 for mean in means)
        model = nnx.merge(GRAPH, result.params, result.model_state)
        model.eval()
        assert np.all(np.isfinite(model(jnp.asarray(networks.data()[0]))))

        # Bred without training: one of the two parents' statistics, whole.
        state, losses = result.state, jnp.arange(8.0)
        compiled = jax.jit(functools.partial(breed, learner.plan, learner.hyperparams))
        children, pairs = compiled(KEY, state.units, losses)
        better = np.min(pairs, axis=1)
        chex.assert_trees_all_equal(
            children.model_state,
            jax.tree.map(lambda leaf: leaf[better], state.model_state),
            strict=True,
        )
