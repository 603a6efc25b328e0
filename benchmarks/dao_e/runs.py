"""The study's runs by task, setting and arm, and arms against each other on the same seeds."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.dao_e.study import EXPERTS, FINALISTS, LABELS, SETTINGS, TASKS
from benchmarks.lab.records import Records, as_floats

BEST, HINDSIGHT = "best_single", "best_in_hindsight"  # of the experts, on each pair
NAMES = {BEST: "best single", HINDSIGHT: "best single in hindsight"} | LABELS


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
        self.selections: dict[tuple[Pair, str], float] = {}  # validation losses, other seeds
        for key, config, result, *_ in records:
            pair = Pair(key.task, key.setting)
            if key.kind == "run":
                self.configs[key.task, key.arm] = config
                self.results.setdefault((pair, key.arm), []).append(result)
            elif key.kind == "mean":
                self.means[pair, key.arm] = result
            elif key.kind == "selection":
                self.selections[pair, key.arm] = float(np.mean(result["validation_losses"]))

    def pairs(self, *scopes: str) -> list[Pair]:
        """The pairs of the tasks of some scopes, or of all, in the study's order."""
        found = [Pair(task, setting) for task in TASKS for setting in SETTINGS]
        found = [p for p in found if all((p, arm) in self.results for arm in EXPERTS)]
        scope = {pair: self.configs[pair.task, "adam"]["scope"] for pair in found}
        return [pair for pair in found if not scopes or scope[pair] in scopes]

    def classifying(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Those of the pairs that have an accuracy."""
        return [pair for pair in pairs if self.configs[pair.task, "adam"]["classifies"]]

    def arms(self, pairs: Sequence[Pair], *, finalist: bool = True) -> list[str]:
        """The finalists that trained on all of these pairs, or the ablations."""
        wanted = [arm for arm in LABELS if (arm in FINALISTS) is finalist]
        return [a for a in wanted if pairs and all((p, a) in self.results for p in pairs)]

    def best(self, pair: Pair) -> str:
        """The best single expert, by its validation loss on seeds that are not reported."""
        return min(EXPERTS, key=lambda name: self.selections[pair, name])

    def best_in_hindsight(self, pair: Pair, measure: str) -> str:
        """The expert of the best mean over the reported seeds."""
        sign = -1 if measure.endswith("accuracy") else 1
        return min(EXPERTS, key=lambda name: sign * self.values([pair], name, measure).mean())

    def _named(self, pair: Pair, arm: str, measure: str) -> str:
        if arm == BEST:
            return self.best(pair)
        return self.best_in_hindsight(pair, measure) if arm == HINDSIGHT else arm

    def values(self, pairs: Sequence[Pair], arm: str, measure: str) -> np.ndarray:
        """A measure on the seeds that all pairs have: float [pairs, seeds], null as NaN.

        BEST is each pair's best expert, HINDSIGHT the best one there by the measure.
        """
        found = [self.results[pair, self._named(pair, arm, measure)] for pair in pairs]
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

    def means_of(
        self, pairs: Sequence[Pair], arm: str, other: str, measure: str
    ) -> list[float]:
        """Over pairs, of each seed: the geometric mean of two losses' ratio, or points."""
        mean = self.differences(pairs, arm, other, measure).mean(0)
        return list(mean if measure.endswith("accuracy") else np.exp(mean / 100))
