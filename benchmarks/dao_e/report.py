"""What the study's records show: bars, ratios, ablations, drift and pictures."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from benchmarks.dao_e.runs import Pair, Runs
from benchmarks.dao_e.study import ALWAYS, BEST, EXPERTS, LABELS, SETTINGS
from benchmarks.lab import report
from benchmarks.lab.records import Records, as_floats
from benchmarks.lab.report import Bar, Curve, Table, curves_figure, grid, mean_and_spread
from benchmarks.lab.training import CEILING, FLOOR, LAST

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pairs: TypeAlias = Sequence[Pair]
Sections: TypeAlias = list[Table | str]

LOSSES = {
    "area": "area under the training loss",
    "final_loss": "final training loss",
    "validation_loss": "validation loss",
}
ACCURACY, TEST = "validation_accuracy", "test_accuracy"
NAMES = {BEST: "best single in hindsight"} | LABELS
LEAST_SHARE = 0.8  # of the pairs, with an area not above the best single's
LOST_POINTS = 0.3  # of mean validation accuracy, below the best single's
SHOWN = ("mnist", "convnet", "long", "transformer")  # tasks of the pictures over time


def bars_of(
    runs: Runs, pairs: Pairs, arm: str = "dao_e", accuracy: str = ACCURACY
) -> dict[Bar, list[Pair]]:
    """What DAO-E has to reach, each with the pairs that speak against it."""

    def chosen(own: Pairs, wrong: Any) -> list[Pair]:
        return [pair for pair, each in zip(own, wrong, strict=True) if each]

    above = np.subtract(*runs.both(pairs, arm, BEST, "area")).mean(1) > 0
    name = "training-loss area not above the best single's"
    share, wanted = 1 - float(above.mean()), f"at least {LEAST_SHARE:.0%} of the pairs"
    measured = f"{share:.0%} of {len(pairs)}"
    bars = {Bar(name, wanted, measured, share >= LEAST_SHARE): chosen(pairs, above)}
    scored = _scored(runs, pairs)
    for other, name, lowest, wanted in (
        (BEST, "the best single's", -LOST_POINTS, f"at least -{LOST_POINTS:g} points"),
        ("uniform", "uniform weights'", 0.0, "above 0 points"),
    ):
        if scored:
            points = runs.differences(scored, arm, other, accuracy).mean(1)
            mean = float(points.mean())
            met = mean >= lowest if other == BEST else mean > lowest
            bar = Bar(f"mean validation accuracy minus {name}", wanted, f"{mean:+.2f}", met)
            bars[bar] = chosen(scored, points < lowest)
    own, best = (runs.values(pairs, each, "diverged").any(1) for each in (arm, BEST))
    lost = chosen(pairs, own & ~best)
    name, measured = "diverges where the best single does not", f"{len(lost)} of {len(pairs)}"
    return bars | {Bar(name, "no pair", measured, not lost): lost}


def _scored(runs: Runs, pairs: Pairs) -> list[Pair]:
    return [pair for pair in pairs if runs.configs[pair.task, "dao_e"]["classifies"]]


def write(records: Records) -> None:
    """Shows the tables and writes README.md and the pictures."""
    runs = Runs(records)
    everywhere, few, drift = (runs.pairs(scope) for scope in ("all", "few", "drift"))
    sections, figures = _introduction(runs), {}
    if judged := runs.pairs("all", "few"):
        sections += _bars(runs, judged, everywhere)
        sections += ["## Against uniform weights\n", *_ratios(runs, everywhere)]
        sections += [*_ablations(runs, everywhere), *_ratios(runs, few)]
        sections += ["## Task by task\n", *_by_task(runs, judged)]
        figures = _figures(runs, judged)
        sections += ["![Training loss](curves.png)\n", "![Weights over time](weights.png)\n"]
        sections.append("![Step multiplier over time](multiplier.png)\n")
    sections += _drift(runs, drift) if drift else []
    report.write(records.folder, "DAO-E: the study", sections, figures)


def _introduction(runs: Runs) -> Sections:
    tasks = dict.fromkeys(pair.task for pair in runs.pairs())
    seeds = " or ".join(map(str, sorted({c["seeds"] for c in runs.configs.values()})))
    text = [
        f"{len(tasks)} tasks, {len(SETTINGS)} settings of the experts' rates, {seeds} seeds. "
        "A seed's start, noise and batches are the same for every arm. Best rates were found "
        "on validation data and other seeds, from one grid for every expert.\n",
        *(f"- {name}: {what}" for name, what in SETTINGS.items()),
        "\nArea: mean training loss over the steps, every loss being at least 0; final: over "
        f"the last {LAST:.0%} of them. A loss above {CEILING:g} times the first one, or not "
        f"finite, counts as that, and one below {FLOOR:g} times it as that. Diverged: some "
        "loss not finite, or the final one above the first.\n",
    ]
    configs = {task: runs.configs[task, "uniform"] for task in tasks}
    rows = [
        [task, config["title"], str(config["steps"]),
         *(f"{config['rates']['tuned'][name]:g}" for name in EXPERTS)]
        for task, config in configs.items()
    ]  # fmt: skip
    header = ["task", "what", "steps", *EXPERTS.values()]
    return ["\n".join(text), Table("Tasks and best rates", header, rows)]


def _bars(runs: Runs, judged: Pairs, everywhere: Pairs) -> Sections:
    bars = bars_of(runs, judged)
    missed = [
        f"- {bar.name}: not on " + ", ".join(f"{p.task} {p.setting}" for p in pairs)
        for bar, pairs in bars.items()
        if pairs
    ]
    sections: Sections = ["## Bars\n", *report.bars_table(list(bars), "DAO-E")]
    sections.append("\n".join([*missed, ""]))
    if scored := _scored(runs, judged):
        _, best, uniform, _ = (bar.measured for bar in bars_of(runs, scored, accuracy=TEST))
        sections.append(
            f"On test data DAO-E's mean accuracy is {best} points from that of the "
            f"single that is the best there, and {uniform} from uniform weights'.\n"
        )
    rows = []
    for arm in runs.arms(everywhere):
        found = bars_of(runs, everywhere, arm)
        rows.append([LABELS[arm], *(bar.measured + " *" * (not bar.met) for bar in found)])
    title = "The same bars for every finalist (*: missed)"
    table = Table(title, ["arm", *(bar.name for bar in bars)], rows)
    return [*sections, table] if rows else sections


def _by_setting(pairs: Pairs) -> dict[str, list[Pair]]:
    """The pairs of each setting, and all."""
    settings = dict.fromkeys(pair.setting for pair in pairs)
    groups = {name: [pair for pair in pairs if pair.setting == name] for name in settings}
    return groups | {"all": list(pairs)}


def _ratio(runs: Runs, other: str, measure: str, arm: str, pairs: Pairs) -> str:
    """The geometric mean over pairs of a loss over another arm's."""
    logs = runs.differences(pairs, arm, other, measure).mean(0) / 100
    return mean_and_spread(list(np.exp(logs)), 3)


