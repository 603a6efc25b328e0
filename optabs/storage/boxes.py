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
    children = jax.tree_util.treedef_children(jax.tree.structure(node))
    return len(children) == 1 and jax.tree_util.treedef_is_leaf(children[0])


def unboxed(value: Any) -> Any:
    """The array of a box; an array as it is."""
    (array,) = jax.tree.leaves(value)
    return array


def boxed(array: Any, like: Any) -> Any:
    """An array in such a box as another value is in."""
    return jax.tree.unflatten(jax.tree.structure(like), [array])
