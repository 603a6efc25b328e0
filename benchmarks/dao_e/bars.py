"""What the measured rule has to reach, computed from the records."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.dao_e.arms import UNIFORM
from benchmarks.dao_e.records import BEST, Pair, Records, classifies, diverged, paired

LEAST_SHARE = 0.8  # of the pairs, with an area not above the best single's
LOST_POINTS = 0.3  # of mean validation accuracy, below the best single's


class Bar(NamedTuple):
    """One bar and what was measured."""

    name: str
    wanted: str
    measured: str
    met: bool
    missed: list[Pair]  # those that speak against it


def bars_of(records: Records, pairs: Sequence[Pair], arm: str) -> list[Bar]:
    """The bars of an arm over some pairs; of accuracy, over the classifiers among them."""
    above = [pair for pair in pairs if paired(records, pair, arm, BEST, "area").mean() > 0]
    share = 1 - len(above) / len(pairs)
    lost = [
        pair
        for pair in pairs
        if diverged(records, pair, arm) and not diverged(records, pair, BEST)
    ]
    return [
        Bar(
            "training-loss area not above the best single's",
            f"at least {LEAST_SHARE:.0%} of the pairs",
            f"{share:.0%} of {len(pairs)}",
            share >= LEAST_SHARE,
            above,
        ),
        *_of_accuracy(records, [p for p in pairs if classifies(records, p)], arm),
        Bar(
            "diverges where the best single does not",
            "no pair",
            f"{len(lost)} of {len(pairs)}",
            not lost,
            lost,
        ),
    ]


def _of_accuracy(records: Records, pairs: Sequence[Pair], arm: str) -> list[Bar]:
    if not pairs:
        return []
    bars = []
    for other, name, lowest, wanted in (
        (BEST, "the best single's", -LOST_POINTS, f"at least -{LOST_POINTS:g} points"),
        (UNIFORM, "uniform weights'", 0.0, "above 0 points"),
    ):
        points = {
            pair: 100 * paired(records, pair, arm, other, "validation_accuracy").mean()
            for pair in pairs
        }
        mean = float(np.mean(list(points.values())))
        met = mean >= lowest if other == BEST else mean > lowest
        worse = [pair for pair, value in points.items() if value < lowest]
        bars.append(
            Bar(f"mean validation accuracy minus {name}", wanted, f"{mean:+.2f}", met, worse)
        )
    return bars
