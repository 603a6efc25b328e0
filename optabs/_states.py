"""Looks into a nested optimizer state."""

from typing import TypeVar

import jax
import optax

from optabs.storage.codecs import decode, is_node

State = TypeVar("State")


def find_state(state: optax.OptState, kind: type[State], caller: str) -> State:
    """The one state of a kind inside any nesting of wrappers, its arrays decoded."""
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind))
    found = [node for node in leaves if isinstance(node, kind)]
    if len(found) != 1:
        raise ValueError(
            f"state holds {len(found)} {kind.__name__}; pass {caller} the state of one "
            "optimizer that keeps exactly one."
        )
    return jax.tree.map(decode, found[0], is_leaf=is_node)
