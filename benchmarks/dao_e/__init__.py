"""DAO-E beside its experts, uniform weights and neighbours, on many tasks.

Rates, rules and candidates are chosen by validation data. The test data are looked at with
`--final` only, by the finalists, when nothing is left to be chosen; their earlier records are
then made again, with the same seeds and so the same runs.
"""

import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from benchmarks.dao_e import report
from benchmarks.dao_e.study import (
    ABLATIONS,
    DRIFT_SETTINGS,
    EXPERTS,
    LABELS,
    MIXTURES,
    NEED_IMAGES,
    SCOPES,
    SETTINGS,
    TASKS,
    TUNED,
    arm_on,
    rated_by,
    rates_in,
)
from benchmarks.lab.arguments import (
    DataOption,
    OutOption,
    QuickOption,
    ReportOption,
    StepsOption,
    WorkersOption,
    positive,
    some_of,
    tasks_of,
)
from benchmarks.lab.records import Key, Records, prepare_folder, rounded
from benchmarks.lab.study import QUICK_STEPS, TUNING_SEEDS, Grid, Unit, run_units, tuned
from benchmarks.lab.training import (
    Program,
    Task,
    constant,
    curves_of,
    measures_of,
    program_of,
)

GRID = Grid()
SEEDS, ABLATION_SEEDS = 5, 2


class Plan(NamedTuple):
    """What is asked for."""

    tasks: Sequence[str]
    settings: Sequence[str]
    arms: Sequence[str]
    seeds: int
    source: pathlib.Path | None = None  # of the images
    steps: int | None = None  # in place of each task's own
    final: bool = False


@functools.cache
def task_of(name: str, source: pathlib.Path | None, steps: int | None) -> Task:
    """A task, made once in a process."""
    task = TASKS[name](source)
    return task if steps is None else task._replace(steps=steps)


def _program(task: str, arm: str, plan: Plan, *, test: bool = False) -> Program:
    made = task_of(task, plan.source, plan.steps)
    if arm == "schedule_free_adamw":
        # Its iterates live in its state, where a decay behind it would not reach them; and
        # it stands in for schedules, so it has none.
        made = made._replace(schedule=constant, wrap=lambda optimizer: optimizer)
    return program_of(made, arm_on(task, arm), test=test)


def _described(task: str, arm: str, plan: Plan) -> dict[str, Any]:
    made = task_of(task, plan.source, plan.steps)
    names = ("title", "classifies", "scope", "steps")
    return {"label": LABELS[arm]} | {name: getattr(made, name) for name in names}


def tuning_units(plan: Plan) -> list[Unit]:
    """The best rates: of all experts, which make a setting, whichever arms are wanted."""
    units = []
    for task in plan.tasks:
        scope = SCOPES[task_of(task, plan.source, plan.steps).scope]
        for arm in TUNED:
            if arm in EXPERTS or (arm in plan.arms and arm in scope):
                config = _described(task, arm, plan)
                config |= {"grid": GRID.rates, "tuning_seeds": TUNING_SEEDS}
                make = functools.partial(_tuned, task, arm, plan)
                units.append(Unit((Key(task, arm, kind="tuning"),), config, make))
    return units


def _tuned(
    task: str, arm: str, plan: Plan, missing: Sequence[Key], done: Any
) -> Iterator[tuple[Key, dict[str, Any]]]:
    program = _program(task, arm, plan)
    (name,) = rated_by(arm)
    found = tuned(lambda rate, seed: program({name: rate}, seed), GRID)
    yield missing[0], found.result()


def units(plan: Plan, records: Records) -> list[Unit]:
    """The runs of each arm on each task in all settings, at the rates that were tuned."""
    made = []
    for task in plan.tasks:
        scope = task_of(task, plan.source, plan.steps).scope
        made += [
            _unit(task, arm, scope, plan, records)
            for arm in LABELS
            if arm in plan.arms and arm in SCOPES[scope]
        ]
    return made


