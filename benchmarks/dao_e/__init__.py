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

from benchmarks.dao_e import report, study
from benchmarks.lab import arguments
from benchmarks.lab.records import Key, Records, prepare_folder, rounded
from benchmarks.lab.study import QUICK_STEPS, TUNING_SEEDS, Grid, Unit, run_units, tuned
from benchmarks.lab.training import Program, Task, constant, curves_of, measures_of, program_of

GRID = Grid()
SEEDS, ABLATION_SEEDS = 5, 2
Made = Iterator[tuple[Key, dict[str, Any]]]


class Plan(NamedTuple):
    """What is asked for."""

    tasks: Sequence[str]
    arms: Sequence[str]
    seeds: int
    source: pathlib.Path | None = None  # of the images
    steps: int | None = None  # in place of each task's own
    final: bool = False

    def task(self, name: str) -> Task:
        """A task, made once in a process."""
        return _task(name, self.source, self.steps)

    def wanted(self) -> Iterator[tuple[str, str]]:
        """Each task with each arm that trains on it."""
        for task in self.tasks:
            scope = self.task(task).scope
            wanted = (*study.ALWAYS, *self.arms) if scope == "all" else study.SCOPES[scope]
            yield from ((task, arm) for arm in study.SCOPES[scope] if arm in wanted)

    def config(self, task: str, arm: str) -> dict[str, Any]:
        """What every record says of them."""
        names = ("title", "classifies", "scope", "steps")
        return {"label": study.LABELS[arm]} | {n: getattr(self.task(task), n) for n in names}

    def program(self, task: str, arm: str, *, test: bool = False) -> Program:
        """What trains an arm on a task."""
        made = self.task(task)
        if arm == "schedule_free_adamw":
            # Its iterates live in its state, where a decay behind it would not reach them;
            # and it stands in for schedules, so it has none.
            made = made._replace(schedule=constant, wrap=lambda optimizer: optimizer)
        return program_of(made, study.arm_on(task, arm), test=test)


@functools.cache
def _task(name: str, source: pathlib.Path | None, steps: int | None) -> Task:
    task = study.TASKS[name](source)
    return task if steps is None else task._replace(steps=steps)


def tuning_units(plan: Plan) -> list[Unit]:
    """The best rates of the experts, which make a setting, and of other arms."""
    units = []
    for task, arm in plan.wanted():
        if arm in study.TUNED:
            config = plan.config(task, arm)
            config |= {"grid": GRID.rates, "tuning_seeds": TUNING_SEEDS}
            make = functools.partial(_tuned, plan, task, arm)
            units.append(Unit((Key(task, arm, kind="tuning"),), config, make))
    return units


def _tuned(plan: Plan, task: str, arm: str, missing: Sequence[Key], done: Any) -> Made:
    program, (name,) = plan.program(task, arm), study.rated_by(arm)
    yield missing[0], tuned(lambda rate, seed: program({name: rate}, seed), GRID).result()


def unit_of(plan: Plan, task: str, arm: str, records: Records) -> Unit:
    """The runs of an arm on a task in all settings, at the rates that were tuned."""
    best = {}
    for name in study.rated_by(arm):
        record = records.get(Key(task, arm if arm in study.TUNED else name, kind="tuning"))
        assert record is not None
        best[name] = record.result["best"]
    drifts, finalist = plan.task(task).scope == "drift", arm not in study.ABLATIONS
    settings = study.DRIFT_SETTINGS if drifts else tuple(study.SETTINGS)
    # Where the data drift, an ablation is what the trial is about.
    seeds = plan.seeds if finalist or drifts else min(plan.seeds, ABLATION_SEEDS)
    config = plan.config(task, arm) | {
        "options": study.MIXTURES[arm].config() if arm in study.MIXTURES else {},
        "rates": {setting: study.rates_in(setting, best) for setting in settings},
        "seeds": seeds,
        "test": plan.final and finalist,
    }
    keys = [
        Key(task, arm, setting, seed=seed) for setting in settings for seed in range(seeds)
    ]
    if finalist:
        keys += [Key(task, arm, setting, kind="mean") for setting in settings]
    # A run that has seen the test data has all that one without them has.
    seen = config | {"test": True}
    if all(records.finished(key, seen) for key in keys):
        config = seen
    return Unit(tuple(keys), config, functools.partial(_trained, plan, task, arm, config))


def _trained(
    plan: Plan,
    task: str,
    arm: str,
    config: Mapping[str, Any],
    missing: Sequence[Key],
    done: Any,
) -> Made:
    """Each setting's seeds, and the means over them of the curves."""
    program = plan.program(task, arm, test=config["test"])
    for setting, rates in config["rates"].items():
        wanted = [key for key in missing if key.setting == setting]
        # The mean needs all seeds, so they are run again where some are there already.
        given = rates or {"factor": 1.0}  # Prodigy's, which follows the task's schedule
        outcomes = [program(given, seed) for seed in range(config["seeds"]) if wanted]
        for key in wanted:
            if key.seed is not None:
                yield key, measures_of(outcomes[key.seed])
                continue
            curves = [curves_of(outcome, plan.task(task).points) for outcome in outcomes]
            means = {name: np.mean([each[name] for each in curves], 0) for name in curves[0]}
            yield key, {"curves": {name: rounded(mean) for name, mean in means.items()}}


def command(
    tasks: Annotated[str, typer.Option(help=f"all, or some of {', '.join(study.TASKS)}")] = "",
    arms: Annotated[
        str, typer.Option(help=f"besides {', '.join(study.ALWAYS)}; all, or some")
    ] = "",
    seeds: Annotated[int, typer.Option(help="reported runs of each finalist")] = SEEDS,
    steps: arguments.StepsOption = None,
    data: arguments.DataOption = None,
    workers: arguments.WorkersOption = 1,
    final: Annotated[
        bool, typer.Option("--final", help="look at the test data, at the very end")
    ] = False,
    quick: arguments.QuickOption = False,
    only_report: arguments.ReportOption = False,
    out: arguments.OutOption = None,
) -> None:
    """DAO-E beside its experts, the best of them, uniform weights and neighbours."""
    if quick:
        tasks, arms = tasks or "quadratic", arms or "dao_e"
        steps, seeds = steps or QUICK_STEPS, min(seeds, 2)
    for name, number in {"steps": steps, "seeds": seeds, "workers": workers}.items():
        if number is not None:
            arguments.positive(number, name)
    plan = Plan(
        [] if only_report else arguments.tasks_of(tasks, study.TASKS, study.NEED_IMAGES, data),
        arguments.some_of(arms, "arms", study.LABELS), seeds, data, steps, final,
    )  # fmt: skip
    records = Records(prepare_folder(out or pathlib.Path("runs/dao_e")))
    if not only_report:
        run_units(tuning_units(plan), records, workers=workers)
        units = [unit_of(plan, *each, records) for each in plan.wanted()]
        run_units(units, records, workers=workers)
    report.write(records)
