"""Reads the study's records: measures, ratios to uniform weights, and who was best."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.dao_e.arms import ARMS, SINGLES, UNIFORM

Record = dict[str, Any]
Records = dict[tuple[str, str], Record]  # by task and arm

MEASURES = {
    "area": "area under the training loss",
    "final_loss": "final training loss",
    "validation_loss": "validation loss",
}
BEST = "best_single"  # in hindsight: the single expert of the best mean, by measure and pair


class Pair(NamedTuple):
    """A task in a setting of the experts' rates."""

    task: str
    setting: str


def pairs_of(records: Records, *scopes: str) -> list[Pair]:
    """The pairs of the tasks of some scopes, in the order of the study."""
    tasks = {task: record["config"] for (task, _), record in records.items()}
    return [
        Pair(task, setting)
        for task, config in tasks.items()
        if config["scope"] in scopes
        for setting in config["rates"]
    ]


def arms_of(records: Records, pairs: Sequence[Pair], *, finalist: bool = True) -> list[str]:
    """The finalists that trained on all of these pairs, or the ablations."""
    tasks = {pair.task for pair in pairs}
    return [
        name
        for name, arm in ARMS.items()
        if arm.finalist is finalist and all((task, name) in records for task in tasks)
    ]


def label_of(arm: str) -> str:
    """How an arm is called in tables and legends."""
    return "best single in hindsight" if arm == BEST else ARMS[arm].label


def classifies(records: Records, pair: Pair) -> bool:
    """Whether the pair's task has an accuracy."""
    return records[pair.task, UNIFORM]["config"]["classifies"]


def values_of(records: Records, pair: Pair, arm: str, measure: str) -> np.ndarray:
    """A measure of an arm on a pair: float [seeds]."""
    name = best_single(records, pair, measure) if arm == BEST else arm
    return np.array(records[pair.task, name]["results"][pair.setting][measure], dtype=float)


def best_single(records: Records, pair: Pair, measure: str) -> str:
    """The single expert of the best mean over the seeds."""
    sign = -1 if measure.endswith("accuracy") else 1
    return min(SINGLES, key=lambda name: sign * values_of(records, pair, name, measure).mean())


def paired(
    records: Records,
    pair: Pair,
    arm: str,
    other: str,
    measure: str,
    difference: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.subtract,
) -> np.ndarray:
    """An arm against another on the seeds that both have: float [seeds]."""
    own, base = (values_of(records, pair, name, measure) for name in (arm, other))
    seeds = min(len(own), len(base))
    return difference(own[:seeds], base[:seeds])


def log_ratio(own: np.ndarray, base: np.ndarray) -> np.ndarray:
    """The logarithm of the ratio of two losses."""
    return np.log(own / base)


def ratios_to_uniform(
    records: Records, pairs: Sequence[Pair], arm: str, measure: str
) -> np.ndarray:
    """Geometric means over the pairs of an arm's loss over that of uniform weights.

    Returns:
      float [seeds]: each seed's is over the same seed of uniform weights.
    """
    logarithms = [paired(records, pair, arm, UNIFORM, measure, log_ratio) for pair in pairs]
    return np.exp(np.mean(logarithms, axis=0))


def diverged(records: Records, pair: Pair, arm: str) -> bool:
    """Whether a run of any seed did; of the best single, by area."""
    name = best_single(records, pair, "area") if arm == BEST else arm
    return any(records[pair.task, name]["results"][pair.setting]["diverged"])
