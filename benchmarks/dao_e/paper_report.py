"""What the records of the paper's experiment show: tables, pictures and plain claims."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from benchmarks import store
from benchmarks.dao_e.arms import EXPERTS
from benchmarks.lab import report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = {"a": 91.6, "b": 95.0}  # percent; the first is the paper's accuracy of DAO-E
PAPER_SETTING = {
    "dataset": "cifar10",
    "model": "resnet18",
    "epochs": 100,
    "batch_size": 128,
    "subset": 0,
}
LABELS = {name: expert.label for name, expert in EXPERTS.items()} | {
    "dao_e": "DAO-E",
    "dao_e_paper": "DAO-E, the paper's form",
    "uniform": "uniform weights",
}
REGIMES = {"a": "constant rate", "b": "crop, flip, cosine rate"}
LEARNED = ("dao_e", "dao_e_paper")

Records = dict[tuple[str, str], list[dict[str, Any]]]  # by regime and optimizer
Mixtures = list[tuple[tuple[str, str], list[dict[str, Any]]]]


def show(records: pathlib.Path, folder: pathlib.Path) -> None:
    """Prints what the finished runs of a setting show, and writes it with three pictures.

    Args:
      records: folder of the setting's records.
      folder: where the report goes, under the setting's name.
    """
    runs = _read(records)
    if not runs:
        return
    tables = [_accuracy_table(runs), *_weight_tables(runs)]
    claims = claims_of(runs)
    for table in tables:
        table.show()
    typer.echo("\n".join(claims))
    setting = records.name
    text = [table.markdown() for table in tables] + [f"- {claim}" for claim in claims]
    store.write_bytes(folder / f"{setting}.md", ("\n".join(text) + "\n").encode())
    figures = {"accuracy": _accuracy_figure(runs)}
    if mixtures := _mixtures(runs):
        figures["weights"] = _weights_figure(mixtures)
    if layered := [(key, rows) for key, rows in mixtures if layers_of(rows, "sgd")[0]]:
        figures["layers"] = _layers_figure(layered)
    for name, figure in figures.items():
        report.save_figure(figure, folder / f"{setting}-{name}.png")
    typer.echo(f"report: {folder / setting}.md and {len(figures)} pictures beside it")


def claims_of(runs: Records) -> list[str]:
    """What the paper says, and whether it is so in these runs."""
    claims = []
    for regime in dict.fromkeys(regime for regime, _ in runs):
        of_regime = {name: rows for (of, name), rows in runs.items() if of == regime}
        if "dao_e" in of_regime:
            claims.append(_about_accuracy(regime, of_regime))
    return claims + [
        _about_weights(regime, name, rows) for (regime, name), rows in _mixtures(runs)
    ]


def tenths(rows: Sequence[dict[str, Any]], expert: str) -> tuple[float, float]:
    """An expert's weight in the first and in the last tenth of the steps, mean over seeds."""
    weights = np.array([row["results"]["mixing"][expert] for row in rows], float)
    length = max(1, weights.shape[1] // 10)
    return float(weights[:, :length].mean()), float(weights[:, -length:].mean())


def _about_weights(regime: str, name: str, rows: Sequence[dict[str, Any]]) -> str:
    first, last = (
        dict(zip(EXPERTS, values, strict=True))
        for values in zip(*(tenths(rows, expert) for expert in EXPERTS), strict=True)
    )
    early, late = (at["adam"] + at["rmsprop"] for at in (first, last))
    adaptive_first = early > 0.5 and early > late
    sgd_later = last["sgd"] > first["sgd"]
    verdict = {
        (True, True): "as the paper describes",
        (True, False): "Adam and RMSProp lead early as in the paper, but SGD does not grow",
        (
            False,
            True,
        ): "SGD grows as in the paper, but Adam and RMSProp do not lead early only",
        (False, False): "not as the paper describes: SGD does not grow, nor do Adam and "
        "RMSProp lead early only",
    }[adaptive_first, sgd_later]
    return (
        f"{LABELS[name]}, {REGIMES[regime]}: from the first to the last tenth of the steps "
        f"Adam's and RMSProp's weight together goes from {100 * early:.1f} to "
        f"{100 * late:.1f} %, SGD's from {100 * first['sgd']:.1f} to "
        f"{100 * last['sgd']:.1f} %: {verdict}."
    )


def _about_accuracy(regime: str, of_regime: Mapping[str, list[dict[str, Any]]]) -> str:
    scores = {
        name: 100 * report.as_array(rows, "test_accuracy") for name, rows in of_regime.items()
    }
    ours = scores["dao_e"]
    parts = [
        f"{'above' if ours.mean() > scores[name].mean() else 'not above'} {LABELS[name]}"
        for name in ("sgd", "rmsprop")
        if name in scores
    ]
    alone = [name for name in EXPERTS if name in scores]
    if len(alone) == len(EXPERTS):
        best = max(alone, key=lambda name: float(scores[name].mean()))
        parts.append(_against(ours, scores[best], LABELS[best]))
    config = of_regime["dao_e"][0]["config"]
    bar = BARS[regime]
    if all(config[key] == value for key, value in PAPER_SETTING.items()):
        parts.append(f"{'above' if ours.mean() >= bar else 'below'} the bar of {bar} %")
    else:
        parts.append(f"not the setting of the bar of {bar} %, which says nothing here")
    return (
        f"DAO-E, {REGIMES[regime]}: test accuracy {report.mean_and_spread(list(ours))} %; "
        f"{'; '.join(parts)}."
    )


def _against(ours: np.ndarray, theirs: np.ndarray, label: str) -> str:
    difference = float(ours.mean() - theirs.mean())
    text = f"{difference:+.2f} points against the best expert, {label}"
    if min(len(ours), len(theirs)) < 2:
        return f"{text} (too few seeds for a standard error)"
    error = math.hypot(*(x.std(ddof=1) / math.sqrt(len(x)) for x in (ours, theirs)))
    verdict = "below it" if difference < -error else "not below it"
    return f"{text}, with a standard error of {error:.2f}: {verdict}"


def _read(folder: pathlib.Path) -> Records:
    runs: Records = {}
    for path in sorted(folder.glob("*.json")):
        record = store.read_json(path)
        key = record["config"]["regime"], record["config"]["optimizer"]
        runs.setdefault(key, []).append(record)
    order = [(regime, name) for regime in REGIMES for name in LABELS]
    return {key: runs[key] for key in order if key in runs}


def _mixtures(runs: Records) -> Mixtures:
    """Those whose weights are learned."""
    return [(key, rows) for key, rows in runs.items() if key[1] in LEARNED]


def _accuracy_table(runs: Records) -> report.Table:
    regimes = list(dict.fromkeys(regime for regime, _ in runs))
    rows = []
    for name in dict.fromkeys(name for _, name in runs):
        cells = [LABELS[name]]
        for regime in regimes:
            own = runs.get((regime, name), [])
            last = [100 * row["results"]["validation_accuracy"][-1] for row in own]
            test = [100 * row["results"]["test_accuracy"] for row in own]
            cells += [
                report.mean_and_spread(last),
                report.mean_and_spread(test),
                str(len(own)),
            ]
        rows.append(cells)
    config = next(iter(runs.values()))[0]["config"]
    header = [
        f"{REGIMES[regime]}: {of}"
        for regime in regimes
        for of in ("validation", "test", "seeds")
    ]
    return report.Table(
        f"{config['model']} on {config['dataset']}, {config['epochs']} epochs: accuracy in "
        "percent after the last epoch (mean ± standard deviation over seeds)",
        ["optimizer", *header],
        rows,
    )


def _weight_tables(runs: Records) -> list[report.Table]:
    rows = []
    for (regime, name), own in _mixtures(runs):
        for expert in EXPERTS:
            cells = [f"{100 * share:.1f}" for share in tenths(own, expert)]
            for kernels in (True, False):
                leaves, weights = layers_of(own, expert)
                chosen = [leaf.endswith("kernel") == kernels for leaf in leaves]
                cells.append(f"{100 * weights[chosen, -1].mean():.1f}" if leaves else "")
            rows.append([f"{LABELS[name]}, {REGIMES[regime]}: {LABELS[expert]}", *cells])
    if not rows:
        return []
    return [
        report.Table(
            "Weights in percent, mean over leaves and seeds: in the first and the last tenth "
            "of the steps, and in the last epoch those of the kernels and of the vectors",
            ["mixture: expert", "first tenth", "last tenth", "kernels", "vectors"],
            rows,
        )
    ]


def layers_of(rows: Sequence[dict[str, Any]], expert: str) -> tuple[list[str], np.ndarray]:
    """The leaves from the first to the last layer, and their weights [leaves, epochs]."""
    if "leaf_mixing" not in rows[0]["results"]:
        return [], np.zeros((0, 0))
    trees = [row["results"]["leaf_mixing"][expert] for row in rows]
    places = {"stem": 0, "stem_norm": 0, "blocks": 1, "head": 2}
    leaves = sorted(trees[0], key=lambda leaf: places[leaf.split("/")[0]])
    weights = np.array([[tree[leaf] for leaf in leaves] for tree in trees], float)
    return leaves, weights.mean(0)


def _accuracy_figure(runs: Records) -> "Figure":
    panels = []
    for regime in dict.fromkeys(regime for regime, _ in runs):
        curves = [
            report.Curve(LABELS[name], 100 * report.as_array(rows, "validation_accuracy"))
            for (of, name), rows in runs.items()
            if of == regime
        ]
        panels.append((REGIMES[regime], curves))
    return report.curves_figure(
        panels,
        ylabel="validation accuracy in percent",
        title="Mean over seeds, band from lowest to highest",
    )


def _weights_figure(mixtures: Mixtures) -> "Figure":
    """Per mixture its weights over the epochs, and below them the step multiplier."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 4.6 * len(mixtures), 5.6), layout="constrained")
    axes = figure.subplots(
        2, len(mixtures), squeeze=False, sharex="col", sharey="row", height_ratios=(3, 1)
    )
    for column, ((regime, name), rows) in enumerate(mixtures):
        upper, lower = axes[:, column]
        epochs = rows[0]["config"]["epochs"]
        for expert in EXPERTS:
            weights = np.array([row["results"]["mixing"][expert] for row in rows], float)
            at = (np.arange(weights.shape[1]) + 0.5) * epochs / weights.shape[1]
            (line,) = upper.plot(at, weights.mean(0), label=LABELS[expert], lw=1.1)
            low, high = weights.min(0), weights.max(0)
            upper.fill_between(at, low, high, color=line.get_color(), alpha=0.15, lw=0)
        multiplier = report.as_array(rows, "multiplier")
        lower.plot(np.arange(epochs) + 0.5, multiplier.mean(0), color="0.3", lw=1.1)
        upper.set_title(f"{LABELS[name]}, {REGIMES[regime]}", fontsize="medium")
        lower.set_xlabel("epoch")
        upper.grid(alpha=0.25)
        lower.grid(alpha=0.25)
    axes[0][0].set_ylim(0, None)
    axes[0][0].set_ylabel("weight, mean over leaves")
    axes[1][0].set_ylabel("step multiplier")
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    return figure


def _layers_figure(mixtures: Mixtures) -> "Figure":
    """Per regime and expert a heat map of the measured rule's weights: leaves over epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 0.6 + 4.6 * len(mixtures)), layout="constrained")
    axes = figure.subplots(len(mixtures), len(EXPERTS), squeeze=False, sharey=True)
    for ((regime, _), rows), line in zip(mixtures, axes, strict=True):
        for expert, axis in zip(EXPERTS, line, strict=True):
            leaves, weights = layers_of(rows, expert)
            extent = (0, weights.shape[1], len(leaves) - 0.5, -0.5)
            image = axis.imshow(weights, vmin=0, vmax=1, aspect="auto", extent=extent)
            axis.set_title(f"{LABELS[expert]}, {REGIMES[regime]}", fontsize="medium")
            axis.set_xlabel("epoch")
            axis.set_yticks(range(len(leaves)), leaves, fontsize=4)
        figure.colorbar(image, ax=line, label="weight")
    return figure
