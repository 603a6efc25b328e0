"""The command `codecs`: the error of moving averages, by how they are encoded."""

import itertools
import pathlib
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.progress import track

from benchmarks import store
from benchmarks.averages import (
    BLOCKS,
    COORDINATES,
    DECAYS,
    GRADIENTS,
    ROUNDINGS,
    SPREADS,
    STATISTICS,
    Setting,
    everything,
    measured,
    suits,
)
from benchmarks.lab import report
from benchmarks.lab.arguments import ArgumentError, names_of, numbers_of, positive

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = pathlib.Path("runs/codecs")


def codecs(
    statistics: Annotated[
        str, typer.Option(help=f"any of {', '.join(STATISTICS)}")
    ] = ",".join(STATISTICS),
    blocks: Annotated[str, typer.Option(help="lengths, separated by commas")] = ",".join(
        map(str, BLOCKS)
    ),
    seeds: Annotated[int, typer.Option(help=f"of {COORDINATES} coordinates each")] = 5,
    out: Annotated[pathlib.Path, typer.Option(help="folder of results")] = RESULTS,
) -> None:
    """The error of moving averages that are encoded after every step, by codec.

    Gradients are drawn anew at every step; each coordinate has a scale of its own.
    """
    chosen = names_of(statistics, "statistics", STATISTICS)
    lengths = numbers_of(blocks, "blocks")
    positive(seeds, "seeds")
    for length in lengths:
        if COORDINATES % length:
            raise ArgumentError(
                f"blocks has {length}, which does not divide {COORDINATES}; pass others."
            )
    store.prepare_folder(out)
    settings = [
        Setting(*each) for each in itertools.product(chosen, GRADIENTS, DECAYS, SPREADS)
    ]
    records = []
    for setting in track(settings, description="codecs"):
        kept = [each for each in everything(lengths) if suits(each, setting)]
        config = {**setting._asdict(), "blocks": lengths, "seeds": seeds}
        results = measured(setting, kept, seeds)
        record = {"config": config, "results": results, "environment": store.environment()}
        name = "-".join(map(str, setting))
        store.write_json(out / "runs" / f"{name}.json", record)
        records.append(record)
    summaries = [summary_of(records, statistic) for statistic in chosen]
    details = [table for statistic in chosen for table in tables_of(records, statistic)]
    for table in summaries:
        table.show()
    for name, tables in (("codecs.md", summaries), ("details.md", details)):
        text = "\n".join(table.markdown() for table in tables)
        store.write_bytes(out / name, text.encode())
    store.write_bytes(out / "codecs.png", report.png(figure_of(records, chosen)))
    typer.echo(f"tables and a picture: {out}")


def summary_of(records: list[dict[str, Any]], statistic: str) -> report.Table:
    """A row a codec, the least error first, over all settings that leave no zeros."""
    known = [each for each in records if not _is_empty(each["config"])]
    own = [record["results"] for record in _of(known, statistic=statistic)]
    rows = []
    for label in own[0]:
        errors, tails, biases, frozen = (
            100 * np.array([np.mean(np.abs(results[label][key])) for results in own])
            for key in ("median_error", "90_percentile", "bias", "frozen")
        )
        middle = float(np.exp(np.mean(np.log(errors))))
        cells = (
            middle,
            errors.max(),
            np.exp(np.mean(np.log(tails))),
            biases.max(),
            frozen.max(),
        )
        rows.append((middle, [label, *(f"{cell:.2g}" for cell in cells)]))
    _, _, title = STATISTICS[statistic]
    return report.Table(
        f"{title}, percent over {len(own)} settings (geometric means; the worst of them)",
        ["kept as", "median error", "worst", "90th percentile", "worst bias", "worst frozen"],
        [row for _, row in sorted(rows)],
    )


def _of(records: list[dict[str, Any]], **setting: Any) -> list[dict[str, Any]]:
    """The records of such a setting."""
    return [each for each in records if setting.items() <= each["config"].items()]


def _is_empty(config: dict[str, Any]) -> bool:
    """Whether most averages are almost 0: of sparse gradients over a short memory."""
    return config["gradients"] == "sparse" and config["decay"] < 0.99


def figure_of(records: list[dict[str, Any]], statistics: list[str]) -> "Figure":
    """Median errors by the spread of the coordinates, at the slowest decay."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(statistics), 5))
    axes = figure.subplots(1, len(statistics), squeeze=False, sharey=True)
    for axis, statistic in zip(axes.flat, statistics, strict=True):
        own = _of(records, statistic=statistic, gradients="student_t4", decay=DECAYS[-1])
        spreads = [record["config"]["spread"] for record in own]
        axis.set_prop_cycle(color=matplotlib.colormaps["tab20"](range(20)))
        for label in own[0]["results"]:
            if not label.endswith(ROUNDINGS[1]) or any(f", {n}," in label for n in BLOCKS[2:]):
                continue
            errors = [100 * np.mean(each["results"][label]["median_error"]) for each in own]
            style = "--" if f", {BLOCKS[0]}," in label else "-"
            axis.plot(spreads, errors, style, marker="o", ms=3, label=label.split(", s")[0])
        axis.set(
            title=STATISTICS[statistic][2], xlabel="spread of the scales (ln)", yscale="log"
        )
        axis.set_xticks(spreads)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    axes[0][0].set_ylabel("median error, percent")
    figure.suptitle(f"Student t4 gradients, decay {DECAYS[-1]}, stochastic rounding")
    figure.tight_layout()
    return figure


def tables_of(records: list[dict[str, Any]], statistic: str) -> list[report.Table]:
    """For each decay and kind of gradients: a row a codec, a column a spread."""
    _, _, title = STATISTICS[statistic]
    tables = []
    for gradients, decay in itertools.product(GRADIENTS, DECAYS):
        own = _of(records, statistic=statistic, gradients=gradients, decay=decay)
        tables.append(
            report.Table(
                f"{title}, {gradients} gradients, decay {decay}: median error, in brackets "
                "the share of zeros and of frozen averages, in percent",
                ["kept as", *(f"spread {each['config']['spread']:g}" for each in own)],
                [
                    [label, *(_cell(each["results"][label]) for each in own)]
                    for label in own[0]["results"]
                ],
            )
        )
    return tables


def _cell(found: dict[str, list[float]]) -> str:
    error, zeros, frozen = (
        100 * float(np.mean(found[key])) for key in ("median_error", "zeros", "frozen")
    )
    return f"{error:.2g} ({zeros:.2g}, {frozen:.2g})"
