"""Gadam's compiled programs: a population's start, its learning and its evolution."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optabs import genetics
from optabs.evolution import breeding, checks, learning
from optabs.evolution.state import Evolution, GadamState, Genetics, Losses, Plan, Unit
from optabs.training.program import PLANS_KEPT


class Programs(NamedTuple):
    """Each compiled once for a plan and its losses."""

    learn: Callable[[GadamState, Any], tuple[GadamState, jax.Array]]
    evolve: Callable[[GadamState, Genetics, Any, Any], tuple[GadamState, Evolution]]
    generation: Callable[[GadamState, Genetics, Any, Any], tuple[GadamState, Evolution]]


@functools.lru_cache(PLANS_KEPT)
def programs(plan: Plan, losses: Losses, relearn: bool = True) -> Programs:
    """The programs; those of the last plans are kept."""
    learn = functools.partial(_learn, plan, losses)
    evolve = functools.partial(_evolve, plan, losses)

    def generation(
        state: GadamState, rates: Genetics, data: Any, validation: Any
    ) -> tuple[GadamState, Evolution]:
        if relearn:
            state, _ = learn(state, data)
        return evolve(state, rates, data, validation)

    return Programs(jax.jit(learn), jax.jit(evolve), jax.jit(generation, donate_argnums=0))


@functools.lru_cache(PLANS_KEPT)
def start(plan: Plan, init_fn: Callable[[jax.Array], Any]) -> Callable[[jax.Array], Unit]:
    """The program that makes a population of keys [g]."""

    def unit(key: jax.Array) -> Unit:
        made = init_fn(key)
        params, model_state = made if plan.stateful else (made, ())
        return Unit(params, plan.optimizer.init(params), model_state)

    def units(keys: jax.Array, _: Any) -> tuple[Unit, Any]:
        made = jax.vmap(unit)(keys)
        # Weak types would be strong after a generation, and compile a second program.
        return jax.tree.map(lambda leaf: jnp.array(leaf, leaf.dtype), made), None

    return jax.jit(lambda keys: plan.layout.spread(units)(keys, None)[0])


def placed(plan: Plan, state: GadamState) -> GadamState:
    """A state in the layout of the plan, wherever it was made."""
    checks.check_state(plan, state)
    shared = plan.layout.replicated((state.generation, state.key, state.losses))
    units: Unit = plan.layout.stacked(state.units)
    generation, key, losses = shared
    return GadamState(generation, key, *units, losses)


def _learn(
    plan: Plan, losses: Losses, state: GadamState, data: Any
) -> tuple[GadamState, jax.Array]:
    checks.check_data(data, plan.batch_size, "data", "batch_size")
    key, learn_key = jax.random.split(state.key)

    def own(units: Unit, shared: Any) -> tuple[Any, None]:
        keys, data = shared
        return learning.learn(plan, losses, units, plan.layout.mine(keys), data), None

    keys = jax.random.split(learn_key, plan.population_size)
    (units, last), _ = plan.layout.spread(own)(state.units, (keys, data))
    return state._replace(key=key, **units._asdict()), last


def _evolve(
    plan: Plan,
    losses: Losses,
    state: GadamState,
    rates: Genetics,
    data: Any,
    validation: Any,
) -> tuple[GadamState, Evolution]:
    checks.check_data(data, plan.batch_size, "data", "batch_size")
    checks.check_data(
        validation, plan.validation_batch_size, "validation_data", "validation_batch_size"
    )
    layout = plan.layout
    key, fitness_key, birth_key, learn_key, trial_key = jax.random.split(state.key, 5)

    def own(units: Unit, shared: Any) -> tuple[Unit, Evolution]:
        fitness_key, birth_key, learn_keys, trial_key, rates, data, validation = shared

        def measured(units: Unit, key: jax.Array) -> jax.Array:
            batch = learning.validation_batch(plan, key, validation)
            return layout.everyone(learning.fitness(plan, losses, units, batch))

        fit = measured(units, fitness_key)
        everyone = layout.everyone(units)
        children, parents = breeding.breed(plan, rates, birth_key, everyone, fit)
        children, training = learning.learn(
            plan, losses, children, layout.mine(learn_keys), data
        )
        trials = jnp.concatenate([measured(each, trial_key) for each in (units, children)])
        kept = genetics.survivors(trials, plan.population_size)
        units = breeding.survive(layout, everyone, children, kept)
        return units, Evolution(
            losses=fit,
            parents=parents,
            training_losses=layout.everyone(training),
            trial_losses=trials,
            survivors=kept,
            diversity=breeding.diversity(layout, units.params),
        )

    learn_keys = jax.random.split(learn_key, plan.population_size)
    shared = fitness_key, birth_key, learn_keys, trial_key, rates, data, validation
    units, told = layout.spread(own)(state.units, shared)
    state = GadamState(
        generation=state.generation + 1,
        key=key,
        losses=told.trial_losses[told.survivors],
        **units._asdict(),
    )
    return state, told
