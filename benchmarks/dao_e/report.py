"""What the study's records show: bars, ratios, ablations, drift and pictures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from benchmarks.dao_e.study import (
    ABLATIONS,
    BEST,
    EXPERTS,
    LABELS,
    SETTINGS,
    arms_of,
    pairs_of,
    runs_of,
)
from benchmarks.lab import paired, report
from benchmarks.lab.paired import Line, Pair, Runs, by_setting
from benchmarks.lab.records import Records
from benchmarks.lab.report import Bar, Table, mean_and_spread
from benchmarks.lab.training import CEILING, FLOOR, LAST

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pairs: TypeAlias = Sequence[Pair]
Sections: TypeAlias = list[Table | str]

MEASURES = {
    "area": "area under the training loss",
    "final_loss": "final training loss",
    "validation_loss": "validation loss",
}
ACCURACY, TEST = "validation_accuracy", "test_accuracy"
NAMES = {BEST: "best single in hindsight"} | LABELS
AREA_BAR = "training-loss area not above the best single's"
LEAST_SHARE = 0.8  # of the pairs, with an area not above the best single's
LOST_POINTS = 0.3  # of mean validation accuracy, below the best single's
LOSSES = "Training loss, mean over seeds"
SHOWN = ("mnist", "convnet", "long", "transformer")  # tasks of the pictures over time


def _scored(runs: Runs, pairs: Pairs) -> list[Pair]:
    return [p for p in pairs if runs.configs[p.task, "uniform"]["classifies"]]


def _diverged(runs: Runs, pair: Pair, arm: str) -> int:
    return int(runs.values(pair, runs.best(pair, arm, "area"), "diverged").sum())


def bars_of(runs: Runs, pairs: Pairs, arm: str = "dao_e") -> dict[Bar, list[Pair]]:
    """What DAO-E has to reach, each with the pairs that speak against it."""
    above = [pair for pair in pairs if runs.paired(pair, arm, BEST, "area").mean() > 0]
    share = 1 - len(above) / len(pairs)
    name, wanted = AREA_BAR, f"at least {LEAST_SHARE:.0%} of the pairs"
    bars = {Bar(name, wanted, f"{share:.0%} of {len(pairs)}", share >= LEAST_SHARE): above}
    for other, name, lowest, wanted in (
        (BEST, "the best single's", -LOST_POINTS, f"at least -{LOST_POINTS:g} points"),
        ("uniform", "uniform weights'", 0.0, "above 0 points"),
    ):
        if scored := _scored(runs, pairs):
            points = runs.points(scored, arm, other, ACCURACY)
            mean = float(np.mean([each.mean() for each in points]))
            met = mean >= lowest if other == BEST else mean > lowest
            bar = Bar(f"mean validation accuracy minus {name}", wanted, f"{mean:+.2f}", met)
            each = zip(scored, points, strict=True)
            bars[bar] = [pair for pair, own in each if own.mean() < lowest]
    lost = [p for p in pairs if _diverged(runs, p, arm) and not _diverged(runs, p, BEST)]
    measured = f"{len(lost)} of {len(pairs)}"
    bars[Bar("diverges where the best single does not", "no pair", measured, not lost)] = lost
    return bars


def write(records: Records) -> None:
    """Shows the tables and writes README.md and the pictures."""
    runs = runs_of(records)
    everywhere, few = pairs_of(runs, "all"), pairs_of(runs, "few")
    judged = pairs_of(runs, "all", "few")
    ruled = "dao_e" in arms_of(runs, judged)
    sections = _introduction(runs)
    if judged:
        sections += _bars(runs, judged, everywhere) if ruled else []
        sections += ["## Against uniform weights\n", *_ratios(runs, everywhere)]
        sections += _ablations(runs, everywhere) if ruled else []
        sections += _ratios(runs, few)
        sections += ["## Task by task\n", *_by_task(runs, judged, ruled)]
        pictures = ["![Training loss](curves.png)\n", "![Weights over time](weights.png)\n"]
        sections += pictures[: 1 + ruled]
    sections += _drift(runs, pairs_of(runs, "drift"))
    figures = _figures(runs, judged, ruled) if judged else {}
    report.write(records.folder, "DAO-E: the study", sections, figures)


def _introduction(runs: Runs) -> Sections:
    pairs, configs = pairs_of(runs), runs.configs.values()
    tasks = list(dict.fromkeys(pair.task for pair in pairs))
    settings = [name for name in SETTINGS if name in by_setting(pairs)]
    seeds = " or ".join(map(str, sorted({config["seeds"] for config in configs})))
    text = [
        f"{len(tasks)} tasks, {len(settings)} settings of the experts' rates, {seeds} seeds. "
        "A seed's start, noise and batches are the same for every arm. Best rates were found "
        "on validation data and other seeds, from one grid for every expert.\n",
        *(f"- {name}: {SETTINGS[name]}" for name in settings),
        "\nArea: mean training loss over the steps, every loss being at least 0; final: over "
        f"the last {LAST:.0%} of them. A loss above {CEILING:g} times the first one, or not "
        f"finite, counts as that, and one below {FLOOR:g} times it as that. Diverged: some "
        "loss not finite, or the final one above the first.\n",
    ]
    rows = []
    for task in tasks:
        config = runs.configs[task, "uniform"]
        rates = config["rates"].get("tuned", {})
        cells = [f"{rates[name]:g}" if rates else "-" for name in EXPERTS]
        rows.append([task, config["title"], str(config["steps"]), *cells])
    header = ["task", "what", "steps", *EXPERTS.values()]
    return ["\n".join(text), Table("Tasks and best rates", header, rows)]


def _bars(runs: Runs, judged: Pairs, everywhere: Pairs) -> Sections:
    bars = bars_of(runs, judged)
    missed = [
        f"- {bar.name}: not on " + ", ".join(f"{p.task} {p.setting}" for p in pairs)
        for bar, pairs in bars.items()
        if pairs
    ]
    table = report.bars_table(list(bars), "DAO-E")
    sections: Sections = ["## Bars\n", *table, "\n".join([*missed, ""])]
    scored = _scored(runs, judged)
    if scored and all(_tested(runs, scored, arm) for arm in ("dao_e", *EXPERTS)):
        best, uniform = (
            np.mean([each.mean() for each in runs.points(scored, "dao_e", other, TEST)])
            for other in (BEST, "uniform")
        )
        sections.append(
            f"On test data DAO-E's mean accuracy is {best:+.2f} points from that of the "
            f"single that is the best there, and {uniform:+.2f} from uniform weights'.\n"
        )
    if everywhere:
        rows = []
        for arm in arms_of(runs, everywhere):
            found = bars_of(runs, everywhere, arm)
            rows.append([LABELS[arm], *(b.measured + " *" * (not b.met) for b in found)])
        title = "The same bars for every finalist (*: missed)"
        sections.append(Table(title, ["arm", *(bar.name for bar in bars)], rows))
    return sections


def _tested(runs: Runs, pairs: Pairs, arm: str) -> bool:
    return all(runs.configs[p.task, arm]["test"] for p in pairs if runs.has(p, arm))


def _ratios(runs: Runs, pairs: Pairs) -> Sections:
    arms = {arm: NAMES[arm] for arm in (BEST, *arms_of(runs, pairs))}
    tables: Sections = []
    for measure, name in MEASURES.items() if pairs else ():
        title = f"{name.capitalize()} over that of uniform weights"
        tables.append(paired.ratio_table(runs, pairs, arms, "uniform", measure, title))
    return tables


def _ablations(runs: Runs, pairs: Pairs) -> Sections:
    arms, groups = arms_of(runs, pairs, finalist=False), by_setting(pairs)
    columns = [("area", name) for name in groups] + [(name, "all") for name in MEASURES][1:]
    rows = []
    for arm in arms:
        ratios = [runs.ratios(groups[name], arm, "dao_e", of) for of, name in columns]
        points = runs.points(_scored(runs, pairs), arm, "dao_e", ACCURACY)
        accuracy = mean_and_spread(list(np.mean(points, axis=0)) if points else [])
        lost = sum(_diverged(runs, pair, arm) > 0 for pair in pairs)
        cells = [mean_and_spread(list(each), 3) for each in ratios]
        rows.append([LABELS[arm], *cells, accuracy, str(lost)])
    table = Table(
        "Losses over those of the whole rule on the same seeds (above 1 the rule is better; "
        "geometric means over tasks, mean ± standard deviation over seeds), validation "
        "accuracy minus the rule's in points, and pairs with a divergence",
        [
            "arm",
            *(f"{of.replace('_', ' ')}, {name}" for of, name in columns),
            "accuracy, all",
            "diverged",
        ],
        rows,
    )
    return ["## Each part taken away, or added\n", table] if rows else []


def _by_task(runs: Runs, pairs: Pairs, ruled: bool) -> Sections:
    arms = {
        arm: label
        for arm, label in LABELS.items()
        if arm not in ABLATIONS and any(runs.has(pair, arm) for pair in pairs)
    }
    tested = {arm: label for arm, label in arms.items() if _tested(runs, pairs, arm)}
    scored = _scored(runs, pairs)
    tables: Sections = [_areas(runs, pairs)] if ruled else []
    if scored:
        tables.append(paired.means_table(runs, scored, arms, ACCURACY, "Validation accuracy"))
    if scored and tested:
        tables.append(paired.means_table(runs, scored, tested, TEST, "Test accuracy"))
    rows = [
        [str(p), *(str(_diverged(runs, p, arm)) if runs.has(p, arm) else "" for arm in arms)]
        for p in pairs
    ]
    if lost := [row for row in rows if set(row[1:]) - {"", "0"}]:
        tables.append(Table("Seeds that diverged", ["task, setting", *arms.values()], lost))
    return tables


def _areas(runs: Runs, pairs: Pairs) -> Table:
    rows: dict[str, list[str]] = {}
    for pair in pairs:
        ratio = runs.paired(pair, "dao_e", BEST, "area", np.divide).mean()
        which = LABELS[runs.best(pair, BEST, "area")]
        which += " diverged" if _diverged(runs, pair, BEST) else ""
        rows.setdefault(pair.task, [pair.task]).append(f"{ratio:.3f} ({which})")
    header = ["task", *list(by_setting(pairs))[:-1]]
    title = "DAO-E's area over that of the best single in hindsight (which)"
    return Table(title, header, list(rows.values()))


def _drift(runs: Runs, pairs: Pairs) -> Sections:
    known = arms_of(runs, pairs) + arms_of(runs, pairs, finalist=False)
    if "dao_e" not in known:
        return []
    titles = {pair.task: runs.configs[pair.task, "dao_e"]["title"] for pair in pairs}
    sections: Sections = ["## Data that change while training runs\n"]
    sections.append("\n".join([*(f"- {task}: {title}" for task, title in titles.items()), ""]))
    if "features" in known:
        sections.append(drift_verdict(runs, pairs) + "\n")
    opponents = [arm for arm in ("features", "uniform", BEST) if arm in (*known, BEST)]
    return sections + [drift_table(runs, pairs, arm) for arm in opponents]


DRIFT = {
    "area": "area, %",
    "final_loss": "final loss, %",
    "validation_loss": "validation loss, %",
    ACCURACY: "validation accuracy, points",
}


def _differences(runs: Runs, pair: Pair, other: str, measure: str) -> np.ndarray:
    """DAO-E minus another: points, or 100 times the logarithm of the losses' ratio."""
    difference = np.subtract if measure == ACCURACY else paired.log_ratio
    return 100 * runs.paired(pair, "dao_e", other, measure, difference)


