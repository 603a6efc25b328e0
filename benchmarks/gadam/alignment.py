"""Brings the hidden units of a population's perceptrons into one order.

Two perceptrons that compute the same may have their hidden units in different orders; a
child that takes entry by entry from both then has halves that do not belong together.
"""

from typing import Any

import jax
import jax.numpy as jnp

from optabs import GadamState


def aligned(state: GadamState) -> GadamState:
    """The population, each unit's hidden units in the order of those of the first one.

    What a unit computes does not change. Its optimizer's state moves with the parameters.

    Args:
      state: of perceptrons with one hidden layer, `benchmarks.lab.models.MLP`.
    """
    first = jax.tree.map(lambda leaf: leaf[0], state.params)

    def unit(params: Any, opt_state: Any) -> tuple[Any, Any]:
        order = matching(_rows(first) @ _rows(params).T)
        return reordered((params, opt_state), like=params, order=order)

    params, opt_state = jax.vmap(unit)(state.params, state.opt_state)
    return state._replace(params=params, opt_state=opt_state)


def reordered(tree: Any, *, like: Any, order: jax.Array) -> Any:
    """The hidden units in another order, wherever the tree has a tree like the parameters."""
    alike: Any = jax.tree.structure(like)

    def is_params(node: Any) -> bool:
        return jax.tree.structure(node) == alike

    return jax.tree.map(
        lambda node: _reordered(node, order) if is_params(node) else node,
        tree,
        is_leaf=is_params,
    )


def matching(likeness: jax.Array) -> jax.Array:
    """For each row the column it is matched with, the most alike first: int32 [n].

    Args:
      likeness: float [n, n]; each row and each column is used once.
    """
    size = likeness.shape[0]

    def match(_: int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        likeness, order = carry
        row, column = jnp.unravel_index(jnp.argmax(likeness), likeness.shape)
        likeness = likeness.at[row, :].set(-jnp.inf).at[:, column].set(-jnp.inf)
        return likeness, order.at[row].set(column.astype(jnp.int32))

    start = (likeness, jnp.zeros(size, jnp.int32))
    return jax.lax.fori_loop(0, size, match, start)[1]


def _rows(params: Any) -> jax.Array:
    """What goes into each hidden unit and out of it, of length 1: [hidden, numbers]."""
    below, above = params["layers"][0], params["layers"][1]
    rows = jnp.concatenate(
        [below["kernel"].T, below["bias"][:, None], above["kernel"]], axis=1
    )
    return rows / (jnp.linalg.norm(rows, axis=1, keepdims=True) + 1e-12)


def _reordered(params: Any, order: jax.Array) -> Any:
    below, above = params["layers"][0], params["layers"][1]
    return {
        "layers": {
            0: {"kernel": below["kernel"][:, order], "bias": below["bias"][order]},
            1: {"kernel": above["kernel"][order], "bias": above["bias"]},
        }
    }
