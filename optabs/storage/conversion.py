"""Narrow states in full precision, and back; the way to change codecs."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optabs.storage.codecs import BY_NODE, decode, encode, is_node
from optabs.storage.state import NarrowState, is_right


def decode_state(state: optax.OptState) -> optax.OptState:
    """The state without `narrow_state`: every NarrowState in it becomes its inner state.

    Args:
      state: of any nesting of transformations.

    Returns:
      The same state as the transformations without `narrow_state` have, moments in float32.

    Raises:
      ValueError: if arrays of another format stand in a state.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> narrow = optabs.narrow_state(optabs.adam(1e-3), min_size=16)
      >>> state = narrow.init(jnp.ones(32))
      >>> wide = optabs.decode_state(state)  # continues with optabs.adam(1e-3)
      >>> _ = optabs.adam(1e-3).update(jnp.ones(32), wide)
    """

    def of_node(node: Any) -> Any:
        if not isinstance(node, NarrowState):
            return node
        right = is_right(node)
        return jax.tree.map(
            lambda leaf: _poisoned(decode(leaf), right) if is_node(leaf) else leaf,
            node.inner,
            is_leaf=is_node,
        )

    return jax.tree.map(of_node, state, is_leaf=_is_narrow)


def encode_state(state: optax.OptState, like: optax.OptState) -> optax.OptState:
    """A state of full precision, encoded as another one is; the way to change codecs.

    Args:
      state: of the transformations without `narrow_state`, as `decode_state` gives it.
      like: a state with the wanted codecs and blocks, such as that of a new `init`; for
        another mesh, of one with the parameters on that mesh.

    Returns:
      The numbers of `state`, rounded once to the nearest code, in the form of `like`; its
      arrays lie where those of `state` do, and its rounding goes on as that of `like`.

    Examples:
      >>> import jax.numpy as jnp, optax, optabs
      >>> old = optabs.narrow_state(optabs.adam_abs(1e-3), min_size=16)
      >>> new = optabs.narrow_state(optabs.adam_abs(1e-3), {"nu": "bfloat16"}, min_size=16)
      >>> params = jnp.ones(32)
      >>> _, state = old.update(jnp.ones(32), old.init(params))
      >>> state = optabs.encode_state(optabs.decode_state(state), new.init(params))
      >>> optax.tree.get(state, "nu").values.dtype.name
      'bfloat16'
    """

    def of_node(node: Any, own: Any) -> Any:
        if not isinstance(node, NarrowState):
            return own
        return node._replace(inner=_encoded_like(own, node.inner))

    try:
        return jax.tree.map(of_node, like, state, is_leaf=_is_narrow)
    except ValueError as error:
        raise ValueError(
            "state and like are not of one optimizer and one tree of parameters; pass what "
            "optabs.decode_state gave, and a state of the narrow_state it goes on with."
        ) from error


def _encoded_like(state: optax.OptState, like: optax.OptState) -> Any:
    """Encodes a state as another one is, to the nearest codes."""

    def encoded(node: Any, value: Any) -> Any:
        if not is_node(node):
            return value
        codec = BY_NODE[type(node)]
        return encode(codec, value, codec.block(node), None)

    return jax.tree.map(encoded, like, state, is_leaf=is_node)


def _is_narrow(node: Any) -> bool:
    return isinstance(node, NarrowState)


def _poisoned(value: Any, right: Any) -> Any:
    """An array, in its box; all NaN unless it was read right."""
    if right is True:
        return value
    return jax.tree.map(lambda array: jnp.where(right, array, jnp.nan), value)
