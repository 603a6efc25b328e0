"""The parameter arrays that a step is timed with."""

import math
from collections.abc import Callable
from itertools import pairwise

from benchmarks.lab.arguments import ArgumentError

RESNET, MLP = "resnet18", "mlp"
MLP_WIDTHS = (784, 768, 512, 10)  # 1e6 parameters


def resnet18_shapes(classes: int = 10) -> list[tuple[int, ...]]:
    """Shapes of the 62 parameter arrays of a ResNet-18 for 32 x 32 images."""
    shapes: list[tuple[int, ...]] = [(3, 3, 3, 64), (64,), (64,)]
    width_in = 64
    for width in (64, 128, 256, 512):
        for inputs in (width_in, width):
            for fan_in in (inputs, width):
                shapes += [(3, 3, fan_in, width), (width,), (width,)]
            if inputs != width:
                shapes += [(1, 1, inputs, width), (width,), (width,)]
        width_in = width
    return [*shapes, (512, classes), (classes,)]


def mlp_shapes() -> list[tuple[int, ...]]:
    """Shapes of the parameter arrays of an MLP of 1e6 parameters."""
    return [shape for pair in pairwise(MLP_WIDTHS) for shape in (pair, pair[1:])]


TREES: dict[str, Callable[[], list[tuple[int, ...]]]] = {
    RESNET: resnet18_shapes,
    MLP: mlp_shapes,
}


def shapes_of(text: str) -> dict[str, list[tuple[int, ...]]]:
    """The shapes of each size of a list such as '1e4,1.6e7,resnet18'."""
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for part in map(str.strip, text.split(",")):
        try:
            number = math.nan if part in TREES else float(part)
            if part not in TREES and (number < 1 or number != int(number)):
                raise ValueError(part)
        except (OverflowError, ValueError):
            raise ArgumentError(
                f"sizes is {text!r}; pass whole numbers above 0 such as 1.6e7, or "
                f"{' or '.join(TREES)}, separated by commas."
            ) from None
        shapes[part] = TREES[part]() if part in TREES else [(int(number),)]
    return shapes
