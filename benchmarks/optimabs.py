"""The OptimABS experiment: accuracy, steadiness and time of |g| beside g², at one rate."""

import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import optabs
from benchmarks.lab.records import Key, Record, Records, as_floats, rounded
from benchmarks.lab.report import Curve, Table, curves_figure, mean_and_spread
from benchmarks.lab.study import Study, Unit, command_of
from benchmarks.lab.tasks import in_epochs, perceptron
from benchmarks.lab.timing import in_turns, seconds_of
from benchmarks.lab.training import Arm, Task, program_of, state_bytes
from benchmarks.steady import DECAY, RATE, decayed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPOCHS = {"digits": 60, "mnist": 200}
BATCH_SIZES = {"digits": (64,), "mnist": (64, 128, 256)}
ROUNDS = 5  # epochs of each arm that are timed
SHARE_OF_SWING = 0.25  # the swing is taken over the last quarter of the epochs


def _arm(label: str, make: Callable[[Any], Any]) -> Arm:
    return Arm(label, lambda rate: decayed(make(rate)))


# The hyper-parameters of the OptimABS paper; RMSprop's decay, which it does not print, is
# read as 0.99.
ARMS: Mapping[str, Arm] = {
    "rmsprop": _arm("RMSProp", lambda rate: optabs.rmsprop(rate, 0.99)),
    "rmsprop_abs": _arm("RMSPropABS", lambda rate: optabs.rmsprop_abs(rate, 0.99)),
    "rmsprop_abs_steady": _arm(
        "RMSPropABS, steady", lambda rate: optabs.rmsprop_abs(rate, 0.99, steady=True)
    ),
    "adam": _arm("Adam", optabs.adam),
    "adamw": Arm("AdamW", lambda rate: optabs.adamw(rate, weight_decay=DECAY)),
    "adam_abs": _arm("AdamABS", optabs.adam_abs),
    "adam_abs_steady": _arm(
        "AdamABS, steady", lambda rate: optabs.adam_abs(rate, steady=True)
    ),
}


def _task(dataset: str, batch_size: int, source: pathlib.Path | None) -> Task:
    return in_epochs(perceptron(dataset, source), batch_size, EPOCHS[dataset])


