"""The study's pictures: ratios by arm, and runs over time."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.dao_e.arms import RULE, SINGLES, UNIFORM
from benchmarks.dao_e.records import (
    BEST,
    MEASURES,
    Pair,
    Records,
    arms_of,
    label_of,
    ratios_to_uniform,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = ("mnist", "convnet", "long", "transformer")  # tasks of the pictures over time
MARKERS = "osv^D"
MULTIPLIERS = (1e-2, 1e2)  # ends of their axis


def ratios_figure(records: Records, pairs: Sequence[Pair]) -> "Figure":
    """A panel per measure, a row per arm, a mark per setting and a bar over all."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    arms = [BEST, *arms_of(records, pairs)]
    settings = list(dict.fromkeys(pair.setting for pair in pairs))
    figure = Figure(figsize=(14, 1.6 + 0.3 * len(arms)), layout="constrained")
    axes = figure.subplots(1, len(MEASURES), sharey=True, squeeze=False)[0]
    for axis, (measure, title) in zip(axes, MEASURES.items(), strict=True):
        for index, setting in enumerate(settings):
            own = [pair for pair in pairs if pair.setting == setting]
            axis.plot(
                [ratios_to_uniform(records, own, arm, measure).mean() for arm in arms],
                range(len(arms)),
                MARKERS[index % len(MARKERS)],
                ms=5,
                alpha=0.8,
                label=setting,
            )
        over_all = [ratios_to_uniform(records, pairs, arm, measure).mean() for arm in arms]
        axis.plot(over_all, range(len(arms)), "|", color="black", ms=14, mew=2, label="all")
        axis.axvline(1.0, color="0.5", lw=0.8, ls="--")
        axis.set(xscale="log", title=title)
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.25)
    axes[0].set_yticks(range(len(arms)), [label_of(arm) for arm in arms])
    axes[0].invert_yaxis()
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    figure.suptitle("Ratios to uniform weights, geometric means over tasks (lower is better)")
    return figure


def curves_figure(records: Records, pairs: Sequence[Pair]) -> "Figure":
    """The training loss of the experts, of uniform weights and of the measured rule."""
    from matplotlib.ticker import NullFormatter

    def draw(axis: "Axes", pair: Pair) -> None:
        for name in (*SINGLES, UNIFORM, RULE):
            if (pair.task, name) not in records:
                continue
            results, steps = _of_pair(records, pair, name)
            curve = np.array(results["curve"], dtype=float)
            style: dict[str, Any] = {"color": "black", "lw": 1.6} if name == RULE else {}
            axis.plot(_along(steps, curve), curve, label=label_of(name), **{"lw": 1.0} | style)
        axis.set_yscale("log")
        axis.yaxis.set_minor_formatter(NullFormatter())

    return _over_time(pairs, draw, "Training loss, mean over seeds")


def weights_figure(records: Records, pairs: Sequence[Pair]) -> "Figure":
    """The measured rule's weights, and its step multiplier on the right-hand axis."""

    def draw(axis: "Axes", pair: Pair) -> None:
        results, steps = _of_pair(records, pair, RULE)
        for name in SINGLES:
            share = results["watched"][name]
            axis.plot(_along(steps, share), share, lw=1.2, label=label_of(name))
        axis.set_ylim(0, 1)
        factor = results["watched"]["multiplier"]
        right = axis.twinx()
        right.plot(_along(steps, factor), factor, color="0.5", lw=0.8, ls=":")
        right.set(yscale="log", ylim=MULTIPLIERS)
        right.tick_params(labelsize="x-small", colors="0.5")

    title = "The measured rule's weights, mean over leaves and seeds; dotted: step multiplier"
    return _over_time(pairs, draw, title)


def _over_time(
    pairs: Sequence[Pair], draw: Callable[["Axes", Pair], None], title: str
) -> "Figure":
    """A row per task, a column per setting."""
    from matplotlib.figure import Figure

    known = list(dict.fromkeys(pair.task for pair in pairs))
    tasks = [task for task in SHOWN if task in known] or known[: len(SHOWN)]
    settings = list(dict.fromkeys(pair.setting for pair in pairs))
    size = (1 + 2.9 * len(settings), 0.9 + 2.2 * len(tasks))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(tasks), len(settings), squeeze=False)
    for row, task in zip(axes, tasks, strict=True):
        for axis, setting in zip(row, settings, strict=True):
            draw(axis, Pair(task, setting))
            axis.set_title(f"{task}, {setting}", fontsize="small")
            axis.tick_params(labelsize="x-small")
            axis.grid(alpha=0.25)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle(title)
    return figure


def _of_pair(records: Records, pair: Pair, arm: str) -> tuple[dict[str, Any], int]:
    record = records[pair.task, arm]
    return record["results"][pair.setting], record["config"]["steps"]


def _along(steps: int, values: Sequence[float] | np.ndarray) -> np.ndarray:
    """The steps at which equally spaced values were taken."""
    return np.arange(1, len(values) + 1) * (steps / len(values))
