"""The study's pictures: convergence, diversity, and who descends from whom."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gadam.arms import FUNCTION_ARMS, LITERAL, TUNED
from benchmarks.gadam.records import FLOOR, NETWORKS, Records, label_of, tasks_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = 20  # at most, of a picture
COLUMNS = 4
GENERATIONS = 12  # of a lineage, as far as it is kept


def curves_figure(records: Records) -> "Figure":
    """The best loss so far over gradient evaluations: median and quartiles over the seeds."""
    tasks = shown_tasks(records)
    figure, axes = _panels(len(tasks))
    for axis, task in zip(axes, tasks, strict=True):
        for index, arm in enumerate(FUNCTION_ARMS):
            results = records.get((task, arm), {}).get("results")
            if results is None:
                continue
            floor = 0.0 if task in NETWORKS else FLOOR
            low, middle, high = (
                np.maximum(np.array(curve, dtype=float), floor) for curve in results["curves"]
            )
            color = f"C{index}"
            axis.plot(results["looks"], middle, color=color, lw=1.3, label=_name(records, arm))
            axis.fill_between(results["looks"], low, high, color=color, alpha=0.2, lw=0)
        axis.set_yscale("log")
        _finish(axis, task, "gradient evaluations")
    _legend(figure, axes)
    figure.suptitle("Best loss so far: median and quartiles over the seeds")
    return figure


def diversity_figure(records: Records) -> "Figure | None":
    """How far the units are apart, over gradient evaluations; None without a population."""
    tasks = [task for task in shown_tasks(records) if _populations(records, task)]
    if not tasks:
        return None
    figure, axes = _panels(len(tasks))
    for axis, task in zip(axes, tasks, strict=True):
        for arm in _populations(records, task):
            results = records[task, arm]["results"]
            axis.plot(
                results["looks"],
                results["diversity"],
                color=f"C{list(FUNCTION_ARMS).index(arm)}",
                label=_name(records, arm),
            )
        axis.set_yscale("log")
        _finish(axis, task, "gradient evaluations")
    _legend(figure, axes)
    figure.suptitle("Root mean square distance of an entry from its mean over the population")
    return figure


def lineage_figure(records: Records) -> "Figure | None":
    """The first seed's ancestors of the last generation drawn; None without a population."""
    from matplotlib.ticker import MaxNLocator

    shown = [
        (task, arm) for task in shown_tasks(records) for arm in _populations(records, task)
    ]
    if not shown:
        return None
    # One function and one network tell it.
    first = shown[0][0]
    network = next((task for task, _ in shown if task in NETWORKS), None)
    shown = [pair for pair in shown if pair[0] in (first, network)]
    figure, axes = _panels(len(shown), columns=2)
    for axis, (task, arm) in zip(axes, shown, strict=True):
        _draw_lineage(axis, records[task, arm]["results"]["lineage"])
        axis.set_title(f"{task.replace('-', ', ')}: {_name(records, arm)}", fontsize="small")
        axis.set(xlabel="generation", ylabel="unit, the best below")
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(
        "Who descends from whom, the first seed: units by rank; lines from both parents to a "
        "child,\nthick where the unit itself survived; red: ancestors of the last one's best"
    )
    return figure


def _name(records: Records, arm: str) -> str:
    return label_of(records, arm, tasks_of(records, arm))


def edges_of(parents: np.ndarray, survivors: np.ndarray) -> list[tuple[int, int, bool]]:
    """From whom each survivor of one generation comes: (from, to, whether it is itself).

    Args:
      parents: int [g, 2], of each child.
      survivors: int [g], indices into the parents, then the children.
    """
    size = len(survivors)
    edges = []
    for place, who in enumerate(survivors.tolist()):
        if who < size:
            edges.append((who, place, True))
        else:
            edges += [(origin, place, False) for origin in set(parents[who - size].tolist())]
    return edges


def shown_tasks(records: Records) -> list[str]:
    """The tasks drawn: networks, and functions in 30 dimensions or the highest there are."""
    tasks = tasks_of(records)
    functions = [task for task in tasks if task not in NETWORKS]
    sizes = {int(task.split("-")[1]) for task in functions}
    size = 30 if 30 in sizes else max(sizes, default=0)
    chosen = [task for task in functions if task.split("-")[1] == str(size)]
    networks = [task for task in tasks if task in NETWORKS]
    return [*chosen[: PANELS - len(networks)], *networks]


def _draw_lineage(axis: "Axes", lineage: dict[str, Any]) -> None:
    survivors = np.array(lineage["survivors"])[:GENERATIONS]
    parents = np.array(lineage["parents"])[:GENERATIONS].reshape(*survivors.shape, 2)
    edges = [edges_of(*rows) for rows in zip(parents, survivors, strict=True)]
    ancestors = {0}
    for number in range(len(edges), 0, -1):
        before = set()
        for start, end, itself in edges[number - 1]:
            dark = end in ancestors
            if dark:
                before.add(start)
            axis.plot(
                (number - 1, number),
                (start, end),
                color="C3" if dark else "0.8",
                lw=1.8 if itself else 0.7,
                zorder=2 if dark else 1,
            )
        ancestors = before
    for number in range(len(edges) + 1):
        axis.plot(
            [number] * survivors.shape[1], range(survivors.shape[1]), ".", color="0.4", ms=3
        )


def _populations(records: Records, task: str) -> list[str]:
    return [
        arm
        for arm in (LITERAL, TUNED)
        if "lineage" in records.get((task, arm), {}).get("results", {})
    ]


def _panels(count: int, columns: int = COLUMNS) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(1.5 + 3.6 * columns, 1 + 2.8 * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def _finish(axis: "Axes", task: str, xlabel: str) -> None:
    axis.set_title(task.replace("-", ", ").replace("_", " "), fontsize="small")
    axis.set_xlabel(xlabel, fontsize="small")
    axis.tick_params(which="both", labelsize="x-small")
    axis.grid(alpha=0.25)


def _legend(figure: "Figure", axes: "Sequence[Axes]") -> None:
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
