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


def by_setting(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """The pairs of each setting, and all."""
    settings = dict.fromkeys(pair.setting for pair in pairs)
    groups = {name: [pair for pair in pairs if pair.setting == name] for name in settings}
    return groups | {"all": list(pairs)}


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

    def has(self, pair: Pair, arm: str) -> bool:
        """Whether there are runs of the arm."""
        return (pair, arm) in self.results

    def pairs(self, *scopes: str) -> list[Pair]:
        """The pairs of the tasks of some scopes, or of all, in the study's order."""
        found = [Pair(task, setting) for task in TASKS for setting in SETTINGS]
        found = [pair for pair in found if all(self.has(pair, arm) for arm in ALWAYS)]
        scope = {pair: self.configs[pair.task, "dao_e"]["scope"] for pair in found}
        return [pair for pair in found if not scopes or scope[pair] in scopes]

    def arms(self, pairs: Sequence[Pair], *, finalist: bool = True) -> list[str]:
        """The finalists that trained on all of these pairs, or the ablations."""
        wanted = [arm for arm in LABELS if (arm not in ABLATIONS) is finalist]
        return [arm for arm in wanted if pairs and all(self.has(pair, arm) for pair in pairs)]

    def best(self, pair: Pair, arm: str, measure: str) -> str:
        """Which arm is meant by a name: by BEST the expert of the best mean over the seeds."""
        if arm != BEST:
            return arm
        sign = -1 if measure.endswith("accuracy") else 1
        return min(EXPERTS, key=lambda name: sign * self.values(pair, name, measure).mean())

    def values(self, pair: Pair, arm: str, measure: str) -> np.ndarray:
        """A measure of an arm on a pair: float [seeds], null as NaN."""
        results = self.results[pair, self.best(pair, arm, measure)]
        return as_floats([result[measure] for result in results])

    def both(self, pair: Pair, arm: str, other: str, measure: str) -> np.ndarray:
        """An arm's measures and another's on the seeds that both have: float [2, seeds]."""
        own, base = (self.values(pair, name, measure) for name in (arm, other))
        seeds = min(len(own), len(base))
        return np.array([own[:seeds], base[:seeds]])

    def differences(self, pair: Pair, arm: str, other: str, measure: str) -> np.ndarray:
        """In points of accuracy, or 100 times the logarithm of two losses' ratio: [seeds]."""
        own, base = self.both(pair, arm, other, measure)
        return 100 * (own - base if measure.endswith("accuracy") else np.log(own / base))

    def diverged(self, pair: Pair, arm: str) -> int:
        """How many seeds did."""
        return int(self.values(pair, self.best(pair, arm, "area"), "diverged").sum())
