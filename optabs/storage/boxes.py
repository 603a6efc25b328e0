"""Arrays in boxes: pytrees around one array, such as flax's Variables."""

from collections.abc import Mapping
from typing import Any

import jax


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
    """What flax was told of the axes: mesh axes or logical names, None where it was not."""
    names = getattr(box, "names", None)  # of linen's Partitioned
    if names is None and hasattr(box, "get_metadata"):  # of a Variable of nnx
        names = box.get_metadata().get("out_sharding")
    names = getattr(names, "spec", names)
    return tuple(names) if isinstance(names, tuple | list | jax.sharding.PartitionSpec) else ()
