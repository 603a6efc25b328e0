"""The study's runs by task, setting and arm, and arms against each other on the same seeds."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.dao_e.study import ABLATIONS, ALWAYS, BEST, EXPERTS, LABELS, SETTINGS, TASKS
from benchmarks.lab.records import Records, as_floats


class Pair(NamedTuple):
    """A task in a setting."""

    task: str
    setting: str

    def __str__(self) -> str:
        return f"{self.task}, {self.setting}"


class Runs:
    """The results of all runs, of kind "run", and their means over seeds, of kind "mean"."""

    def __init__(self, records: Records) -> None:
        self.configs: dict[tuple[str, str], Mapping[str, Any]] = {}  # by task and arm
        self.means: dict[tuple[Pair, str], Mapping[str, Any]] = {}
        self.results: dict[tuple[Pair, str], list[Mapping[str, Any]]] = {}
        for key, config, result, *_ in records:
            pair = Pair(key.task, key.setting)
            if key.kind == "run":
                self.configs[key.task, key.arm] = config
                self.results.setdefault((pair, key.arm), []).append(result)
            elif key.kind == "mean":
                self.means[pair, key.arm] = result

    def pairs(self, *scopes: str) -> list[Pair]:
        """The pairs of the tasks of some scopes, or of all, in the study's order."""
        found = [Pair(task, setting) for task in TASKS for setting in SETTINGS]
        found = [pair for pair in found if all((pair, arm) in self.results for arm in ALWAYS)]
        scope = {pair: self.configs[pair.task, "dao_e"]["scope"] for pair in found}
        return [pair for pair in found if not scopes or scope[pair] in scopes]

    def arms(self, pairs: Sequence[Pair], *, finalist: bool = True) -> list[str]:
        """The finalists that trained on all of these pairs, or the ablations."""
        wanted = [arm for arm in LABELS if (arm not in ABLATIONS) is finalist]
        return [a for a in wanted if pairs and all((p, a) in self.results for p in pairs)]

    def best(self, pair: Pair, measure: str) -> str:
        """The expert of the best mean over the seeds."""
        sign = -1 if measure.endswith("accuracy") else 1
        return min(EXPERTS, key=lambda name: sign * self.values([pair], name, measure).mean())

    def values(self, pairs: Sequence[Pair], arm: str, measure: str) -> np.ndarray:
        """A measure on the seeds that all pairs have: float [pairs, seeds], null as NaN.

        BEST is each pair's best expert by the measure; of divergences, by the area.
        """
        by = "area" if measure == "diverged" else measure
        arms = [self.best(pair, by) if arm == BEST else arm for pair in pairs]
        found = [self.results[each] for each in zip(pairs, arms, strict=True)]
        seeds = min(map(len, found))
        return as_floats([[result[measure] for result in own[:seeds]] for own in found])

    def both(self, pairs: Sequence[Pair], arm: str, other: str, measure: str) -> np.ndarray:
        """An arm's and another's on the seeds that both have: float [2, pairs, seeds]."""
        own, base = (self.values(pairs, name, measure) for name in (arm, other))
        seeds = min(own.shape[1], base.shape[1])
        return np.array([own[:, :seeds], base[:, :seeds]])

    def differences(
        self, pairs: Sequence[Pair], arm: str, other: str, measure: str
    ) -> np.ndarray:
        """In points of accuracy, or 100 times the logarithm of two losses' ratio."""
        own, base = self.both(pairs, arm, other, measure)
        return 100 * (own - base if measure.endswith("accuracy") else np.log(own / base))
