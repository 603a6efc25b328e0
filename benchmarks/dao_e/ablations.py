"""What each part of the measured rule is worth: the rule without it, or with one more."""

from collections.abc import Sequence

import numpy as np

from benchmarks.dao_e.arms import RULE
from benchmarks.dao_e.records import (
    MEASURES,
    Pair,
    Records,
    arms_of,
    classifies,
    diverged,
    label_of,
    log_ratio,
    paired,
)
from benchmarks.lab import report


def ablation_section(records: Records, pairs: Sequence[Pair]) -> str:
    """The section of the report, in Markdown; empty without such arms."""
    arms = arms_of(records, pairs, finalist=False)
    if not pairs or not arms or any((pair.task, RULE) not in records for pair in pairs):
        return ""
    return "## Each part taken away, or added\n\n" + table(records, pairs, arms).markdown()


def table(records: Records, pairs: Sequence[Pair], arms: Sequence[str]) -> report.Table:
    """Every ablation against the whole rule, by setting and over all."""
    settings = list(dict.fromkeys(pair.setting for pair in pairs))
    rows = []
    for arm in arms:
        own = [
            _ratio(records, [pair for pair in pairs if pair.setting == setting], arm, "area")
            for setting in settings
        ]
        over_all = [_ratio(records, pairs, arm, measure) for measure in MEASURES]
        lost = sum(diverged(records, pair, arm) for pair in pairs)
        rows.append([label_of(arm), *own, *over_all, _points(records, pairs, arm), str(lost)])
    return report.Table(
        "Losses over those of the whole rule on the same seeds (above 1 the rule is better; "
        "geometric means over tasks, mean ± standard deviation over seeds), validation "
        "accuracy minus the rule's in points, and pairs with a divergence",
        [
            "arm",
            *(f"area, {setting}" for setting in settings),
            *(f"{measure.replace('_', ' ')}, all" for measure in MEASURES),
            "accuracy, all",
            "diverged",
        ],
        rows,
    )


def _ratio(records: Records, pairs: Sequence[Pair], arm: str, measure: str) -> str:
    logarithms = [paired(records, pair, arm, RULE, measure, log_ratio) for pair in pairs]
    return report.mean_and_spread(list(np.exp(np.mean(logarithms, axis=0))), 3)


def _points(records: Records, pairs: Sequence[Pair], arm: str) -> str:
    scored = [pair for pair in pairs if classifies(records, pair)]
    if not scored:
        return "-"
    points = [100 * paired(records, p, arm, RULE, "validation_accuracy") for p in scored]
    return report.mean_and_spread(list(np.mean(points, axis=0)))
