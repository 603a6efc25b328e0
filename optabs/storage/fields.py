"""Which leaf of an optimizer's state belongs to which field, and to which parameter."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import DictKey, GetAttrKey, KeyEntry, SequenceKey, keystr

from optabs._tree import is_box, unboxed

Path = tuple[KeyEntry, ...]


class Place(NamedTuple):
    """Where a leaf of a state stands."""

    path: str  # as jax.tree_util.keystr writes it
    holder: str | None  # the class of the innermost state around it, such as ScaleByAdamState
    field: str | None  # of that class, such as mu
    parameter: tuple[str, ...]  # the names on the way to the leaf's parameter
    like: Any  # the parameter, where the leaf has its shape; else None


class Parameters:
    """The parameters of a model, or a tree like them, by their paths."""

    def __init__(self, params: Any) -> None:
        leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_box)
        self._leaves: dict[Path, tuple[int, Any]] = {
            path: (number, leaf) for number, (path, leaf) in enumerate(leaves)
        }

    def __len__(self) -> int:
        return len(self._leaves)

    def owner(self, path: Path) -> Path | None:
        """The parameter that a leaf belongs to: the longest end of its path that is one's."""
        ends = (path[start:] for start in range(len(path) + 1))
        return next((end for end in ends if end in self._leaves), None)

    def number(self, path: Path) -> int | None:
        """The number of the parameter that a leaf belongs to."""
        owner = self.owner(path)
        return None if owner is None else self._leaves[owner][0]

    def fields(self, path: Path) -> list[int]:
        """Where on the way to a leaf the fields of states stand."""
        way = path[: len(path) - len(self.owner(path) or ())]
        return [at for at, key in enumerate(way) if isinstance(key, GetAttrKey)]

    def place(self, path: Path, shape: tuple[int, ...], state: optax.OptState) -> Place:
        """Tells a leaf's field from the names inside of the parameters.

        A moment's path is its field's, and then its parameter's, which is cut off, so that
        a parameter called `mu` is no moment.
        """
        owner = self.owner(path)
        start = len(path) - len(owner or ())
        fields = self.fields(path)
        holder = _at(state, path[: fields[-1]]) if fields else None
        parameter = None if owner is None else self._leaves[owner][1]
        follows = owner is not None and jnp.shape(unboxed(parameter)) == shape
        return Place(
            keystr(path),
            None if holder is None else type(holder).__name__,
            path[fields[-1]].name if fields else None,
            tuple(map(_name, path[start:])),
            parameter if follows else None,
        )


def names_in(params: Any) -> set[str]:
    """All names on the way to parameters, also to those that a mask hides."""

    def is_end(node: Any) -> bool:
        return node is None or isinstance(node, optax.MaskedNode) or is_box(node)

    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_end)
    return {_name(key) for path, _ in leaves for key in path}


def fields_in(state: optax.OptState, params: Any) -> set[str]:
    """The fields of all states that hold anything."""
    parameters = Parameters(params)
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=is_box)
    return {path[at].name for path, _ in leaves for at in parameters.fields(path)}


def _at(state: Any, path: Path) -> Any:
    """The node of a state at the end of a path; None where a key is of no known kind."""
    for key in path:
        if isinstance(key, GetAttrKey):
            state = getattr(state, key.name, None)
        elif isinstance(key, SequenceKey):
            state = state[key.idx]
        elif isinstance(key, DictKey):
            state = state[key.key]
        else:
            return None
    return state


def _name(key: KeyEntry) -> str:
    return keystr((key,), simple=True)