def _ratios(runs: Runs, pairs: Pairs) -> Sections:
    arms = {NAMES[arm]: arm for arm in (BEST, *runs.arms(pairs))}
    title = "over that of uniform weights: geometric mean over {}; mean ± standard deviation "
    title = title.format(", ".join(dict.fromkeys(pair.task for pair in pairs))) + "over seeds"
    tables: Sections = []
    for measure, name in LOSSES.items() if pairs else ():
        cell = functools.partial(_ratio, runs, "uniform", measure)
        of = f"{name.capitalize()} {title}"
        tables.append(grid(of, "arm", arms, _by_setting(pairs), cell))
    return tables


def _ablations(runs: Runs, pairs: Pairs) -> Sections:
    def cell(arm: str, column: tuple[str, Pairs]) -> str:
        measure, own = column
        if measure == "diverged":
            return str(runs.values(own, arm, measure).any(1).sum())
        if measure != ACCURACY:
            return _ratio(runs, "dao_e", measure, arm, own)
        scored = _scored(runs, own)
        points = runs.differences(scored, arm, "dao_e", measure).mean(0) if scored else []
        return mean_and_spread(list(points))

    title = (
        "Losses over those of the whole rule on the same seeds (above 1 the rule is better; "
        "geometric means over tasks, mean ± standard deviation over seeds), validation "
        "accuracy minus the rule's in points, and pairs with a divergence"
    )
    columns = {f"area, {name}": ("area", own) for name, own in _by_setting(pairs).items()}
    for name in ("final_loss", "validation_loss", ACCURACY):
        columns[f"{name.replace('_', ' ')}, all"] = (name, list(pairs))
    columns["diverged"] = ("diverged", list(pairs))
    arms = {LABELS[arm]: arm for arm in runs.arms(pairs, finalist=False)}
    table = grid(title, "arm", arms, columns, cell)
    return ["## Each part taken away, or added\n", table] if arms else []


