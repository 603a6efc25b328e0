"""The state of narrow_state, and whether its arrays are what their places say."""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optabs.storage.codecs import BY_NODE, is_node

VERSION = "1"  # of what the codes mean


class NarrowState(NamedTuple):
    """State of `narrow_state`."""

    format: jax.Array  # uint32 []: a sum over VERSION and the leaves' codecs
    draws: jax.Array  # uint32 []: what the next rounding depends on
    inner: optax.OptState  # the transformation's own; encoded leaves are NamedTuples


def format_of(state: optax.OptState) -> int:
    """A sum over the version and the codecs of all leaves."""
    nodes = jax.tree.leaves(state, is_leaf=is_node)
    names = [BY_NODE[type(node)].name if is_node(node) else "-" for node in nodes]
    return zlib.crc32(" ".join([VERSION, *names]).encode())


def check_kind(state: Any) -> None:
    """Raises ValueError unless it is a state of narrow_state."""
    if not isinstance(state, NarrowState):
        raise ValueError(
            f"state is a {type(state).__name__}, which narrow_state has not made; pass the "
            "state of its init, or encode one with optabs.encode_state."
        )


def is_right(state: NarrowState) -> Any:
    """Whether the arrays are of the format that their places say: bool, perhaps traced."""
    wanted, given = format_of(state.inner), state.format
    if isinstance(given, jax.core.Tracer) or not getattr(given, "is_fully_addressable", True):
        return given == jnp.uint32(wanted)
    for each in np.unique(np.asarray(given)):  # several where states are stacked
        if each != wanted:
            raise ValueError(
                f"state has the format {each:#x}, but its codecs are those of {wanted:#x}; "
                "restore a checkpoint into the state of the same narrow_state that wrote it, "
                "and then convert it with optabs.decode_state and optabs.encode_state."
            )
    return True
