"""One picture for each of the survey's four questions (its section 2.4)."""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.lab.landscapes import LANDSCAPES
from benchmarks.lab.paths import COLORS, paths_figure
from benchmarks.survey.optimizers import DECAYING, ENTRIES, FAMILIES
from benchmarks.survey.pictures import Paths, labelled, save_png
from benchmarks.survey.records import (
    Record,
    Records,
    label_of,
    measured,
    of_problem,
    over_rates,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P")
SPLITTING = ("ravine", "rotated_ravine", "sparse")
CHOOSING = {"digits": "validation loss", "rosenbrock": "loss"}
ADJUSTING = (
    "sgd",
    "sgd_cosine",
    "adagrad",
    "adagrad_abs",
    "adam",
    "adam_cosine",
    "adam_abs",
    "adam_abs_cosine",
    "adam_abs_steady",
)


def draw_questions(records: Records, paths: Paths, folder: pathlib.Path) -> None:
    """Writes the pictures whose problems are among the records."""
    have = {problem for problem, _ in records}
    if have >= CHOOSING.keys():
        save_png(_choosing(records), folder / "question-1-choosing-the-rate.png")
    if "noisy" in have:
        save_png(_adjusting(records), folder / "question-2-adjusting-the-rate.png")
    if have >= set(SPLITTING):
        save_png(_splitting(records), folder / "question-3-one-rate-per-variable.png")
    if "saddle" in have:
        save_png(_leaving(records, paths), folder / "question-4-leaving-a-saddle.png")


def _choosing(records: Records) -> "Figure":
    figure, axes = _by_family(len(CHOOSING), "Final loss over the rate (tuning seeds, median)")
    for row, (problem, loss) in zip(axes, CHOOSING.items(), strict=True):
        of_name = of_problem(records, problem)
        _rates_row(row, of_name, "tuning_final_loss")
        start = max(measured(record, "curve_loss")[0] for record in of_name.values())
        row[0].set(ylabel=f"{problem}: final {loss}", ylim=(None, 3 * start))
    _legends_below(axes[-1])
    return figure


def _leaving(records: Records, paths: Paths) -> "Figure":
    figure, axes = _by_family(
        3, "Leaving a saddle: loss and path at the chosen rate, and steps over the rate"
    )
    saddle = of_problem(records, "saddle")
    for axis, family in zip(axes[0], FAMILIES, strict=True):
        for index, name in _members(family, saddle):
            steps, losses = (measured(saddle[name], f"curve_{of}") for of in ("steps", "loss"))
            axis.plot(steps, losses, color=COLORS[index])
        # The saddle's loss is 1/4; how closely a minimum is approached is not the question.
        axis.set(xscale="log", xlabel="step", xlim=(1, None), ylim=(-0.01, 0.3))
    axes[0][0].set_ylabel("loss")
    for axis, family in zip(axes[1], FAMILIES, strict=True):
        drawn = labelled(paths, "saddle", family)
        paths_figure(LANDSCAPES["saddle"], drawn, axis=axis, title="", legend=False)
    _rates_row(axes[2], saddle, "tuning_steps")
    axes[2][0].set_ylabel("steps until left")
    _legends_below(axes[-1])
    return figure


def _adjusting(records: Records) -> "Figure":
    from matplotlib.figure import Figure

    noisy = of_problem(records, "noisy")
    names = [name for name in ADJUSTING if name in noisy]
    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in names:
        style: dict[str, Any] = _style(name)
        steps, losses = (measured(noisy[name], f"curve_{of}") for of in ("steps", "loss"))
        label = f"{label_of(name)}, {noisy[name]['results']['rate']:g}"
        left.plot(steps, losses, lw=1.2, label=label, **style)
        rates, final = over_rates(noisy[name], "tuning_final_loss")
        right.plot(rates, final, lw=1.2, marker="o", ms=3, label=label, **style)
    left.set(yscale="log", xlabel="step", ylabel="loss without the noise")
    left.set_title("median of the reported seeds, at the chosen rate")
    right.set(xscale="log", yscale="log", xlabel="rate", ylabel="final loss")
    right.set_title("median of the tuning seeds, at every rate")
    start = measured(noisy[names[0]], "curve_loss")[0] if names else 1.0
    right.set_ylim(top=10 * start)
    for axis in (left, right):
        axis.grid(alpha=0.25)
    right.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    figure.suptitle("Noisy gradients: a constant rate, a decaying one, methods that adjust it")
    return figure


def _splitting(records: Records) -> "Figure":
    from matplotlib.figure import Figure

    panels = {
        "a ravine along an axis, and turned": ("ravine", "rotated_ravine"),
        "gradients that are seldom seen": ("sparse",),
    }
    names = [name for name in ENTRIES if all((at, name) in records for at in SPLITTING)]
    figure = Figure(figsize=(12, 1.6 + 0.28 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, problems) in zip(axes, panels.items(), strict=True):
        _steps_panel(axis, {at: of_problem(records, at) for at in problems}, names)
        axis.set_title(title)
    axes[0].set_yticks(range(len(names)), [label_of(name) for name in names])
    axes[0].invert_yaxis()
    figure.suptitle(
        "One rate per variable: steps to the target (median of the reported seeds)"
    )
    return figure


def _steps_panel(
    axis: "Axes", records: dict[str, dict[str, Record]], names: Sequence[str]
) -> None:
    """A row per optimizer, a mark per problem; past the last step where not reached."""
    budget = next(iter(next(iter(records.values())).values()))["config"]["steps"]
    never = 2.0 * budget
    for index, (problem, of_name) in enumerate(records.items()):
        medians = [np.median(measured(of_name[name], "steps_to_target")) for name in names]
        places = np.where(np.isfinite(medians), medians, never)
        axis.plot(
            places,
            np.arange(len(names)) + 0.2 * (index - (len(records) - 1) / 2),
            MARKERS[index],
            color=COLORS[1 - index],
            mec="white",
            ms=8,
            label=problem.replace("_", " "),
        )
    axis.axvline(budget, color="0.5", lw=0.8, ls="--")
    axis.set(
        xscale="log", xlabel="steps; beyond the line: not reached", xlim=(None, 3.2 * budget)
    )
    axis.grid(alpha=0.25)
    if len(records) > 1:
        axis.legend(loc="lower left", fontsize="small")


def _by_family(rows: int, title: str) -> tuple["Figure", Any]:
    """A column per family, named; axes of a row share their ordinate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 1.6 + 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, len(FAMILIES), sharey="row", squeeze=False)
    for axis, family in zip(axes[0], FAMILIES, strict=True):
        axis.set_title(family.replace("_", " "))
    for axis in axes.flat:
        axis.grid(alpha=0.25)
    figure.suptitle(title)
    return figure, axes


def _rates_row(axes: Sequence["Axes"], records: dict[str, Record], key: str) -> None:
    """A measure over the rate, a panel per family; a gap is a rate that did not arrive."""
    for axis, family in zip(axes, FAMILIES, strict=True):
        # Before the curves: matplotlib scales no axis of gaps alone.
        axis.set(xscale="log", yscale="log", xlabel="rate")
        for index, name in _members(family, records):
            rates, values = over_rates(records[name], key)
            axis.plot(
                rates,
                np.where(np.isfinite(values), values, np.nan),
                marker=MARKERS[index],
                ms=4,
                lw=1.2,
                color=COLORS[index],
                label=label_of(name),
            )


def _legends_below(axes: Sequence["Axes"]) -> None:
    for axis in axes:
        if axis.lines:
            axis.legend(
                loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False, fontsize="small"
            )


def _members(family: str, records: dict[str, Record]) -> list[tuple[int, str]]:
    """The optimizers of a family that have records, with their place in it."""
    return [(index, name) for index, name in enumerate(FAMILIES[family]) if name in records]


def _style(name: str) -> dict[str, Any]:
    """A colour per optimizer, dashed where its rate decays, dotted where it is steady."""
    base = name.removesuffix("_cosine").removesuffix("_steady")
    roots = [root for root in ADJUSTING if not root.endswith(("_cosine", "_steady"))]
    line = "--" if name in DECAYING else ":" if name.endswith("_steady") else "-"
    return {"color": COLORS[roots.index(base) % len(COLORS)], "ls": line}
