"""The study's records: rates tuned on validation data, then every arm in every setting.

One record holds all settings and seeds of an arm on a task, and is made by one compiled
program. Rates, rules and candidates are chosen by validation data. The test data are looked
at with `final` only, by the finalists, when nothing is left to be chosen; their earlier
records are then made again, with the same seeds and so the same runs.
"""

import functools
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import store
from benchmarks.dao_e.arms import ARMS, SCOPES, TUNED, Arm
from benchmarks.dao_e.program import (
    Outcome,
    Program,
    curve_of,
    measures_of,
    program_of,
    validation_loss,
)
from benchmarks.dao_e.settings import (
    GRID,
    TUNING_SEEDS,
    best_rate,
    half_decade,
    rates_in,
    tune,
)
from benchmarks.dao_e.tasks_drift import DRIFTING
from benchmarks.lab.tasks import TASKS, Maker, Task

ABLATION_SEEDS = 2
DRIFT_SETTINGS = ("tuned", "same")
DIGITS_KEPT = 5
MAKERS: dict[str, Maker] = TASKS | DRIFTING


class Plan(NamedTuple):
    """What is asked for."""

    tasks: tuple[str, ...]
    settings: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: int
    folder: pathlib.Path
    source: pathlib.Path | None = None  # of the images
    steps: int | None = None  # in place of each task's own
    final: bool = False


class Unit(NamedTuple):
    """One record to make."""

    task: str
    arm: str
    tuning: bool

    def path(self, folder: pathlib.Path) -> pathlib.Path:
        """Where it is kept."""
        kind = "tuning" if self.tuning else "runs"
        return folder / kind / self.task / f"{self.arm}.json"


@functools.cache
def task_of(name: str, source: pathlib.Path | None, steps: int | None) -> Task:
    """A task, made once in a process."""
    task = MAKERS[name](source)
    return task if steps is None else task._replace(steps=steps)


def units_of(plan: Plan, *, tuning: bool) -> list[Unit]:
    """The records of a plan, or those of the tuning that comes before."""
    units = []
    for name in plan.tasks:
        scope = SCOPES[task_of(name, plan.source, plan.steps).scope]
        arms = [arm for arm in plan.arms if arm in scope]
        if tuning:
            # The best rates of all experts make a setting, whichever arms are wanted.
            arms = [arm for arm in TUNED if arm in ARMS and (arm in arms or not _alone(arm))]
        units += [Unit(name, arm, tuning) for arm in arms]
    return units


def _alone(name: str) -> bool:
    """Whether an arm's best rate is of no use to others."""
    return ARMS[name].experts != (name,)


def settings_of(task: Task, plan: Plan) -> tuple[str, ...]:
    """The settings in which a task is trained."""
    wanted = DRIFT_SETTINGS if task.scope == "drift" else plan.settings
    return tuple(setting for setting in plan.settings if setting in wanted)


def config_of(unit: Unit, plan: Plan) -> dict[str, Any]:
    """What distinguishes a record; an arm's rates come from the records of the tuning."""
    task, arm = task_of(unit.task, plan.source, plan.steps), ARMS[unit.arm]
    config: dict[str, Any] = {
        "task": unit.task,
        "title": task.title,
        "classifies": task.classifies,
        "scope": task.scope,
        "steps": task.steps,
        "arm": arm.config(),
    }
    if unit.tuning:
        return config | {"grid": list(map(half_decade, GRID)), "seeds": TUNING_SEEDS}
    # Where the data drift, an ablation is what the trial is about.
    everyone = arm.finalist or task.scope == "drift"
    return config | {
        "rates": _rates(unit, arm, settings_of(task, plan), plan.folder),
        "seeds": plan.seeds if everyone else min(plan.seeds, ABLATION_SEEDS),
        "test": plan.final and arm.finalist,
    }


def _rates(
    unit: Unit, arm: Arm, settings: Sequence[str], folder: pathlib.Path
) -> dict[str, list[float]]:
    """The rates of an arm's experts in each setting."""
    own = unit.arm if unit.arm in TUNED else None
    best = {name: _best(folder, unit.task, own or name) for name in arm.experts}
    return {setting: list(rates_in(setting, best).values()) for setting in settings}


def _best(folder: pathlib.Path, task: str, arm: str) -> float:
    return store.read_json(Unit(task, arm, True).path(folder))["results"]["best"]


def is_finished(unit: Unit, plan: Plan) -> bool:
    """Whether the record is there; one that has seen the test data has all of the others."""
    config, path = config_of(unit, plan), unit.path(plan.folder)
    wanted = [config] if unit.tuning else [config, config | {"test": True}]
    return any(store.finished(path, each) is not None for each in wanted)


def make(unit: Unit, plan: Plan) -> None:
    """Makes a record and keeps it."""
    started = time.perf_counter()
    config = config_of(unit, plan)
    task = task_of(unit.task, plan.source, plan.steps)
    program = program_of(task, ARMS[unit.arm], test=config.get("test", False))
    results = _tuned(program) if unit.tuning else _trained(program, config)
    record = {
        "config": config,
        "results": results,
        "seconds": round(time.perf_counter() - started, 1),
        "environment": store.environment(),
    }
    store.write_json(unit.path(plan.folder), record)
    jax.clear_caches()


def _tuned(program: Program) -> dict[str, Any]:
    rates, losses = tune(functools.partial(validation_loss, program))
    return {
        "best": best_rate(rates, losses),
        "rates": rates,
        "validation_loss": [_kept(row) for row in losses],
    }


def _trained(program: Program, config: Mapping[str, Any]) -> dict[str, Any]:
    """Each setting's measures, of the seeds one after the other."""
    of_rates: dict[tuple[float, ...], dict[str, Any]] = {}
    for rates in map(tuple, config["rates"].values()):
        if rates not in of_rates:
            of_rates[rates] = _summary(
                [program(rates, seed) for seed in range(config["seeds"])]
            )
    return {name: of_rates[tuple(rates)] for name, rates in config["rates"].items()}


def _summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The measures of each seed; curves, weights and multiplier are means over the seeds."""
    measures = [measures_of(outcome) for outcome in outcomes]
    summary: dict[str, Any] = {
        name: [bool(each[name]) for each in measures]
        if name == "diverged"
        else _kept([each[name] for each in measures])
        for name in measures[0]
    }
    summary["curve"] = _kept(np.mean([curve_of(each.losses) for each in outcomes], axis=0))
    summary["watched"] = {
        name: _kept(np.mean([each.watched[name] for each in outcomes], axis=0))
        for name in outcomes[0].watched
    }
    return summary


def _kept(values: Sequence[float] | np.ndarray) -> list[float]:
    return [float(f"{value:.{DIGITS_KEPT}g}") for value in values]


def read(plan: Plan) -> dict[tuple[str, str], dict[str, Any]]:
    """All records of a plan, by task and arm."""
    return {
        (unit.task, unit.arm): store.read_json(unit.path(plan.folder))
        for unit in units_of(plan, tuning=False)
    }
