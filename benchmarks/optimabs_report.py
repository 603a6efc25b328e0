"""The OptimABS experiment's tables and figure, from its records."""

import pathlib
import statistics
from typing import Any

import numpy as np
import typer

from benchmarks import store
from benchmarks.lab import report

SHARE_OF_SWING = 0.25  # the swing is taken over the last quarter of the epochs

Runs = dict[tuple[str, int], list[dict[str, Any]]]  # by optimizer and batch size
Times = dict[tuple[str, int], dict[str, Any]]
Labels = dict[str, str]


def show(setting: str, runs: Runs, times: Times, labels: Labels, folder: pathlib.Path) -> None:
    """Prints the tables, and writes them and the figure into the folder."""
    sizes = list(dict.fromkeys(size for _, size in runs))
    tables = [_accuracy_table(runs, labels, sizes), _swing_table(runs, labels, sizes)]
    if len(times) == len(runs):
        tables.insert(0, _time_table(times, labels, sizes))
    figure = _figure(runs, labels, sizes)
    for table in tables:
        table.show()
    text = "\n".join(table.markdown() for table in tables)
    store.write_bytes(folder / f"{setting}.md", text.encode())
    report.save_figure(figure, folder / f"{setting}.png")
    typer.echo(f"tables: {folder / setting}.md\nfigure: {folder / setting}.png and .svg")


def _figure(runs: Runs, labels: Labels, sizes: list[int]) -> Any:
    panels = []
    for size in sizes:
        curves = [
            report.Curve(label, 100 * report.as_array(runs[name, size], "validation_accuracy"))
            for name, label in labels.items()
        ]
        first = runs[next(iter(labels)), size]
        seeds = f"{len(first)} seed{'s' if len(first) > 1 else ''}"
        panels.append((f"{first[0]['config']['dataset']}, batch {size}, {seeds}", curves))
    return report.curves_figure(
        panels,
        ylabel="validation accuracy in percent",
        title="Mean over seeds, band from lowest to highest",
    )


def _accuracy_table(runs: Runs, labels: Labels, sizes: list[int]) -> report.Table:
    rows = []
    for name in labels:
        scores = {
            size: 100 * report.as_array(runs[name, size], "test_accuracy") for size in sizes
        }
        cells = [report.mean_and_spread(list(scores[size])) for size in sizes]
        mean = statistics.fmean(float(score.mean()) for score in scores.values())
        rows.append([labels[name], *cells, f"{mean:.2f}"])
    return report.Table(
        "Test accuracy in percent (mean ± standard deviation over seeds)",
        ["optimizer", *map(str, sizes), "mean"],
        rows,
    )


def _swing_table(runs: Runs, labels: Labels, sizes: list[int]) -> report.Table:
    rows = []
    for name in labels:
        cells = []
        for size in sizes:
            curves = 100 * report.as_array(runs[name, size], "validation_accuracy")
            tail = curves[:, -max(1, round(SHARE_OF_SWING * curves.shape[1])) :]
            cells.append(report.mean_and_spread(list(tail.std(axis=1)), 3))
        rows.append([labels[name], *cells])
    return report.Table(
        "Swing: standard deviation of validation accuracy over the last quarter of the "
        "epochs, in points",
        ["optimizer", *map(str, sizes)],
        rows,
    )


def _time_table(times: Times, labels: Labels, sizes: list[int]) -> report.Table:
    rows = []
    for name in labels:
        medians = [float(np.median(times[name, size]["epoch_seconds"])) for size in sizes]
        state = times[name, sizes[0]]
        per_parameter = state["state_bytes"] / state["parameters"]
        rows.append(
            [
                labels[name],
                *(f"{median:.4f}" for median in medians),
                f"{statistics.fmean(medians):.4f}",
                f"{per_parameter:.2f}",
            ]
        )
    return report.Table(
        "Seconds per epoch (median, one seed alone, optimizers in turns)",
        ["optimizer", *map(str, sizes), "mean", "state bytes per parameter"],
        rows,
    )
