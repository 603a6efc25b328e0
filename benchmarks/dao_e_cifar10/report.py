"""What the records show: tables, claims in plain words, and pictures."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from benchmarks.dao_e.study import EXPERTS, FORMS
from benchmarks.lab import report
from benchmarks.lab.records import Record, Records, as_floats
from benchmarks.lab.report import Table, mean_and_spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIMIZERS = EXPERTS | {name: FORMS[name].label for name in ("uniform", "published", "dao_e")}
LEARNED = ("published", "dao_e")  # whose weights are
CONSTANT, AUGMENTED = "constant rate", "crop, flip, cosine rate"
# Percent; the first is what DAO-E reports.
BARS = {CONSTANT: 91.6, AUGMENTED: 95.0}
FULL = {
    "dataset": "cifar10",
    "model": "resnet18",
    "epochs": 100,
    "batch_size": 128,
    "subset": 0,
}

Rows: TypeAlias = Sequence[Record]
Groups: TypeAlias = Mapping[tuple[str, str], Rows]  # by setting and optimizer


def write(records: Records) -> None:
    """Shows what the finished runs show, and writes it with three pictures for each task."""
    sections: list[Table | str] = []
    figures: dict[str, Figure] = {}
    tasks = list(dict.fromkeys(record.key.task for record in records))
    for task in tasks:
        runs = groups_of(records.select(task=task))
        mixtures = {key: rows for key, rows in runs.items() if key[1] in LEARNED}
        sections += [_accuracy_table(runs), *_weights_table(mixtures)]
        sections.append("\n".join([*(f"- {claim}" for claim in claims_of(runs)), ""]))
        drawn = {"accuracy": _accuracy_figure(runs)}
        if mixtures:
            drawn["weights"] = _weights_figure(mixtures)
        if layered := {
            key: rows for key, rows in mixtures.items() if layers_of(rows, "sgd")[0]
        }:
            drawn["layers"] = _layers_figure(layered)
        for kind, figure in drawn.items():
            name = kind if len(tasks) == 1 else f"{kind}-{task}"
            figures[name] = figure
            sections.append(f"![{kind.capitalize()}]({name}.png)\n")
    report.write(records.folder, "DAO-E: the published experiment", sections, figures)


def groups_of(records: Rows) -> Groups:
    """The runs, in the order of the tables."""
    order = [(setting, name) for setting in BARS for name in OPTIMIZERS]
    runs = {
        at: [each for each in records if (each.key.setting, each.key.arm) == at]
        for at in order
    }
    return {at: rows for at, rows in runs.items() if rows}


def _curves(rows: Rows, name: str) -> np.ndarray:
    return as_floats([row.result["curves"][name] for row in rows])


def _scores(rows: Rows, measure: str = "test_accuracy") -> np.ndarray:
    return 100 * as_floats([row.result[measure] for row in rows])


def claims_of(runs: Groups) -> list[str]:
    """What DAO-E says, and whether it is so in these runs."""
    settings = dict.fromkeys(setting for setting, _ in runs)
    claims = [_about_accuracy(at, runs) for at in settings if (at, "dao_e") in runs]
    return claims + [
        _about_weights(f"{OPTIMIZERS[name]}, {at}", rows)
        for (at, name), rows in runs.items()
        if name in LEARNED
    ]


def tenths(rows: Rows, expert: str) -> tuple[float, float]:
    """An expert's weight in the first and in the last tenth of the steps, mean over seeds."""
    weights = _curves(rows, expert)
    length = max(1, weights.shape[1] // 10)
    return float(weights[:, :length].mean()), float(weights[:, -length:].mean())


def _about_weights(name: str, rows: Rows) -> str:
    of = {expert: tenths(rows, expert) for expert in EXPERTS}
    early, late = (of["adam"][at] + of["rmsprop"][at] for at in (0, 1))
    first, last = of["sgd"]
    leading, growing = early > 0.5 and early > late, last > first
    verdict = {
        (True, True): "as DAO-E describes",
        (True, False): "Adam and RMSProp lead early as in DAO-E, but SGD does not grow",
        (False, True): "SGD grows as in DAO-E, but Adam and RMSProp do not lead early only",
        (False, False): "not as DAO-E describes: SGD does not grow, nor do Adam and "
        "RMSProp lead early only",
    }[leading, growing]
    return (
        f"{name}: from the first to the last tenth of the steps Adam's and RMSProp's weight "
        f"together goes from {100 * early:.1f} to {100 * late:.1f} %, SGD's from "
        f"{100 * first:.1f} to {100 * last:.1f} %: {verdict}."
    )


def _about_accuracy(setting: str, runs: Groups) -> str:
    scores = {name: _scores(rows) for (at, name), rows in runs.items() if at == setting}
    ours = scores["dao_e"]
    parts = [
        f"{'' if ours.mean() > scores[name].mean() else 'not '}above {EXPERTS[name]}"
        for name in ("sgd", "rmsprop")
        if name in scores
    ]
    if scores.keys() >= EXPERTS.keys():
        best = max(EXPERTS, key=lambda name: scores[name].mean())
        parts.append(_against(ours, scores[best], EXPERTS[best]))
    config, bar = runs[setting, "dao_e"][0].config, f"the bar of {BARS[setting]} %"
    if FULL.items() <= config.items():
        parts.append(f"{'above' if ours.mean() >= BARS[setting] else 'below'} {bar}")
    else:
        parts.append(f"not the setting of {bar}, which says nothing here")
    test = mean_and_spread(list(ours))
    return f"DAO-E, {setting}: test accuracy {test} %; {'; '.join(parts)}."


def _against(ours: np.ndarray, theirs: np.ndarray, label: str) -> str:
    difference = float(ours.mean() - theirs.mean())
    text = f"{difference:+.2f} points against the best expert, {label}"
    if min(len(ours), len(theirs)) < 2:
        return f"{text} (too few seeds for a standard error)"
    error = math.hypot(*(x.std(ddof=1) / math.sqrt(len(x)) for x in (ours, theirs)))
    verdict = "below it" if difference < -error else "not below it"
    return f"{text}, with a standard error of {error:.2f}: {verdict}"


def _accuracy_table(runs: Groups) -> Table:
    settings = list(dict.fromkeys(setting for setting, _ in runs))
    rows = []
    for name in dict.fromkeys(name for _, name in runs):
        cells = [OPTIMIZERS[name]]
        for setting in settings:
            own = runs.get((setting, name), [])
            for measure in ("validation_accuracy", "test_accuracy"):
                cells.append(mean_and_spread(list(_scores(own, measure))))
            cells.append(str(len(own)))
        rows.append(cells)
    config = next(iter(runs.values()))[0].config
    kinds = ("validation", "test", "seeds")
    return Table(
        f"{config['model']} on {config['dataset']}, {config['epochs']} epochs: accuracy in "
        "percent after the last epoch (mean ± standard deviation over seeds)",
        ["optimizer", *(f"{setting}: {kind}" for setting in settings for kind in kinds)],
        rows,
    )


def _weights_table(mixtures: Groups) -> list[Table]:
    rows = []
    for (setting, name), own in mixtures.items():
        for expert, label in EXPERTS.items():
            cells = [f"{100 * share:.1f}" for share in tenths(own, expert)]
            for kernels in (True, False):
                leaves, weights = layers_of(own, expert)
                chosen = [leaf.endswith("kernel") == kernels for leaf in leaves]
                cells.append(f"{100 * weights[chosen, -1].mean():.1f}" if leaves else "")
            rows.append([f"{OPTIMIZERS[name]}, {setting}: {label}", *cells])
    title = (
        "Weights in percent, mean over leaves and seeds: in the first and the last tenth of "
        "the steps, and in the last epoch those of the kernels and of the vectors"
    )
    header = ["mixture: expert", "first tenth", "last tenth", "kernels", "vectors"]
    return [Table(title, header, rows)] if rows else []


def layers_of(rows: Rows, expert: str) -> tuple[list[str], np.ndarray]:
    """The leaves from the first to the last layer, and their weights [leaves, epochs]."""
    start, places = f"{expert}/", {"stem": 0, "stem_norm": 0, "blocks": 1, "head": 2}
    names = [name.removeprefix(start) for name in rows[0].result["curves"] if start in name]
    leaves = sorted(names, key=lambda leaf: places[leaf.split("/")[0]])
    weights = [_curves(rows, start + leaf).mean(0) for leaf in leaves]
    return leaves, np.array(weights)


def _accuracy_figure(runs: Groups) -> "Figure":
    panels: dict[str, list[report.Curve]] = {}
    for (setting, name), rows in runs.items():
        values = 100 * _curves(rows, "validation_accuracy")
        panels.setdefault(setting, []).append(report.Curve(OPTIMIZERS[name], values))
    title, ylabel = "Mean over seeds, band from lowest to highest", "accuracy in percent"
    return report.curves_figure(
        list(panels.items()), ylabel=f"validation {ylabel}", title=title
    )


def _weights_figure(mixtures: Groups) -> "Figure":
    panels = []
    for (setting, name), rows in mixtures.items():
        curves = []
        for expert, label in EXPERTS.items():
            weights = _curves(rows, expert)
            # Of several points in an epoch, their mean.
            by_epoch = weights.reshape(len(rows), rows[0].config["epochs"], -1).mean(2)
            curves.append(report.Curve(label, by_epoch))
        panels.append((f"{OPTIMIZERS[name]}, {setting}", curves))
    title = "Mean over leaves and seeds, band from the lowest to the highest seed"
    return report.curves_figure(panels, ylabel="weight", title=title)


def _layers_figure(mixtures: Groups) -> "Figure":
    """Per mixture and expert a heat map of the weights: leaves over epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 0.6 + 4.6 * len(mixtures)), layout="constrained")
    axes = figure.subplots(len(mixtures), len(EXPERTS), squeeze=False, sharey=True)
    for ((setting, _), rows), line in zip(mixtures.items(), axes, strict=True):
        for (expert, label), axis in zip(EXPERTS.items(), line, strict=True):
            leaves, weights = layers_of(rows, expert)
            extent = (0, weights.shape[1], len(leaves) - 0.5, -0.5)
            image = axis.imshow(weights, vmin=0, vmax=1, aspect="auto", extent=extent)
            axis.set_title(f"{label}, {setting}", fontsize="medium")
            axis.set_xlabel("epoch")
            axis.set_yticks(range(len(leaves)), leaves, fontsize=4)
        figure.colorbar(image, ax=line, label="weight")
    return figure
