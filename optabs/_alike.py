"""Whether two trees of arrays have one structure, and the same shapes and dtypes."""

from typing import Any

import jax
import jax.numpy as jnp

from optabs._checks import cut, short


def check_alike(maker: str, made: Any, like: Any, wanted: str) -> None:
    """Raises ValueError where a tree of arrays is not like the one it was made from.

    Args:
      maker: what made it, as the message names it.
      made: the tree.
      like: what it should be like.
      wanted: what to do, the end of the sentence.
    """
    structure: Any = jax.tree.structure(like)
    given: Any = jax.tree.structure(made)
    if given != structure:
        raise ValueError(f"{maker} turned {short(structure)} into {short(given)}; {wanted}.")
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
