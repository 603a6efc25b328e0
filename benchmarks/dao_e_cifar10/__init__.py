"""DAO-E's published experiment: a ResNet on CIFAR-10, the mixture beside its experts.

The network of the first task is for CPUs; the second task is what was published.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.dao_e.study import EXPERTS
from benchmarks.dao_e_cifar10 import report
from benchmarks.dao_e_cifar10.study import (
    ARMS,
    AUGMENTED,
    CONSTANT,
    PARTS,
    RATE,
    SEEDS,
    SIZES,
    TUNED,
    TUNING_EPOCHS,
    augmented,
    task_of,
)
from benchmarks.lab.records import Key, Records
from benchmarks.lab.study import TUNING_SEEDS, Grid, Made, Study, Unit, command_of, tuned
from benchmarks.lab.training import Program, curves_of, measures_of, program_of

TUNING_SEED = TUNING_SEEDS[0]
# Where the search for a rate begins; it goes on beyond an end that is best.
START = Grid(-6, -4)


class _Published(Study):
    """A study of experts that all have one rate, or each its own best one."""

    def stages(
        self, records: Records, tasks: Sequence[str], arms: Sequence[str], *, seeds: int = 5,
        **given: Any,  # for the tasks
    ) -> Iterator[list[Unit]]:  # fmt: skip
        tuning = [
            Key(task, expert, TUNED, "tuning")
            for task in tasks if TUNED in self.settings
            for expert in EXPERTS if {expert, "dao_e"} & {*arms}
        ]  # fmt: skip
        # Workers take the last units first: those that are judged. Each run is one, since a
        # unit's records are handed over at its end.
        keys = [
            Key(task, arm, setting, seed=seed)
            for task in tasks for setting in reversed([*self.settings])
            for seed in range(min(seeds, SEEDS[setting])) for arm in arms
        ]  # fmt: skip
        config = {"grid": START.rates, "epochs": TUNING_EPOCHS, "seed": TUNING_SEED}
        tunings = [self._unit(key, config, _tuned, given) for key in tuning]
        yield [*tunings, *self._units(keys, {}, given)]
        found = [record for key in tuning if (record := records.get(key))]
        best = {each.key[:2]: each.result["best"] for each in found}
        yield self._units(keys, best, given)

    def _units(self, keys: Sequence[Key], best: Mapping[Any, float], given: Any) -> list[Unit]:
        """Those of the runs at one rate or, where best rates are known, at these."""
        return [
            self._unit(key, {"rates": _rates(key, best)}, _trained, given)
            for key in keys
            if (key.setting == TUNED) == bool(best)
        ]

    def _unit(self, key: Key, config: Mapping[str, Any], make: Any, given: Any) -> Unit:
        task = self.task(key.task, **given, setting=key.setting)
        about = {
            "title": task.title,
            "label": self.arms[key.arm].label,
            "steps": task.steps,
            "images": len(task.train.labels),
            **config,
        }
        return Unit((key,), about, functools.partial(make, self, given, config))

    def program(self, key: Key, given: Mapping[str, Any], *, tuning: bool = False) -> Program:
        """What trains the arm of a key; for a tuning shorter."""
        task = self.task(key.task, **given, setting=key.setting)
        if tuning:
            points = PARTS * TUNING_EPOCHS
            steps = max(1, task.steps * points // task.points)
            task = task._replace(steps=steps, points=points)
        return program_of(task, self.arms[key.arm], test=not tuning)


def _rates(key: Key, best: Mapping[Any, float]) -> Any:
    """An expert's rate, or those of DAO-E's experts."""
    rates = {
        name: best[key.task, name] if key.setting == TUNED else RATE
        for name in EXPERTS
        if key.arm in (name, "dao_e")
    }
    return rates.get(key.arm, rates)


def _tuned(study: _Published, given: Any, config: Any, missing: Any, done: Any) -> Made:
    (key,) = missing
    program = study.program(key, given, tuning=True)
    yield key, tuned(program, START, (TUNING_SEED,)).result()


def _trained(study: _Published, given: Any, config: Any, missing: Any, done: Any) -> Made:
    (key,) = missing
    outcome = study.program(key, given)(config["rates"], key.seed)
    points = len(outcome.watched["validation_loss"])
    curves = curves_of(outcome, points)
    yield key, {"rates": config["rates"], **measures_of(outcome), "curves": curves}


STUDY = _Published(
    name="dao_e_cifar10",
    doc="A ResNet on CIFAR-10: the mixture beside its experts, at one rate and tuned.",
    tasks={name: functools.partial(task_of, size) for name, size in SIZES.items()},
    arms=ARMS,
    need_images=list(SIZES),
    module=__name__,
    rate=RATE,
    settings={AUGMENTED: augmented, TUNED: augmented, CONSTANT: lambda task: task},
    sections=report.sections,
    figures=report.figures,
)
command = command_of(STUDY)
