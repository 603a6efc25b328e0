"""Tables, bars and the picture of the time of a DAO-E step."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import typer

from benchmarks import arrays, store
from benchmarks.lab import report, timing
from benchmarks.lab.timing import MODES, Spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DAO_E, ADAM = "dao_e", "optax.adam"
BASELINES = (f"{DAO_E}, uniform", f"{DAO_E}, paper")  # no bar was set for them
RIVALS = {"over_adam": "optax.adam's", "over_experts": "the sum of its experts' own"}

Results = Mapping[str, Mapping[str, Any]]  # by size


class Bar(NamedTuple):
    """What was set as the most that a step may cost."""

    caption: str
    limit: float
    measured: Mapping[str, float]  # by variant; empty where nothing was measured
    device: str | None = None  # the kind for which it was set; None for any


def report_mixture(results: Results, out: pathlib.Path) -> None:
    """Prints the tables, and writes them and the figure into a folder."""
    tables = [bars_table(bars_of(results), jax.default_backend())]
    tables += [_ratio_table(results, mode, rival) for mode in MODES for rival in RIVALS]
    tables += [_training_table(results), *(_cost_table(results, size) for size in results)]
    for table in tables:
        table.show()
    text = "\n".join(table.markdown() for table in tables)
    store.write_bytes(out / f"{DAO_E}.md", text.encode())
    report.save_figure(_figure(results), out / f"{DAO_E}.png")
    typer.echo(f"tables: {out / f'{DAO_E}.md'}\nfigure: {out / f'{DAO_E}.png'} and .svg")


def bars_of(results: Results) -> list[Bar]:
    """The bars, with the medians that were measured for each."""
    leaves = [size for size in results if size not in arrays.TREES]
    largest = max(leaves, key=lambda size: results[size]["parameters"], default="")
    trained = {
        size: found["training"] for size, found in results.items() if "training" in found
    }
    shares = {size: 100 * each["share"][DAO_E]["median"] for size, each in trained.items()}
    ratios = {size: each["over_adam"]["median"] for size, each in trained.items()}
    return [
        Bar("one array, time over Adam's", 2.0, _called(results, largest), "gpu"),
        Bar(
            "ResNet-18, percent of a training step",
            5.0,
            {DAO_E: shares[arrays.RESNET]} if arrays.RESNET in shares else {},
            "gpu",
        ),
        # 7 ms where Adam takes 3.8.
        Bar(
            "MLP, training step over Adam's",
            7 / 3.8,
            {DAO_E: ratios[arrays.MLP]} if arrays.MLP in ratios else {},
            "cpu",
        ),
        Bar("bytes of state a parameter", 20.0, _state_bytes(results)),
    ]


def bars_table(bars: Sequence[Bar], device: str) -> report.Table:
    """Whether each variant reaches each bar on this kind of device."""
    names = dict.fromkeys(name for bar in bars for name in bar.measured)
    rows = [[name, *(_verdict(bar, name, device) for bar in bars)] for name in names]
    return report.Table(
        f"Bars, on a {device}: medians, of steps called from Python. What a storage costs in "
        "quality is not measured here",
        ["", *(f"{bar.caption}: at most {bar.limit:.3g}" for bar in bars)],
        rows,
    )


def _verdict(bar: Bar, variant: str, device: str) -> str:
    if variant not in bar.measured:
        return "-"
    # As it is shown: a few numbers a leaf are no byte a parameter.
    shown = f"{bar.measured[variant]:.3g}"
    if bar.device not in (None, device):
        return f"{shown} (for a {bar.device})"
    return f"{shown}, {'reached' if float(shown) <= bar.limit else 'not reached'}"


def _called(results: Results, size: str) -> dict[str, float]:
    if size not in results:
        return {}
    found = results[size]["call"]["over_adam"]
    return {side: found[side]["median"] for side in found if side not in BASELINES}


def _state_bytes(results: Results) -> dict[str, float]:
    """Where a few numbers a leaf weigh least."""
    found = max(results.values(), key=lambda found: found["parameters"])
    sides = found["call"]["over_adam"]
    return {side: found["state_bytes"][side] for side in sides if side not in BASELINES}


def _spreads(found: Mapping[str, Mapping[str, float]]) -> dict[str, Spread]:
    return {side: Spread(**values) for side, values in found.items()}


def _ratio_table(results: Results, mode: str, rival: str) -> report.Table:
    found = {size: _spreads(results[size][mode][rival]) for size in results}
    rows = [
        [side, *(str(found[size][side]) for size in results)]
        for side in next(iter(found.values()))
    ]
    return report.Table(
        f"Time of a step over {RIVALS[rival]}, {MODES[mode]}: median and quartiles",
        ["", *results],
        rows,
    )


def _training_table(results: Results) -> report.Table:
    rows = []
    for size, found in results.items():
        training = found.get("training")
        if training is None:
            continue
        seconds = training["median_seconds"]
        for side in (DAO_E, ADAM):
            share = Spread(*(100 * x for x in Spread(**training["share"][side])))
            over = str(Spread(**training["over_adam"])) if side == DAO_E else "1"
            cells = [f"{1e3 * seconds[name]:.2f}" for name in (f"training, {side}", side)]
            rows.append([f"{size}, {side}", *cells, str(share), over])
    return report.Table(
        "A step of training, called from Python; the optimizer's step alone, inside a "
        "compiled loop; its share of the training step in percent; and the training step over "
        f"one with {ADAM} (median and quartiles)",
        ["", "training, ms", "optimizer, ms", "share, %", "training / Adam's"],
        rows,
    )


def _cost_table(results: Results, size: str) -> report.Table:
    found = results[size]
    rows = []
    for side, cost in found["cost"].items():
        times = [1e3 * found[mode]["median_seconds"][side] for mode in MODES]
        rows.append(
            [
                side,
                f"{found['state_bytes'][side]:.2f}",
                f"{found['must_move_bytes'][side]:.1f}",
                *(f"{cost[key]:.1f}" for key in ("bytes_accessed", "temporary_bytes")),
                f"{cost['kernels']} ({cost['copies']})",
                *(f"{time:.3f}" for time in times),
            ]
        )
    return report.Table(
        f"Cost of a step at {size}: bytes a parameter of state, that have to be moved once, "
        "moved by all passes, and of temporary arrays; passes over an array (copies); "
        "milliseconds, called from Python and inside a compiled loop",
        ["", "state", "needed", "moved", "temp.", "passes", "called", "in a loop"],
        rows,
    )


def _figure(results: Results) -> "Figure":
    """Per variant and size, the time over Adam's and over the sum of the experts'."""
    from matplotlib.figure import Figure

    first = next(iter(results.values()))
    names = list(first["call"]["over_adam"])
    figure = Figure(figsize=(12, 2.5 + 0.9 * len(names)))
    axes = figure.subplots(len(RIVALS), len(MODES), sharey=True, squeeze=False)
    for column, (mode, caption) in enumerate(MODES.items()):
        for row, (rival, whose) in enumerate(RIVALS.items()):
            axis = axes[row][column]
            for place, (size, found) in enumerate(results.items()):
                points = list(_spreads(found[mode][rival]).values())
                offset = 0.13 * (place - (len(results) - 1) / 2)
                timing.draw(axis, points, offset, size)
            axis.set_xlabel(f"time over {whose}, {caption}")
    timing.finish(figure, axes, names, "One step of DAO-E (median and quartiles)")
    return figure
