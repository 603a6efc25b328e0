"""What the study's records show: bars, held-out losses, ablations, drift and pictures."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from benchmarks.dao_e.runs import BEST, HINDSIGHT, NAMES, Pair, Runs
from benchmarks.dao_e.study import ABLATIONS, EXPERTS, LABELS, NADAMW, SETTINGS
from benchmarks.lab import report
from benchmarks.lab.records import Records, as_floats
from benchmarks.lab.report import Bar, Curve, Table, curves_figure, grid, mean_and_spread
from benchmarks.lab.training import CEILING, FLOOR, LAST, WARM_UP

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pairs: TypeAlias = Sequence[Pair]
Sections: TypeAlias = list[Table | str]

TEST, BEST_TEST, ACCURACY, AREA = "test_loss", "best_test_loss", "test_accuracy", "area"
HELD_OUT = {  # the sections of the tables over the best single's
    TEST: "Test loss after the last step",
    BEST_TEST: "Test loss at the point of the lowest validation loss",
    ACCURACY: "Test accuracy after the last step",
}
VALIDATED = {  # what an ablation, which never sees the test data, is judged by
    "area": "area",
    "final_loss": "final loss",
    "validation_loss": "validation loss",
    "validation_accuracy": "validation accuracy",
}
TESTED = {TEST: "test loss", ACCURACY: "test accuracy"}
MOST = 1.00  # test loss over the best single's, over all pairs
MOST_TUNED = 1.03  # the same where every expert has its best rate
MOST_AREA = 0.60
MOST_OF_NADAMW = 1.02  # test loss over NadamW's where both are tuned; elsewhere below 1
LEAST_POINTS = 0.0  # of mean test accuracy minus the best single's
PAIRWISE = (BEST, "capped_uniform", "today", "dao_e", NADAMW)  # with accuracies of each pair
DRAWN = (*EXPERTS, NADAMW, "dao_e")
SHOWN = ("mnist", "convnet", "long", "transformer")  # tasks of the pictures over time


def bars_of(runs: Runs, pairs: Pairs, arm: str = "dao_e") -> list[Bar]:
    """What DAO-E has to reach, each with the spread over seeds of what was measured."""

    def ratio(name: str, own: Pairs, other: str, measure: str, most: float | None) -> Bar:
        found = runs.means_of(own, arm, other, measure)
        wanted = "below 1" if most is None else f"at most {most:.2f}"
        met = bool(np.mean(found) < 1 if most is None else np.mean(found) <= most)
        return Bar(name, wanted, mean_and_spread(found, 3), met)

    tuned = [pair for pair in pairs if pair.setting == "tuned"]
    bars = [ratio("test loss over the best single's", pairs, BEST, TEST, MOST)]
    if tuned:
        name = "the same where all are tuned"
        bars.append(ratio(name, tuned, BEST, TEST, MOST_TUNED))
    if scored := runs.classifying(pairs):
        points = runs.means_of(scored, arm, BEST, ACCURACY)
        name = "mean test accuracy minus the best single's"
        measured, met = mean_and_spread(points), bool(np.mean(points) >= LEAST_POINTS)
        bars.append(Bar(name, f"at least {LEAST_POINTS:g} points", measured, met))
    bars.append(ratio("area over the best single's", pairs, BEST, AREA, MOST_AREA))
    if NADAMW in runs.arms(pairs):
        for setting, own in _by_setting(pairs)[:-1]:
            most = MOST_OF_NADAMW if setting == "tuned" else None
            bars.append(ratio(f"test loss over NadamW's, {setting}", own, NADAMW, TEST, most))
    ours, best = (runs.values(pairs, each, "diverged").any(1) for each in (arm, BEST))
    name, lost = "diverges where the best single does not", int((ours & ~best).sum())
    return [*bars, Bar(name, "no pair", f"{lost} of {len(pairs)}", not lost)]


def _by_setting(pairs: Pairs) -> list[tuple[str, list[Pair]]]:
    """The pairs of each setting, and all."""
    settings = dict.fromkeys(pair.setting for pair in pairs)
    groups = [(name, [pair for pair in pairs if pair.setting == name]) for name in settings]
    return [*groups, ("all", list(pairs))]


def write(records: Records) -> None:
    """Shows the tables and writes README.md and the pictures."""
    runs = Runs(records)
    judged, nine, new, drift = (
        runs.pairs(*scopes) for scopes in (("all", "few"), ("all",), ("new",), ("drift",))
    )
    groups = [judged, *([nine] if len(nine) < len(judged) else []), new]
    sections, figures = _introduction(runs), {}
    if judged or new:
        sections += _bars(runs, judged) if "dao_e" in runs.arms(judged) else []
        for measure, name in HELD_OUT.items():
            sections += [f"## {name}\n", *_over_best(runs, groups, measure, name)]
        sections += _by_task(runs, [*judged, *new])
        name = "Area under the training loss"
        sections += ["## Training loss\n", *_over_best(runs, groups, AREA, name)]
        sections += _ablations(runs, nine)
        figures = _figures(runs, [*judged, *new])
        pictures = {"curves": "Validation loss", "weights": "Weights over time",
                    "multiplier": "Step multiplier over time"}  # fmt: skip
        sections += [f"![{pictures[name]}]({name}.png)\n" for name in figures]
    sections += _drift(runs, drift)
    report.write(records.folder, "DAO-E: the study", sections, figures)


def _introduction(runs: Runs) -> Sections:
    tasks = dict.fromkeys(pair.task for pair in runs.pairs())
    seeds = " or ".join(map(str, sorted({c["seeds"] for c in runs.configs.values()})))
    text = [
        f"{len(tasks)} tasks, {len(SETTINGS)} settings of the experts' rates, {seeds} seeds. "
        "A seed's start, noise and batches are the same for every arm. Best rates were found "
        "on validation data and other seeds, from one grid for every expert. The best single "
        "is the expert of the lowest validation loss on those other seeds, in each setting; "
        "in hindsight it is the best one of the reported seeds by the measure in question.\n",
        *(f"- {name}: {what}" for name, what in SETTINGS.items()),
        f"\nNadamW warms up over {WARM_UP:.0%} of the steps and falls to 0 by a cosine. A "
        "task has one configuration, chosen by the validation losses of the other tasks; its "
        "rate is 0.001, 30 times as large or a tenth where the experts' are.\n",
        "A loss counts after the last step, and once more at the point, of 20, with the "
        "lowest validation loss. Area: mean training loss over the steps, every loss being at "
        f"least 0; final: over the last {LAST:.0%} of them. A loss above {CEILING:g} times "
        f"the first one, or not finite, counts as that, and one below {FLOOR:g} times it as "
        "that. Diverged: some loss not finite, or the final one above the first.\n",
    ]
    rows = []
    for task in tasks:
        configs = [runs.configs[task, arm] for arm in EXPERTS]
        row = [task, configs[0]["title"], str(configs[0]["steps"])]
        for name, config in zip(EXPERTS, configs, strict=True):
            row.append(f"{config['rates']['tuned'][name]:g}")
        other = runs.configs.get((task, NADAMW))
        row.append(
            " / ".join(f"{n:g}" for n in other["rates"]["tuned"].values()) if other else ""
        )
        rows.append(row)
    header = ["task", "what", "steps", *EXPERTS.values(), "NadamW: rate / decay / b2"]
    return ["\n".join(text), Table("Tasks and best rates", header, rows)]


def _bars(runs: Runs, judged: Pairs) -> Sections:
    bars = bars_of(runs, judged)
    rows = []
    for arm in runs.arms(judged):
        found = bars_of(runs, judged, arm)
        rows.append([LABELS[arm], *(bar.measured + " *" * (not bar.met) for bar in found)])
    title = "The same bars for every arm (*: missed)"
    table = Table(title, ["arm", *(bar.name for bar in bars)], rows)
    of = f"DAO-E on {len(judged)} pairs of a task and a setting; mean ± standard deviation "
    return ["## Bars\n", *report.bars_table(bars, of + "over seeds"), table]


def _over_best(runs: Runs, groups: Sequence[Pairs], measure: str, name: str) -> list[Table]:
    """Every arm's ratio to the best single's, or points above it, a table a group of tasks."""

    def cell(arm: str, own: Pairs) -> str:
        digits = 2 if measure == ACCURACY else 3
        return mean_and_spread(runs.means_of(own, arm, BEST, measure), digits)

    points = measure == ACCURACY
    how = "minus the best single's, in points" if points else "over the best single's"
    tables = []
    for pairs in groups:
        if own := runs.classifying(pairs) if points else pairs:
            arms = {NAMES[arm]: arm for arm in (BEST, HINDSIGHT, *runs.arms(own))}
            tasks = ", ".join(dict.fromkeys(pair.task for pair in own))
            title = f"{name} {how}: {'' if points else 'geometric '}mean over {tasks}; "
            title += "mean ± standard deviation over seeds"
            tables.append(grid(title, "arm", arms, dict(_by_setting(own)), cell))
    return tables


def _by_task(runs: Runs, pairs: Pairs) -> Sections:
    def loss(task: str, setting: str) -> str:
        pair = Pair(task, setting)
        found = mean_and_spread(runs.means_of([pair], "dao_e", BEST, TEST))
        diverged = " diverged" if runs.values([pair], BEST, "diverged").any() else ""
        return f"{found} ({LABELS[runs.best(pair)]}{diverged})"

    def percent(own: Pairs, arm: str) -> str:
        ran = arm == BEST or arm in runs.arms(own)
        return f"{(100 * runs.values(own, arm, ACCURACY)).mean():.2f}" if ran else ""

    def diverged(pair: Pair, arm: str) -> str:
        ran = arm in runs.arms([pair])
        return f"{runs.values([pair], arm, 'diverged').sum():g}" if ran else ""

    tables: Sections = ["## Task by task\n"]
    tasks, settings = ({pair[at]: pair[at] for pair in pairs} for at in (0, 1))
    if "dao_e" in runs.arms(pairs):
        title = "DAO-E's test loss over that of the best single (which)"
        tables.append(grid(title, "task", tasks, settings, loss))
    trained = {arm for pair in pairs for arm in runs.arms([pair])}
    if scored := runs.classifying(pairs):
        arms = {NAMES[arm]: arm for arm in PAIRWISE if arm in {BEST, *trained}}
        rows = {str(pair): [pair] for pair in scored} | {"mean": scored}
        title = "Test accuracy in percent, means over seeds"
        tables.append(grid(title, "task, setting", rows, arms, percent))
    arms = {label: arm for arm, label in LABELS.items() if arm in trained}
    some = [p for p in pairs if {diverged(p, arm) for arm in trained} - {"", "0"}]
    lost = {str(pair): pair for pair in some}
    seeds = grid("Seeds that diverged", "task, setting", lost, arms, diverged)
    return [*tables, seeds] if lost else tables


def _ablations(runs: Runs, pairs: Pairs) -> Sections:
    def cell(arm: str, column: tuple[str, Pairs]) -> str:
        measure, own = column
        if measure == "diverged":
            return str(runs.values(own, arm, measure).any(1).sum())
        points = measure.endswith("accuracy")
        own = runs.classifying(own) if points else own
        found = runs.means_of(own, arm, "dao_e", measure) if own else []
        return mean_and_spread(found, 2 if points else 3)

    title = (
        "Losses over those of the whole rule on the same seeds (above 1 the rule is better; "
        "geometric means over tasks, mean ± standard deviation over seeds), validation "
        "accuracy minus the rule's in points, and pairs with a divergence"
    )
    columns = {f"area, {name}": ("area", own) for name, own in _by_setting(pairs)}
    for measure, name in list(VALIDATED.items())[1:]:
        columns[f"{name}, all"] = (measure, list(pairs))
    columns["diverged"] = ("diverged", list(pairs))
    ran = runs.arms(pairs, finalist=False) if "dao_e" in runs.arms(pairs) else []
    table = grid(title, "arm", {LABELS[arm]: arm for arm in ran}, columns, cell)
    return ["## Each part taken away, or added\n", table] if ran else []


def _drift(runs: Runs, pairs: Pairs) -> Sections:
    ran = [*runs.arms(pairs), *runs.arms(pairs, finalist=False), BEST]
    if "dao_e" not in ran:
        return []
    titles = {pair.task: runs.configs[pair.task, "dao_e"]["title"] for pair in pairs}
    others = [other for other in ("features", "uniform", BEST) if other in ran]
    tables = [drift_table(runs, pairs, other) for other in others]
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
    measures = VALIDATED if other in ABLATIONS else VALIDATED | TESTED
    units = {name: "points" if name.endswith("accuracy") else "%" for name in measures}
    columns = {f"{label}, {units[name]}": name for name, label in measures.items()}
    return grid(title, "task, setting", rows, columns, cell)


def _figures(runs: Runs, pairs: Pairs) -> dict[str, "Figure"]:
    def curve(name: str, pair: Pair, arm: str, of: str) -> Curve:
        values = as_floats([runs.means[pair, arm]["curves"][of]])
        at = np.linspace(0, runs.configs[pair.task, arm]["steps"], values.shape[1] + 1)
        return Curve(name, values, list(at[1:]))

    losses, weights = {}, {}
    multipliers: dict[str, list[Curve]] = {}
    for pair in [pair for pair in pairs if pair.task in SHOWN] or pairs:
        ran = [arm for arm in DRAWN if (pair, arm) in runs.means]
        losses[str(pair)] = [curve(LABELS[arm], pair, arm, "validation_loss") for arm in ran]
        if "dao_e" in ran:
            weights[str(pair)] = [curve(EXPERTS[of], pair, "dao_e", of) for of in EXPERTS]
            own = curve(pair.setting, pair, "dao_e", "multiplier")
            multipliers.setdefault(pair.task, []).append(own)
    draw = functools.partial(
        curves_figure, xlabel="step", columns=len(SETTINGS), title="Mean over seeds"
    )
    figures = {"curves": draw(list(losses.items()), ylabel="validation loss", log=True)}
    if weights:
        figures["weights"] = draw(list(weights.items()), ylabel="weight, mean over leaves")
        multiplied = list(multipliers.items())
        figures["multiplier"] = draw(multiplied, ylabel="step multiplier", log=True)
    return figures