def _by_task(runs: Runs, pairs: Pairs) -> Sections:
    def area(task: str, setting: str) -> str:
        pair = Pair(task, setting)
        ratio = np.divide(*runs.both([pair], "dao_e", BEST, "area")).mean()
        diverged = " diverged" if runs.values([pair], BEST, "diverged").any() else ""
        return f"{ratio:.3f} ({LABELS[runs.best(pair, 'area')]}{diverged})"

    def percent(own: Pairs, column: tuple[str, str]) -> str:
        ran = column[0] in runs.arms(own)
        return f"{(100 * runs.values(own, *column)).mean(1).mean():.2f}" if ran else ""

    def diverged(pair: Pair, arm: str) -> str:
        ran = arm in runs.arms([pair])
        return f"{runs.values([pair], arm, 'diverged').sum():g}" if ran else ""

    tasks, settings = ({pair[at]: pair[at] for pair in pairs} for at in (0, 1))
    title = "DAO-E's area over that of the best single in hindsight (which)"
    tables: Sections = [grid(title, "task", tasks, settings, area)]
    trained = {arm for pair in pairs for arm in runs.arms([pair])}
    arms = {label: arm for arm, label in LABELS.items() if arm in trained}
    scored = _scored(runs, pairs)
    for measure in (ACCURACY, TEST) if scored else ():
        title = f"{measure.replace('_', ' ').capitalize()} in percent, means over seeds"
        rows = {str(pair): [pair] for pair in scored} | {"mean": scored}
        columns = {label: (arm, measure) for label, arm in arms.items()}
        tables.append(grid(title, "task, setting", rows, columns, percent))
    some = [p for p in pairs if {diverged(p, arm) for arm in arms.values()} - {"", "0"}]
    lost = {str(pair): pair for pair in some}
    seeds = grid("Seeds that diverged", "task, setting", lost, arms, diverged)
    return [*tables, seeds] if lost else tables


def _drift(runs: Runs, pairs: Pairs) -> Sections:
    titles = {pair.task: runs.configs[pair.task, "dao_e"]["title"] for pair in pairs}
    tables = [drift_table(runs, pairs, other) for other in ("features", "uniform", BEST)]
    text = "\n".join([*(f"- {task}: {title}" for task, title in titles.items()), ""])
    return ["## Data that change while training runs\n", text, *tables]


def drift_table(runs: Runs, pairs: Pairs, other: str) -> Table:
    """DAO-E minus another, paired by seed."""

    def cell(own: Pairs, measure: str) -> str:
        mean = runs.differences(own, "dao_e", other, measure).mean(0)
        error = np.std(mean, ddof=1) / np.sqrt(len(mean)) if len(mean) > 1 else np.nan
        return f"{mean.mean():+.2f} ± {error:.2f}"

    title = (
        f"DAO-E minus {NAMES[other]}: mean of the paired differences ± standard error over "
        "seeds (losses: 100 times the logarithm of the ratio; below 0 DAO-E is better)"
    )
    rows = {str(pair): [pair] for pair in pairs} | {"all": list(pairs)}
    columns = {f"{measure.replace('_', ' ')}, %": measure for measure in LOSSES}
    columns["validation accuracy, points"] = ACCURACY
    return grid(title, "task, setting", rows, columns, cell)


def _figures(runs: Runs, pairs: Pairs) -> dict[str, "Figure"]:
    def curve(name: str, pair: Pair, arm: str, of: str) -> Curve:
        values = as_floats([runs.means[pair, arm]["curves"][of]])
        at = np.linspace(0, runs.configs[pair.task, arm]["steps"], values.shape[1] + 1)
        return Curve(name, values, list(at[1:]))

    losses, weights = {}, {}
    multipliers: dict[str, list[Curve]] = {}
    for pair in [pair for pair in pairs if pair.task in SHOWN] or pairs:
        losses[str(pair)] = [curve(LABELS[arm], pair, arm, "loss") for arm in ALWAYS]
        weights[str(pair)] = [curve(EXPERTS[of], pair, "dao_e", of) for of in EXPERTS]
        own = curve(pair.setting, pair, "dao_e", "multiplier")
        multipliers.setdefault(pair.task, []).append(own)
    draw = functools.partial(
        curves_figure, xlabel="step", columns=len(SETTINGS), title="Mean over seeds"
    )
    return {
        "curves": draw(list(losses.items()), ylabel="training loss", log=True),
        "weights": draw(list(weights.items()), ylabel="weight, mean over leaves"),
        "multiplier": draw(list(multipliers.items()), ylabel="step multiplier", log=True),
    }
