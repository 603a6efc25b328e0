"""Looks into a nested optimizer state."""

from typing import TypeVar

import jax
import optax

State = TypeVar("State")


def find_state(state: optax.OptState, kind: type[State], caller: str) -> State:
    """The one state of a kind inside any nesting of optax's wrappers."""
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind))
    found = [node for node in leaves if isinstance(node, kind)]
    if len(found) != 1:
        raise ValueError(
            f"state holds {len(found)} {kind.__name__}; pass {caller} the state of one "
            "optimizer that keeps exactly one."
        )
    return found[0]
