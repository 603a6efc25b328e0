"""The survey study's tables and pictures, from its records."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.lab import report
from benchmarks.lab.landscapes import COLORS, LANDSCAPES, paths_figure
from benchmarks.lab.records import Records, as_floats
from benchmarks.survey.study import ARMS, FAMILIES, GRID, PROBLEMS, arms_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEAR = 2.0  # a rate forgives where its result is within this factor of the best one's
# Rows of the picture of rates: a task, what is drawn, and the ordinate.
RATES = (
    ("digits", "final", "digits: final validation loss"),
    ("rosenbrock", "final", "rosenbrock: final loss"),
    ("saddle", "steps", "saddle: steps until left"),
)
# Where gradients are noisy: a colour a base, dashes where the rate decays.
NOISY = {
    "sgd": "C0-", "sgd_cosine": "C0--", "adagrad": "C1-", "adagrad_abs": "C2-",
    "adam": "C3-", "adam_cosine": "C3--",
    "adam_abs": "C4-", "adam_abs_cosine": "C4--", "adam_abs_steady": "C4:",
}  # fmt: skip
# Whether a rate for each variable helps: markers, the later the smaller.
VARIABLES = {"ravine": ("o", 9), "rotated_ravine": ("s", 6), "sparse": ("^", 5)}


class Row(NamedTuple):
    """What is recorded of an arm on a task."""

    config: Mapping[str, Any]
    tuning: Mapping[str, Any]
    runs: Sequence[Mapping[str, Any]]  # by seed
    curve: Mapping[str, Any]  # the median over the seeds
    path: Sequence[Sequence[float]] = ()  # on a landscape

    def measured(self, measure: str) -> np.ndarray:
        """A measure of each run; infinite for null, which is not reached or diverged."""
        return _or_infinite([run[measure] for run in self.runs])

    def tried(self, measure: str) -> np.ndarray:
        """The median of a measure over the tuning seeds, at every rate."""
        return np.median(_or_infinite(self.tuning[measure]), axis=1)

    def near(self) -> int:
        """How many rates are NEAR the best one."""
        values = self.tried(self.config["judged_by"])
        return int((np.isfinite(values) & (values <= NEAR * values.min())).sum())


Rows = dict[str, dict[str, Row]]  # by task and arm


def _or_infinite(values: Any) -> np.ndarray:
    return np.nan_to_num(as_floats(values), nan=np.inf, posinf=np.inf)


def rows_of(records: Records) -> Rows:
    """The finished arms of each task, in the order of the study."""
    rows: Rows = {}
    for task, arm in itertools.product(PROBLEMS, ARMS):
        found = records.select(task=task, arm=arm)
        kinds = {record.key.kind: record for record in found}
        if "tuning" in kinds and "curve" in kinds:
            config = kinds["tuning"].config
            runs = [r.result for r in found if r.key.kind == "run" and r.config == config]
            path = kinds["path"].result["points"] if "path" in kinds else ()
            row = Row(config, kinds["tuning"].result, runs, kinds["curve"].result, path)
            rows.setdefault(task, {})[arm] = row
    return rows


def write(records: Records) -> None:
    """Shows the tables and writes them, and of a whole study the pictures."""
    rows = rows_of(records)
    tables = [_overview(rows), _forgiving(rows), *map(_task_table, rows.values())]
    whole = all(rows.get(task, {}).keys() == set(arms_of(task)) for task in PROBLEMS)
    drawn = PICTURES if whole else {}
    pictures = [f"![{caption}]({name}.png)\n" for name, (caption, _) in drawn.items()]
    figures = {name: draw(rows) for name, (_, draw) in drawn.items()}
    report.write(records.folder, "survey", [*pictures, "## Tables\n", *tables], figures)


def _words(task: str) -> str:
    return task.replace("_", " ")


def _by_label(rows: Rows) -> dict[str, list[Row | None]]:
    """What each optimizer has of every task."""
    found = {arm: [of_arm.get(arm) for of_arm in rows.values()] for arm in ARMS}
    return {ARMS[arm].label: own for arm, own in found.items() if any(own)}


def _overview(rows: Rows) -> report.Table:
    return report.Table(
        "Steps until the loss is at its target and stays there: median over the reported "
        "seeds, with the share of them that arrived where it is not all; - where half or "
        "more did not",
        ["optimizer", *map(_words, rows)],
        [[label, *map(_steps, own)] for label, own in _by_label(rows).items()],
    )


def _steps(row: Row | None) -> str:
    steps = np.zeros(0) if row is None else row.measured("steps")
    arrived, wanted = int(np.isfinite(steps).sum()), len(steps)
    if 2 * arrived <= wanted:
        return "-" if wanted else ""
    return f"{np.median(steps):.0f}" + (f" ({arrived}/{wanted})" if arrived < wanted else "")


def _forgiving(rows: Rows) -> report.Table:
    lines = []
    for label, own in _by_label(rows).items():
        counts = [str(row.near()) if row else "" for row in own]
        best = [row.tuning["best"] for row in own if row]
        both = ["", ""]
        if all(own):
            both = [f"{np.mean([*map(int, counts)]):.1f}", f"{min(best):g} to {max(best):g}"]
        lines.append([label, *counts, *both])
    return report.Table(
        f"How many of the {len(GRID.rates)} rates, half decades apart, are within a factor "
        f"{NEAR:g} of the optimizer's own best (of the measure by which its rate is chosen; "
        "median over the tuning seeds; 0 where no rate arrives), and the chosen rates' range",
        ["optimizer", *map(_words, rows), "mean", "chosen rates"],
        lines,
    )


def _loss(value: float) -> str:
    return f"{value:.2g}" if np.isfinite(value) else "diverged"


def _task_table(of_arm: Mapping[str, Row]) -> report.Table:
    first = next(iter(of_arm.values()))
    config, lines = first.config, []
    for arm, row in of_arm.items():
        best, rates = row.tuning["best"], row.tuning["rates"]
        steps, final = row.measured("steps"), row.measured("final")
        cells = {
            "optimizer": ARMS[arm].label,
            "rate": f"{best:g}" + ("*" if best in (rates[0], rates[-1]) else ""),
            "arrived": f"{np.isfinite(steps).sum()}/{len(steps)}",
            "steps": f"{np.median(steps):.0f}".replace("inf", "-"),
            "final loss": _loss(np.median(final)),
            "lowest": _loss(final.min()),
            "highest": _loss(final.max()),
        }
        if "test_accuracy" in row.runs[0]:
            accuracies = list(100 * row.measured("test_accuracy"))
            cells["test accuracy"] = report.mean_and_spread(accuracies)
        lines.append(list(cells.values()))
    chosen = "fewest steps" if config["judged_by"] == "steps" else "lowest final loss"
    title = config["title"]
    return report.Table(
        f"{title[0].upper()}{title[1:]}: {config['steps']} steps, {len(first.runs)} "
        f"seeds, rate of {chosen} on {len(config['tuning_seeds'])} other seeds (* at an edge "
        f"of the tried ones); target {config['share']:g} of the loss at the start; median "
        "steps, and the final loss's median, lowest and highest"
        + ("; test accuracy in percent, mean ± standard deviation" if len(cells) > 7 else ""),
        list(cells),
        lines,
    )


def _named(axis: Any, **place: Any) -> None:
    axis.legend(*axis.get_legend_handles_labels(), frameon=False, **place)


def _rates_figure(rows: Rows) -> "Figure":
    """A column a family."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 9.3), layout="constrained")
    axes = figure.subplots(len(RATES), len(FAMILIES), sharey="row")
    for line, (task, measure, ylabel) in zip(axes, RATES, strict=True):
        for axis, (family, arms) in zip(line, FAMILIES.items(), strict=True):
            for arm, color, marker in zip(arms, COLORS, "os^D", strict=False):
                row = rows[task][arm]
                # A gap is a rate at which nothing arrived.
                axis.plot(row.tuning["rates"], row.tried(measure), color=color,
                          marker=marker, ms=4, lw=1.2, label=ARMS[arm].label)  # fmt: skip
            axis.set(xscale="log", yscale="log", xlabel="rate")
            axis.set_title(_words(family) if axis in axes[0] else "")
            axis.grid(alpha=0.25)
        line[0].set_ylabel(ylabel)
        if measure == "final":
            line[0].set_ylim(top=3 * max(row.curve["loss"][0] for row in rows[task].values()))
    for axis in axes[-1]:
        _named(axis, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return figure


def _noise_figure(rows: Rows) -> "Figure":
    """Loss over steps and rates under noise; steps to the target."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for arm, style in NOISY.items():
        row = rows["noisy"][arm]
        label = f"{ARMS[arm].label}, {row.tuning['best']:g}"
        left.semilogy(row.curve["steps"], row.curve["loss"], style, lw=1.2, label=label)
        middle.loglog(row.tuning["rates"], row.tried("final"), style, marker="o", ms=3)
    left.set(title="noisy gradients, chosen rate", xlabel="step", ylabel="loss without noise")
    middle.set(title="noisy gradients, every rate", xlabel="rate", ylabel="final loss")
    middle.set_ylim(top=1e2)  # ten times the loss at the start
    for task, (marker, size) in VARIABLES.items():
        budget = rows[task]["sgd"].config["steps"]
        steps = [np.median(row.measured("steps")) for row in rows[task].values()]
        labels = [ARMS[arm].label for arm in rows[task]]
        reached = np.minimum(steps, 2 * budget)
        right.semilogx(reached, labels, marker, ms=size, label=_words(task))
        right.axvline(budget, color="0.5", lw=0.8, ls="--")
    right.set(title="steps to the target; beyond the line: not reached", xlabel="steps")
    right.invert_yaxis()
    for axis in (left, right):
        _named(axis)
    for axis in figure.axes:
        axis.grid(alpha=0.25)
    return figure


def _landscape_figure(rows: Rows) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15.6, 12.5), layout="constrained")
    axes = figure.subplots(len(FAMILIES), len(LANDSCAPES))
    for line, (family, arms) in zip(axes, FAMILIES.items(), strict=True):
        for axis, (name, place) in zip(line, LANDSCAPES.items(), strict=True):
            paths = {ARMS[arm].label: np.array(rows[name][arm].path) for arm in arms}
            title = _words(name) if axis in axes[0] else ""
            paths_figure(place, paths, axis=axis, title=title, legend=False)
            axis.set(xlabel="", ylabel=_words(family) if axis is line[0] else "")
        _named(line[-1], loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


# By file: what is seen, and how it is drawn.
PICTURES = {
    "rates": ("Medians at every rate (tuning seeds)", _rates_figure),
    "noise_and_ravines":
        ("Losses under noise; steps in ravines and of seldom seen gradients", _noise_figure),
    "landscapes":
        ("Paths at the chosen rates: a row a family, a column a landscape", _landscape_figure),
}  # fmt: skip
