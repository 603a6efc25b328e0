"""Reads the survey study's records: one per problem and optimizer."""

from typing import Any

import numpy as np

from benchmarks.survey.optimizers import DECAYING, ENTRIES

Record = dict[str, Any]
Records = dict[tuple[str, str], Record]  # by problem and optimizer


def problems_of(records: Records) -> list[str]:
    """The problems, in the order of the study."""
    return list(dict.fromkeys(problem for problem, _ in records))


def of_problem(records: Records, problem: str) -> dict[str, Record]:
    """The records of a problem by optimizer, in the order of the study."""
    return {name: record for (at, name), record in records.items() if at == problem}


def label_of(name: str) -> str:
    """How an optimizer is called in tables and legends."""
    return (ENTRIES | DECAYING)[name].label


def measured(record: Record, key: str) -> np.ndarray:
    """A measure of a record; null, which is not reached or diverged, is infinite."""
    values = np.array(record["results"][key], dtype=float)
    return np.where(np.isnan(values), np.inf, values)


def over_rates(record: Record, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Every tried rate, and the median of a measure over the tuning seeds."""
    return np.array(record["config"]["rates"]), np.median(measured(record, key), axis=1)
