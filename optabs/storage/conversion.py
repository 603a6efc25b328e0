"""The state of narrow_state: its format, and what turns it into a plain state and back."""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optabs._tree import unboxed
from optabs.storage.codecs import BY_NODE, decode, encode, is_node

VERSION = "2"  # changes where the codes' meaning does


class NarrowState(NamedTuple):
    """State of `narrow_state`: `optabs.decode_state` gives the moments themselves."""

    format: jax.Array  # uint32 []: a sum over VERSION and the leaves' codecs
    draws: jax.Array  # uint32 []: what the next rounding depends on
    inner: optax.OptState  # the transformation's own; encoded leaves are NamedTuples


def nodes_of(state: optax.OptState) -> list[Any]:
    """Its leaves, an encoded one as one."""
    return jax.tree.leaves(state, is_leaf=is_node)


def format_of(state: optax.OptState) -> int:
    """A sum over the version and the codecs of all leaves."""
    nodes = nodes_of(state)
    names = [BY_NODE[type(node)].name if is_node(node) else "-" for node in nodes]
    return zlib.crc32(" ".join([VERSION, *names]).encode())


def has_right_format(state: NarrowState) -> Any:
    """Whether the arrays have the format that their state names: bool, perhaps traced."""
    wanted, given = format_of(state.inner), state.format
    if isinstance(given, jax.core.Tracer) or not getattr(given, "is_fully_addressable", True):
        return given == jnp.uint32(wanted)
    for each in np.unique(np.asarray(given)):  # several where states are stacked
        if each != wanted:
            raise ValueError(
                "state has arrays of other codecs, or of another release, than those that its "
                f"format names ({each:#x}, here {wanted:#x}); restore a checkpoint into the "
                "state of the narrow_state that wrote it, then convert it with "
                "optabs.decode_state and optabs.encode_state."
            )
    return True


def holds(kind: type, state: optax.OptState) -> bool:
    """Whether there is a state of a kind in any nesting of them."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind))
    return any(isinstance(node, kind) for node in nodes)


def decode_state(state: optax.OptState) -> optax.OptState:
    """The state without `narrow_state`: every NarrowState in it becomes its inner state.

    Args:
      state: of any nesting of transformations.

    Returns:
      The same state as the transformations without `narrow_state` have, for these to go on
      with; moments in float32, also those that `mu_dtype` would keep in bfloat16.

    Raises:
      ValueError: if arrays of another format stand in a state, or a dict in place of one.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> narrow = optabs.narrow_state(optabs.adam(1e-3), min_size=16)
      >>> state = narrow.init(jnp.ones(32))
      >>> wide = optabs.decode_state(state)  # continues with optabs.adam(1e-3)
      >>> _ = optabs.adam(1e-3).update(jnp.ones(32), wide)
    """

    def of_node(node: Any) -> Any:
        if isinstance(node, dict):
            raise ValueError(
                "state has a dict in place of a NarrowState, as a checkpoint restored without "
                "a target has; restore it into jax.eval_shape(optimizer.init, params)."
            )
        if not isinstance(node, NarrowState):
            return node
        return decoded(node.inner, has_right_format(node))

    def is_state(node: Any) -> bool:
        fields = NarrowState._fields
        return _is_narrow(node) or (isinstance(node, dict) and {*fields} == {*node})

    return jax.tree.map(of_node, state, is_leaf=is_state)


def decoded(state: optax.OptState, right: Any) -> optax.OptState:
    """The state in float32; NaN where its format is wrong."""
    return jax.tree.map(
        lambda leaf: _nan_unless(decode(leaf), right) if is_node(leaf) else leaf,
        state,
        is_leaf=is_node,
    )


def encode_state(state: optax.OptState, like: optax.OptState) -> optax.OptState:
    """A state of full precision, encoded as another one is; the way to change codecs.

    Args:
      state: of the transformations without `narrow_state`, as `decode_state` gives it.
      like: a state with the wanted codecs and rows, such as that of a new `init`; for
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

    if holds(NarrowState, state):
        raise ValueError("state is narrow already; pass what optabs.decode_state gives of it.")
    if not holds(NarrowState, like):
        raise ValueError(
            f"like, a {type(like).__name__}, holds no NarrowState; pass what init of a "
            "narrow_state returns, and the state without one as the first argument."
        )
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
        if jnp.shape(unboxed(value)) != jnp.shape(unboxed(node[0])):
            raise ValueError
        return encode(codec, value, codec.rows_in(node), None)

    return jax.tree.map(encoded, like, state, is_leaf=is_node)


def _is_narrow(node: Any) -> bool:
    return isinstance(node, NarrowState)


def _nan_unless(value: Any, right: Any) -> Any:
    """An array, in its box; all NaN where its format is wrong."""
    if right is True:
        return value
    return jax.tree.map(lambda array: jnp.where(right, array, jnp.nan), value)
