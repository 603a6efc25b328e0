"""The study's records: a rate chosen on some seeds, results reported on others."""

import functools
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import store
from benchmarks.gadam.arms import (
    FUNCTION_ARMS,
    FUNCTION_TRIALS,
    NETWORK_ARMS,
    NETWORK_TRIALS,
    Arm,
    Rule,
    count_of,
)
from benchmarks.gadam.program import Lineage, Outcome, Program, program_of
from benchmarks.gadam.tasks import NETWORKS, Task, function_task, network_task

GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # of every arm, times the task's scale
LOWER, HIGHER = (1e-4, 3e-5), (3e-1, 1.0)  # tried where the best rate is at the grid's edge
TUNING_SEEDS = (1_000_000, 1_000_001, 1_000_002)  # the reported ones count from 0
LOOKS = 40  # points kept of a curve, after equal shares of the budget
KEPT_GENERATIONS = 30  # of the first seed's lineage
DIGITS_KEPT = 5
QUARTILES = (25, 50, 75)


class Plan(NamedTuple):
    """What is asked for."""

    tasks: tuple[str, ...]
    seeds: int
    folder: pathlib.Path
    source: pathlib.Path | None = None  # of the images
    steps: int | None = None  # of each unit on a function, in place of its own number
    epochs: int | None = None  # likewise on a network's data


class Unit(NamedTuple):
    """One record to make: an arm on a task."""

    task: str
    arm: str

    def path(self, folder: pathlib.Path) -> pathlib.Path:
        """Where it is kept."""
        return folder / "runs" / self.task / f"{self.arm}.json"


def name_of(function: str, dimensions: int, condition: str) -> str:
    """How a function's task is called."""
    return f"{function}-{dimensions}-{condition}"


def arms_of(task: str) -> dict[str, Arm]:
    """The arms and trials of a task."""
    if task in NETWORKS:
        return NETWORK_ARMS | NETWORK_TRIALS
    return FUNCTION_ARMS | FUNCTION_TRIALS


@functools.cache
def task_of(
    name: str, source: pathlib.Path | None, steps: int | None, epochs: int | None
) -> Task:
    """A task, made once."""
    if name in NETWORKS:
        return network_task(name, source, **({} if epochs is None else {"epochs": epochs}))
    function, dimensions, condition = name.split("-")
    budget = {} if steps is None else {"steps": steps}
    return function_task(function, int(dimensions), condition, **budget)


def config_of(unit: Unit, plan: Plan) -> dict[str, Any]:
    """What distinguishes a record."""
    task = task_of(unit.task, plan.source, plan.steps, plan.epochs)
    return {
        "task": unit.task,
        "title": task.title,
        "units": task.units,
        "epochs": task.epochs,
        "steps": task.steps,
        "scale": task.scale,
        "arm": arms_of(unit.task)[unit.arm].config(),
        "grid": GRID,
        "tuning_seeds": TUNING_SEEDS,
        "seeds": plan.seeds,
    }


def is_finished(unit: Unit, plan: Plan) -> bool:
    """Whether the record is there, made by the same configuration."""
    return store.finished(unit.path(plan.folder), config_of(unit, plan)) is not None


def make(unit: Unit, plan: Plan) -> None:
    """Makes a record and keeps it."""
    task = task_of(unit.task, plan.source, plan.steps, plan.epochs)
    arm = arms_of(unit.task)[unit.arm]
    program = program_of(task, arm)
    rates, losses = tune(program)
    best = chosen(losses)
    started = time.perf_counter()
    outcome = program([rates[best]] * plan.seeds, range(plan.seeds))
    seconds = time.perf_counter() - started
    count = count_of(arm, units=task.units, epochs=task.epochs, steps=task.steps)
    results = {
        "rate": rates[best],
        "at_edge": best in (0, len(rates) - 1),
        "rates": rates,
        "tuning": [kept(row) for row in losses],
        **count._asdict(),
        **_summary(outcome, spent_at(arm, task, outcome.curve.shape[1])),
        "seconds": round(seconds, 2),
    }
    if task.test is not None:
        test_loss, accuracy = jax.jit(jax.vmap(task.test))(outcome.params)
        results |= {"test_loss": kept(test_loss), "test_accuracy": kept(accuracy)}
    record = {
        "config": config_of(unit, plan),
        "results": results,
        "environment": store.environment(),
    }
    store.write_json(unit.path(plan.folder), record)
    jax.clear_caches()


def tune(program: Program) -> tuple[list[float], np.ndarray]:
    """The rates tried, ascending, and the final losses: float [rates, tuning seeds].

    They are those of the grid; while the best of them is the lowest or the highest, one more.
    """
    rates, losses = list(GRID), _finals(program, GRID)
    for further, at in ((LOWER, 0), (HIGHER, -1)):
        for rate in further:
            if chosen(losses) != at % len(rates):
                break
            rows = _finals(program, [rate])
            rates = [rate, *rates] if at == 0 else [*rates, rate]
            losses = np.concatenate([rows, losses] if at == 0 else [losses, rows])
    return rates, losses


def chosen(losses: np.ndarray) -> int:
    """The index of the best rate, by the median over the tuning seeds."""
    return int(np.argmin(np.median(losses, axis=1)))


def _finals(program: Program, rates: Sequence[float]) -> np.ndarray:
    seeds = np.tile(TUNING_SEEDS, len(rates))
    curves = program(list(np.repeat(rates, len(TUNING_SEEDS))), list(seeds)).curve
    return curves[:, -1].reshape(len(rates), -1)


def spent_at(arm: Arm, task: Task, length: int) -> np.ndarray:
    """The gradient evaluations before each point of a curve: int [length]."""
    total = count_of(arm, units=task.units, epochs=task.epochs, steps=task.steps).gradients
    first = 0
    if isinstance(arm, Rule) and not arm.relearn:
        first = task.units * arm.epochs * task.steps  # before the first generation
    return first + (total - first) // length * np.arange(1, length + 1)


def _summary(outcome: Outcome, spent: np.ndarray) -> dict[str, Any]:
    """Final losses of each seed, quartiles of the curves, the first seed's lineage."""
    length = outcome.curve.shape[1]
    looks = np.unique(np.linspace(1, length, LOOKS).round().astype(int))
    curves = np.percentile(outcome.curve[:, looks - 1], QUARTILES, axis=0)
    summary: dict[str, Any] = {
        "final": kept(outcome.curve[:, -1]),
        "looks": spent[looks - 1].tolist(),
        "curves": [kept(curve) for curve in curves],
    }
    if outcome.lineage is not None:
        diversity = np.median(outcome.lineage.diversity, axis=0)
        summary["diversity"] = kept(diversity[looks - 1])
        summary["lineage"] = _lineage(outcome.lineage)
    return summary


def _lineage(lineage: Lineage) -> dict[str, Any]:
    parents, survivors = (
        each[0, :KEPT_GENERATIONS] for each in (lineage.parents, lineage.survivors)
    )
    return {
        "parents": parents.reshape(len(parents), -1).tolist(),
        "survivors": survivors.tolist(),
    }


def kept(values: Any) -> list[float]:
    """Numbers as a record keeps them."""
    return [float(f"{value:.{DIGITS_KEPT}g}") for value in np.asarray(values)]
