"""What a compiled program sends between devices, read from its text."""

import math
import re

_KINDS = (
    "all-gather|all-reduce|all-to-all|collective-broadcast|collective-permute|"
    "ragged-all-to-all|reduce-scatter"
)
_COLLECTIVE = re.compile(rf"= (.*?) ({_KINDS})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]")


def received(program: str) -> dict[str, int]:
    """The bytes that each device holds after the collectives of a compiled program.

    Args:
      program: the text of `jax.jit(function).lower(...).compile().as_text()`.

    Returns:
      The kind of a collective -> bytes of its results, over all of that kind; a program that
      sends nothing gives an empty dict. One inside of a loop counts once.
    """
    found: dict[str, int] = {}
    for shapes, kind, starts in _COLLECTIVE.findall(program):
        sizes = [_bytes(*array) for array in _ARRAY.findall(shapes)]
        if starts and kind in ("all-gather", "collective-permute"):
            # What an asynchronous one gives are its operands, then its results.
            sizes = sizes[len(sizes) // 2 :]
        found[kind] = found.get(kind, 0) + sum(sizes)
    return found


def _bytes(name: str, bits: str, shape: str) -> int:
    width = 1 if name == "pred" else max(1, int(bits) // 8)
    return width * math.prod(int(extent) for extent in shape.split(",") if extent)
