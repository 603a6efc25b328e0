"""Reads the study's records: final losses, ratios to the best of g Adam runs, bars."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import store
from benchmarks.gadam.arms import BASELINE
from benchmarks.gadam.functions import FUNCTIONS
from benchmarks.gadam.tasks import CONDITIONS, NETWORKS
from benchmarks.lab import report

Record = dict[str, Any]
Records = dict[tuple[str, str], Record]  # by task and arm

FLOOR = 1e-4  # a function's final loss below it counts as it; float32 is no more exact
WANTED_RATIO, WANTED_FUNCTIONS, JUDGED_AT = 10.0, 4, "30"


class Bar(NamedTuple):
    """What is wanted of an arm, and what was measured."""

    name: str
    wanted: str
    measured: str
    met: bool


def read(folder: pathlib.Path, kind: str = "runs") -> Records:
    """All records of a folder and kind, in the order of the study."""
    records = store.read_all(folder / kind)
    return dict(sorted(records.items(), key=lambda item: place(item[0][0])))


def place(task: str) -> tuple[int, ...]:
    """Where a task stands in the order of the study."""
    if task in NETWORKS:
        return (len(CONDITIONS), 0, list(NETWORKS).index(task))
    function, dimensions, condition = task.split("-")
    return (
        list(CONDITIONS).index(condition), int(dimensions), list(FUNCTIONS).index(function)
    )  # fmt: skip


def tasks_of(records: Records, arm: str = BASELINE) -> list[str]:
    """The tasks that an arm has a record of."""
    return list(dict.fromkeys(task for task, name in records if name == arm))


def functions_of(records: Records, condition: str) -> list[str]:
    """The functions' tasks under a condition, which the best of g has a record of."""
    return [task for task in tasks_of(records) if task.endswith(f"-{condition}")]


def networks_of(records: Records) -> list[str]:
    """The networks' tasks, which the best of g has a record of."""
    return [task for task in tasks_of(records) if task in NETWORKS]


def label_of(records: Records, arm: str, tasks: Sequence[str]) -> str:
    """How an arm is called in tables and legends of some tasks."""
    return next(
        record["config"]["arm"]["label"]
        for (task, name), record in records.items()
        if name == arm and task in tasks
    )


def measured(records: Records, task: str, arm: str, key: str = "final") -> np.ndarray:
    """A measure of each seed; null, which is not finite, is infinite: float [seeds]."""
    values = np.array(records[task, arm]["results"][key], dtype=float)
    return np.where(np.isnan(values), np.inf, values)


def median(records: Records, task: str, arm: str) -> float:
    """The median over the seeds of the final loss, which is at least FLOOR on a function."""
    return bounded(task, np.median(measured(records, task, arm)))


def bounded(task: str, loss: float) -> float:
    """A final loss, which is at least FLOOR on a function."""
    return float(loss) if task in NETWORKS else max(float(loss), FLOOR)


def ratio(records: Records, task: str, arm: str) -> float:
    """How many times lower the arm's median final loss is than the best of g's."""
    return median(records, task, BASELINE) / median(records, task, arm)


def standard_errors(records: Records, task: str, arm: str, key: str = "final") -> float:
    """How far the arm's mean is above the best of g's, in the difference's standard errors."""
    own, other = (measured(records, task, name, key) for name in (arm, BASELINE))
    return report.errors_above(own, other)


def bars_of(records: Records, arm: str) -> list[Bar]:
    """The bars for an arm, one per condition of the functions and one for networks."""
    bars = []
    for condition in CONDITIONS:
        tasks = [
            task
            for task in functions_of(records, condition)
            if task.split("-")[1] == JUDGED_AT and (task, arm) in records
        ]
        if tasks:
            ratios = [ratio(records, task, arm) for task in tasks]
            reached = sum(value >= WANTED_RATIO for value in ratios)
            bars.append(
                Bar(
                    f"functions in {JUDGED_AT} dimensions, {condition}: median final loss at "
                    f"least {WANTED_RATIO:g} times lower than the best of g's",
                    f"{WANTED_FUNCTIONS} of {len(FUNCTIONS)}",
                    f"{reached} of {len(tasks)}",
                    reached >= WANTED_FUNCTIONS,
                )
            )
    tasks = [task for task in networks_of(records) if (task, arm) in records]
    if tasks:
        errors = [standard_errors(records, task, arm) for task in tasks]
        within = sum(error <= 1 for error in errors)
        bars.append(
            Bar(
                "networks: validation loss at most 1 standard error above the best of g's",
                f"{len(tasks)} of {len(tasks)}",
                f"{within} of {len(tasks)}",
                within == len(tasks),
            )
        )
    return bars


def common(records: Records, tasks: Sequence[str]) -> list[str]:
    """The arms that have a record of every one of these tasks, in the order of the records."""
    arms = dict.fromkeys(arm for _, arm in records)
    return [arm for arm in arms if all((task, arm) in records for task in tasks)]
