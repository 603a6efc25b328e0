"""Tables for the terminal and for Markdown, and figures as PNG and SVG."""

import io
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import PIL.Image
import rich.box
import rich.console
import rich.table

from benchmarks import store

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LIGHT_DPI = 80
LIGHT_COLORS = 128


class Table(NamedTuple):
    """A table of text: one caption, one header, rows of cells."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def show(self) -> None:
        """Prints the table in the terminal."""
        table = rich.table.Table(box=rich.box.SIMPLE)
        for index, name in enumerate(self.header):
            table.add_column(name, justify="left" if index == 0 else "right")
        for row in self.rows:
            table.add_row(*row)
        console = rich.console.Console()
        console.print(self.title, style="bold", highlight=False)
        console.print(table)

    def markdown(self) -> str:
        """The table in GitHub's Markdown."""
        lines = [self.header, ["---"] + ["---:"] * (len(self.header) - 1), *self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"**{self.title}**\n\n{body}\n"


def mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """The mean, with the sample standard deviation where there are several values."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def errors_above(own: np.ndarray, other: np.ndarray) -> float:
    """How far one mean is above another, in the standard errors of their difference."""
    error = np.sqrt(own.var(ddof=1) / len(own) + other.var(ddof=1) / len(other))
    difference = own.mean() - other.mean()
    return float(difference / error) if error > 0 else float(np.sign(difference) * np.inf)


def save_figure(figure: "Figure", path: pathlib.Path) -> None:
    """Writes a figure as PNG and SVG, each whole or not at all."""
    import matplotlib

    for suffix, options in ((".png", {"dpi": 150}), (".svg", {"metadata": {"Date": None}})):
        content = io.BytesIO()
        # The same figure, the same file.
        with matplotlib.rc_context({"svg.hashsalt": "optabs"}):
            figure.savefig(content, format=suffix[1:], bbox_inches="tight", **options)
        store.write_bytes(path.with_suffix(suffix), content.getvalue())


def png(figure: "Figure", *, bbox_inches: str | None = "tight") -> bytes:
    """A figure as PNG of few colours, a third of the bytes of one with all."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=LIGHT_DPI, bbox_inches=bbox_inches)
    with PIL.Image.open(content) as picture:
        # By coverage, since by counts of pixels thin lines would lose their colours; means
        # keep grey grey.
        few = picture.convert("RGB").quantize(
            LIGHT_COLORS,
            method=PIL.Image.Quantize.MAXCOVERAGE,
            kmeans=1,
            dither=PIL.Image.Dither.NONE,
        )
    content = io.BytesIO()
    few.save(content, format="png")
    return content.getvalue()


class Curve(NamedTuple):
    """One optimizer's curves, a row per seed."""

    name: str
    values: np.ndarray  # float [seeds, epochs]


def curves_figure(
    panels: Sequence[tuple[str, Sequence[Curve]]], *, ylabel: str, title: str
) -> "Figure":
    """A panel per setting, a line per optimizer (mean) and a band over seeds (min to max)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 4.6 * len(panels), 4.2))
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)
    names = list(dict.fromkeys(curve.name for _, curves in panels for curve in curves))
    colors = {name: f"C{index}" for index, name in enumerate(names)}
    drawn = [curve.values for _, curves in panels for curve in curves] or [np.zeros(1)]
    middle = min(float(np.median(values)) for values in drawn)
    highest = max(float(values.max()) for values in drawn)
    for axis, (caption, curves) in zip(axes[0], panels, strict=True):
        for curve in curves:
            epochs = np.arange(1, curve.values.shape[1] + 1)
            color = colors[curve.name]
            axis.plot(epochs, curve.values.mean(0), color=color, label=curve.name, lw=1.1)
            low, high = curve.values.min(0), curve.values.max(0)
            axis.fill_between(epochs, low, high, color=color, alpha=0.1, lw=0)
        axis.set_title(caption)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.25)
    # The first epochs would squeeze what distinguishes the optimizers into a few pixels.
    least = min(float(values.min()) for values in drawn)
    lowest = max(middle - 1.2 * (highest - middle), least)
    margin = 0.05 * (highest - lowest) or 1.0
    axes[0][0].set_ylim(lowest - margin, highest + margin)
    axes[0][0].set_ylabel(ylabel)
    figure.suptitle(title, fontsize="medium")
    # Beside the last panel; the saved picture grows to hold it.
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    figure.tight_layout()
    return figure


def as_array(rows: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """A measure of several records, one row per record."""
    return np.array([row["results"][key] for row in rows], dtype=float)
