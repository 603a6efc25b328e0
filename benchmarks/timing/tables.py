"""The tables and bars of each subject, from its records."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.lab.records import Record, Records
from benchmarks.lab.report import Bar, Table, bars_table
from benchmarks.lab.timing import FULL, MODES, Spread, median, ratio, spread
from benchmarks.timing import programs
from benchmarks.timing.programs import EVOLVE, ITSELF, LEARNING, RATIOS, VMAP
from benchmarks.timing.steps import (
    ADAM,
    ALONE,
    BASELINES,
    COPY,
    DAO_E,
    NETWORKS,
    OURS,
    STEERED,
    TRAINED,
)

Results = Mapping[str, Mapping[str, Any]]  # result by size and arm
Times = Mapping[str, Sequence[float]]  # seconds of each side, round by round
Ratios = Callable[[Times], dict[str, Spread]]  # by label
Sections = Iterable[Table | str]

STATE_BYTES = {DAO_E: 17.3, f"{DAO_E}, bfloat16": 24.3}  # that a parameter should take at most
SHARE = 0.05  # of a generation, that an evolution without its training should take at most


def results_of(records: Records, kind: str, setting: str) -> Results:
    """Single arrays before networks, each by their parameters; optimizers in their order."""
    order = [*OURS, DAO_E]
    found = records.select(kind=kind, setting=setting)
    found.sort(key=lambda each: order.index(each.key.arm))
    found.sort(key=lambda each: (each.key.task in NETWORKS, each.result["parameters"]))
    sizes: dict[str, dict[str, Any]] = {}
    for record in found:
        sizes.setdefault(record.key.task, {})[record.key.arm] = record.result
    return sizes


def _over_rivals(times: Times) -> dict[str, Spread]:
    ours, *rivals = (side for side in times if side != COPY)
    name = ours.removeprefix("optabs.")
    return {f"{name} / {rival}": ratio(times[ours], times[rival]) for rival in rivals}


def _of_copy(times: Times) -> dict[str, Spread]:
    ours = next(iter(times))
    return {ours.removeprefix("optabs."): ratio(times[COPY], times[ours])}


def _over_adam(times: Times) -> dict[str, Spread]:
    return {x: ratio(times[x], times[ADAM]) for x in times if x.startswith((DAO_E, STEERED))}


def _over_experts(times: Times) -> dict[str, Spread]:
    alone = np.sum([times[side] for side in times if side.endswith(ALONE)], axis=0)
    return {side: ratio(times[side], alone) for side in _over_adam(times)}


def _ratios(title: str, results: Results, ratios_of: Ratios) -> list[Table]:
    """One of each mode: a row a label, a column a size."""
    tables = []
    for mode, caption in MODES.items():
        rows: dict[str, dict[str, str]] = {}
        for size, arms in results.items():
            for found in arms.values():
                for label, each in ratios_of(found[mode]["seconds"]).items():
                    rows.setdefault(label, {})[size] = str(each)
        cells = [[x, *(row.get(size, "-") for size in results)] for x, row in rows.items()]
        tables.append(Table(title.format(caption), ["", *results], cells))
    return tables


def state_of(found: Mapping[str, Any], side: str) -> float:
    """Bytes of state a parameter: moved twice, as 4 of a parameter; 4 of a gradient once."""
    return found["must_move_bytes"][side] / 2 - 6


def _table(title: str, header: str, rows: Iterable[str]) -> Table:
    """Of cells between bars."""
    return Table(title, header.split("|"), [row.split("|") for row in rows])


def _costs(size: str, arms: Mapping[str, Any]) -> Table:
    rows = {}
    for name, found in arms.items():
        for side, cost in found["cost"].items():
            # An optimizer that several comparisons share keeps its own one's time.
            if side not in rows or side == f"optabs.{name}":
                needed, state = found["must_move_bytes"][side], state_of(found, side)
                called, looped = (1e3 * median(found[mode]["seconds"][side]) for mode in MODES)
                rows[side] = (
                    f"{side}|{cost['flops']:.2f}|{cost['transcendentals']:.2f}|"
                    f"{cost['roots']:.2f}|{state:.2f}|{needed:.1f}|{cost['bytes_accessed']:.1f}|"
                    f"{cost['temporary_bytes']:.1f}|{cost['kernels']} ({cost['copies']})|"
                    f"{called:.3f}|{looped:.3f}"
                )
    return _table(
        f"Cost of a step at {size}: for each parameter what XLA counts (on a CPU a root is "
        "transcendental, too), the roots in its program, and bytes: of state, that have to be "
        "moved, are moved by all passes, and are temporary; passes over an array (copies); "
        "milliseconds, called from Python and inside a compiled loop",
        "|flops|transc.|roots|state|needed|moved|temp.|passes|called|in a loop",
        rows.values(),
    )


def step_sections(records: Records) -> Sections:
    """The tables of each way to keep the state."""
    codes = {each.key.setting: each.config["codes"] for each in records.select(kind="step")}
    over = "Time of a step over the rival's, {}: median and quartiles; below 1 is faster"
    share = "Share of the speed of a plain copy of the bytes to move, {}"
    for setting in sorted(codes, key=lambda each: (each != FULL, each)):
        kept = ", ".join(f"{name} in {code}" for name, code in (codes[setting] or {}).items())
        results = results_of(records, "step", setting)
        yield f"### State in {setting}{f': {kept}' if kept else ''}\n"
        yield _costs(*list(results.items())[-1])
        yield from _ratios(over, results, _over_rivals)
        yield from _ratios(share, results, _of_copy)


def mixture_sections(records: Records) -> Sections:
    """Bars and tables of DAO-E."""
    results = results_of(records, DAO_E, "step")
    yield from bars_table([*bars_of(records)], "What was wanted; medians, called from Python")
    over = "Time of a step over {}, {{}}: median and quartiles"
    yield from _ratios(over.format("optax.adam's"), results, _over_adam)
    yield from _ratios(over.format("the sum of its experts' own"), results, _over_experts)
    yield _training(records)
    yield from (_costs(*each) for each in results.items())


def bars_of(records: Records) -> Iterator[Bar]:
    """What a step was wanted to cost at most, at the largest size and in training."""
    found = records.select(kind=DAO_E, setting="training")
    trained = {record.key.task: record.result["seconds"] for record in found}
    found = records.select(kind=DAO_E, setting="step")
    if not found:
        return
    here = found[0].environment["device"].split(":")[0]

    def bar(name: str, limit: float, measured: float, device: str = "") -> Bar:
        # As it is shown: a few numbers a leaf are no byte a parameter.
        shown = f"{measured:.3g}"
        met = float(shown) <= limit if device in ("", here) else None
        on = f" (for a {device})" if device else ""
        return Bar(f"{name}{on}", f"at most {limit:.3g}", shown, met)

    largest = max((each.result for each in found), key=lambda result: result["parameters"])
    over = _over_adam(largest["call"]["seconds"])
    sides = [side for side in over if side not in BASELINES]
    if largest["leaves"] == 1:
        for side in sides:
            name = f"{side}: one array, time over Adam's"
            yield bar(name, 2, over[side].median, "gpu")
    if times := trained.get("resnet18"):
        share = ratio(times[DAO_E], times[f"training, {DAO_E}"]).percent.median
        yield bar(f"{DAO_E}: ResNet-18, percent of a training step", 5, share, "gpu")
    if times := trained.get("mlp"):  # 7 ms where Adam takes 3.8
        whole = ratio(times[f"training, {DAO_E}"], times[f"training, {ADAM}"]).median
        yield bar(f"{DAO_E}: MLP, training step over Adam's", 7 / 3.8, whole, "cpu")
    for side, limit in STATE_BYTES.items():
        yield bar(f"{side}: bytes of state a parameter", limit, state_of(largest, side))


def _training(records: Records) -> Table:
    rows = []
    for record in records.select(kind=DAO_E, setting="training"):
        times = record.result["seconds"]
        for side in (each for each in TRAINED if each in times):
            whole, own = times[f"training, {side}"], times[side]
            share, over = ratio(own, whole).percent, ratio(whole, times[f"training, {ADAM}"])
            medians = f"{1e3 * median(whole):.2f}|{1e3 * median(own):.2f}"
            rows.append(f"{record.key.task}, {side}|{medians}|{share}|{over}")
    return _table(
        "A step of training, called from Python; the optimizer's step alone, inside a "
        "compiled loop; its share of the training step in percent; and the training step over "
        f"one with {ADAM} (median and quartiles)",
        "|training, ms|optimizer, ms|share, %|training / Adam's",
        rows,
    )


def compile_sections(records: Records) -> Sections:
    """Seconds to compile, and lines."""
    rows = []
    for record in _by(records, "compile", "leaves"):
        count, times = record.config["leaves"], record.result["seconds"]
        for name, lines in record.result["lines"].items():
            seconds = f"{median(times[name]):.2f}|{ratio(times[name], times[ADAM])}"
            rows.append(f"{name}|{count}|{seconds}|{lines}|{lines / count:.0f}")
    title = (
        "Seconds to compile a step (median of fresh compilations in turns), over those of "
        f"{ADAM}, and lines of the optimized program"
    )
    header = "optimizer|arrays|seconds|ratio [quartiles]|lines|lines an array"
    return [_table(title, header, rows)]


def epoch_sections(records: Records) -> Sections:
    """Seconds per epoch."""
    rows = []
    for record in _by(records, "epoch", "batch_size"):
        for side, first in record.result["first_epoch"].items():
            own, ours = (record.result["seconds"][each] for each in (side, programs.JAX))
            rows.append(
                f"{side}|{record.config['batch_size']}|{median(own):.3f}|"
                f"{min(own):.3f} to {max(own):.3f}|{ratio(own, ours).median:.2f}|"
                f"{first['loss']:.3f}|{100 * first['validation_accuracy']:.1f}"
            )
    title = (
        "Seconds per epoch of MNIST, contenders in turns; loss and accuracy (%) of the first"
    )
    return [_table(title, "|batch|median|interval|over jax|loss|accuracy", rows)]


def fit_sections(records: Records) -> Sections:
    """Milliseconds per epoch."""
    rows = []
    for record in _by(records, "fit", "model", "batch_size"):
        size, epochs = record.config["batch_size"] or "all", record.config["epochs"]
        times, apart = record.result["seconds"].values(), record.result["largest_difference"]
        medians = "|".join(f"{1e3 * median(each) / epochs:.3f}" for each in times)
        rows.append(f"{record.key.task}|{size}|{epochs}|{medians}|{ratio(*times)}|{apart:.1e}")
    title = "Milliseconds per epoch of digits (median of runs in turns, Adam)"
    sides = f"{programs.FIT}|{programs.HAND}"
    header = f"model|batch|epochs in a run|{sides}|ratio [quartiles]|difference"
    return [_table(title, header, rows)]


def population_sections(records: Records) -> Sections:
    """Learning, and what evolving adds."""
    learning, evolution = [], []
    for record in _by(records, "population", "side", "hidden", "population"):
        times, steps = record.result["seconds"], record.result["steps"]
        ms = {side: f"{1e3 * median(own):.1f}" for side, own in times.items()}
        named = f"{record.key.task.removeprefix('mlp ')}|{record.config['population']}"
        ratios = [f"{ratio(times[x], times[y]).median:.2f}" for x, y in RATIOS]
        learning.append("|".join([named, *(ms[side] for side in LEARNING), *ratios]))
        # A generation: everyone learns, the children are bred, and learn as long.
        pairs = list(zip(times[ITSELF], times[VMAP], strict=True))
        share = spread([100 * own / (own + 2 * learn) for own, learn in pairs])
        enough = median(own / learn for own, learn in pairs) * steps * (1 - SHARE) / SHARE
        added = f"{ms[EVOLVE]}|{ms[ITSELF]}|{2 * steps}|{share}|{enough:.0f}"
        evolution.append(f"{named}|{added}")
    ratios = [f"{x} / {y}" for x, y in RATIOS]
    return [
        _table(
            f"Milliseconds in which all units make {steps} steps (medians of runs in turns; "
            f"chunks are of {record.config['chunk_size']} units), and ratios of times",
            "|".join(["MLP|units", *LEARNING, *ratios]),
            learning,
        ),
        _table(
            "Milliseconds of an evolution with and without its children's training, its share "
            "of a generation in percent, and in a generation of how many steps it is "
            f"{SHARE:.0%}",
            f"MLP|units|{EVOLVE}|{ITSELF}|steps|share|steps for {SHARE:.0%}",
            evolution,
        ),
    ]


def _by(records: Records, kind: str, *order: str) -> list[Record]:
    """In this order of their settings, None at the end."""
    found = records.select(kind=kind)
    return sorted(found, key=lambda each: [each.config[name] or math.inf for name in order])
