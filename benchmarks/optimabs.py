"""The OptimABS experiment: accuracy, steadiness and time of |g| beside g², at one rate."""

import functools
import itertools
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


Found = Mapping[str, Mapping[int, Sequence[Record]]]  # by arm and by batch size


def _found(records: Records, dataset: str, kind: str = "run") -> Found:
    """The records that there are."""
    found: dict[str, dict[int, Sequence[Record]]] = {}
    for arm, size in itertools.product(ARMS, BATCH_SIZES[dataset]):
        if runs := records.select(kind=kind, task=f"{dataset}-{size}", arm=arm):
            found.setdefault(arm, {})[size] = runs
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
    """A row an arm, a column a batch size; `last` may name columns: their mean, its bytes."""
    rows, sizes = [], sorted({size for own in found.values() for size in own})
    for arm, own in found.items():
        values = {size: list(values_of(runs)) for size, runs in own.items()}
        mean = np.mean([np.mean(each) for each in values.values()])
        (first, *_), *_ = own.values()
        more = (f"{mean:.{digits}f}", f"{first.result.get('bytes', math.nan):.2f}")
        cells = [mean_and_spread(values.get(size, []), digits) for size in sizes]
        rows.append([ARMS[arm].label, *cells, *more[: len(last)]])
    return Table(title, ["optimizer", *map(str, sizes), *last], rows)


def sections(records: Records) -> list[Table | str]:
    """For each data set its times, its accuracies on the test data, its swings."""
    timed = "Seconds per epoch (median, one seed alone, optimizers in turns)"
    tested = "Test accuracy in percent (mean ± standard deviation over seeds)"
    swing = (
        "Swing: standard deviation of validation accuracy over the last quarter of the "
        "epochs, in points"
    )
    sections: list[Table | str] = []
    for dataset, epochs in EPOCHS.items():
        if runs := _found(records, dataset):
            sections.append(f"## {dataset}, {epochs} epochs\n")
            if times := _found(records, dataset, "time"):
                last = ("mean", "state bytes per parameter")
                sections.append(_table(timed, times, _seconds, 4, *last))
            sections.append(_table(tested, runs, _tests, 2, "mean"))
            sections.append(_table(swing, runs, _swings, 3))
            sections.append(f"![Validation accuracy per epoch]({dataset}.png)\n")
    return sections


def figures(records: Records) -> dict[str, "Figure"]:
    """The validation accuracy of each epoch, a picture a data set."""
    drawn = {}
    for dataset in EPOCHS:
        panels: dict[str, list[Curve]] = {}
        for arm, own in _found(records, dataset).items():
            for size, runs in own.items():
                caption = f"{dataset}, batch {size}, {len(runs)} seeds"
                curve = Curve(ARMS[arm].label, _accuracies(runs))
                panels.setdefault(caption, []).append(curve)
        if panels:
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
    sections=sections,
    figures=figures,
    timings=_timings,
)
command = command_of(STUDY)
