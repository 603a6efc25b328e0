"""Whether a function of the user's kept a tree's structure, shapes and dtypes."""

import itertools
from typing import Any

import jax

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
