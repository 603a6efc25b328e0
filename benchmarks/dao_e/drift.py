"""The features' trial: does W f help where the data change while training runs?"""

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.dao_e.arms import FEATURES, RULE, UNIFORM
from benchmarks.dao_e.records import BEST, Pair, Records, label_of, log_ratio, paired, pairs_of
from benchmarks.lab import report

Difference = Callable[[np.ndarray, np.ndarray], np.ndarray]
# By measure: what a column is called and how two arms are set against each other.
COLUMNS: dict[str, tuple[str, Difference]] = {
    "area": ("area, %", lambda own, base: 100 * log_ratio(own, base)),
    "final_loss": ("final loss, %", lambda own, base: 100 * log_ratio(own, base)),
    "validation_loss": ("validation loss, %", lambda own, base: 100 * log_ratio(own, base)),
    "validation_accuracy": (
        "validation accuracy, points",
        lambda own, base: 100 * (own - base),
    ),
}
OPPONENTS = (FEATURES, UNIFORM, BEST)


def drift_section(records: Records) -> str:
    """The section of the report, in Markdown; empty without such tasks."""
    pairs = pairs_of(records, "drift")
    if not pairs or any((pair.task, RULE) not in records for pair in pairs):
        return ""
    known = {arm for _, arm in records} | {BEST}
    opponents = [arm for arm in OPPONENTS if arm in known]
    titles = {pair.task: records[pair.task, RULE]["config"]["title"] for pair in pairs}
    lines = [
        "## Data that change while training runs",
        "",
        *(f"- {task}: {title}" for task, title in titles.items()),
        "",
    ]
    if FEATURES in opponents:
        lines += [verdict(records, pairs), ""]
    lines += [table(records, pairs, opponent).markdown() for opponent in opponents]
    return "\n".join(lines)


def verdict(records: Records, pairs: Sequence[Pair]) -> str:
    """Says what the features changed, and in how many pairs beyond two standard errors."""
    parts = []
    for measure, (name, difference) in COLUMNS.items():
        sign = -1 if measure.endswith("accuracy") else 1
        differences = [
            sign * paired(records, pair, FEATURES, RULE, measure, difference) for pair in pairs
        ]
        clear = [abs(d.mean()) > 2 * standard_error(d) for d in differences]
        better = sum(c and d.mean() < 0 for c, d in zip(clear, differences, strict=True))
        worse = sum(c and d.mean() > 0 for c, d in zip(clear, differences, strict=True))
        parts.append(f"{name.split(',')[0]} better in {better} and worse in {worse}")
    return (
        f"With features against without, of {len(pairs)} pairs beyond two standard errors: "
        + "; ".join(parts)
        + "."
    )


def table(records: Records, pairs: Sequence[Pair], opponent: str) -> report.Table:
    """The measured rule minus an opponent, paired by seed."""
    rows = []
    for pair in pairs:
        rows.append(
            [
                f"{pair.task}, {pair.setting}",
                *(
                    _mean_and_error(paired(records, pair, RULE, opponent, measure, difference))
                    for measure, (_, difference) in COLUMNS.items()
                ),
            ]
        )
    rows.append(["all", *(_over_pairs(records, pairs, opponent, name) for name in COLUMNS)])
    return report.Table(
        f"Measured rule minus {label_of(opponent)}: mean of the paired differences ± standard "
        "error over seeds (losses: 100 times the logarithm of the ratio; below 0 the rule is "
        "better)",
        ["task, setting", *(name for name, _ in COLUMNS.values())],
        rows,
    )


def standard_error(values: np.ndarray) -> float:
    """Of the mean; NaN of a single value."""
    if len(values) < 2:
        return float("nan")
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def _over_pairs(records: Records, pairs: Sequence[Pair], opponent: str, measure: str) -> str:
    difference = COLUMNS[measure][1]
    by_seed = [paired(records, pair, RULE, opponent, measure, difference) for pair in pairs]
    return _mean_and_error(np.mean(by_seed, axis=0))


def _mean_and_error(values: np.ndarray) -> str:
    if len(values) < 2:
        return f"{values.mean():+.2f}"
    return f"{values.mean():+.2f} ± {standard_error(values):.2f}"
