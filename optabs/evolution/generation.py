"""Gadam's compiled programs: how a population starts, learns, breeds and is selected."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optabs import genetics
from optabs._numerics import widen
from optabs.evolution import checks, learning
from optabs.evolution.devices import Layout
from optabs.evolution.learning import map_units
from optabs.evolution.state import Evolution, GadamState, Hyperparams, Losses, Plan, Unit
from optabs.training.program import MAX_CACHED_PROGRAMS


class Programs(NamedTuple):
    """Each compiled once for a plan and its losses."""

    learn: Callable[[GadamState, Any], tuple[GadamState, jax.Array]]
    evolve: Callable[[GadamState, Hyperparams, Any, Any], tuple[GadamState, Evolution]]
    generation: Callable[[GadamState, Hyperparams, Any, Any], tuple[GadamState, Evolution]]


@functools.lru_cache(MAX_CACHED_PROGRAMS)
def programs(plan: Plan, losses: Losses, relearn: bool = True) -> Programs:
    """The programs of a plan; those of the last plans are cached."""
    learn = functools.partial(_learn, plan, losses)
    evolve = functools.partial(_evolve, plan, losses)

    def generation(
        state: GadamState, hyperparams: Hyperparams, data: Any, validation: Any
    ) -> tuple[GadamState, Evolution]:
        if relearn:
            state, _ = learn(state, data)
        return evolve(state, hyperparams, data, validation)

    return Programs(jax.jit(learn), jax.jit(evolve), jax.jit(generation, donate_argnums=0))


@functools.lru_cache(MAX_CACHED_PROGRAMS)
def init_program(
    plan: Plan, init_fn: Callable[[jax.Array], Any]
) -> Callable[[jax.Array], Unit]:
    """The program that makes a population from keys [g]."""

    def init_unit(key: jax.Array) -> Unit:
        initial = init_fn(key)
        params, model_state = initial if plan.stateful else (initial, ())
        return Unit(params, plan.optimizer.init(params), model_state)

    def init_units(keys: jax.Array, _: Any) -> tuple[Unit, Any]:
        units = jax.vmap(init_unit)(keys)
        # Weak types would be strong after a generation, and compile a second program.
        return jax.tree.map(lambda leaf: jnp.array(leaf, leaf.dtype), units), None

    return jax.jit(lambda keys: plan.layout.shard_map(init_units)(keys, None)[0])


def place_state(plan: Plan, state: GadamState) -> GadamState:
    """A state in the layout of the plan, whatever devices it was on."""
    checks.check_state(plan, state)
    replicated = plan.layout.replicated((state.generation, state.key, state.losses))
    units: Unit = plan.layout.sharded(state.units)
    generation, key, losses = replicated
    return GadamState(generation, key, *units, losses)


def _learn(
    plan: Plan, losses: Losses, state: GadamState, data: Any
) -> tuple[GadamState, jax.Array]:
    checks.check_data(data, plan.batch_size, "data", "batch_size")
    key, learn_key = jax.random.split(state.key)

    def learn_local(units: Unit, replicated: Any) -> tuple[Any, None]:
        keys, data = replicated
        return learning.learn(plan, losses, units, plan.layout.local_shard(keys), data), None

    keys = jax.random.split(learn_key, plan.population_size)
    (units, epoch_losses), _ = plan.layout.shard_map(learn_local)(state.units, (keys, data))
    return state._replace(key=key, **units._asdict()), epoch_losses


def _evolve(
    plan: Plan,
    losses: Losses,
    state: GadamState,
    hyperparams: Hyperparams,
    data: Any,
    validation: Any,
) -> tuple[GadamState, Evolution]:
    checks.check_data(data, plan.batch_size, "data", "batch_size")
    checks.check_data(
        validation, plan.validation_batch_size, "validation_data", "validation_batch_size"
    )
    layout = plan.layout
    key, fitness_key, breed_key, learn_key, trial_key = jax.random.split(state.key, 5)

    def evolve_local(units: Unit, replicated: Any) -> tuple[Unit, Evolution]:
        fitness_key, breed_key, learn_keys, trial_key, hyperparams, data, validation = (
            replicated
        )

        def evaluate(units: Unit, key: jax.Array) -> jax.Array:
            batch = learning.validation_batch(plan, key, validation)
            return layout.all_gather(learning.fitness(plan, losses, units, batch))

        fitness = evaluate(units, fitness_key)
        population = layout.all_gather(units)
        children, parents = breed(plan, hyperparams, breed_key, population, fitness)
        children, training_losses = learning.learn(
            plan, losses, children, layout.local_shard(learn_keys), data
        )
        trial_losses = jnp.concatenate(
            [evaluate(each, trial_key) for each in (units, children)]
        )
        survivors = genetics.survivors(trial_losses, plan.population_size)
        units = select_survivors(layout, population, children, survivors)
        return units, Evolution(
            losses=fitness,
            parents=parents,
            training_losses=layout.all_gather(training_losses),
            trial_losses=trial_losses,
            survivors=survivors,
            diversity=diversity(layout, units.params),
        )

    learn_keys = jax.random.split(learn_key, plan.population_size)
    replicated = (
        *(fitness_key, breed_key, learn_keys, trial_key),
        *(hyperparams, data, validation),
    )
    units, evolution = layout.shard_map(evolve_local)(state.units, replicated)
    state = GadamState(
        generation=state.generation + 1,
        key=key,
        losses=evolution.trial_losses[evolution.survivors],
        **units._asdict(),
    )
    return state, evolution


def breed(
    plan: Plan,
    hyperparams: Hyperparams,
    key: jax.Array,
    population: Unit,
    losses: jax.Array,
) -> tuple[Unit, jax.Array]:
    """This device's share of g children, and the parents of all of them: int32 [g, 2].

    Args:
      plan: how children are made.
      hyperparams: the mutation rate, and the pressure of selection.
      key: a `jax.random.key`, the same on every device.
      population: the units of all devices.
      losses: their losses, [g].
    """
    layout, size = plan.layout, losses.shape[0]
    parent_key, child_key = jax.random.split(key)
    normalized = genetics.normalize_losses(losses)
    probabilities = genetics.selection_probabilities(losses, hyperparams.pressure)
    pairs = genetics.select_parents(parent_key, probabilities, size)

    def child(key: jax.Array, pair: jax.Array) -> Unit:
        a, b = (jax.tree.map(lambda leaf, i=index: leaf[i], population) for index in pair)
        rate = genetics.mutation_rate(
            hyperparams.mutation_rate, probabilities[pair[0]], probabilities[pair[1]]
        )
        return _child(plan, key, a, b, normalized[pair], rate)

    keys = jax.random.split(child_key, size)
    children = map_units(
        child, layout.local_shard(keys), layout.local_shard(pairs), chunk_size=plan.chunk_size
    )
    return children, pairs


def select_survivors(
    layout: Layout, parents: Unit, children: Unit, survivors: jax.Array
) -> Unit:
    """This device's share of the survivors.

    Args:
      layout: where the units are.
      parents: of all devices.
      children: this device's.
      survivors: [g], indices into all parents, then all children.
    """
    indices = layout.local_shard(survivors)

    def select(parents: jax.Array, children: jax.Array) -> jax.Array:
        return jnp.concatenate([parents, layout.all_gather(children)])[indices]

    return jax.tree.map(select, parents, children)


def diversity(layout: Layout, params: Any) -> jax.Array:
    """The root mean square distance of an entry from its mean over the units: []."""
    wide = jax.tree.map(widen, params)
    means = layout.mean(wide)
    squares = jax.tree.map(lambda leaf, mean: jnp.square(jnp.abs(leaf - mean)), wide, means)
    sums = [jnp.sum(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(squares)]
    # 1 where all arrays are empty, so that nothing is divided by 0.
    entries = max(sum(leaf.size for leaf in jax.tree.leaves(squares)), 1)
    (mean,) = layout.mean(jnp.sum(jnp.stack(sums))[None] / entries)
    return jnp.sqrt(mean)


def _child(
    plan: Plan, key: jax.Array, a: Unit, b: Unit, losses: jax.Array, rate: jax.Array
) -> Unit:
    crossover_key, mutation_key = jax.random.split(key)
    mask = genetics.crossover_mask(crossover_key, a.params, losses[0], losses[1])
    a_is_better = losses[0] <= losses[1]
    params = jax.tree.map(jnp.where, mask, a.params, b.params)
    params = genetics.mutate(mutation_key, params, rate, plan.sample)
    if plan.inheritance == "fresh":
        opt_state = plan.optimizer.init(params)
    else:
        state_mask = _state_mask(a.opt_state, mask, a_is_better)
        opt_state = jax.tree.map(jnp.where, state_mask, a.opt_state, b.opt_state)
    model_state = jax.tree.map(
        lambda x, y: jnp.where(a_is_better, x, y), a.model_state, b.model_state
    )
    return Unit(params, opt_state, model_state)


def _state_mask(opt_state: Any, mask: Any, a_is_better: jax.Array) -> Any:
    """The mask where the state has arrays like the parameters, elsewhere `a_is_better`.

    Such an array has a parameter's shape, and a path that ends as the parameter's does.
    """
    # optax.tree.map_params fails where an init looks at its parameters, as that of L-BFGS.
    mask_of_path = dict(jax.tree_util.tree_leaves_with_path(mask))

    def select(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        suffixes = (path[start:] for start in range(len(path) + 1))
        own = next((mask_of_path[end] for end in suffixes if end in mask_of_path), a_is_better)
        inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
        return own if inexact and own.shape == leaf.shape else a_is_better

    return jax.tree_util.tree_map_with_path(select, opt_state)
