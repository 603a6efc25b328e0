"""Whether two trees of arrays have one structure, and the same shapes and dtypes."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from optabs._checks import cut, short

WIDTH = 65


def check_alike(maker: str, made: Any, like: Any, wanted: str) -> None:
    """Raises ValueError where a tree of arrays is not like the one it was made from.

    Args:
      maker: what made it, as the message names it.
      made: the tree.
      like: what it should be like.
      wanted: what to do, the end of the sentence.
    """
    structure: Any = jax.tree.structure(like)
    if (given := jax.tree.structure(made)) != structure:
        old_text, new_text = where_they_differ(structure, given)
        raise ValueError(f"{maker} turned {old_text} into {new_text}; {wanted}.")
    for new, old in zip(jax.tree.leaves(made), jax.tree.leaves(like), strict=True):
        if (new.shape, new.dtype) != (old.shape, old.dtype):
            raise ValueError(
                f"{maker} turned {old.dtype.name}{list(old.shape)} into "
                f"{new.dtype.name}{list(new.shape)}; {wanted}."
            )


def check_shapes(name: str, tree: Any, like_name: str, like: Any) -> None:
    """Raises ValueError where two trees that go together have other structures or shapes."""
    given: Any = jax.tree.structure(tree)
    if given != jax.tree.structure(like):
        raise ValueError(
            f"{name} are {short(given)}, another tree than {like_name}; pass gradients of the "
            "parameters that init was given."
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(like), strict=True)
    for (path, leaf), other in pairs:
        if jnp.shape(leaf) != jnp.shape(other):
            where = cut(jax.tree_util.keystr(path))
            raise ValueError(
                f"{name}{where} have shape {jnp.shape(leaf)} where {like_name} have "
                f"{jnp.shape(other)}; pass gradients of the parameters that init was given."
            )


def check_kind(state: Any, kind: type) -> None:
    """Raises ValueError where a transformation is given the state of another one."""
    if not isinstance(state, kind):
        raise ValueError(
            f"state is {type(state).__name__} in place of {kind.__name__}; pass what init, or "
            "the last update, of this transformation returned."
        )


def where_they_differ(structure: Any, given: Any) -> list[str]:
    """Two structures as text, of long ones no more than is needed to see the difference."""
    texts = [" ".join(str(each).split()) for each in (structure, given)]
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False))
    at = len(list(same))
    return [_cut(text, at) for text in texts]


def _cut(text: str, at: int) -> str:
    if len(text) <= WIDTH:
        return text
    head = "PyTreeDef("
    start = at - WIDTH // 2
    if start <= len(head):
        return f"{text[:WIDTH]}..."
    return f"{head}...{text[start : start + WIDTH - len(head)]}..."
