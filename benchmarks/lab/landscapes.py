"""Losses of two variables that can be drawn, and the paths of optimizers over them.

Valleys, a saddle and ravines: each is a sum of squares, so its lowest value is 0 and stays
exact in float32.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optabs
from optabs.optimizers.gradient_descent import NagState

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONDITION = 1e4  # of the ravines: the steepest curvature over the flattest
# Okabe and Ito's colours, which the colour-blind tell apart, without yellow and black.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Equal paths show through one another's gaps.
_DASHES = ("-", (0, (6, 4)), (0, (4, 4)), (0, (2, 2)))
_FAR = 100.0  # times the box's width: where a path is no longer drawn

Point = tuple[float, float]
_RAVINE_MINIMUM: Point = (1.0, 0.5)  # not the origin, where weight decay leads


class Landscape(NamedTuple):
    """A loss of two variables, where to start on it, and where its minima are."""

    name: str
    function: Callable[[jax.Array], jax.Array]  # float32 [2] -> float32 []
    start: Point
    spread: Point  # standard deviation of the starts that a seed draws around `start`
    box: tuple[float, float, float, float]  # x from, x to, y from, y to
    minima: tuple[Point, ...] = (_RAVINE_MINIMUM,)  # the loss is 0 there
    saddles: tuple[Point, ...] = ()

    def grid(self, points: int = 201) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x and y, float32 [points], and the loss there, float32 [points (y), points (x)]."""
        left, right, low, high = self.box
        x = np.linspace(left, right, points, dtype=np.float32)
        y = np.linspace(low, high, points, dtype=np.float32)
        places = jnp.stack(jnp.meshgrid(x, y), axis=-1)
        return x, y, np.asarray(jax.vmap(jax.vmap(self.function))(places))

    def levels(self) -> np.ndarray:
        """Levels for contours, spaced evenly in the logarithm of the loss: float [14]."""
        values = self.grid()[2]
        lowest = np.quantile(values[values > 0], 0.002)
        return np.geomspace(lowest, values.max(), 14)


def _rosenbrock(p: jax.Array) -> jax.Array:
    """Rosenbrock (1960)."""
    return (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2


def _beale(p: jax.Array) -> jax.Array:
    """Beale (1958)."""
    x, y = p
    terms = (1.5 - x + x * y, 2.25 - x + x * y**2, 2.625 - x + x * y**3)
    return terms[0] ** 2 + terms[1] ** 2 + terms[2] ** 2


def _saddle(p: jax.Array) -> jax.Array:
    """x^4/4 - x^2/2 + y^2/2 + 1/4."""
    return (p[0] ** 2 - 1) ** 2 / 4 + p[1] ** 2 / 2


def _ravine(p: jax.Array) -> jax.Array:
    """The axes are those of the curvature."""
    along, across = p[0] - _RAVINE_MINIMUM[0], p[1] - _RAVINE_MINIMUM[1]
    return (along**2 + CONDITION * across**2) / 2


def _rotated_ravine(p: jax.Array) -> jax.Array:
    """The ravine, turned by 45 degrees: each variable is steep and flat."""
    x, y = p[0] - _RAVINE_MINIMUM[0], p[1] - _RAVINE_MINIMUM[1]
    along, across = (x + y) / 2**0.5, (y - x) / 2**0.5
    return (along**2 + CONDITION * across**2) / 2


# The saddle's start is 1e-4 beside the line that gradient descent follows into it, those of
# the ravines are 1 along the valley and 0.3 across it from the minimum.
_TURNED_START = (1 - 0.7 / 2**0.5, 0.5 - 1.3 / 2**0.5)
_PLACES = (
    Landscape("rosenbrock", _rosenbrock, (-1.2, 1.0), (0.1, 0.1), (-1.8, 1.8, -1.0, 2.6),
              minima=((1.0, 1.0),)),
    Landscape("beale", _beale, (1.0, 1.0), (0.1, 0.1), (-0.5, 4.2, -1.2, 1.6),
              minima=((3.0, 0.5),), saddles=((0.0, 1.0),)),
    Landscape("saddle", _saddle, (1e-4, 0.1), (1e-4, 0.01), (-0.4, 1.5, -0.4, 0.4),
              minima=((-1.0, 0.0), (1.0, 0.0)), saddles=((0.0, 0.0),)),
    Landscape("ravine", _ravine, (0.0, 0.2), (0.03, 0.03), (-0.4, 1.5, 0.0, 1.0)),
    Landscape("rotated_ravine", _rotated_ravine, _TURNED_START, (0.03, 0.03),
              (-0.1, 1.6, -0.8, 0.9)),
)  # fmt: skip
LANDSCAPES = {place.name: place for place in _PLACES}


def evaluated(state: optax.OptState, params: Any) -> Any:
    """The parameters at which the loss counts: NAG's are not those that it trains."""
    leaves = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, NagState))
    nag = any(isinstance(leaf, NagState) for leaf in leaves)
    return optabs.nag_eval_params(state, params) if nag else params


