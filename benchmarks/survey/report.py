"""The survey study's tables and pictures, from its records."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.lab import report
from benchmarks.lab.landscapes import COLORS, LANDSCAPES, paths_figure
from benchmarks.lab.records import Key, Record, Records, as_floats
from benchmarks.survey.study import ARMS, DECAYING, FAMILIES, GRID, PROBLEMS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEAR = 2.0  # a rate forgives where its result is within this factor of the best one's
MARKERS = ("o", "s", "^", "D")
# Rows of the picture of rates: a task, what is drawn, and the ordinate.
RATES = (
    ("digits", "final", "digits: final validation loss"),
    ("rosenbrock", "final", "rosenbrock: final loss"),
    ("saddle", "steps", "saddle: steps until left"),
    ("saddle", "curve", "saddle: loss at the chosen rate"),
)
RAVINES = ("ravine", "rotated_ravine")
# Where gradients are noisy: optimizers, those of a colour beside one another.
ADJUSTING = (
    ("sgd", "sgd_cosine"), ("adagrad",), ("adagrad_abs",), ("adam", "adam_cosine"),
    ("adam_abs", "adam_abs_cosine", "adam_abs_steady"),
)  # fmt: skip


class Row(NamedTuple):
    """What is recorded of an arm on a task."""

    config: Mapping[str, Any]
    tuning: Mapping[str, Any]
    runs: Sequence[Mapping[str, Any]]  # by seed
    curve: Mapping[str, Any]  # the median over the seeds
    path: Sequence[Sequence[float]] | None  # on a landscape

    def measured(self, measure: str) -> np.ndarray:
        """A measure of each run; null, which is not reached or diverged, is infinite."""
        return _finite_or_inf([run[measure] for run in self.runs])

    def drawn(self, measure: str) -> tuple[np.ndarray, np.ndarray]:
        """Every tried rate, and the median of a measure over the tuning seeds; or "curve"."""
        if measure == "curve":
            return np.array(self.curve["steps"]), _finite_or_inf(self.curve["loss"])
        values = _finite_or_inf(self.tuning[measure])
        return np.array(self.tuning["rates"]), np.median(values, axis=1)


Rows = dict[str, dict[str, Row]]  # by task and arm


def _finite_or_inf(values: Any) -> np.ndarray:
    return np.nan_to_num(as_floats(values), nan=np.inf, posinf=np.inf)


def rows_of(records: Records) -> Rows:
    """The finished arms of each task, in the order of the study."""
    runs: dict[tuple[str, str], list[Record]] = {}
    for record in records.select(kind="run"):
        runs.setdefault((record.key.task, record.key.arm), []).append(record)
    rows: Rows = {}
    for task, arm in itertools.product(PROBLEMS, ARMS):
        tuning, curve, path = (
            records.get(Key(task, arm, kind=kind)) for kind in ("tuning", "curve", "path")
        )
        if tuning and curve:
            own = [run.result for run in runs[task, arm] if run.config == tuning.config]
            points = path.result["points"] if path else None
            row = Row(tuning.config, tuning.result, own, curve.result, points)
            rows.setdefault(task, {})[arm] = row
    return rows


def write(records: Records) -> None:
    """Shows the tables, and writes them and the pictures into the records' folder."""
    rows = rows_of(records)
    drawn = [name for name in PICTURES if not rows.keys().isdisjoint(PICTURES[name][1])]
    pictures = [f"![{PICTURES[name][0]}]({name}.png)\n" for name in drawn]
    figures = {name: PICTURES[name][2](rows) for name in drawn}
    tables = [_overview(rows), _forgiving(rows)] if rows else []
    tables += [_task_table(of_arm) for of_arm in rows.values()]
    report.write(records.folder, "survey", [*pictures, "## Tables\n", *tables], figures)


def _words(task: str) -> str:
    return task.replace("_", " ")


def _arms_of(rows: Rows) -> list[str]:
    return [arm for arm in ARMS if any(arm in of_arm for of_arm in rows.values())]


def _overview(rows: Rows) -> report.Table:
    return report.Table(
        "Steps until the loss is at its target and stays there: median over the reported "
        "seeds, with the share of them that arrived where it is not all; - where half or "
        "more did not",
        ["optimizer", *map(_words, rows)],
        [
            [ARMS[arm].label, *(_steps(rows[task].get(arm)) for task in rows)]
            for arm in _arms_of(rows)
        ],
    )


def _steps(row: Row | None) -> str:
    steps = np.array([]) if row is None else row.measured("steps")
    arrived = int(np.isfinite(steps).sum())
    if 2 * arrived <= len(steps):
        return "-" if len(steps) else ""
    return _median(steps) + (f" ({arrived}/{len(steps)})" if arrived < len(steps) else "")


