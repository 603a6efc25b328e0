"""DAO-E beside its experts, uniform weights and neighbours, on many tasks.

Rates, rules and candidates, and which single expert is the best one, are chosen by validation
data. A candidate is an ablation until it is chosen, and ablations never see the test data.
(That another rule was looked for was three times because of test results: README.md.)
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.dao_e import report, study
from benchmarks.dao_e.study import EXPERTS, NADAMW, SETTINGS
from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.records import Key, Records, rounded
from benchmarks.lab.study import TUNING_SEEDS, Made, Study, Unit, command_of, tuned
from benchmarks.lab.training import (
    Program,
    Task,
    constant,
    curves_of,
    measures_of,
    program_of,
)

ABLATION_SEEDS = 2
POINTS = 20  # of a run, each scored by the validation data
# Of NadamW. One serves all settings of a task, and it is chosen on the other tasks.
CONFIGURATIONS: list[dict[str, float]] = [
    {NADAMW: rate, "decay": decay, "b2": b2}
    for rate in (3.16e-4, 1e-3, 3.16e-3, 1e-2, 3.16e-2)
    for decay in (0.01, 0.1)
    for b2 in (0.99, 0.999)
]


def configuration_for(task: str, losses: Mapping[str, np.ndarray]) -> dict[str, float]:
    """NadamW's for a task: the lowest mean over other tasks of its loss over the best one's.

    Args:
      task: whose own losses do not count.
      losses: validation losses by task, float [configurations, seeds].
    """
    logs = [np.log(each.mean(1)) for name, each in losses.items() if name != task]
    if not logs:
        raise ArgumentError(
            f"tasks has none but {task!r} to choose NadamW's configuration on; pass more of "
            "them, or arms without nadamw."
        )
    above = np.mean([each - each.min() for each in logs], 0)
    return CONFIGURATIONS[int(np.argmin(above))]


class _DaoE(Study):
    """A study in settings that are made of the experts' best rates."""

    def stages(
        self, records: Records, tasks: Sequence[str], arms: Sequence[str], *, seeds: int = 5,
        **given: Any,  # for the tasks
    ) -> Iterator[list[Unit]]:  # fmt: skip
        wanted = []
        for name in tasks:
            task = self.task(name, **given)
            trained = [arm for arm in study.SCOPES[task.scope] if arm in {*EXPERTS, *arms}]
            wanted += [(Key(name, arm), task, given) for arm in trained]
        yield [
            _tuning(*each)
            for each in wanted
            if each[0].arm in study.TUNED
            or (each[0].arm == NADAMW and each[1].scope in study.CHOOSING)
        ]
        yield [_unit(*each, seeds, records) for each in wanted]

    def report(self, records: Records) -> None:
        report.write(records)


def _config(key: Key, task: Task) -> dict[str, Any]:
    names = ("title", "classifies", "scope", "steps")
    return {"label": study.LABELS[key.arm]} | {name: getattr(task, name) for name in names}


def _program(key: Key, given: Mapping[str, Any], *, test: bool = False) -> Program:
    """The arm's on its task; runs of the same rates and seed are made once."""
    task = STUDY.task(key.task, **given)
    if key.arm in study.UNSCHEDULED:
        task = task._replace(schedule=constant, wrap=lambda optimizer: optimizer)
    program = program_of(task, study.arm_on(key.task, key.arm, task.steps), test=test)
    made = functools.cache(lambda rates, seed: program(dict(rates), seed))
    return lambda rates, seed: made(tuple(rates.items()), seed)


def _settings(task: Task) -> tuple[str, ...]:
    return study.DRIFT_SETTINGS if task.scope == "drift" else tuple(SETTINGS)


def _tuning(key: Key, task: Task, given: Mapping[str, Any]) -> Unit:
    """What is chosen on tuning seeds: rates or a configuration, and the best single expert."""
    if key.arm == NADAMW:
        asked: dict[str, Any] = {"configurations": CONFIGURATIONS}
    else:
        asked = {"grid": STUDY.grid.rates}
    keys = [key._replace(kind="tuning")]
    if key.arm in EXPERTS:
        keys += [key._replace(kind="selection", setting=each) for each in _settings(task)]
    config = _config(key, task) | asked | {"tuning_seeds": TUNING_SEEDS}
    return Unit(tuple(keys), config, functools.partial(_tuned, keys[0], given))


def _tuned(
    tuning: Key, given: Mapping[str, Any], missing: Sequence[Key], done: Mapping[Key, Any]
) -> Made:
    program = _program(tuning, given)

    def losses_at(rates: Mapping[str, float]) -> list[float]:
        runs = [measures_of(program(rates, seed)) for seed in TUNING_SEEDS]
        return [run["validation_loss"] for run in runs]

    if tuning.arm == NADAMW:
        yield tuning, {"losses": [losses_at(each) for each in CONFIGURATIONS]}
        return
    (name,) = study.rated_by(tuning.arm)
    result = done.get(tuning)
    if result is None:
        result = tuned(lambda rate, seed: program({name: rate}, seed), STUDY.grid).result()
        yield tuning, result
    for key in missing:
        if key.kind == "selection":
            rates = study.rates_in(key.setting, {name: result["best"]})
            yield key, {"rates": rates, "validation_losses": losses_at(rates)}


def _chosen(key: Key, records: Records) -> dict[str, float]:
    """The best rates of those that an arm takes, or NadamW's configuration."""
    if key.arm == NADAMW:
        losses = {
            each.key.task: np.array(each.result["losses"])
            for each in records.select(arm=NADAMW, kind="tuning")
        }
        return configuration_for(key.task, losses)
    best = {}
    for name in study.rated_by(key.arm):
        arm = key.arm if key.arm in study.TUNED else name
        record = records.get(key._replace(arm=arm, kind="tuning"))
        assert record is not None
        best[name] = record.result["best"]
    return best


def _unit(
    key: Key, task: Task, given: Mapping[str, Any], seeds: int, records: Records
) -> Unit:
    """The runs of an arm on a task in all settings, at the rates that were chosen."""
    best = _chosen(key, records)
    drifts, finalist = task.scope == "drift", key.arm in study.FINALISTS
    # Where the data drift, an ablation is what the trial is about.
    seeds = seeds if finalist or drifts else min(seeds, ABLATION_SEEDS)
    mixture = study.MIXTURES.get(key.arm)
    config = _config(key, task) | {
        "options": mixture.config() if mixture else {},
        "rates": {setting: study.rates_in(setting, best) for setting in _settings(task)},
        "seeds": seeds,
        "test": finalist,
    }
    keys = []
    for each in (key._replace(setting=setting) for setting in _settings(task)):
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
    # DAO-E first, for a quick run has the first arms.
    arms={
        name: study.arm_on("", name)
        for name in {"dao_e": ""} | study.LABELS
        if name not in study.RETIRED
    },
    settings={"": lambda task: task._replace(points=POINTS, scored=True, best_tested=True)},
    need_images=study.NEED_IMAGES,
    module=__name__,
)
command = command_of(STUDY)
