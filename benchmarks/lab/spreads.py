"""Medians with their quartiles, of measurements in turns: tables and figures of ratios."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from benchmarks.lab.report import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Spread(NamedTuple):
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    @property
    def percent(self) -> "Spread":
        """A hundred times as much."""
        return Spread(*(100 * part for part in self))

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return Spread(float(median), float(low), float(high))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours over theirs, round by round: a slow moment of the machine slows both."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


class Point(NamedTuple):
    """What one cell of a table and one whisker of a figure show."""

    size: str
    label: str
    spread: Spread


def points_table(title: str, points: Iterable[Point]) -> Table:
    """A row a label, a column a size."""
    cells: dict[str, dict[str, str]] = {}
    for point in (points := list(points)):
        cells.setdefault(point.label, {})[point.size] = str(point.spread)
    sizes = list(dict.fromkeys(point.size for point in points))
    rows = [[label, *(at.get(size, "-") for size in sizes)] for label, at in cells.items()]
    return Table(title, ["", *sizes], rows)


def points_figure(panels: Mapping[str, Iterable[Point]], title: str) -> "Figure":
    """Two panels a row: a line a label, a colour a size, medians with their quartiles."""
    from matplotlib.figure import Figure

    drawn = {caption: list(points) for caption, points in panels.items()}
    every = [point for points in drawn.values() for point in points]
    labels, sizes = (
        list(dict.fromkeys(getattr(point, name) for point in every))
        for name in ("label", "size")
    )
    figure = Figure(figsize=(10, 2 + 0.03 * len(labels) * (8 + len(sizes))))
    axes = figure.subplots(len(drawn) // 2, 2, sharey=True, squeeze=False)
    for axis, (caption, points) in zip(axes.flat, drawn.items(), strict=True):
        for place, size in enumerate(sizes):
            offset = (place - (len(sizes) - 1) / 2) * 0.7 / len(sizes)
            shown = {
                labels.index(x.label) + offset: x.spread for x in points if x.size == size
            }
            median, low, high = np.array(list(shown.values())).T.reshape(3, -1)
            whiskers = [median - low, high - median]
            axis.errorbar(median, list(shown), xerr=whiskers, fmt="o", ms=3, lw=1, label=size)
        axis.set_xlim(left=0)
        axis.axvline(1, color="black", lw=0.8)
        axis.grid(alpha=0.25)
        axis.set_yticks(range(len(labels)), labels)
        axis.set_xlabel(caption)
    axes[0][0].invert_yaxis()  # shared, so it turns all
    axes[0][-1].legend(title="parameters", bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.suptitle(title)
    figure.tight_layout()
    return figure