def _median(values: np.ndarray) -> str:
    median = np.median(values)
    return f"{median:.0f}" if np.isfinite(median) else "-"


def _forgiving(rows: Rows) -> report.Table:
    lines = []
    for arm in _arms_of(rows):
        own = {task: of_arm[arm] for task, of_arm in rows.items() if arm in of_arm}
        counts = {task: _near(row) for task, row in own.items()}
        best = [row.tuning["best"] for row in own.values()]
        summary = [f"{np.mean(list(counts.values())):.1f}", f"{min(best):g} to {max(best):g}"]
        if len(own) < len(rows):
            summary = ["", ""]
        cells = (str(counts.get(task, "")) for task in rows)
        lines.append([ARMS[arm].label, *cells, *summary])
    return report.Table(
        f"How many of the {len(GRID.rates)} rates, half decades apart, are within a factor "
        f"{NEAR:g} of the optimizer's own best (of the measure by which its rate is chosen; "
        "median over the tuning seeds; 0 where no rate arrives), and the chosen rates' range",
        ["optimizer", *map(_words, rows), "mean", "chosen rates"],
        lines,
    )


def _near(row: Row) -> int:
    _, values = row.drawn(row.config["judged_by"])
    return int((np.isfinite(values) & (values <= NEAR * values.min())).sum())


def _task_table(of_arm: Mapping[str, Row]) -> report.Table:
    first = next(iter(of_arm.values()))
    config, tested = first.config, "test_accuracy" in first.runs[0]
    lines = []
    for arm, row in of_arm.items():
        best, rates = row.tuning["best"], row.tuning["rates"]
        steps, final = row.measured("steps"), row.measured("final")
        finals = (np.median(final), final.min(), final.max())
        line = [
            ARMS[arm].label,
            f"{best:g}" + ("*" if best in (rates[0], rates[-1]) else ""),
            f"{np.isfinite(steps).sum()}/{len(steps)}",
            _median(steps),
            *(f"{each:.2g}" if np.isfinite(each) else "diverged" for each in finals),
        ]
        if tested:
            accuracies = 100 * row.measured("test_accuracy")
            line.append(report.mean_and_spread(list(accuracies)))
        lines.append(line)
    chosen = "fewest steps" if config["judged_by"] == "steps" else "lowest final loss"
    title = config["title"]
    return report.Table(
        f"{title[0].upper()}{title[1:]}: {config['steps']} steps, {len(first.runs)} "
        f"seeds, rate of {chosen} on {len(config['tuning_seeds'])} other seeds (* at an edge "
        f"of the tried ones); target {config['share']:g} of the loss at the start; median "
        "steps, and the final loss's median, lowest and highest"
        + ("; test accuracy in percent, mean ± standard deviation" if tested else ""),
        ["optimizer", "rate", "arrived", "steps", "final loss", "lowest", "highest"]
        + (["test accuracy"] if tested else []),
        lines,
    )


def _rates_figure(rows: Rows) -> "Figure":
    """A column a family."""
    from matplotlib.figure import Figure

    wanted = [panel for panel in RATES if panel[0] in rows]
    figure = Figure(figsize=(15, 1.2 + 2.7 * len(wanted)), layout="constrained")
    axes = figure.subplots(len(wanted), len(FAMILIES), sharey="row", squeeze=False)
    for line, (task, what, ylabel) in zip(axes, wanted, strict=True):
        for axis, arms in zip(line, FAMILIES.values(), strict=True):
            axis.set(xscale="log", xlabel="step" if what == "curve" else "rate")
            for place, (arm, color) in enumerate(zip(arms, COLORS, strict=False)):
                if arm in rows[task]:
                    # A gap is a rate at which nothing arrived.
                    x, y = rows[task][arm].drawn(what)
                    y = np.where(np.isfinite(y), y, np.nan)
                    marker = None if what == "curve" else MARKERS[place]
                    axis.plot(x, y, color=color, marker=marker, ms=4, lw=1.2,
                              label=ARMS[arm].label)  # fmt: skip
            axis.grid(alpha=0.25)
        line[0].set(ylabel=ylabel, yscale="linear" if what == "curve" else "log")
        if what == "curve":
            # The saddle's is 1/4; how closely a minimum is approached is not the question.
            line[0].set_ylim(-0.01, 0.3)
        elif what == "final":
            start = max(row.curve["loss"][0] for row in rows[task].values())
            line[0].set_ylim(top=3 * start)
    for family, first, last in zip(FAMILIES, axes[0], axes[-1], strict=True):
        first.set_title(_words(family))
        named = first.get_legend_handles_labels()
        last.legend(*named, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)
    return figure


