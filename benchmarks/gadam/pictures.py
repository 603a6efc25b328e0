"""The study's pictures: convergence, diversity, and who descends from whom."""

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.gadam.report import FLOOR, Results, title_of
from benchmarks.gadam.tasks import LITERAL, MAIN, NETWORKS, TUNED
from benchmarks.lab.records import as_floats
from benchmarks.lab.report import Curve, curves_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GENERATIONS = 12  # of a lineage, as far as it is kept


def figures_of(found: Results) -> "dict[str, Figure]":
    """Of networks, and of functions in 30 dimensions or the highest there are."""
    functions = [task for task in found.tasks() if task not in NETWORKS]
    sizes = {int(task.split("-")[1]) for task in functions}
    size = 30 if 30 in sizes else max(sizes, default=0)
    tasks = [task for task in functions if f"-{size}-" in task] + found.networks()
    figures = {
        "curves": _curves(
            found, tasks, "quartiles", "Best loss so far: median and quartiles over the seeds"
        )
    }
    grown = [(task, arm) for task in tasks for arm in (LITERAL, TUNED) if (task, arm) in found]
    if grown:
        figures["diversity"] = _curves(
            found, list(dict.fromkeys(task for task, _ in grown)), "diversity",
            "Root mean square distance of an entry from its mean over the population",
        )  # fmt: skip
        # One function and one network tell it.
        ends = {grown[0][0], next((task for task, _ in grown if task in NETWORKS), "")}
        figures["lineage"] = _lineages(found, [pair for pair in grown if pair[0] in ends])
    return figures


def _curves(found: Results, tasks: list[str], name: str, title: str) -> "Figure":
    panels = []
    for task in tasks:
        floor = FLOOR if task not in NETWORKS and name == "quartiles" else 0.0
        curves = []
        for arm in MAIN:
            whole = found[task, arm].whole if (task, arm) in found else {}
            if name in whole:
                values = np.maximum(np.atleast_2d(as_floats(whole[name])), floor)
                curves.append(Curve(found.label(arm, [task]), values, whole["looks"]))
        panels.append((title_of(task), curves))
    return curves_figure(
        panels, ylabel="", title=title, xlabel="gradient evaluations", columns=4, log=True,
        middle=np.median,
    )  # fmt: skip


def _lineages(found: Results, pairs: list[tuple[str, str]]) -> "Figure":
    from matplotlib.figure import Figure

    rows = -(-len(pairs) // 2)
    figure = Figure(figsize=(8.7, 1 + 2.8 * rows), layout="constrained")
    for axis, (task, arm) in zip(figure.subplots(rows, 2).flat, pairs, strict=False):
        first = found[task, arm].runs[0]
        survivors = np.array(first["survivors"])[:GENERATIONS]
        draw_lineage(axis, np.array(first["parents"])[:GENERATIONS], survivors)
        axis.set_title(f"{title_of(task)}: {found.label(arm, [task])}", fontsize="small")
    figure.suptitle(
        "Who descends from whom, the first seed: units by rank; lines from both parents to a "
        "child,\nthick where the unit itself survived; red: ancestors of the last one's best"
    )
    return figure


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


def draw_lineage(axis: "Axes", parents: np.ndarray, survivors: np.ndarray) -> None:
    """Draws parents int [generations, g, 2] and survivors int [generations, g]."""
    from matplotlib.ticker import MaxNLocator

    edges = [edges_of(*rows) for rows in zip(parents, survivors, strict=True)]
    ancestors = {0}
    for number in range(len(edges), 0, -1):
        before = set()
        for start, end, itself in edges[number - 1]:
            dark = end in ancestors
            if dark:
                before.add(start)
            axis.plot(
                (number - 1, number), (start, end), color="C3" if dark else "0.8",
                lw=1.8 if itself else 0.7, zorder=2 if dark else 1,
            )  # fmt: skip
        ancestors = before
    units = range(survivors.shape[1])
    for number in range(len(edges) + 1):
        axis.plot([number] * len(units), units, ".", color="0.4", ms=3)
    axis.set(xlabel="generation", ylabel="unit, the best below")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
