"""Losses of two variables that can be drawn, and the paths of optimizers over them.

Valleys, a saddle and ravines: each is a sum of squares, so its lowest value is 0 and stays
exact in float32.
"""

import math
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


def evaluated(state: optax.OptState, params: Any) -> Any:
    """The parameters at which the loss counts: NAG's are not those that it trains."""

    def is_nag(part: Any) -> bool:
        return isinstance(part, NagState)

    if any(is_nag(part) for part in jax.tree.leaves(state, is_leaf=is_nag)):
        return optabs.nag_eval_params(state, params)
    return params


def path(
    landscape: Landscape,
    optimizer: optax.GradientTransformation,
    steps: int,
    *,
    start: Point | None = None,
    noise: float = 0.0,
    key: jax.Array | None = None,
) -> np.ndarray:
    """Every point that an optimizer visits, from one compiled loop.

    Args:
      landscape: the loss.
      optimizer: any optax optimizer; of NAG, the points at which its loss is taken.
      steps: how many, at least 1.
      start: the first point; None for the landscape's own.
      noise: standard deviation of the Gaussian noise that is added to each gradient.
      key: of the noise; None for `jax.random.key(0)`.

    Returns:
      float32 [steps + 1, 2], the start first; not finite once the path has diverged.

    Raises:
      ValueError: for steps below 1 or a noise that is negative or not finite.

    Examples:
      >>> path(LANDSCAPES["ravine"], optabs.sgd(5e-5), 2, start=(1.0, 0.9)).round(2)
      array([[1. , 0.9],
             [1. , 0.7],
             [1. , 0.6]], dtype=float32)
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; pass a whole number above 0.")
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise is {noise}; pass a finite number that is 0 or more.")
    first = jnp.asarray(landscape.start if start is None else start, jnp.float32)
    key = jax.random.key(0) if key is None else key
    run = jax.jit(lambda first, key: walk(landscape, optimizer, first, steps, noise, key))
    return np.asarray(run(first, key))


def walk(
    landscape: Landscape,
    optimizer: optax.GradientTransformation,
    first: jax.Array,
    steps: int,
    noise: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """`path` to be compiled by the caller, whose optimizer may be made of traced numbers."""
    rule = optax.with_extra_args_support(optimizer)
    slope = jax.value_and_grad(landscape.function)
    keys = jax.random.split(jax.random.key(0) if key is None else key, steps)

    def step(carry: Any, step_key: jax.Array) -> Any:
        params, state = carry
        value, grads = slope(params)
        grads += noise * jax.random.normal(step_key, grads.shape)
        updates, state = rule.update(grads, state, params, value=value)
        params = optax.apply_updates(params, updates)
        return (params, state), evaluated(state, params)

    _, rest = jax.lax.scan(step, (first, rule.init(first)), keys)
    return jnp.concatenate([first[None], rest])


def emitted(transformation: optax.GradientTransformation, gradients: jax.Array) -> np.ndarray:
    """What a transformation emits for a sequence of gradients, the parameters held at 0.

    Args:
      transformation: any optax transformation.
      gradients: float [steps, ...].

    Returns:
      Its updates [steps, ...].

    Examples:
      >>> emitted(optabs.ema(0.5), jnp.array([1.0, 0.0, 0.0])).tolist()
      [0.5, 0.25, 0.125]
    """
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
    colors: Mapping[str, str] | None = None,
    legend: bool = True,
) -> "Figure":
    """Draws paths over the contours of a landscape.

    The start is a circle, a minimum a star, a saddle a cross and the end of a path a dot. A
    path is drawn with a white edge, up to the first point that is not finite or is a hundred
    boxes away.

    Args:
      landscape: the loss; its contours are spaced evenly in the logarithm.
      paths: label -> float [points, 2].
      axis: where to draw; None for a new figure, which no matplotlib session keeps.
      title: above the axis; None for the landscape's name.
      colors: label -> colour; None for six in turns.
      legend: whether to name the paths, below the axis.

    Returns:
      The figure drawn on.
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
    for index, (label, points) in enumerate(paths.items()):
        drawn = drawable(landscape, points).T
        color = colors[label] if colors else COLORS[index % len(COLORS)]
        dashes = _DASHES[index % len(_DASHES)]
        axis.plot(*drawn, color="white", lw=3.2, zorder=2)
        axis.plot(*drawn, color=color, lw=1.9, ls=dashes, label=label, zorder=3)
        axis.plot(*drawn[:, -1], "o", color=color, mec="white", ms=6, zorder=5)
    starts = dict.fromkeys(tuple(points[0].tolist()) for points in paths.values())
    for places, marker, size in (
        (tuple(starts), "o", 7),
        (landscape.saddles, "X", 8),
        (landscape.minima, "*", 17),
    ):
        for place in places:
            axis.plot(*place, marker, color="white", mec="black", ms=size, zorder=4)
    left, right, low, high = landscape.box
    axis.set(xlim=(left, right), ylim=(low, high), xlabel="x", ylabel="y")
    axis.set_title(landscape.name.replace("_", " ") if title is None else title)
    if legend and paths:
        # Below the axis, where it hides no path.
        axis.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.14),
            ncols=2,
            fontsize="small",
            frameon=False,
        )
    figure = axis.get_figure(root=True)
    assert figure is not None
    return figure


def drawable(landscape: Landscape, points: np.ndarray) -> np.ndarray:
    """A path up to the first point that is not finite or far away."""
    left, right, low, high = landscape.box
    distance = np.abs(points - np.array([left, low])) / np.array([right - left, high - low])
    gone = np.flatnonzero(~(distance <= _FAR).all(axis=1))
    return points[: max(1, gone[0])] if len(gone) else points
