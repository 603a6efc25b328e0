"""A population on a function without data, whose programs compile quickly."""

from typing import Any

import jax
import jax.numpy as jnp

import optabs

SIZE = 4
SGD = optabs.sgd(0.1)


def init_fn(key: jax.Array) -> dict[str, jax.Array]:
    """Parameters that differ from unit to unit."""
    first, second = jax.random.split(key)
    return {"w": jax.random.normal(first, (3, 2)), "b": 3 * jax.random.normal(second, (2,))}


def loss_fn(params: Any, batch: Any) -> jax.Array:
    """The squared distance of every entry from 1."""
    return sum(jnp.sum((leaf - 1) ** 2) for leaf in jax.tree.leaves(params))


def learner(unit: Any = SGD, **changed: Any) -> optabs.Gadam:
    """The population's rules, with some arguments changed."""
    given: dict[str, Any] = {"population_size": SIZE, "mutation_rate": 0.2, "epochs": 2}
    return optabs.gadam(unit, **given | changed)


def unit_of(tree: Any, index: int) -> Any:
    """One unit of a population."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
