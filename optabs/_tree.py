"""Looks into a nested optimizer state."""

from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import optax

State = TypeVar("State")


@runtime_checkable
class Encoded(Protocol):
    """A node that stands in a state for one array, and knows how to give it back."""

    def decoded_array(self) -> Any:
        """The array."""


def find_state(state: optax.OptState, kind: type[State], caller: str) -> State:
    """The one state of a kind inside any nesting of wrappers, its arrays decoded."""
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind))
    found = [node for node in leaves if isinstance(node, kind)]
    if len(found) != 1:
        raise ValueError(
            f"state holds {len(found)} {kind.__name__}; pass {caller} the state of one "
            "optimizer that keeps exactly one."
        )
    return jax.tree.map(_decoded, found[0], is_leaf=_is_encoded)


def _is_encoded(node: Any) -> bool:
    return isinstance(node, Encoded)


def _decoded(node: Any) -> Any:
    return node.decoded_array() if isinstance(node, Encoded) else node