def _timings(tasks: Sequence[tuple[str, Task]], arms: Sequence[str]) -> list[Unit]:
    """An epoch of every arm, in turns."""
    units = []
    for name, task in tasks:
        keys = tuple(Key(name, arm, kind="time") for arm in arms)
        epoch = task._replace(steps=task.steps // math.gcd(task.steps, task.points), points=1)
        config = {"title": task.title, "steps": epoch.steps, "rate": RATE, "rounds": ROUNDS}
        units.append(Unit(keys, config, functools.partial(_timed, epoch, keys)))
    return units


def _timed(epoch: Task, keys: Sequence[Key], *_: Any) -> Iterator[tuple[Key, dict[str, Any]]]:
    """All keys, not the missing ones alone: only times of one session can be compared."""
    runs: dict[str, Callable[[], float]] = {}
    for key in keys:
        program = functools.partial(program_of(epoch, ARMS[key.arm]), RATE, 0)
        program()  # compiles
        runs[key.arm] = functools.partial(seconds_of, program)
    seconds = in_turns(runs, ROUNDS, math.inf)
    for key in keys:
        size = state_bytes(epoch, ARMS[key.arm])
        yield key, {"epoch_seconds": rounded(seconds[key.arm]), "bytes": size}


Found = Mapping[str, Mapping[str, Sequence[Record]]]  # by arm and by batch size


def _by_dataset(records: Records, kind: str = "run") -> Mapping[str, Found]:
    """The records of each data set that has any, by arm and by batch size, in order."""
    found: dict[str, dict[str, dict[str, list[Record]]]] = {}
    for arm in ARMS:
        for name in TASKS:
            dataset, _, size = name.partition("-")
            if own := records.select(kind=kind, task=name, arm=arm):
                found.setdefault(dataset, {}).setdefault(arm, {})[size] = own
    return found


def _accuracies(runs: Sequence[Record]) -> np.ndarray:
    """Of validation, in percent: float [runs, epochs]."""
    return 100 * as_floats([run.result["curves"]["validation_accuracy"] for run in runs])


def _tests(runs: Sequence[Record]) -> np.ndarray:
    return 100 * as_floats([run.result["test_accuracy"] for run in runs])


def _swings(runs: Sequence[Record]) -> np.ndarray:
    curves = _accuracies(runs)
    return curves[:, -max(1, round(SHARE_OF_SWING * curves.shape[1])) :].std(axis=1)


def _seconds(runs: Sequence[Record]) -> np.ndarray:
    return np.array([np.median(run.result["epoch_seconds"]) for run in runs])


def _table(
    title: str, found: Found, values_of: Callable[..., np.ndarray], digits: int, *last: str
) -> Table:
    """A row an arm, a column a batch size; `last` may name a column of their mean."""
    sizes = list(dict.fromkeys(size for own in found.values() for size in own))
    rows = []
    for arm, own in found.items():
        values = [list(values_of(own[size])) if size in own else [] for size in sizes]
        mean = np.mean([np.mean(each) for each in values if each])
        cells = [mean_and_spread(each, digits) for each in values]
        rows.append([ARMS[arm].label, *cells, *(f"{mean:.{digits}f}" for _ in last)])
    return Table(title, ["optimizer", *sizes, *last], rows)


def _time_table(found: Found) -> Table:
    title = "Seconds per epoch (median, one seed alone, optimizers in turns)"
    table = _table(title, found, _seconds, 4, "mean")
    states = [next(iter(own.values()))[0].result["bytes"] for own in found.values()]
    rows = [[*row, f"{size:.2f}"] for row, size in zip(table.rows, states, strict=True)]
    return Table(title, [*table.header, "state bytes per parameter"], rows)


def sections(records: Records) -> list[Table | str]:
    """For each data set its times, its accuracies on the test data, its swings."""
    tested = "Test accuracy in percent (mean ± standard deviation over seeds)"
    swing = (
        "Swing: standard deviation of validation accuracy over the last quarter of the "
        "epochs, in points"
    )
    found: list[Table | str] = []
    times = _by_dataset(records, "time")
    for dataset, runs in _by_dataset(records).items():
        epochs = _accuracies(next(iter(next(iter(runs.values())).values()))).shape[1]
        found.append(f"## {dataset}, {epochs} epochs\n")
        if dataset in times:
            found.append(_time_table(times[dataset]))
        found.append(_table(tested, runs, _tests, 2, "mean"))
        found.append(_table(swing, runs, _swings, 3))
        found.append(f"![Validation accuracy per epoch]({dataset}.png)\n")
    return found


def figures(records: Records) -> dict[str, "Figure"]:
    """The validation accuracy of each epoch, a picture a data set."""
    drawn = {}
    for dataset, runs in _by_dataset(records).items():
        panels: dict[str, list[Curve]] = {}
        for arm, own in runs.items():
            for size, found in own.items():
                seeds = f"{len(found)} seed{'s' if len(found) > 1 else ''}"
                caption = f"{dataset}, batch {size}, {seeds}"
                curve = Curve(ARMS[arm].label, _accuracies(found))
                panels.setdefault(caption, []).append(curve)
        drawn[dataset] = curves_figure(
            list(panels.items()),
            ylabel="validation accuracy in percent",
            title="Mean over seeds, band from lowest to highest",
        )
    return drawn


TASKS = {
    f"{dataset}-{size}": functools.partial(_task, dataset, size)
    for dataset, sizes in BATCH_SIZES.items()
    for size in sizes
}
STUDY = Study(
    name="optimabs",
    doc="Runs the OptimABS paper's experiment: its tables 2 and 3, and its figure 1.",
    tasks=TASKS,
    arms=ARMS,
    need_images=[name for name in TASKS if name.startswith("mnist")],
    module=__name__,
    rate=RATE,
    downloads=True,
    sections=sections,
    figures=figures,
    timings=_timings,
)
command = command_of(STUDY)
