"""Which leaf of an optimizer's state belongs to which field, and to which parameter."""

from typing import Any, NamedTuple

import jax
from jax.tree_util import GetAttrKey, KeyEntry, keystr

from optabs.storage.boxes import is_box, unboxed

Path = tuple[KeyEntry, ...]


class Place(NamedTuple):
    """Where a leaf of a state stands."""

    path: str  # as jax.tree_util.keystr writes it
    field: str | None  # the innermost field of a state, such as mu
    parameter: tuple[str, ...]  # the names on the way to the leaf's parameter
    sharding: Any  # of the parameter, where the leaf has its shape; else None


class Parameters:
    """The parameters of a model, or a tree like them, by their paths."""

    def __init__(self, params: Any) -> None:
        leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_box)
        self._leaves: dict[Path, Any] = {path: unboxed(leaf) for path, leaf in leaves}

    def owner(self, path: Path) -> Path | None:
        """The parameter that a leaf belongs to: the longest end of its path that is one's."""
        ends = (path[start:] for start in range(len(path) + 1))
        return next((end for end in ends if end in self._leaves), None)

    def place(self, path: Path, shape: tuple[int, ...]) -> Place:
        """Tells a leaf's field from the names inside of the parameters.

        A moment's path is its field's, and then its parameter's, which is cut off, so that
        a parameter called `mu` is no moment.
        """
        owner = self.owner(path)
        start = len(path) - len(owner or ())
        fields = [key.name for key in path[:start] if isinstance(key, GetAttrKey)]
        parameter = None if owner is None else self._leaves[owner]
        follows = parameter is not None and parameter.shape == shape
        return Place(
            keystr(path),
            fields[-1] if fields else None,
            tuple(_name(key) for key in path[start:]),
            sharding_of(parameter) if follows else None,
        )


def sharding_of(leaf: Any) -> Any:
    """The sharding of an array or of a description of one; None where there is none."""
    if isinstance(leaf, jax.core.Tracer):
        return jax.typeof(leaf).sharding
    return getattr(leaf, "sharding", None)


def _name(key: KeyEntry) -> str:
    return keystr((key,), simple=True)