def path(
    landscape: Landscape, optimizer: optax.GradientTransformation, steps: int
) -> np.ndarray:
    """The points that an optimizer visits, the start first: float32 [steps + 1, 2].

    They are not finite once the path has diverged; of NAG, they are those at which its loss
    is taken.
    """
    return np.asarray(jax.jit(lambda: walk(landscape, optimizer, steps))())


def walk(
    landscape: Landscape, optimizer: optax.GradientTransformation, steps: int
) -> jax.Array:
    """`path` to be compiled by the caller, whose optimizer may be made of traced numbers."""
    rule = optax.with_extra_args_support(optimizer)
    first = jnp.array(landscape.start, jnp.float32)

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        value, grads = jax.value_and_grad(landscape.function)(params)
        updates, state = rule.update(grads, state, params, value=value)
        params = optax.apply_updates(params, updates)
        return (params, state), evaluated(state, params)

    _, rest = jax.lax.scan(step, (first, rule.init(first)), length=steps)
    return jnp.concatenate([first[None], rest])


def emitted(transformation: optax.GradientTransformation, gradients: jax.Array) -> np.ndarray:
    """What any transformation emits for gradients [steps, ...], the parameters held at 0."""
    rule = optax.with_extra_args_support(transformation)
    params = jnp.zeros_like(gradients[0])

    def step(state: optax.OptState, gradient: jax.Array) -> tuple[optax.OptState, jax.Array]:
        updates, state = rule.update(gradient, state, params)
        return state, updates

    return np.asarray(jax.lax.scan(step, rule.init(params), gradients)[1])


def paths_figure(
    landscape: Landscape,
    paths: Mapping[str, np.ndarray],
    *,
    axis: "Axes | None" = None,
    title: str | None = None,
    legend: bool = True,
) -> "Figure":
    """Draws paths, by label, over the contours of a landscape, on an axis or a new figure.

    The start is a circle, a minimum a star, a saddle a cross and the end of a path a dot. The
    contours are spaced evenly in the logarithm.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    if axis is None:
        axis = Figure(figsize=(6.0, 4.8), layout="constrained").add_subplot()
    x, y, values = landscape.grid()
    levels = landscape.levels()
    # Filled to the smallest level, so that a minimum is not a hole.
    fill = np.maximum(values, levels[0])
    norm = LogNorm(levels[0], levels[-1])
    axis.contourf(x, y, fill, levels=levels, norm=norm, cmap="Greys", alpha=0.3)
    axis.contour(x, y, values, levels=levels, colors="0.5", linewidths=0.4)
    styles = zip(itertools.cycle(COLORS), itertools.cycle(_DASHES), strict=True)
    for (label, points), (color, dashes) in zip(paths.items(), styles, strict=False):
        drawn = drawable(landscape, points).T
        axis.plot(*drawn, color="white", lw=3.2, zorder=2)
        axis.plot(*drawn, color=color, lw=1.9, ls=dashes, label=label, zorder=3)
        axis.plot(*drawn[:, -1], "o", color=color, mec="white", ms=6, zorder=5)
    marks = (
        ((landscape.start,), "o", 7),
        (landscape.saddles, "X", 8),
        (landscape.minima, "*", 17),
    )
    for places, marker, size in marks:
        for place in places:
            axis.plot(*place, marker, color="white", mec="black", ms=size, zorder=4)
    left, right, low, high = landscape.box
    axis.set(xlim=(left, right), ylim=(low, high), xlabel="x", ylabel="y")
    axis.set_title(title or landscape.name.replace("_", " "))
    if legend and paths:
        # Below the axis, where it hides no path.
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    figure = axis.get_figure(root=True)
    assert figure is not None
    return figure


def drawable(landscape: Landscape, points: np.ndarray) -> np.ndarray:
    """A path up to the first point that is not finite or far away."""
    left, right, low, high = landscape.box
    distance = np.abs(points - np.array([left, low])) / np.array([right - left, high - low])
    near = np.logical_and.accumulate((distance <= _FAR).all(axis=1))
    return points[: max(1, near.sum())]
