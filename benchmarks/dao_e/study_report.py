"""The study's report: bars, ratios, accuracies and pictures, all from the records."""

import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks import store
from benchmarks.dao_e.ablations import ablation_section
from benchmarks.dao_e.arms import ARMS, RULE, SINGLES, UNIFORM
from benchmarks.dao_e.bars import bars_of
from benchmarks.dao_e.drift import drift_section
from benchmarks.dao_e.pictures import curves_figure, ratios_figure, weights_figure
from benchmarks.dao_e.program import CEILING, FLOOR, LAST
from benchmarks.dao_e.records import (
    BEST,
    MEASURES,
    Pair,
    Records,
    arms_of,
    best_single,
    classifies,
    diverged,
    label_of,
    paired,
    pairs_of,
    ratios_to_uniform,
    values_of,
)
from benchmarks.dao_e.settings import SETTINGS
from benchmarks.lab import report


def write(records: Records, folder: pathlib.Path) -> None:
    """Prints the main tables and writes README.md and the pictures."""
    judged = pairs_of(records, "all", "few")
    sections = [_introduction(records)]
    if judged:
        sections += _judged_sections(records, judged)
        _draw(records, judged, folder)
    sections.append(drift_section(records))
    text = "\n".join(section for section in sections if section)
    store.write_bytes(folder / "README.md", text.encode())


def _judged_sections(records: Records, judged: Sequence[Pair]) -> list[str]:
    bars = bars_table(records, judged) if RULE in arms_of(records, judged) else None
    everywhere = pairs_of(records, "all")
    ratios = [ratio_table(records, everywhere, name) for name in MEASURES if everywhere]
    for table in [bars, *ratios][:2]:
        if table is not None:
            table.show()
    sections = []
    if bars is not None:
        sections += ["## Bars\n", bars.markdown(), _missed(records, judged)]
        sections.append(_on_test_data(records, judged))
        sections += [bars_by_arm(records, everywhere).markdown()] * bool(everywhere)
    sections += ["## Against uniform weights\n", *(table.markdown() for table in ratios)]
    sections.append(ablation_section(records, everywhere))
    few = pairs_of(records, "few")
    sections += [ratio_table(records, few, name).markdown() for name in MEASURES if few]
    sections += [
        "![Ratios to uniform weights](ratios.png)\n",
        "## Task by task\n",
        *(table.markdown() for table in _by_task(records, judged)),
        "![Training loss](curves.png)\n",
        "![Weights over time](weights.png)\n" if RULE in arms_of(records, judged) else "",
    ]
    return sections


def _draw(records: Records, judged: Sequence[Pair], folder: pathlib.Path) -> None:
    pictures = {
        "ratios": ratios_figure(records, pairs_of(records, "all") or judged),
        "curves": curves_figure(records, judged),
    }
    if RULE in arms_of(records, judged):
        pictures["weights"] = weights_figure(records, judged)
    for name, figure in pictures.items():
        store.write_bytes(folder / f"{name}.png", report.png(figure))


def _introduction(records: Records) -> str:
    configs = {task: record["config"] for (task, _), record in records.items()}
    settings = {setting for config in configs.values() for setting in config["rates"]}
    seeds = {record["config"]["seeds"] for record in records.values()}
    counted = " or ".join(map(str, sorted(seeds)))
    return "\n".join(
        [
            "# DAO-E: the study",
            "",
            f"{len(configs)} tasks, {len(settings)} settings of the experts' rates, {counted} "
            "seeds. A seed's start, noise and batches are the same for every arm. Best rates "
            "were found on validation data and other seeds, from one grid for every expert.",
            "",
            *(
                f"- {setting}: {text}"
                for setting, text in SETTINGS.items()
                if setting in settings
            ),
            "",
            "Area: mean training loss over the steps, every loss being at least 0; final: "
            f"over the last {LAST:.0%} of them. A loss above {CEILING:g} times the first one, "
            f"or not finite, counts as that, and one below {FLOOR:g} times it as that. "
            "Diverged: some loss not finite, or the final one above the first.",
            "",
            rates_table(records).markdown(),
        ]
    )


def rates_table(records: Records) -> report.Table:
    """The tasks, and the rates at which their experts are best."""
    rows = []
    for task in dict.fromkeys(task for task, _ in records):
        config = records[task, UNIFORM]["config"]
        rates = config["rates"].get("tuned")
        cells = ["-"] * len(SINGLES) if rates is None else [f"{rate:g}" for rate in rates]
        rows.append([task, config["title"], str(config["steps"]), *cells])
    return report.Table(
        "Tasks and best rates", ["task", "what", "steps", *map(label_of, SINGLES)], rows
    )


def bars_table(records: Records, pairs: Sequence[Pair]) -> report.Table:
    """The measured rule's bars."""
    rows = [
        [bar.name, bar.wanted, bar.measured, "met" if bar.met else "**missed**"]
        for bar in bars_of(records, pairs, RULE)
    ]
    return report.Table("The measured rule", ["bar", "wanted", "measured", ""], rows)


def _missed(records: Records, pairs: Sequence[Pair]) -> str:
    """The pairs that speak against each bar."""
    lines = [
        f"- {bar.name}: not on " + ", ".join(f"{p.task} {p.setting}" for p in bar.missed)
        for bar in bars_of(records, pairs, RULE)
        if bar.missed
    ]
    return "\n".join([*lines, ""])


