"""The error of moving averages that are encoded after every step, by codec."""

import functools
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from benchmarks.codecs.averages import (
    BLOCKS,
    COORDINATES,
    DECAYS,
    GRADIENTS,
    ROUNDINGS,
    SPREADS,
    STATISTICS,
    Kept,
    Setting,
    everything,
    measured,
    suits,
)
from benchmarks.lab import report
from benchmarks.lab.arguments import (
    ArgumentError,
    OutOption,
    QuickOption,
    ReportOption,
    names_of,
    numbers_of,
    positive,
)
from benchmarks.lab.records import Key, Record, Records, prepare_folder
from benchmarks.lab.study import Unit, run_units

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def unit_of(
    setting: Setting, lengths: list[int], roundings: Sequence[str], seeds: int
) -> Unit:
    """A setting, with every way of keeping its average."""
    kept = [
        each
        for each in everything(lengths)
        if suits(each, setting) and each.rounding in roundings
    ]
    keys = tuple(Key(setting.statistic, each.label, setting.name) for each in kept)
    config = {**setting._asdict(), "seeds": seeds}
    return Unit(keys, config, functools.partial(_errors, setting, kept, seeds))


def _errors(
    setting: Setting, kept: list[Kept], seeds: int, missing: Sequence[Key], done: Any
) -> Iterator[tuple[Key, Mapping[str, Any]]]:
    wanted = {key.arm for key in missing}
    chosen = [each for each in kept if each.label in wanted]
    found = measured(setting, chosen, seeds)
    for key in missing:
        yield key, found[key.arm]


def command(
    statistics: Annotated[
        str, typer.Option(help=f"any of {', '.join(STATISTICS)}")
    ] = ",".join(STATISTICS),
    blocks: Annotated[str, typer.Option(help="lengths, separated by commas")] = ",".join(
        map(str, BLOCKS)
    ),
    seeds: Annotated[int, typer.Option(help=f"of {COORDINATES} coordinates each")] = 5,
    quick: QuickOption = False,
    only_report: ReportOption = False,
    out: OutOption = None,
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
    settings = [
        Setting(*each) for each in itertools.product(chosen, GRADIENTS, DECAYS, SPREADS)
    ]
    if quick:
        settings = [each for each in settings if each[1:] == ("student_t4", DECAYS[0], 1.0)]
        lengths, seeds = lengths[:1], min(seeds, 2)
    records = Records(prepare_folder(out or pathlib.Path("runs/codecs")))
    if not only_report:
        roundings = ROUNDINGS[1:] if quick else ROUNDINGS
        run_units([unit_of(each, lengths, roundings, seeds) for each in settings], records)
    known = [name for name in STATISTICS if records.select(task=name)]
    report.write(
        records.folder,
        "What a codec costs an average",
        [summary_of(records, name) for name in known],
        {"codecs": figure_of(records, known)},
    )
    details = [table for name in known for table in tables_of(records, name)]
    report.write(records.folder, "Every setting", details, name="details.md", show=False)


Found = dict[str, Record]  # by the way of keeping the average


def settings_of(records: Records, **wanted: Any) -> list[tuple[Setting, Found]]:
    """The settings that have such fields, in the order of the study."""
    found = []
    for each in itertools.product(STATISTICS, GRADIENTS, DECAYS, SPREADS):
        setting = Setting(*each)
        if wanted.items() <= setting._asdict().items():
            own = records.select(task=setting.statistic, setting=setting.name)
            by_label = {record.key.arm: record for record in own}
            if by_label:
                labels = [kept.label for kept in everything(list(BLOCKS))]
                found.append((setting, {n: by_label[n] for n in labels if n in by_label}))
    return found


def summary_of(records: Records, statistic: str) -> report.Table:
    """A row a codec, the least error first, over all settings that leave no zeros."""
    own = [
        found
        for setting, found in settings_of(records, statistic=statistic)
        # Of sparse gradients over a short memory most averages are almost 0.
        if setting.gradients != "sparse" or setting.decay >= 0.99
    ]
    rows = []
    for label in own[0]:
        errors, tails, biases, frozen = (
            100 * np.array([np.mean(np.abs(found[label].result[key])) for found in own])
            for key in ("median_error", "90_percentile", "bias", "frozen")
        )
        middle = float(np.exp(np.mean(np.log(errors))))
        tail = np.exp(np.mean(np.log(tails)))
        cells = (middle, errors.max(), tail, biases.max(), frozen.max())
        rows.append((middle, [label, *(f"{cell:.2g}" for cell in cells)]))
    return report.Table(
        f"{STATISTICS[statistic][2]}, percent over {len(own)} settings (geometric means; the "
        "worst of them)",
        ["kept as", "median error", "worst", "90th percentile", "worst bias", "worst frozen"],
        [row for _, row in sorted(rows)],
    )


def tables_of(records: Records, statistic: str) -> list[report.Table]:
    """For each decay and kind of gradients: a row a codec, a column a spread."""
    tables = []
    for gradients, decay in itertools.product(GRADIENTS, DECAYS):
        own = settings_of(records, statistic=statistic, gradients=gradients, decay=decay)
        if own:
            labels = list(own[0][1])
            tables.append(report.Table(
                f"{STATISTICS[statistic][2]}, {gradients} gradients, decay {decay}: median "
                "error, in brackets the share of zeros and of frozen averages, in percent",
                ["kept as", *(f"spread {setting.spread:g}" for setting, _ in own)],
                [[label, *(_cell(found[label]) for _, found in own)] for label in labels],
            ))  # fmt: skip
    return tables


def _cell(record: Record) -> str:
    error, zeros, frozen = (
        100 * float(np.mean(record.result[key])) for key in ("median_error", "zeros", "frozen")
    )
    return f"{error:.2g} ({zeros:.2g}, {frozen:.2g})"


def figure_of(records: Records, statistics: Sequence[str]) -> "Figure":
    """Median errors by the spread of the coordinates, at the slowest decay."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(statistics), 5))
    axes = figure.subplots(1, len(statistics), squeeze=False, sharey=True)
    for axis, statistic in zip(axes.flat, statistics, strict=True):
        own = settings_of(records, statistic=statistic, gradients="student_t4")
        slowest = max(setting.decay for setting, _ in own)
        own = [each for each in own if each[0].decay == slowest]
        spreads = [setting.spread for setting, _ in own]
        axis.set_prop_cycle(color=matplotlib.colormaps["tab20"](range(20)))
        for label in own[0][1]:
            if not label.endswith(ROUNDINGS[1]) or any(f", {n}," in label for n in BLOCKS[2:]):
                continue
            errors = [100 * np.mean(found[label].result["median_error"]) for _, found in own]
            style = "--" if f", {BLOCKS[0]}," in label else "-"
            axis.plot(spreads, errors, style, marker="o", ms=3, label=label.split(", s")[0])
        axis.set(
            title=STATISTICS[statistic][2], xlabel="spread of the scales (ln)", yscale="log"
        )
        axis.set_xticks(spreads)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    axes[0][0].set_ylabel("median error, percent")
    figure.suptitle("Student t4 gradients, the slowest decay, stochastic rounding")
    figure.tight_layout()
    return figure
