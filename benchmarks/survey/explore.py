"""For notebooks: sliders over an optimizer's path."""

import base64
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.lab.arguments import ArgumentError, choice_of, positive
from benchmarks.lab.landscapes import COLORS, LANDSCAPES, paths_figure, walk
from benchmarks.lab.report import png
from benchmarks.survey.study import ARMS, DECAYING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DECAYS = ("decay", "b1", "b2")
RATE_EXPONENTS = (-6, 1)  # the ends of the rate's slider
LOWEST_LOSS = 1e-10  # lower ones are the landscapes' rounding in float32

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    name: arm.make for name, arm in ARMS.items() if name not in DECAYING
}


def decays_of(optimizer: str) -> dict[str, float]:
    """The decays that an optimizer takes, with their defaults."""
    parameters = inspect.signature(OPTIMIZERS[optimizer]).parameters
    return {name: parameters[name].default for name in DECAYS if name in parameters}


def explored_figure(
    landscape: str,
    optimizer: str,
    *,
    learning_rate: float,
    decays: Mapping[str, float],
    steps: int,
) -> "Figure":
    """An optimizer's path over a landscape, beside its loss at each step.

    Args:
      landscape: one of LANDSCAPES.
      optimizer: one of OPTIMIZERS.
      learning_rate: its rate.
      decays: values for `decays_of(optimizer)`; others are left out.
      steps: how many.

    Returns:
      The figure, which no matplotlib session keeps.
    """
    from matplotlib.figure import Figure

    place = LANDSCAPES[landscape]
    arguments = {"learning_rate": float(learning_rate)}
    arguments |= {name: float(decays[name]) for name in decays_of(optimizer)}
    points, losses = map(np.asarray, program(landscape, optimizer, steps)(arguments))
    finite = np.flatnonzero(np.isfinite(losses))
    figure = Figure(figsize=(9.6, 4.0))
    # A layout that matplotlib works out would take as long as the drawing.
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    figure.subplots_adjust(left=0.065, right=0.985, bottom=0.13, top=0.91)
    paths_figure(place, {}, axis=left)
    left.plot(*points[finite].T, "o-", color=COLORS[0], ms=2.5, lw=0.9)
    left.plot(*place.start, "o", color="white", mec="black", ms=7)
    spelled = ", ".join(f"{name} {value:.4g}" for name, value in arguments.items())
    left.set_title(f"{ARMS[optimizer].label}: {spelled.replace('learning_', '')}")
    right.semilogy(finite, losses[finite], color=COLORS[0])
    # Fixed, so that a curve moves and not its axes.
    right.set(xlim=(0, steps), ylim=(LOWEST_LOSS, 10 * place.levels()[-1]), xlabel="step")
    last = losses[-1]
    right.set_title(
        f"loss after {steps} steps: {last:.2g}" if np.isfinite(last) else "diverged"
    )
    right.grid(alpha=0.25)
    return figure


@functools.cache
def program(
    landscape: str, optimizer: str, steps: int
) -> Callable[[Mapping[str, float]], tuple[jax.Array, jax.Array]]:
    """The compiled path from an optimizer's arguments, all of them traced.

    Returns:
      A function to the points [steps + 1, 2], the start first, and their losses [steps + 1].
    """
    place = LANDSCAPES[landscape]

    @jax.jit
    def run(arguments: Mapping[str, float]) -> tuple[jax.Array, jax.Array]:
        start = jnp.asarray(place.start, jnp.float32)
        points = walk(place, OPTIMIZERS[optimizer](**arguments), start, steps)
        return points, jax.vmap(place.function)(points)

    return run


class Explorer:
    """Sliders and a picture, or the first picture alone where ipywidgets is not installed.

    One output has both, so that a page without a kernel shows the picture.
    """

    def __init__(
        self,
        landscapes: Sequence[str],
        optimizers: Sequence[str],
        learning_rate: float,
        steps: int,
    ) -> None:
        self.steps = steps
        self.controls: dict[str, Any] = {}
        self.widget: Any = None
        decays = {k: v for name in optimizers for k, v in decays_of(name).items()}
        self.first = self._png(
            landscapes[0], optimizers[0], learning_rate=learning_rate, decays=decays
        )
        try:
            widgets: Any = importlib.import_module("ipywidgets")
        except ImportError:
            return
        low, high = RATE_EXPONENTS
        width = {"width": "480px"}
        unscaled = {"align_self": "flex-start"}
        self.image = widgets.Image(value=self.first, format="png", layout=unscaled)
        self.controls = {
            "landscape": widgets.Dropdown(options=landscapes),
            "optimizer": widgets.Dropdown(options=optimizers),
            "rate": widgets.FloatLogSlider(
                value=learning_rate, min=low, max=high, step=0.05, layout=width
            ),
        }
        for name, value in decays.items():
            self.controls[name] = widgets.FloatSlider(
                value=value, max=0.999, step=0.001, readout_format=".3f", layout=width
            )
        for name, control in self.controls.items():
            control.description = name
            control.observe(self._redraw, "value")
        self._show_used()
        self.widget = widgets.VBox([*self.controls.values(), self.image])

    def _redraw(self, change: Any) -> None:
        values = {name: control.value for name, control in self.controls.items()}
        self._show_used()
        self.image.value = self._png(
            values.pop("landscape"),
            values.pop("optimizer"),
            learning_rate=values.pop("rate"),
            decays=values,
        )

    def _show_used(self) -> None:
        used = decays_of(self.controls["optimizer"].value)
        for name in self.controls.keys() & set(DECAYS):
            self.controls[name].layout.display = None if name in used else "none"

    def _png(self, landscape: str, optimizer: str, **arguments: Any) -> bytes:
        figure = explored_figure(landscape, optimizer, **arguments, steps=self.steps)
        return png(figure, bbox_inches=None)  # of one size, whatever is drawn

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        bundle = {
            "text/plain": "an optimizer's path and its loss",
            "image/png": base64.b64encode(self.first).decode(),
        }
        return bundle if self.widget is None else self.widget._repr_mimebundle_() | bundle


def explore(
    landscapes: Sequence[str] = tuple(LANDSCAPES),
    optimizers: Sequence[str] = tuple(OPTIMIZERS),
    *,
    learning_rate: float = 0.01,
    steps: int = 300,
) -> Explorer:
    """Shows an optimizer's path, with sliders for its rate and its decays.

    A landscape and an optimizer are compiled together once; sliders then only draw.

    Args:
      landscapes: names to choose from, of LANDSCAPES; the first is shown first.
      optimizers: names to choose from, of OPTIMIZERS; the first is shown first.
      learning_rate: of the first picture, from 1e-6 to 10.
      steps: of every path.

    Returns:
      What a notebook displays as the last line of a cell.

    Raises:
      ArgumentError: for an unknown or missing name, a rate out of range, or steps below 1.
    """
    for name, chosen, known in (
        ("landscapes", landscapes, LANDSCAPES),
        ("optimizers", optimizers, OPTIMIZERS),
    ):
        if isinstance(chosen, str) or not chosen:
            raise ArgumentError(f"{name} is {chosen!r}; pass a list of one or more names.")
        for each in chosen:
            choice_of(each, name, known)
    low, high = (10.0**exponent for exponent in RATE_EXPONENTS)
    if not low <= learning_rate <= high:
        raise ArgumentError(
            f"learning_rate is {learning_rate}; pass a number from {low:g} to {high:g}."
        )
    return Explorer(landscapes, optimizers, learning_rate, positive(steps, "steps"))
