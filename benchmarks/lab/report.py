"""Tables for the terminal and for Markdown, bars, and figures as PNG."""

import io
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import PIL.Image
import rich.console
import rich.markdown
import typer

from benchmarks.lab.records import Records, as_floats, write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = TypeVar("Row")
Column = TypeVar("Column")

DPI = 80
COLORS_OF_PNG = 128


class Table(NamedTuple):
    """A table of text: one caption, one header, rows of cells."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table in GitHub's Markdown."""
        lines = [self.header, ["---"] + ["---:"] * (len(self.header) - 1), *self.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"**{self.title}**\n\n{body}\n"


def grid(
    title: str,
    corner: str,
    rows: Mapping[str, Row],
    columns: Mapping[str, Column],
    cell: Callable[[Row, Column], str],
) -> Table:
    """A table of what each row says in each column, under their names."""
    cells = [[name, *(cell(row, of) for of in columns.values())] for name, row in rows.items()]
    return Table(title, [corner, *columns], cells)


def mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """The mean, with the sample standard deviation where there are several values."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def errors_above(own: np.ndarray, other: np.ndarray) -> float:
    """How far one mean is above another, in standard errors of their difference, or NaN."""
    if min(len(own), len(other)) < 2:
        return np.nan
    error = np.sqrt(own.var(ddof=1) / len(own) + other.var(ddof=1) / len(other))
    difference = own.mean() - other.mean()
    return float(difference / error) if error > 0 else float(np.sign(difference) * np.inf)


class Bar(NamedTuple):
    """What is wanted, and what was measured."""

    name: str
    wanted: str
    measured: str
    met: bool | None  # None: not judged here

    @property
    def verdict(self) -> str:
        """As it stands in tables."""
        return {True: "met", False: "missed", None: "-"}[self.met]


def bars_table(bars: Sequence[Bar], title: str = "What was wanted") -> list[Table]:
    """One table, or none where there are no bars."""
    rows = [[bar.name, bar.wanted, bar.measured, bar.verdict] for bar in bars]
    return [Table(title, ["", "wanted", "measured", ""], rows)] if rows else []


class Measure(NamedTuple):
    """A column of a comparison."""

    title: str
    digits: int = 4
    factor: float = 1.0  # 100 for percent


MEASURES = {
    "validation_loss": Measure("validation loss"),
    "test_loss": Measure("test loss"),
    "test_accuracy": Measure("test accuracy in percent", 2, 100.0),
    "area": Measure("mean training loss"),
}


def measured(records: Records, measure: str, **key: Any) -> np.ndarray:
    """A measure of the runs whose keys have these fields: float [runs], null as NaN."""
    runs = records.select(kind="run", **key)
    return as_floats([run.result[measure] for run in runs])


def comparison(
    records: Records,
    task: str,
    setting: str,
    arms: Sequence[str],
    measures: Mapping[str, Measure],
) -> Table:
    """A row an arm: its rate, the bytes of its state for each parameter, and measures."""
    keys = [{"task": task, "setting": setting, "arm": arm} for arm in arms]
    keys = [key for key in keys if records.select(kind="run", **key)]
    shown = {
        name: measure
        for name, measure in measures.items()
        if not all(np.isnan(measured(records, name, **key)).all() for key in keys)
    }
    rows = []
    for key in keys:
        first, tuning = (records.select(kind=kind, **key)[:1] for kind in ("run", "tuning"))
        row = [first[0].config["label"], f"{first[0].result['rate']:g}"]
        row.append(f"{tuning[0].result['bytes']:.2f}" if tuning else "-")
        for name, each in shown.items():
            values = each.factor * measured(records, name, **key)
            row.append(mean_and_spread(list(values), each.digits))
        rows.append(row)
    found = records.select(kind="run", **keys[0])
    asked = ", ".join(filter(None, ["{title}", setting, "{steps} steps"]))
    asked = asked.format_map(found[0].config)
    title = f"{asked}; {len(found)} seeds, mean ± standard deviation"
    header = ["arm", "rate", "bytes a parameter", *(each.title for each in shown.values())]
    return Table(title, header, rows)


def write(
    folder: pathlib.Path,
    title: str,
    sections: Sequence[Table | str],
    figures: Mapping[str, "Figure"] | None = None,
    *,
    show: bool = True,
) -> None:
    """Shows the tables, if asked, and writes sections and figures into a folder.

    Args:
      folder: of the study's results.
      title: of the file.
      sections: tables and paragraphs of Markdown, in their order.
      figures: by the name of its file, without its ending; a paragraph shows each.
      show: whether in the terminal, too.
    """
    console = rich.console.Console()
    for section in sections if show else ():
        if isinstance(section, Table):
            text = section.markdown()
            if not console.is_terminal:  # whose 80 columns would cut names short
                console.width = max(console.width, *map(len, text.splitlines()))
            console.print(rich.markdown.Markdown(text))
    texts = [each.markdown() if isinstance(each, Table) else each for each in sections]
    body = "\n".join(text for text in [f"# {title}\n", *texts] if text)
    write_bytes(folder / "README.md", body.encode())
    for stem, figure in (figures or {}).items():
        write_bytes(folder / f"{stem}.png", png(figure))
    if show:
        typer.echo(f"tables: {folder / 'README.md'}")


def png(figure: "Figure", *, bbox_inches: str | None = "tight") -> bytes:
    """A figure as PNG of few colours, a third of the bytes of one with all."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI, bbox_inches=bbox_inches)
    with PIL.Image.open(content) as picture:
        # By coverage, since by counts of pixels thin lines would lose their colours; means
        # keep grey grey.
        few = picture.convert("RGB").quantize(
            COLORS_OF_PNG,
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
    at: Sequence[float] | None = None  # on the x axis; None: 1, 2, 3 ...


def curves_figure(
    panels: Sequence[tuple[str, Sequence[Curve]]],
    *,
    ylabel: str,
    title: str,
    xlabel: str = "epoch",
    columns: int | None = None,
    log: bool = False,
    middle: Callable[..., np.ndarray] = np.mean,
) -> "Figure":
    """A panel per setting, a line per optimizer (its middle) and a band from min to max.

    Args:
      panels: captions and curves.
      ylabel, title, xlabel: of the axes and of the figure.
      columns: panels beside each other; None: all.
      log: whether losses are drawn by their logarithms, each panel on a scale of its own.
      middle: of a curve's rows: their mean, or another of NumPy's functions.
    """
    from matplotlib.figure import Figure

    columns = min(columns or len(panels), len(panels))
    rows = -(-len(panels) // columns)
    width, height = (4.6, 4.2) if rows == 1 else (3.4, 2.6)
    figure = Figure(figsize=(1.5 + width * columns, height * rows))
    axes = figure.subplots(rows, columns, squeeze=False, sharey=not log)
    names = list(dict.fromkeys(curve.name for _, curves in panels for curve in curves))
    colors = {name: f"C{index}" for index, name in enumerate(names)}
    drawn = [curve.values for _, curves in panels for curve in curves] or [np.zeros(1)]
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (caption, curves) in zip(axes.flat, panels, strict=False):
        for curve in curves:
            at = np.arange(1, curve.values.shape[1] + 1) if curve.at is None else curve.at
            color = colors[curve.name]
            axis.plot(at, middle(curve.values, 0), color=color, label=curve.name, lw=1.1)
            low, high = curve.values.min(0), curve.values.max(0)
            axis.fill_between(at, low, high, color=color, alpha=0.1, lw=0)
        axis.set_title(caption)
        axis.set_xlabel(xlabel)
        axis.grid(alpha=0.25)
        if log:
            axis.set_yscale("log")
    if not log:
        # The first epochs would squeeze what distinguishes the optimizers into a few pixels.
        median = min(float(np.median(values)) for values in drawn)
        highest = max(float(values.max()) for values in drawn)
        least = min(float(values.min()) for values in drawn)
        lowest = max(median - 1.2 * (highest - median), least)
        margin = 0.05 * (highest - lowest) or 1.0
        axes[0][0].set_ylim(lowest - margin, highest + margin)
    for axis in axes[:, 0]:
        axis.set_ylabel(ylabel)
    figure.suptitle(title, fontsize="medium")
    # Beside the last panel; the saved picture grows to hold it.
    lines = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
    axes[0][-1].legend(
        lines.values(), lines, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False
    )
    figure.tight_layout()
    return figure


def written_by_hand(folder: pathlib.Path, heading: str) -> list[str]:
    """The section of the folder's README.md under a heading, to be kept in a new one."""
    path = folder / "README.md"
    text = path.read_text("utf-8") if path.exists() else ""
    _, found, rest = text.partition(f"\n## {heading}\n")
    return [f"## {heading}\n{rest.partition(chr(10) + '## ')[0]}"] if found else []
