"""One parameter's part of a step: its gradient, its moments, and what is done to them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import tree_leaves_with_path, tree_map_with_path

from optabs.storage.boxes import is_box, unboxed
from optabs.storage.codecs import BY_NODE, is_node
from optabs.storage.fields import Parameters, Path


class Leaf(NamedTuple):
    """What belongs to one parameter."""

    grad: jax.Array
    param: jax.Array
    entries: dict[int, Any]  # of the state: nodes and arrays, by their place in it
    update: Callable[..., list[jax.Array]]
    """(gradient, parameter, *moments) -> update and new moments; all else is closed over."""

    @property
    def blocks(self) -> set[int]:
        """The lengths of the blocks of its moments, without 0."""
        nodes = filter(is_node, self.entries.values())
        return {BY_NODE[type(node)].block(node) for node in nodes} - {0}


def leaf_of(
    path: Path,
    parameters: Parameters,
    inner: optax.GradientTransformationExtraArgs,
    grads: Any,
    state: optax.OptState,
    params: Any,
    extra: dict[str, Any],
) -> Leaf | None:
    """The part of a parameter.

    Returns:
      None where it has no encoded moments, has them in boxes, or has others of a shape that
      is not its own.
    """

    def is_own(place: Path) -> bool:
        return parameters.owner(place) in (path, None)

    def only(tree: Any) -> Any:
        return tree_map_with_path(
            lambda place, leaf: leaf if is_own(place) else None,
            tree,
            is_leaf=lambda node: is_node(node) or is_box(node),
        )

    own_grads, own_params = only(grads), only(params)
    (grad,), (param,) = jax.tree.leaves(own_grads), jax.tree.leaves(own_params)
    whole = tree_leaves_with_path(state, is_leaf=is_node)
    entries = {
        number: leaf
        for number, (place, leaf) in enumerate(whole)
        if is_own(place) and _shape(leaf)
    }
    parts = [part for leaf in entries.values() if is_node(leaf) for part in leaf]
    if not parts or any(map(is_box, parts)):
        return None
    if any(_shape(leaf) != param.shape for leaf in entries.values()):
        return None
    leaves, structure = jax.tree.flatten(only(state), is_leaf=is_node)

    def update(grad: jax.Array, param: jax.Array, *moments: jax.Array) -> list[jax.Array]:
        given = iter(moments)
        wide = [next(given) if _shape(leaf) else leaf for leaf in leaves]
        updates, new = inner.update(
            jax.tree.map(lambda _: grad, own_grads),
            jax.tree.unflatten(structure, wide),
            jax.tree.map(lambda _: param, own_params),
            **extra,
        )
        kept = zip(leaves, jax.tree.leaves(new), strict=True)
        return [*jax.tree.leaves(updates), *(moment for leaf, moment in kept if _shape(leaf))]

    return Leaf(grad, param, entries, update)


def _shape(leaf: Any) -> tuple[int, ...]:
    return jnp.shape(unboxed(leaf[0]) if is_node(leaf) else leaf)