def _noise_figure(rows: Rows) -> "Figure":
    """Above, loss over steps and rates under noise; below, steps to the target."""
    from matplotlib.figure import Figure

    noisy = rows.get("noisy", {})
    figure = Figure(figsize=(13, 11), layout="constrained")
    (left, right), below = figure.subplots(2, 2)
    for color, arms in zip(COLORS, ADJUSTING, strict=False):
        for arm in [arm for arm in arms if arm in noisy]:
            line = "--" if arm in DECAYING else ":" if arm.endswith("_steady") else "-"
            label = f"{ARMS[arm].label}, {noisy[arm].tuning['best']:g}"
            style: dict[str, Any] = {"color": color, "ls": line, "lw": 1.2, "label": label}
            left.semilogy(*noisy[arm].drawn("curve"), **style)
            right.loglog(*noisy[arm].drawn("final"), marker="o", ms=3, **style)
    left.set(title="noisy gradients, chosen rate", xlabel="step", ylabel="loss without noise")
    right.set(title="noisy gradients, every rate", xlabel="rate", ylabel="final loss")
    if noisy:
        right.set_ylim(top=10 * next(iter(noisy.values())).curve["loss"][0])
        right.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    for axis, tasks in zip(below, (RAVINES, ("sparse",)), strict=True):
        _steps_panel(axis, {task: rows[task] for task in tasks if task in rows})
    for axis in figure.axes:
        axis.grid(alpha=0.25)
    return figure


def _steps_panel(axis: "Axes", rows: Rows) -> None:
    """A line an arm, a mark a task; past the last step where the target is not reached."""
    axis.set(xscale="log", xlabel="steps to the target; beyond the line: not reached")
    names = _arms_of(rows)
    for place, (task, of_arm) in enumerate(rows.items()):
        budget = next(iter(of_arm.values())).config["steps"]
        medians = np.array([np.median(row.measured("steps")) for row in of_arm.values()])
        heights = np.array([names.index(arm) for arm in of_arm], float)
        axis.plot(
            np.where(np.isfinite(medians), medians, 2 * budget),
            heights + 0.2 * (place - (len(rows) - 1) / 2),
            MARKERS[place], color=COLORS[1 - place], mec="white", ms=8, label=_words(task),
        )  # fmt: skip
        axis.axvline(budget, color="0.5", lw=0.8, ls="--")
    axis.set_yticks(range(len(names)), [ARMS[arm].label for arm in names])
    axis.invert_yaxis()
    if rows:
        axis.legend(loc="lower left", fontsize="small")


def _landscapes_figure(rows: Rows) -> "Figure":
    from matplotlib.figure import Figure

    places = [name for name in LANDSCAPES if name in rows]
    families = {
        family: arms
        for family, arms in FAMILIES.items()
        if any(arm in rows[place] for place in places for arm in arms)
    }
    shape = (len(families), len(places))
    figure = Figure(figsize=(1.6 + 2.8 * shape[1], 2.5 * shape[0]), layout="constrained")
    axes = figure.subplots(*shape, squeeze=False)
    for line, (family, arms) in zip(axes, families.items(), strict=True):
        colors = {ARMS[arm].label: color for arm, color in zip(arms, COLORS, strict=False)}
        for axis, place in zip(line, places, strict=True):
            paths = {
                ARMS[arm].label: np.array(rows[place][arm].path, float)
                for arm in arms
                if arm in rows[place]
            }
            title = _words(place) if axis in axes[0] else ""
            paths_figure(LANDSCAPES[place], paths, axis=axis, title=title, colors=colors,
                         legend=False)  # fmt: skip
            axis.set(xlabel="", ylabel="")
        line[0].set_ylabel(_words(family))
        line[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    return figure


# What is seen, tasks of which it needs one, and how it is drawn.
PICTURES: dict[str, tuple[str, Iterable[str], Callable[[Rows], "Figure"]]] = {
    "rates": ("Medians at every rate (tuning seeds), and a saddle at the chosen one",
              [each[0] for each in RATES], _rates_figure),
    "noise_and_ravines": ("Losses under noise; steps in ravines and of seldom seen gradients",
                          ("noisy", "sparse", *RAVINES), _noise_figure),
    "landscapes": ("Paths at the chosen rates: a row a family, a column a landscape",
                   LANDSCAPES, _landscapes_figure),
}  # fmt: skip
