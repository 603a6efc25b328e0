"""Pytrees: states inside of states, arrays in boxes, a choice between whole trees."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import optax

State = TypeVar("State")


@runtime_checkable
class Encoded(Protocol):
    """A node of a state that holds one array in another form."""

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


def is_box(node: Any) -> bool:
    """Whether it is a pytree of one array, and no tuple, list or mapping."""
    if node is None or isinstance(node, tuple | list | Mapping):
        return False
    if jax.tree_util.all_leaves([node]):
        return False
    structure: Any = jax.tree.structure(node)
    children: list[Any] = jax.tree_util.treedef_children(structure)
    # None and a masked node are pytrees of no array at all.
    return len(children) == 1 and children[0].num_leaves == children[0].num_nodes == 1


def unboxed(value: Any) -> Any:
    """The array of a box; an array as it is."""
    (array,) = jax.tree.leaves(value)
    return array


def boxed(array: Any, like: Any) -> Any:
    """An array in such a box as another value is in."""
    return jax.tree.unflatten(jax.tree.structure(like), [array])


def axis_names(box: Any) -> tuple[Any, ...]:
    """The names that flax keeps of the axes, of a mesh or logical; None for one without."""
    names = getattr(box, "names", None)  # of linen's Partitioned
    if names is None and hasattr(box, "get_metadata"):  # of a Variable of nnx
        names = box.get_metadata().get("out_sharding")
    names = getattr(names, "spec", names)
    return tuple(names) if isinstance(names, tuple | list | jax.sharding.PartitionSpec) else ()


def numeric_leaves(tree: Any) -> list[Any]:
    """The leaves of a tree that are numbers or arrays of numbers."""
    return [leaf for leaf in jax.tree.leaves(tree) if _is_numeric(leaf)]


def _is_numeric(leaf: Any) -> bool:
    if isinstance(leaf, str):  # which may be the name of a dtype
        return False
    try:
        dtype = jnp.result_type(leaf)
    except TypeError:
        return False
    return jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_


def tree_where(flag: jax.Array, new: Any, old: Any) -> Any:
    """New where the flag is set, else old, for whole trees; costs a copy."""

    def select(n: Any, o: Any) -> Any:
        return (_where_bfloat16 if n.dtype == jnp.bfloat16 else jnp.where)(flag, n, o)

    return jax.tree.map(select, new, old)


@jax.custom_jvp
def _where_bfloat16(flag: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    # XLA:CPU selects bfloat16 number by number: 3 times the time of the whole step.
    new, old = (jax.lax.bitcast_convert_type(x, jnp.uint16) for x in (new, old))
    return jax.lax.bitcast_convert_type(jnp.where(flag, new, old), jnp.bfloat16)


@_where_bfloat16.defjvp
def _where_bfloat16_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    # A bitcast has no derivative; that of the select is the select of the tangents.
    _, new, old = tangents
    return _where_bfloat16(*primals), jnp.where(primals[0], new, old)


def described(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array, of a description of one, or of a number."""
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