def bars_by_arm(records: Records, pairs: Sequence[Pair]) -> report.Table:
    """The same bars for every finalist, over the tasks that all have."""
    arms = arms_of(records, pairs)
    bars = {arm: bars_of(records, pairs, arm) for arm in arms}
    names = [bar.name for bar in bars[UNIFORM]]
    rows = [
        [label_of(arm), *(bar.measured + ("" if bar.met else " *") for bar in bars[arm])]
        for arm in arms
    ]
    return report.Table("The same bars for every finalist (*: missed)", ["arm", *names], rows)


def ratio_table(records: Records, pairs: Sequence[Pair], measure: str) -> report.Table:
    """Ratios to uniform weights, by setting and over all."""
    settings = list(dict.fromkeys(pair.setting for pair in pairs))
    groups = [[p for p in pairs if p.setting == setting] for setting in settings]
    rows = [
        [
            label_of(arm),
            *(
                report.mean_and_spread(
                    list(ratios_to_uniform(records, group, arm, measure)), 3
                )
                for group in [*groups, list(pairs)]
            ),
        ]
        for arm in (BEST, *arms_of(records, pairs))
    ]
    tasks = dict.fromkeys(pair.task for pair in pairs)
    return report.Table(
        f"{MEASURES[measure].capitalize()} over that of uniform weights: geometric mean over "
        f"{', '.join(tasks)}; mean ± standard deviation over seeds",
        ["arm", *settings, "all"],
        rows,
    )


def _by_task(records: Records, pairs: Sequence[Pair]) -> Iterable[report.Table]:
    arms = [
        name
        for name, arm in ARMS.items()
        if arm.finalist and any((pair.task, name) in records for pair in pairs)
    ]
    scored = [pair for pair in pairs if classifies(records, pair)]
    if RULE in arms:
        yield area_table(records, pairs)
    if scored:
        yield _means(records, scored, arms, "validation_accuracy", "Validation accuracy")
    tested = [arm for arm in arms if _is_tested(records, pairs, arm)]
    if tested and scored:
        yield _means(records, scored, tested, "test_accuracy", "Test accuracy")
    rows = [
        [f"{pair.task}, {pair.setting}", *(_divergence(records, pair, arm) for arm in arms)]
        for pair in pairs
        if any(_divergence(records, pair, arm) not in ("", "0") for arm in arms)
    ]
    if rows:
        yield report.Table(
            "Seeds that diverged", ["task, setting", *map(label_of, arms)], rows
        )


def _on_test_data(records: Records, pairs: Sequence[Pair]) -> str:
    """The measured rule's mean accuracy against others', on data that chose nothing."""
    scored = [pair for pair in pairs if classifies(records, pair)]
    if not scored or not all(_is_tested(records, scored, arm) for arm in (RULE, *SINGLES)):
        return ""
    best, uniform = (
        100 * np.mean([paired(records, p, RULE, name, "test_accuracy").mean() for p in scored])
        for name in (BEST, UNIFORM)
    )
    return (
        f"On test data the measured rule's mean accuracy is {best:+.2f} points from that of "
        f"the single that is the best there, and {uniform:+.2f} from uniform weights'.\n"
    )


def _is_tested(records: Records, pairs: Sequence[Pair], arm: str) -> bool:
    return all(
        records[pair.task, arm]["config"]["test"]
        for pair in pairs
        if (pair.task, arm) in records
    )


def _divergence(records: Records, pair: Pair, arm: str) -> str:
    if (pair.task, arm) not in records:
        return ""
    return str(int(values_of(records, pair, arm, "diverged").sum()))


def area_table(records: Records, pairs: Sequence[Pair]) -> report.Table:
    """The measured rule's area over the best single expert's."""
    settings = list(dict.fromkeys(pair.setting for pair in pairs))
    rows = []
    for task in dict.fromkeys(pair.task for pair in pairs):
        cells = []
        for setting in settings:
            pair = Pair(task, setting)
            ratio = paired(records, pair, RULE, BEST, "area", np.divide).mean()
            best = label_of(best_single(records, pair, "area"))
            mark = " diverged" if diverged(records, pair, BEST) else ""
            cells.append(f"{ratio:.3f} ({best}{mark})")
        rows.append([task, *cells])
    return report.Table(
        "The measured rule's area over that of the best single in hindsight (which)",
        ["task", *settings],
        rows,
    )


def _means(
    records: Records, pairs: Sequence[Pair], arms: Sequence[str], measure: str, title: str
) -> report.Table:
    """Means over seeds in percent, and over all pairs that an arm has."""
    columns = {
        arm: {
            pair: 100 * values_of(records, pair, arm, measure)
            for pair in pairs
            if (pair.task, arm) in records
        }
        for arm in arms
    }
    rows = [
        [
            f"{pair.task}, {pair.setting}",
            *(
                f"{cells[pair].mean():.2f}" if pair in cells else ""
                for cells in columns.values()
            ),
        ]
        for pair in pairs
    ]
    means = [
        f"{np.mean([values.mean() for values in cells.values()]):.2f}"
        if len(cells) == len(pairs)
        else ""
        for cells in columns.values()
    ]
    return report.Table(
        f"{title} in percent, means over seeds",
        ["task, setting", *map(label_of, arms)],
        [*rows, ["mean", *means]],
    )
