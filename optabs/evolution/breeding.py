"""Children of a population, and who survives."""

from typing import Any

import jax
import jax.numpy as jnp

from optabs import genetics
from optabs._numerics import widen
from optabs.evolution.layout import Layout
from optabs.evolution.state import Genetics, Plan, Unit
from optabs.evolution.units import map_units


def breed(
    plan: Plan, rates: Genetics, key: jax.Array, everyone: Unit, losses: jax.Array
) -> tuple[Unit, jax.Array]:
    """As many children as there are units, and their parents: int32 [g, 2].

    Args:
      plan: how children are made.
      rates: of mutation, and the pressure of selection.
      key: of the draws.
      everyone: the units of all devices.
      losses: their losses, [g].
    """
    layout, size = plan.layout, losses.shape[0]
    parent_key, birth_key = jax.random.split(key)
    normalized = genetics.normalize_losses(losses)
    chances = genetics.selection_probabilities(losses, rates.pressure)
    pairs = genetics.select_parents(parent_key, chances, size)

    def child(key: jax.Array, pair: jax.Array) -> Unit:
        a, b = (jax.tree.map(lambda leaf, who=who: leaf[who], everyone) for who in pair)
        rate = genetics.mutation_rate(rates.mutation_rate, chances[pair[0]], chances[pair[1]])
        return _child(plan, key, a, b, normalized[pair], rate)

    keys = jax.random.split(birth_key, size)
    children = map_units(
        child, layout.mine(keys), layout.mine(pairs), chunk_size=plan.chunk_size
    )
    return children, pairs


def survive(layout: Layout, parents: Unit, children: Unit, kept: jax.Array) -> Unit:
    """This device's share of those that live on.

    Args:
      layout: where the units are.
      parents: of all devices.
      children: this device's.
      kept: [g], indices into all parents, then all children.
    """
    mine = layout.mine(kept)

    def pick(parents: jax.Array, child: jax.Array) -> jax.Array:
        return jnp.concatenate([parents, layout.everyone(child)])[mine]

    return jax.tree.map(pick, parents, children)


def diversity(layout: Layout, params: Any) -> jax.Array:
    """The root mean square distance of an entry from its mean over the units: []."""
    wide = jax.tree.map(widen, params)
    means = layout.mean(wide)
    squares = jax.tree.map(lambda leaf, mean: jnp.square(jnp.abs(leaf - mean)), wide, means)
    sums = [jnp.sum(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(squares)]
    entries = max(sum(leaf.size for leaf in jax.tree.leaves(squares)), 1)
    (mean,) = layout.mean(jnp.sum(jnp.stack(sums))[None] / entries)
    return jnp.sqrt(mean)


def _child(
    plan: Plan, key: jax.Array, a: Unit, b: Unit, losses: jax.Array, rate: jax.Array
) -> Unit:
    mask_key, draw_key = jax.random.split(key)
    mask = genetics.crossover_mask(mask_key, a.params, losses[0], losses[1])
    better = losses[0] <= losses[1]
    params = jax.tree.map(jnp.where, mask, a.params, b.params)
    params = genetics.mutate(draw_key, params, rate, plan.sample)
    if plan.inheritance == "fresh":
        opt_state = plan.optimizer.init(params)
    else:
        from_a = _like_state(a.opt_state, mask, better)
        opt_state = jax.tree.map(jnp.where, from_a, a.opt_state, b.opt_state)
    model_state = jax.tree.map(
        lambda x, y: jnp.where(better, x, y), a.model_state, b.model_state
    )
    return Unit(params, opt_state, model_state)


def _like_state(state: Any, mask: Any, better: jax.Array) -> Any:
    """The mask where the state has arrays like the parameters, elsewhere the better parent.

    Such an array has a parameter's shape, and a path that ends as the parameter's does.
    """
    # optax.tree.map_params fails where an init looks at its parameters, as that of L-BFGS.
    entries = dict(jax.tree_util.tree_leaves_with_path(mask))

    def choose(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        ends = (path[start:] for start in range(len(path) + 1))
        own = next((entries[end] for end in ends if end in entries), better)
        numbers = jnp.issubdtype(leaf.dtype, jnp.inexact)
        return own if numbers and own.shape == leaf.shape else better

    return jax.tree_util.tree_map_with_path(choose, state)
