"""Losses of two variables that can be drawn: valleys, a saddle and ravines.

Each is a sum of squares, so its lowest value is 0 and stays exact in float32.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

CONDITION = 1e4  # of the ravines: the steepest curvature over the flattest

Point = tuple[float, float]

# Not the origin, where weight decay leads.
_RAVINE_MINIMUM: Point = (1.0, 0.5)


class Landscape(NamedTuple):
    """A loss of two variables, where to start on it, and where its minima are."""

    name: str
    function: Callable[[jax.Array], jax.Array]  # float32 [2] -> float32 []
    start: Point
    spread: Point  # standard deviation of the starts that a seed draws around `start`
    minima: tuple[Point, ...]  # the loss is 0 there
    saddles: tuple[Point, ...]
    box: tuple[float, float, float, float]  # x from, x to, y from, y to
    source: str

    def grid(self, points: int = 201) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The loss over the box.

        Returns:
          x float32 [points], y float32 [points] and the loss float32 [points (y), points (x)].
        """
        left, right, low, high = self.box
        x = np.linspace(left, right, points, dtype=np.float32)
        y = np.linspace(low, high, points, dtype=np.float32)
        places = jnp.stack(jnp.meshgrid(x, y), axis=-1)
        return x, y, np.asarray(jax.vmap(jax.vmap(self.function))(places))

    def levels(self, count: int = 14) -> np.ndarray:
        """Levels for contours, spaced evenly in the logarithm of the loss: float [count]."""
        values = self.grid()[2]
        lowest = np.quantile(values[values > 0], 0.002)
        return np.geomspace(lowest, values.max(), count)


def _rosenbrock(p: jax.Array) -> jax.Array:
    return (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2


def _beale(p: jax.Array) -> jax.Array:
    x, y = p
    terms = (1.5 - x + x * y, 2.25 - x + x * y**2, 2.625 - x + x * y**3)
    return terms[0] ** 2 + terms[1] ** 2 + terms[2] ** 2


def _saddle(p: jax.Array) -> jax.Array:
    return (p[0] ** 2 - 1) ** 2 / 4 + p[1] ** 2 / 2


def _ravine(p: jax.Array) -> jax.Array:
    return _valley(p[0] - _RAVINE_MINIMUM[0], p[1] - _RAVINE_MINIMUM[1])


def _rotated_ravine(p: jax.Array) -> jax.Array:
    x, y = p[0] - _RAVINE_MINIMUM[0], p[1] - _RAVINE_MINIMUM[1]
    return _valley((x + y) / 2**0.5, (y - x) / 2**0.5)


def _valley(along: jax.Array, across: jax.Array) -> jax.Array:
    return (along**2 + CONDITION * across**2) / 2


LANDSCAPES: dict[str, Landscape] = {
    landscape.name: landscape
    for landscape in (
        Landscape(
            "rosenbrock",
            _rosenbrock,
            start=(-1.2, 1.0),
            spread=(0.1, 0.1),
            minima=((1.0, 1.0),),
            saddles=(),
            box=(-1.8, 1.8, -1.0, 2.6),
            source="(1 - x)^2 + 100 (y - x^2)^2; Rosenbrock (1960)",
        ),
        Landscape(
            "beale",
            _beale,
            start=(1.0, 1.0),
            spread=(0.1, 0.1),
            minima=((3.0, 0.5),),
            saddles=((0.0, 1.0),),
            box=(-0.5, 4.2, -1.2, 1.6),
            source="(1.5 - x + xy)^2 + (2.25 - x + xy^2)^2 + (2.625 - x + xy^3)^2; "
            "Beale (1958)",
        ),
        # The start is 1e-4 beside the line that gradient descent follows into the saddle.
        Landscape(
            "saddle",
            _saddle,
            start=(1e-4, 0.1),
            spread=(1e-4, 0.01),
            minima=((-1.0, 0.0), (1.0, 0.0)),
            saddles=((0.0, 0.0),),
            box=(-0.4, 1.5, -0.4, 0.4),
            source="x^4/4 - x^2/2 + y^2/2 + 1/4, written (x^2 - 1)^2/4 + y^2/2",
        ),
        # Both start 1 along the valley and 0.3 across it from the minimum.
        Landscape(
            "ravine",
            _ravine,
            start=(0.0, 0.2),
            spread=(0.03, 0.03),
            minima=(_RAVINE_MINIMUM,),
            saddles=(),
            box=(-0.4, 1.5, 0.0, 1.0),
            source="((x - 1)^2 + 10^4 (y - 0.5)^2)/2: the axes are those of the curvature",
        ),
        Landscape(
            "rotated_ravine",
            _rotated_ravine,
            start=(1 - 0.7 / 2**0.5, 0.5 - 1.3 / 2**0.5),
            spread=(0.03, 0.03),
            minima=(_RAVINE_MINIMUM,),
            saddles=(),
            box=(-0.1, 1.6, -0.8, 0.9),
            source="the ravine, turned by 45 degrees: each variable is steep and flat",
        ),
    )
}
