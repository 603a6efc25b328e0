"""For notebooks: sliders over an optimizer's path."""

import base64
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets
import jax
import numpy as np
import optax

from benchmarks.lab.arguments import choice_of
from benchmarks.lab.landscapes import COLORS, LANDSCAPES, paths_figure, walk
from benchmarks.lab.report import png
from benchmarks.survey.study import ARMS, DECAYING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = 300
DECAYS = ("decay", "b1", "b2")
LOWEST_LOSS = 1e-10  # lower ones are the landscapes' rounding in float32

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    name: arm.make for name, arm in ARMS.items() if name not in DECAYING
}


def decays_of(optimizer: str) -> dict[str, float]:
    """The decays that an optimizer takes, with their defaults."""
    parameters = inspect.signature(OPTIMIZERS[optimizer]).parameters
    return {name: parameters[name].default for name in DECAYS if name in parameters}


@functools.cache
def program(
    landscape: str, optimizer: str
) -> Callable[[Mapping[str, float]], tuple[jax.Array, jax.Array]]:
    """Compiled: from an optimizer's arguments to its path [STEPS + 1, 2] and the losses."""
    place = LANDSCAPES[landscape]

    @jax.jit
    def run(arguments: Mapping[str, float]) -> tuple[jax.Array, jax.Array]:
        points = walk(place, OPTIMIZERS[optimizer](**arguments), STEPS)
        return points, jax.vmap(place.function)(points)

    return run


def explored_figure(
    landscape: str, optimizer: str, arguments: Mapping[str, float]
) -> "Figure":
    """An optimizer's path over a landscape, beside its loss at each step."""
    from matplotlib.figure import Figure

    place = LANDSCAPES[landscape]
    points, losses = map(np.asarray, program(landscape, optimizer)(arguments))
    finite = np.flatnonzero(np.isfinite(losses))
    figure = Figure(figsize=(9.6, 4.0))
    # A layout that matplotlib works out would take as long as the drawing.
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    figure.subplots_adjust(left=0.065, right=0.985, bottom=0.13, top=0.91)
    spelled = ", ".join(f"{name} {value:.4g}" for name, value in arguments.items())
    title = f"{ARMS[optimizer].label}: {spelled.replace('learning_', '')}"
    paths_figure(place, {}, axis=left, title=title)
    left.plot(*points[finite].T, "o-", color=COLORS[0], ms=2.5, lw=0.9)
    right.semilogy(finite, losses[finite], color=COLORS[0])
    # Fixed, so that a curve moves and not its axes.
    right.set(xlim=(0, STEPS), ylim=(LOWEST_LOSS, 10 * place.levels()[-1]), xlabel="step")
    reached = f"loss after {STEPS} steps: {losses[-1]:.2g}"
    right.set_title(reached if np.isfinite(losses[-1]) else "diverged")
    right.grid(alpha=0.25)
    return figure


class Explorer(ipywidgets.VBox):
    """An optimizer's path, with sliders for its rate and its decays.

    A landscape and an optimizer are compiled together once; sliders then only draw. The first
    picture is for pages without a kernel, too.

    Raises:
      ArgumentError: for a name not in OPTIMIZERS.
    """

    def __init__(
        self, optimizers: Sequence[str] = tuple(OPTIMIZERS), *, learning_rate: float = 0.01
    ) -> None:
        decays: dict[str, float] = {}
        for name in optimizers:
            decays |= decays_of(choice_of(name, "optimizers", OPTIMIZERS))
        wide = {"width": "480px"}
        fine = {"max": 0.999, "step": 0.001, "readout_format": ".3f", "layout": wide}
        rates = {"min": -6, "max": 1, "step": 0.05, "layout": wide}
        self.controls: dict[str, Any] = {
            "landscape": ipywidgets.Dropdown(options=list(LANDSCAPES)),
            "optimizer": ipywidgets.Dropdown(options=optimizers),
            "rate": ipywidgets.FloatLogSlider(value=learning_rate, **rates),
        }
        for name, value in decays.items():
            self.controls[name] = ipywidgets.FloatSlider(value=value, **fine)
        self.image = ipywidgets.Image(format="png", layout={"align_self": "flex-start"})
        for name, control in self.controls.items():
            control.description = name
            control.observe(self._draw, "value")
        self._draw()
        super().__init__([*self.controls.values(), self.image])

    def _draw(self, change: Any = None) -> None:
        values = {name: control.value for name, control in self.controls.items()}
        used = decays_of(values["optimizer"])
        for name in self.controls.keys() & set(DECAYS):
            self.controls[name].layout.display = None if name in used else "none"
        arguments = {"learning_rate": values["rate"], **{name: values[name] for name in used}}
        figure = explored_figure(values["landscape"], values["optimizer"], arguments)
        self.image.value = png(figure, bbox_inches=None)  # of one size, whatever is drawn

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return super()._repr_mimebundle_() | {
            "text/plain": "an optimizer's path and its loss",
            "image/png": base64.b64encode(self.image.value).decode(),
        }
