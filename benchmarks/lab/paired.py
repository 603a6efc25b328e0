"""A study's runs by task, setting and arm, and arms against each other on the same seeds."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.lab.records import Records, as_floats
from benchmarks.lab.report import Table, mean_and_spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Pair(NamedTuple):
    """A task in a setting."""

    task: str
    setting: str

    def __str__(self) -> str:
        return f"{self.task}, {self.setting}"


def by_setting(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """The pairs of each setting, and all."""
    settings = dict.fromkeys(pair.setting for pair in pairs)
    groups = {name: [pair for pair in pairs if pair.setting == name] for name in settings}
    return groups | {"all": list(pairs)}


def log_ratio(own: np.ndarray, base: np.ndarray) -> np.ndarray:
    """The logarithm of the ratio of two losses."""
    return np.log(own / base)


class Runs:
    """The results of all runs, of kind "run", and their means over seeds, of kind "mean".

    Args:
      records: of the study.
      best: names under which the best of several arms is meant, in hindsight: that of the
        best mean over the seeds, by measure and pair.
    """

    def __init__(
        self, records: Records, best: Mapping[str, Collection[str]] | None = None
    ) -> None:
        self.configs: dict[tuple[str, str], Mapping[str, Any]] = {}  # by task and arm
        self.means: dict[tuple[Pair, str], Mapping[str, Any]] = {}
        self._results: dict[tuple[Pair, str], list[Mapping[str, Any]]] = {}
        self._best = best or {}
        for key, config, result, *_ in records:
            pair = Pair(key.task, key.setting)
            if key.kind == "run":
                self.configs[key.task, key.arm] = config
                self._results.setdefault((pair, key.arm), []).append(result)
            elif key.kind == "mean":
                self.means[pair, key.arm] = result

    def has(self, pair: Pair, arm: str) -> bool:
        """Whether there are runs of the arm."""
        return (pair, arm) in self._results

    def values(self, pair: Pair, arm: str, measure: str) -> np.ndarray:
        """A measure of an arm on a pair: float [seeds], null as NaN."""
        results = self._results[pair, self.best(pair, arm, measure)]
        return as_floats([result[measure] for result in results])

    def best(self, pair: Pair, arm: str, measure: str) -> str:
        """Which arm is meant by a name."""
        if arm not in self._best:
            return arm
        sign = -1 if measure.endswith("accuracy") else 1
        return min(
            self._best[arm], key=lambda name: sign * self.values(pair, name, measure).mean()
        )

    def paired(
        self,
        pair: Pair,
        arm: str,
        other: str,
        measure: str,
        difference: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.subtract,
    ) -> np.ndarray:
        """An arm against another on the seeds that both have: float [seeds]."""
        own, base = (self.values(pair, name, measure) for name in (arm, other))
        seeds = min(len(own), len(base))
        return difference(own[:seeds], base[:seeds])

    def ratios(self, pairs: Sequence[Pair], arm: str, other: str, measure: str) -> np.ndarray:
        """Geometric means over pairs of an arm's loss over another's: float [seeds]."""
        logs = [self.paired(pair, arm, other, measure, log_ratio) for pair in pairs]
        return np.exp(np.mean(logs, axis=0))

    def points(
        self, pairs: Sequence[Pair], arm: str, other: str, measure: str
    ) -> list[np.ndarray]:
        """An arm's accuracy minus another's on each pair, in points: float [seeds]."""
        return [100 * self.paired(pair, arm, other, measure) for pair in pairs]


def standard_error(values: np.ndarray) -> float:
    """Of the mean; NaN of a single value."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.nan


def mean_and_error(values: np.ndarray) -> str:
    """The mean of differences, with its standard error where there are several."""
    error = f" ± {standard_error(values):.2f}" if len(values) > 1 else ""
    return f"{values.mean():+.2f}{error}"


def ratio_table(
    runs: Runs,
    pairs: Sequence[Pair],
    arms: Mapping[str, str],
    other: str,
    measure: str,
    title: str,
) -> Table:
    """Ratios of a loss to another arm's, by setting and over all: a row an arm.

    Args:
      runs: the study's.
      pairs: over which the means are.
      arms: labels by name.
      other: the arm whose loss is 1.
      measure: the loss.
      title: of the loss and of that arm.
    """
    groups = by_setting(pairs)
    rows = [
        [label, *(mean_and_spread(list(runs.ratios(group, arm, other, measure)), 3)
                  for group in groups.values())]
        for arm, label in arms.items()
    ]  # fmt: skip
    tasks = ", ".join(dict.fromkeys(pair.task for pair in pairs))
    title += f": geometric mean over {tasks}; mean ± standard deviation over seeds"
    return Table(title, ["arm", *groups], rows)


def means_table(
    runs: Runs, pairs: Sequence[Pair], arms: Mapping[str, str], measure: str, title: str
) -> Table:
    """Means over seeds in percent: a row a pair, a column an arm; last, over all pairs."""
    means = {
        (pair, arm): (100 * runs.values(pair, arm, measure)).mean()
        for pair in pairs
        for arm in arms
        if runs.has(pair, arm)
    }
    rows = [
        [
            str(pair),
            *(f"{means[pair, arm]:.2f}" if (pair, arm) in means else "" for arm in arms),
        ]
        for pair in pairs
    ]
    last = ["mean"]
    for arm in arms:
        own = [means[pair, arm] for pair in pairs if (pair, arm) in means]
        last.append(f"{np.mean(own):.2f}" if len(own) == len(pairs) else "")
    title += " in percent, means over seeds"
    return Table(title, ["task, setting", *arms.values()], [*rows, last])


class Line(NamedTuple):
    """A curve of the means over seeds."""

    label: str
    arm: str
    curve: str
    style: Mapping[str, Any] = {}


def curves_grid(
    runs: Runs,
    tasks: Sequence[str],
    settings: Sequence[str],
    lines: Sequence[Line],
    *,
    title: str,
    right: Line | None = None,
    right_limits: tuple[float, float] = (1e-2, 1e2),
    **axis_options: Any,
) -> "Figure":
    """A panel for each task and setting: curves over the steps, and one legend.

    Args:
      runs: the study's.
      tasks: a row each.
      settings: a column each.
      lines: those that a pair lacks are left out.
      title: of the figure.
      right: drawn on a logarithmic axis on the right.
      right_limits: of that axis.
      **axis_options: for `Axes.set`, such as `yscale`.
    """
    from matplotlib.figure import Figure

    def plot(axis: "Axes", pair: Pair, line: Line) -> None:
        if (pair, line.arm) in runs.means:
            values = runs.means[pair, line.arm]["curves"][line.curve]
            steps = runs.configs[pair.task, line.arm]["steps"]
            at = np.arange(1, len(values) + 1) * (steps / len(values))
            axis.plot(at, as_floats(values), label=line.label, **{"lw": 1.1, **line.style})

    size = (1 + 2.9 * len(settings), 0.9 + 2.2 * len(tasks))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(tasks), len(settings), squeeze=False)
    for task, row in zip(tasks, axes, strict=True):
        for setting, axis in zip(settings, row, strict=True):
            pair = Pair(task, setting)
            for line in lines:
                plot(axis, pair, line)
            axis.set(**axis_options)
            axis.minorticks_off()
            axis.set_title(str(pair), fontsize="small")
            axis.tick_params(labelsize="x-small")
            axis.grid(alpha=0.25)
            if right is not None:
                other = axis.twinx()
                plot(other, pair, right)
                other.set(yscale="log", ylim=right_limits)
                other.tick_params(labelsize="x-small", colors="0.5")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle(title)
    return figure
