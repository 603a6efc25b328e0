"""Reads the study's records: final losses, how they compare with the best of g, bars."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gadam.program import PEERS
from benchmarks.gadam.tasks import BASELINE, CONDITIONS, MAIN, NETWORKS, TASKS
from benchmarks.lab import report
from benchmarks.lab.functions import FUNCTIONS
from benchmarks.lab.records import Records, as_floats
from benchmarks.lab.report import Bar, Table

FLOOR = 1e-4  # a function's final loss below it counts as it; float32 is no more exact
WANTED_RATIO, WANTED_FUNCTIONS, JUDGED_AT = 10.0, 4, "30"


class Found(NamedTuple):
    """An arm's or a method's results on a task."""

    config: Mapping[str, Any]
    tuning: Mapping[str, Any]
    whole: Mapping[str, Any]  # what is of all seeds together
    runs: Sequence[Mapping[str, Any]]  # one a seed

    def measured(self, name: str = "loss") -> np.ndarray:
        """A measure of each seed; null, which is not finite, is infinite: float [seeds]."""
        values = as_floats([run[name] for run in self.runs])
        return np.where(np.isnan(values), np.inf, values)


class Results(dict[tuple[str, str], Found]):
    """By task and arm, in the order of the tasks: those that are finished."""

    def __init__(self, records: Records, run: str = "run", whole: str = "curves") -> None:
        parts: dict[tuple[str, str], dict[str, list[Any]]] = {}
        for record in records:
            key = record.key
            kind = "runs" if key.kind == run and key.seed is not None else key.kind
            parts.setdefault((key.task, key.arm), {}).setdefault(kind, []).append(record)
        for pair in sorted(parts, key=lambda pair: TASKS.index(pair[0])):
            part = parts[pair]
            if whole in part:
                results = {kind: [each.result for each in part[kind]] for kind in part}
                tuning = results.get("tuning", [{}])[0]
                config = part[whole][0].config
                self[pair] = Found(config, tuning, results[whole][0], results["runs"])

    def tasks(self, arm: str = BASELINE, end: str = "") -> list[str]:
        """Those that an arm has results on, whose names end so."""
        return [task for task, name in self if name == arm and task.endswith(end)]

    def networks(self) -> list[str]:
        """Those that the best of g has results on."""
        return [task for task in self.tasks() if task in NETWORKS]

    def arms(self, tasks: Sequence[str]) -> list[str]:
        """Those that have results on some of the tasks: MAIN, then the others by name."""
        known = {arm for task, arm in self if task in tasks}
        return [arm for arm in MAIN if arm in known] + sorted(known - set(MAIN))

    def label(self, arm: str, tasks: Sequence[str] = TASKS) -> str:
        """How an arm is called in tables and legends of some tasks."""
        named = ((each, task) for (task, name), each in self.items() if name == arm)
        config = next(each.config for each, task in named if task in tasks)
        return config["peer" if arm in PEERS else "arm"]["label"]

    def median(self, task: str, arm: str) -> float:
        """Of the final losses, which on functions are at least FLOOR."""
        middle = float(np.median(self[task, arm].measured()))
        return middle if task in NETWORKS else max(middle, FLOOR)

    def ratio(self, task: str, arm: str) -> float:
        """How many times lower the arm's median final loss is than the best of g's."""
        return self.median(task, BASELINE) / self.median(task, arm)

    def errors(self, task: str, arm: str, name: str = "loss") -> float:
        """How far the arm's mean is above the best of g's, in the difference's errors."""
        own, other = (self[task, each].measured(name) for each in (arm, BASELINE))
        return report.errors_above(own, other)

    def cell(self, task: str, arm: str) -> str:
        """A loss, and in brackets how it compares with the best of g's."""
        if task in NETWORKS:
            text = f"{self[task, arm].measured().mean():.4f} ({self.errors(task, arm):+.1f})"
        else:
            text = f"{self.median(task, arm):.2g} ({self.ratio(task, arm):.3g})"
        return text.split()[0] if arm == BASELINE else text

    def table(
        self,
        title: str,
        tasks: Sequence[str],
        cell: Callable[[str, str], str],
        arms: Sequence[str] = MAIN,
    ) -> Table:
        """A row a task, a column an arm that has results; empty where there are none."""
        arms = [arm for arm in arms if any((task, arm) in self for task in tasks)]
        rows = [
            [title_of(task), *(cell(task, arm) if (task, arm) in self else "" for arm in arms)]
            for task in tasks
        ]
        return Table(title, ["task", *(self.label(arm, tasks) for arm in arms)], rows)


def bars_of(found: Results, arm: str) -> list[Bar]:
    """The bars for an arm, one per condition of the functions and one for networks."""
    bars = []
    for condition in CONDITIONS:
        if tasks := found.tasks(arm, f"-{JUDGED_AT}-{condition}"):
            reached = sum(found.ratio(task, arm) >= WANTED_RATIO for task in tasks)
            name = (
                f"functions in {JUDGED_AT} dimensions, {condition}: median final loss at "
                f"least {WANTED_RATIO:g} times lower than the best of g's"
            )
            measured, met = f"{reached} of {len(tasks)}", reached >= WANTED_FUNCTIONS
            bars.append(Bar(name, f"{WANTED_FUNCTIONS} of {len(FUNCTIONS)}", measured, met))
    if tasks := [task for task in found.tasks(arm) if task in NETWORKS]:
        within = sum(found.errors(task, arm) <= 1 for task in tasks)
        name = "networks: validation loss at most 1 standard error above the best of g's"
        wanted, measured = (f"{count} of {len(tasks)}" for count in (len(tasks), within))
        bars.append(Bar(name, wanted, measured, within == len(tasks)))
    return bars


def title_of(task: str) -> str:
    """A task's name in tables and pictures."""
    return task.replace("_", " ").replace("-", ", ")