def _unit(task: str, arm: str, scope: str, plan: Plan, records: Records) -> Unit:
    def best(name: str) -> float:
        record = records.get(Key(task, arm if arm in TUNED else name, kind="tuning"))
        assert record is not None
        return record.result["best"]

    best_rates = {name: best(name) for name in rated_by(arm)}
    settings = [s for s in plan.settings if scope != "drift" or s in DRIFT_SETTINGS]
    finalist = arm not in ABLATIONS
    # Where the data drift, an ablation is what the trial is about.
    few = not finalist and scope != "drift"
    seeds = min(plan.seeds, ABLATION_SEEDS) if few else plan.seeds
    config = _described(task, arm, plan) | {
        "options": MIXTURES[arm].config() if arm in MIXTURES else {},
        "rates": {setting: rates_in(setting, best_rates) for setting in settings},
        "seeds": seeds,
        "test": plan.final and finalist,
    }
    keys = [Key(task, arm, s, seed=seed) for s in settings for seed in range(seeds)]
    if finalist:
        keys += [Key(task, arm, setting, kind="mean") for setting in settings]
    # A run that has seen the test data has all that one without them has.
    seen = config | {"test": True}
    if all(records.finished(key, seen) for key in keys):
        config = seen
    make = functools.partial(_trained, task, arm, plan, config)
    return Unit(tuple(keys), config, make)


def _trained(
    task: str,
    arm: str,
    plan: Plan,
    config: Mapping[str, Any],
    missing: Sequence[Key],
    done: Any,
) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Each setting's seeds, and the means over them of the curves."""
    program = _program(task, arm, plan, test=config["test"])
    points = task_of(task, plan.source, plan.steps).points
    for setting, rates in config["rates"].items():
        wanted = [key for key in missing if key.setting == setting]
        if not wanted:
            continue
        # The mean needs all seeds, so they are run again where some are there already.
        given = rates or {"factor": 1.0}  # Prodigy's, which follows the task's schedule
        outcomes = [program(given, seed) for seed in range(config["seeds"])]
        for key in wanted:
            if key.seed is not None:
                yield key, measures_of(outcomes[key.seed])
                continue
            curves = [curves_of(outcome, points) for outcome in outcomes]
            means = {name: np.mean([each[name] for each in curves], 0) for name in curves[0]}
            yield key, {"curves": {name: rounded(mean) for name, mean in means.items()}}


def command(
    tasks: Annotated[str, typer.Option(help=f"all, or some of {', '.join(TASKS)}")] = "",
    settings: Annotated[str, typer.Option(help=f"all, or some of {', '.join(SETTINGS)}")] = "",
    arms: Annotated[
        str, typer.Option(help="besides the single experts and uniform; all, or some")
    ] = "",
    seeds: Annotated[int, typer.Option(help="reported runs of each finalist")] = SEEDS,
    steps: StepsOption = None,
    data: DataOption = None,
    workers: WorkersOption = 1,
    final: Annotated[
        bool, typer.Option("--final", help="look at the test data, at the very end")
    ] = False,
    quick: QuickOption = False,
    only_report: ReportOption = False,
    out: OutOption = None,
) -> None:
    """DAO-E beside its experts, the best of them, uniform weights and neighbours."""
    if quick:
        tasks, arms = tasks or "quadratic", arms or "dao_e"
        steps, seeds = steps or QUICK_STEPS, min(seeds, 2)
    if steps is not None:
        positive(steps, "steps")
    wanted = some_of(arms, "arms", LABELS)
    plan = Plan(
        tasks=[] if only_report else tasks_of(tasks, TASKS, NEED_IMAGES, data),
        settings=some_of(settings, "settings", SETTINGS),
        arms=[arm for arm in LABELS if arm in (*wanted, *EXPERTS, "uniform")],
        seeds=positive(seeds, "seeds"),
        source=data,
        steps=steps,
        final=final,
    )
    positive(workers, "workers")
    records = Records(prepare_folder(out or pathlib.Path("runs/dao_e")))
    if not only_report:
        run_units(tuning_units(plan), records, workers=workers)
        run_units(units(plan, records), records, workers=workers)
    report.write(records)
