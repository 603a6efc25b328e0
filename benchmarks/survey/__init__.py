"""The survey's optimizers on its four questions about rates and saddle points."""

import functools
from collections.abc import Sequence
from typing import Any

from benchmarks.lab.landscapes import LANDSCAPES
from benchmarks.lab.records import Key, Records
from benchmarks.lab.study import Study, Unit, command_of
from benchmarks.survey import report
from benchmarks.survey.study import ARMS, GRID, PROBLEMS, arms_of, results_of


class _Survey(Study):
    """A study of steps to a target, of medians and of paths."""

    def units(
        self, tasks: Sequence[str], arms: Sequence[str], *, seeds: int = 5, **given: Any
    ) -> list[Unit]:
        found = []
        for unit in super().units(tasks, arms, seeds=seeds, **given):
            name, arm, *_ = unit.keys[0]
            if arm in arms_of(name):
                kinds = ("curve", "path") if name in LANDSCAPES else ("curve",)
                keys = (*unit.keys, *(Key(name, arm, kind=kind) for kind in kinds))
                _, share, judged_by = PROBLEMS[name]
                asked = {"share": share, "judged_by": judged_by, "seeds": seeds}
                make = functools.partial(results_of, unit.config["steps"], seeds)
                found.append(Unit(keys, {**unit.config, **asked}, make))
        return found

    def report(self, records: Records) -> None:
        report.write(records)


STUDY = _Survey(
    name="survey",
    doc="Compares all optimizers on valleys, a saddle, ravines, quadratics and two data sets.",
    tasks={name: problem.make for name, problem in PROBLEMS.items()},
    arms=ARMS,
    grid=GRID,
    module=__name__,
)
command = command_of(STUDY)
