"""DAO-E beside its experts, uniform weights and neighbours, on many tasks.

Rates, rules and candidates are chosen by validation data. A candidate is an ablation until it
is chosen, and ablations never see the test data.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.dao_e import report, study
from benchmarks.lab.records import Key, Records, rounded
from benchmarks.lab.study import TUNING_SEEDS, Study, Unit, command_of, run_units, tuned
from benchmarks.lab.training import (
    Program,
    Task,
    constant,
    curves_of,
    measures_of,
    program_of,
)

ABLATION_SEEDS = 2
Made = Iterator[tuple[Key, dict[str, Any]]]


class _DaoE(Study):
    """A study in settings that are made of the experts' best rates."""

    def run(
        self,
        records: Records,
        tasks: Sequence[str],
        arms: Sequence[str],
        *,
        workers: int = 1,
        seeds: int = 5,
        **given: Any,  # for the tasks
    ) -> None:
        wanted = []
        for name in tasks:
            task = self.task(name, **given)
            chosen = {*study.ALWAYS, *arms} if task.scope == "all" else study.LABELS
            trained = [arm for arm in study.SCOPES[task.scope] if arm in chosen]
            wanted += [(Key(name, arm), task, given) for arm in trained]
        tunings = [_tuning(*each) for each in wanted if each[0].arm in study.TUNED]
        run_units(tunings, records, workers=workers)
        units = [_unit(*each, seeds, records) for each in wanted]
        run_units(units, records, workers=workers)

    def report(self, records: Records) -> None:
        report.write(records)


def _config(key: Key, task: Task) -> dict[str, Any]:
    names = ("title", "classifies", "scope", "steps")
    return {"label": study.LABELS[key.arm]} | {name: getattr(task, name) for name in names}


def _program(key: Key, given: Mapping[str, Any], *, test: bool = False) -> Program:
    task = STUDY.task(key.task, **given)
    if key.arm == "schedule_free_adamw":
        # Its iterates live in its state, where a decay behind it would not reach them; and it
        # stands in for schedules, so it has none.
        task = task._replace(schedule=constant, wrap=lambda optimizer: optimizer)
    return program_of(task, study.arm_on(key.task, key.arm), test=test)


def _tuning(key: Key, task: Task, given: Mapping[str, Any]) -> Unit:
    config = _config(key, task) | {"grid": STUDY.grid.rates, "tuning_seeds": TUNING_SEEDS}
    return Unit((key._replace(kind="tuning"),), config, functools.partial(_tuned, given))


def _tuned(given: Mapping[str, Any], missing: Sequence[Key], done: Any) -> Made:
    (key,) = missing
    program, (name,) = _program(key, given), study.rated_by(key.arm)
    yield key, tuned(lambda rate, seed: program({name: rate}, seed), STUDY.grid).result()


def _unit(
    key: Key, task: Task, given: Mapping[str, Any], seeds: int, records: Records
) -> Unit:
    """The runs of an arm on a task in all settings, at the rates that were tuned."""
    best = {}
    for name in study.rated_by(key.arm):
        arm = key.arm if key.arm in study.TUNED else name
        record = records.get(key._replace(arm=arm, kind="tuning"))
        assert record is not None
        best[name] = record.result["best"]
    drifts, finalist = task.scope == "drift", key.arm not in study.ABLATIONS
    settings = study.DRIFT_SETTINGS if drifts else tuple(study.SETTINGS)
    # Where the data drift, an ablation is what the trial is about.
    seeds = seeds if finalist or drifts else min(seeds, ABLATION_SEEDS)
    mixture = study.MIXTURES.get(key.arm)
    config = _config(key, task) | {
        "options": mixture.config() if mixture else {},
        "rates": {setting: study.rates_in(setting, best) for setting in settings},
        "seeds": seeds,
        "test": finalist,
    }
    keys = []
    for each in (key._replace(setting=setting) for setting in settings):
        keys += [each._replace(seed=seed) for seed in range(seeds)]
        keys += [each._replace(kind="mean")] if finalist else []
    return Unit(tuple(keys), config, functools.partial(_trained, config, task.points, given))


def _trained(
    config: Mapping[str, Any],
    points: int,
    given: Mapping[str, Any],
    missing: Sequence[Key],
    done: Any,
) -> Made:
    """Each setting's seeds, and the means over them of the curves."""
    program = _program(missing[0], given, test=config["test"])
    for setting, rates in config["rates"].items():
        wanted = [key for key in missing if key.setting == setting]
        # The mean needs all seeds, so they are run again where some are there already.
        rates = rates or {"factor": 1.0}  # Prodigy's, which follows the task's schedule
        outcomes = [program(rates, seed) for seed in range(config["seeds"]) if wanted]
        for key in wanted:
            if key.seed is not None:
                yield key, measures_of(outcomes[key.seed])
                continue
            curves = [curves_of(outcome, points) for outcome in outcomes]
            means = {name: np.mean([each[name] for each in curves], 0) for name in curves[0]}
            yield key, {"curves": {name: rounded(mean) for name, mean in means.items()}}


STUDY = _DaoE(
    name="dao_e",
    doc="DAO-E beside its experts and uniform weights, which train always, and neighbours.",
    tasks=study.TASKS,
    arms={name: study.arm_on("", name) for name in study.LABELS},
    need_images=study.NEED_IMAGES,
    module=__name__,
)
command = command_of(STUDY)
