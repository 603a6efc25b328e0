"""Medians with their quartiles, of measurements in turns."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Spread(NamedTuple):
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    @property
    def percent(self) -> "Spread":
        """A hundred times as much."""
        return Spread(*(100 * part for part in self))

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return Spread(float(median), float(low), float(high))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours over theirs, round by round: a slow moment of the machine slows both."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])