def drift_verdict(runs: Runs, pairs: Pairs) -> str:
    """What the features changed, and in how many pairs beyond two standard errors."""
    parts = []
    for measure, name in DRIFT.items():
        sign = -1 if measure == ACCURACY else 1
        of = [sign * _differences(runs, pair, "features", measure) for pair in pairs]
        better, worse = (
            sum(s * d.mean() > 2 * paired.standard_error(d) for d in of) for s in (1, -1)
        )
        parts.append(f"{name.split(',')[0]} better in {better} and worse in {worse}")
    start = (
        f"With features against without, of {len(pairs)} pairs beyond two standard errors: "
    )
    return start + "; ".join(parts) + "."


def drift_table(runs: Runs, pairs: Pairs, other: str) -> Table:
    """DAO-E minus another, paired by seed."""
    of = [[_differences(runs, pair, other, name) for name in DRIFT] for pair in pairs]
    means = [np.mean(column, axis=0) for column in zip(*of, strict=True)]
    return Table(
        f"DAO-E minus {NAMES[other]}: mean of the paired differences ± standard error over "
        "seeds (losses: 100 times the logarithm of the ratio; below 0 DAO-E is better)",
        ["task, setting", *DRIFT.values()],
        [
            [name, *map(paired.mean_and_error, row)]
            for name, row in zip([*map(str, pairs), "all"], [*of, means], strict=True)
        ],
    )


def _figures(runs: Runs, pairs: Pairs, ruled: bool) -> dict[str, "Figure"]:
    tasks = list(dict.fromkeys(pair.task for pair in pairs))
    tasks = [task for task in SHOWN if task in tasks] or tasks[: len(SHOWN)]
    settings = list(by_setting(pairs))[:-1]
    lines = [Line(LABELS[arm], arm, "loss") for arm in (*EXPERTS, "uniform")]
    lines.append(Line("DAO-E", "dao_e", "loss", {"color": "black", "lw": 1.6}))
    figure = paired.curves_grid(runs, tasks, settings, lines, title=LOSSES, yscale="log")
    figures = {"curves": figure}
    if ruled:
        lines = [Line(EXPERTS[name], "dao_e", name) for name in EXPERTS]
        figures["weights"] = paired.curves_grid(
            runs, tasks, settings, lines,
            title="DAO-E's weights, mean over leaves and seeds; dotted: step multiplier",
            right=Line("", "dao_e", "multiplier", {"color": "0.5", "lw": 0.8, "ls": ":"}),
            ylim=(0, 1),
        )  # fmt: skip
    return figures
