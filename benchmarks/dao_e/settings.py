"""The rates that the experts are given: five settings, from each expert's own best rate.

A best rate is that of the lowest validation loss, on seeds that are not reported, from one
grid of half decades with the same rates for every expert. Where the lowest is at an end of
the grid, further rates are tried beyond that end.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

SAME = 1e-3
TOO_LARGE = 30.0
TOO_SMALL = 0.1

SETTINGS: dict[str, str] = {
    "tuned": "every expert at its own best rate",
    "same": f"{SAME:g} for all",
    "bad": f"SGD at its best, the others at {TOO_LARGE:g} times theirs",
    "badA": f"Adam at its best, the others at {TOO_LARGE:g} times theirs",
    "small": f"all at {TOO_SMALL:g} of their best",
}
_RIGHT = {"bad": "sgd", "badA": "adam"}  # the expert whose rate is right


def half_decade(place: int) -> float:
    """The rate 10^(place/2), rounded."""
    return float(f"{10 ** (place / 2):.3g}")


GRID = tuple(range(-8, 1))  # half decades: rates from 1e-4 to 1
FURTHEST = 5  # half decades beyond an end of the grid
TUNING_SEEDS = (1_000_000, 1_000_001)  # the reported ones count from 0


def rates_in(setting: str, best: Mapping[str, float]) -> dict[str, float]:
    """The rates of a setting, from the best rate of each expert."""
    return {name: _rate(setting, name, rate) for name, rate in best.items()}


def _rate(setting: str, name: str, best: float) -> float:
    if setting == "same":
        return SAME
    if setting == "small":
        factor = TOO_SMALL
    else:
        factor = TOO_LARGE if _RIGHT.get(setting, name) != name else 1.0
    return float(f"{factor * best:.3g}")


def tune(
    loss_of: Callable[[float, int], float], grid: Sequence[int] = GRID
) -> tuple[list[float], list[list[float]]]:
    """Tries the grid and, where the best rate is at an end, rates beyond it.

    Args:
      loss_of: from a rate and a seed to the validation loss, infinite if it diverged.
      grid: half decades, one after the other.

    Returns:
      The rates tried, in order, and each one's losses over TUNING_SEEDS.
    """
    losses: dict[int, list[float]] = {}

    def try_rates(places: Sequence[int]) -> None:
        for place in places:
            losses[place] = [loss_of(half_decade(place), seed) for seed in TUNING_SEEDS]

    try_rates(grid)
    while (further := _beyond(losses, grid)) is not None:
        try_rates([further])
    tried = sorted(losses)
    return [half_decade(place) for place in tried], [losses[place] for place in tried]


def _beyond(losses: Mapping[int, Sequence[float]], grid: Sequence[int]) -> int | None:
    """The next place to try, beyond the end at which the best rate is."""
    best = min(sorted(losses), key=lambda place: _mean(losses[place]))
    if best == min(losses) and best > grid[0] - FURTHEST:
        return best - 1
    if best == max(losses) and best < grid[-1] + FURTHEST:
        return best + 1
    return None


def best_rate(rates: Sequence[float], losses: Sequence[Sequence[float]]) -> float:
    """The rate of the lowest mean validation loss; of equal ones, the smallest."""
    return rates[int(np.argmin([_mean(row) for row in losses]))]


def _mean(losses: Sequence[float | None]) -> float:
    # A record keeps what is not finite as None.
    return float(np.mean([math.inf if loss is None else loss for loss in losses]))
