"""Whether a function of the user's kept a tree's structure, shapes and dtypes."""

from typing import Any

import jax


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
        raise ValueError(f"{maker} turned {structure} into {given}; {wanted}.")
    for new, old in zip(jax.tree.leaves(made), jax.tree.leaves(like), strict=True):
        if (new.shape, new.dtype) != (old.shape, old.dtype):
            raise ValueError(
                f"{maker} turned {old.dtype.name}{list(old.shape)} into "
                f"{new.dtype.name}{list(new.shape)}; {wanted}."
            )
