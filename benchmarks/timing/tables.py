"""The tables, bars and pictures of each subject, from its records."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.lab.records import Record, Records
from benchmarks.lab.report import Bar, Table, bars_table
from benchmarks.lab.spreads import Point, Spread, points_figure, points_table, ratio, spread
from benchmarks.lab.timing import FULL, MODES, median
from benchmarks.timing import programs as p
from benchmarks.timing.steps import ADAM, ALONE, BASELINES, COPY, DAO_E, NETWORKS, OURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = Mapping[str, Mapping[str, Any]]  # result by size and arm
Times = Mapping[str, list[float]]  # seconds of each contender, round by round
Pair = tuple[str, list[float], list[float]]  # a label, and times to be divided
Pairs = Callable[[Times], Iterator[Pair]]


def results_of(records: Records, kind: str, setting: str) -> Results:
    """Single arrays before networks, each by their parameters; optimizers in their order."""
    order = [*OURS, DAO_E]
    found = records.select(kind=kind, setting=setting)
    found.sort(key=lambda each: order.index(each.key.arm))
    found.sort(key=lambda each: (each.key.task in NETWORKS, each.result["parameters"]))
    sizes: dict[str, dict[str, Any]] = {record.key.task: {} for record in found}
    for record in found:
        sizes[record.key.task][record.key.arm] = record.result
    return sizes


def _over_rivals(times: Times) -> Iterator[Pair]:
    ours, *others = times
    for rival in others:
        if rival != COPY:
            yield f"{ours.removeprefix('optabs.')} / {rival}", times[ours], times[rival]


def _over_optax(times: Times) -> Iterator[Pair]:
    for label, ours, theirs in _over_rivals(times):
        if " / optax." in label:
            yield label.split(" / ")[0], ours, theirs


def _of_copy(times: Times) -> Iterator[Pair]:
    ours = next(iter(times))
    yield ours.removeprefix("optabs."), times[COPY], times[ours]


def _over_adam(times: Times) -> Iterator[Pair]:
    for side in times:
        if side.startswith(DAO_E):
            yield side, times[side], times[ADAM]


def _over_experts(times: Times) -> Iterator[Pair]:
    alone = [times[side] for side in times if side.endswith(ALONE)]
    for side, ours, _ in _over_adam(times):
        yield side, ours, [sum(each) for each in zip(*alone, strict=True)]


def _in_modes(titles: Mapping[str, Pairs], results: Results) -> dict[str, list[Point]]:
    return {
        title.format(caption): [
            Point(size, label, ratio(ours, theirs))
            for size, each in results.items()
            for found in each.values()
            for label, ours, theirs in pairs(found[mode]["seconds"])
        ]
        for title, pairs in titles.items()
        for mode, caption in MODES.items()
    }


def _tables(titles: Mapping[str, Pairs], results: Results) -> list[Table]:
    return [points_table(*each) for each in _in_modes(titles, results).items()]


_STEP = {"time over optax's, {}": _over_optax, "share of a copy's speed, {}": _of_copy}
_DAO_E = {"time over Adam's, {}": _over_adam, "over its experts' sum, {}": _over_experts}
FIGURES = {  # setting, title and panels
    "step": (FULL, "One optimizer step", _STEP),
    DAO_E: ("step", "One step of DAO-E", _DAO_E),
}


def figures_of(records: Records) -> dict[str, "Figure"]:
    """A row of panels for each ratio, a panel for each mode, by the kind of records."""
    return {
        kind: points_figure(_in_modes(panels, results), f"{title} (median and quartiles)")
        for kind, (setting, title, panels) in FIGURES.items()
        if (results := results_of(records, kind, setting))
    }


def step_sections(records: Records) -> list[Table | str]:
    """The tables of each way to keep the state."""
    settings = {record.key.setting: record for record in records.select(kind="step")}
    over = "Time of a step over the rival's, {}: median and quartiles; below 1 is faster"
    share = "Share of the speed of a plain copy of the bytes to move, {}"
    ratios = {over: _over_rivals, share: _of_copy}
    sections: list[Table | str] = []
    for setting in sorted(settings, key=lambda each: (each != FULL, each)):
        codes = settings[setting].config["codes"] or {}
        kept = ", ".join(f"{moment} in {code}" for moment, code in codes.items())
        sections += [f"### State in {setting}{f': {kept}' if kept else ''}\n"]
        results = results_of(records, "step", setting)
        sections += [_step_costs(results), *_tables(ratios, results)]
    return sections


def mixture_sections(records: Records) -> list[Table | str]:
    """Bars and tables of DAO-E."""
    results = results_of(records, DAO_E, "step")
    adams = "Time of a step over optax.adam's, {}: median and quartiles"
    experts = "Time of a step over the sum of its experts' own, {}: median and quartiles"
    ratios = _tables({adams: _over_adam, experts: _over_experts}, results)
    costs = [_mixture_costs(size, found[DAO_E]) for size, found in results.items()]
    bars = bars_table(bars_of(records), "What was wanted; medians, called from Python")
    return [*bars, *ratios, _training_table(records), *costs]


def bars_of(records: Records) -> list[Bar]:
    """What a step of DAO-E was wanted to cost at most."""
    results = results_of(records, DAO_E, "step")
    found = records.select(kind=DAO_E, setting="training")
    trained = {record.key.task: record.result["seconds"] for record in found}
    here = records.select(kind=DAO_E)[0].environment["device"].split(":")[0]

    def bar(name: str, limit: float, value: float, device: str = "") -> Bar:
        # As it is shown: a few numbers a leaf are no byte a parameter.
        shown = f"{value:.3g}"
        met = float(shown) <= limit if device in ("", here) else None
        on = f" (for a {device})" if device else ""
        return Bar(f"{name}{on}", f"at most {limit:.3g}", shown, met)

    array = [size for size in results if size not in NETWORKS][-1:]
    bars = [
        bar(f"{side}: one array, time over Adam's", 2, ratio(ours, adams).median, "gpu")
        for size in array
        for side, ours, adams in _over_adam(results[size][DAO_E]["call"]["seconds"])
        if side not in BASELINES
    ]
    if times := trained.get("resnet18"):
        share = ratio(times[DAO_E], times[f"training, {DAO_E}"]).percent.median
        bars.append(bar(f"{DAO_E}: ResNet-18, percent of a training step", 5, share, "gpu"))
    if times := trained.get("mlp"):  # 7 ms where Adam takes 3.8
        over = ratio(times[f"training, {DAO_E}"], times[f"training, {ADAM}"]).median
        bars.append(bar(f"{DAO_E}: MLP, training step over Adam's", 7 / 3.8, over, "cpu"))
    # Where a few numbers a leaf weigh least.
    largest = max((x[DAO_E] for x in results.values()), key=lambda x: x["parameters"])
    return bars + [
        bar(f"{side}: bytes of state a parameter", 20, size)
        for side, size in largest["state_bytes"].items()
        if side.startswith(DAO_E) and side not in BASELINES
    ]


def _moved(found: Mapping[str, Any], side: str) -> list[str]:
    cost = found["cost"][side]
    moved = (found["must_move_bytes"][side], cost["bytes_accessed"], cost["temporary_bytes"])
    return [*(f"{each:.1f}" for each in moved), f"{cost['kernels']} ({cost['copies']})"]


def _step_costs(results: Results) -> Table:
    size, rows = list(results)[-1], {}
    for name, found in results[size].items():
        for side, cost in found["cost"].items():
            # An optimizer that several comparisons share keeps its own one's time.
            if side not in rows or side == f"optabs.{name}":
                counts = [f"{cost[key]:.2f}" for key in ("flops", "transcendentals", "roots")]
                time = f"{1e6 * median(found['call']['seconds'][side]):.1f}"
                rows[side] = [side, *counts, *_moved(found, side), time]
    return Table(
        f"Cost of a step per parameter at {size}: what XLA counts (on a CPU a square root is "
        "transcendental), the roots in its program, bytes that have to be moved, are moved "
        "and are temporary, passes over an array (copies); and microseconds per step",
        ["", "flops", "transc.", "roots", "needed", "moved", "temp.", "passes", "µs"],
        list(rows.values()),
    )


def _mixture_costs(size: str, found: Mapping[str, Any]) -> Table:
    rows = []
    for side, state in found["state_bytes"].items():
        times = [f"{1e3 * median(found[mode]['seconds'][side]):.3f}" for mode in MODES]
        rows.append([side, f"{state:.2f}", *_moved(found, side), *times])
    return Table(
        f"Cost of a step at {size}: bytes a parameter of state, that have to be moved once, "
        "moved by all passes, and of temporary arrays; passes over an array (copies); "
        "milliseconds, called from Python and inside a compiled loop",
        ["", "state", "needed", "moved", "temp.", "passes", "called", "in a loop"],
        rows,
    )


def _training_table(records: Records) -> Table:
    rows = []
    for record in records.select(kind=DAO_E, setting="training"):
        times = record.result["seconds"]
        wholes = {side: times[f"training, {side}"] for side in (DAO_E, ADAM)}
        for side, whole in wholes.items():
            medians = [f"{1e3 * median(seconds):.2f}" for seconds in (whole, times[side])]
            over = "1" if side == ADAM else str(ratio(whole, wholes[ADAM]))
            share = str(ratio(times[side], whole).percent)
            rows.append([f"{record.key.task}, {side}", *medians, share, over])
    return Table(
        "A step of training, called from Python; the optimizer's step alone, inside a "
        "compiled loop; its share of the training step in percent; and the training step over "
        f"one with {ADAM} (median and quartiles)",
        ["", "training, ms", "optimizer, ms", "share, %", "training / Adam's"],
        rows,
    )


def compile_sections(records: Records) -> list[Table | str]:
    """Seconds to compile, and lines."""
    rows = []
    for record in _by(records, "compile", "leaves"):
        leaves, times = record.config["leaves"], record.result["seconds"]
        for name, lines in record.result["lines"].items():
            cells = [f"{median(times[name]):.2f}", str(ratio(times[name], times[p.RIVAL]))]
            rows.append([name, str(leaves), *cells, str(lines), f"{lines / leaves:.0f}"])
    title = (
        "Seconds to compile a step (median of fresh compilations in turns), over those of "
        f"{p.RIVAL}, and lines of the optimized program"
    )
    header = ["optimizer", "arrays", "seconds", "ratio [quartiles]", "lines", "lines an array"]
    return [Table(title, header, rows)]


def epoch_sections(records: Records) -> list[Table | str]:
    """Seconds per epoch."""
    rows = []
    for record in _by(records, "epoch", "batch_size"):
        times, size = record.result["seconds"], str(record.config["batch_size"])
        for side, first in record.result["first_epoch"].items():
            over = "1" if side == p.JAX else f"{ratio(times[side], times[p.JAX]).median:.2f}"
            interval = f"{min(times[side]):.3f} to {max(times[side]):.3f}"
            shown = [f"{first['loss']:.3f}", f"{100 * first['validation_accuracy']:.1f}"]
            rows.append([side, size, f"{median(times[side]):.3f}", interval, over, *shown])
    title = (
        "Seconds per epoch of MNIST, contenders in turns; loss and accuracy (%) of the first"
    )
    header = ["", "batch", "median", "interval", "over jax", "loss", "accuracy"]
    return [Table(title, header, rows)]


def fit_sections(records: Records) -> list[Table | str]:
    """Milliseconds per epoch."""
    rows = []
    for record in _by(records, "fit", "model", "batch_size"):
        (ours, theirs), epochs = record.result["seconds"].values(), record.config["epochs"]
        medians = [f"{1e3 * median(seconds) / epochs:.3f}" for seconds in (ours, theirs)]
        size, apart = record.config["batch_size"] or "all", record.result["largest_difference"]
        cells = [str(size), str(epochs), *medians, str(ratio(ours, theirs)), f"{apart:.1e}"]
        rows.append([record.key.task, *cells])
    title = "Milliseconds per epoch of digits (median of runs in turns, Adam)"
    header = ["model", "batch", "epochs in a run", p.FIT, p.HAND, "ratio [quartiles]"]
    return [Table(title, [*header, "difference"], rows)]


def population_sections(records: Records) -> list[Table | str]:
    """Learning, and what evolving adds."""
    learning, evolution = [], []
    for record in _by(records, "population", "side", "hidden", "population"):
        times, steps = record.result["seconds"], record.result["steps"]
        medians = {side: f"{1e3 * median(each):.1f}" for side, each in times.items()}
        named = [record.key.task.removeprefix("mlp "), str(record.config["population"])]
        ratios = [f"{ratio(times[x], times[y]).median:.2f}" for x, y in p.RATIOS]
        learning.append([*named, *(medians[side] for side in p.LEARNING), *ratios])
        share, enough = evolution_of(times, steps)
        cells = [medians[p.EVOLVE], medians[p.ITSELF], str(2 * steps), str(share.percent)]
        evolution.append([*named, *cells, f"{enough.median:.0f}"])
    titles = (
        f"Milliseconds in which all units make {steps} steps (medians of runs in turns; "
        f"chunks are of {record.config['chunk_size']} units), and ratios of times",
        "Milliseconds of an evolution with and without its children's training, its share of "
        f"a generation in percent, and in a generation of how many steps it is {p.SHARE:.0%}",
    )
    header = ["MLP", "units", *p.LEARNING, *(f"{x} / {y}" for x, y in p.RATIOS)]
    other = ["MLP", "units", p.EVOLVE, p.ITSELF, "steps", "share", f"steps for {p.SHARE:.0%}"]
    return [Table(titles[0], header, learning), Table(titles[1], other, evolution)]


def evolution_of(times: Times, steps: int) -> tuple[Spread, Spread]:
    """An evolution's share of a generation, and in how many steps of a unit it is SHARE."""
    # A generation: everyone learns, the children are bred, and learn as long.
    pairs = list(zip(times[p.ITSELF], times[p.VMAP], strict=True))
    enough = [x / y * steps * (1 - p.SHARE) / p.SHARE for x, y in pairs]
    return spread([x / (x + 2 * y) for x, y in pairs]), spread(enough)


def _by(records: Records, kind: str, *order: str) -> list[Record]:
    def place(record: Record) -> list[tuple[bool, Any]]:  # None is last
        return [(record.config[name] is None, record.config[name]) for name in order]

    return sorted(records.select(kind=kind), key=place)
