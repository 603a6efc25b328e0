"""What the study's records show: accuracies, bars, and which expert leads when and where."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from benchmarks.dao_e.study import EXPERTS
from benchmarks.dao_e_cifar10.study import (
    ARMS,
    AUGMENTED,
    CONSTANT,
    SEEDS,
    SIZES,
    TUNING_EPOCHS,
    Size,
)
from benchmarks.lab import report
from benchmarks.lab.records import Record, Records, as_floats
from benchmarks.lab.report import Bar, Curve, Table, curves_figure, grid, mean_and_spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Runs: TypeAlias = Mapping[tuple[str, str], Sequence[Record]]  # by setting and arm


def runs_of(records: Records, task: str) -> Runs:
    """The runs of a task, in the order of the tables."""
    order = [(setting, arm) for setting in SEEDS for arm in ARMS]
    runs = {
        at: records.select(task=task, setting=at[0], arm=at[1], kind="run") for at in order
    }
    return {at: own for at, own in runs.items() if own}


def _scores(runs: Sequence[Record], measure: str = "test") -> np.ndarray:
    return 100 * as_floats([run.result[f"{measure}_accuracy"] for run in runs])


def _curves(runs: Sequence[Record], name: str) -> np.ndarray:
    return as_floats([run.result["curves"][name] for run in runs])


def tenths(runs: Sequence[Record], *experts: str) -> tuple[float, float]:
    """Experts' weight together in the first and the last tenth, mean over seeds, percent."""
    weights = 100 * np.sum([_curves(runs, expert).mean(0) for expert in experts], axis=0)
    length = max(1, len(weights) // 10)
    return float(weights[:length].mean()), float(weights[-length:].mean())


def bars_of(runs: Runs, size: Size) -> list[Bar]:
    """What is wanted, and whether it is so where all arms have run, more than once."""
    bars: list[Bar] = []
    for setting in SEEDS:
        if min(len(runs.get((setting, arm), ())) for arm in ARMS) < 2:  # for standard errors
            continue
        scores = {arm: _scores(runs[setting, arm]) for arm in ARMS}
        means = {arm: float(own.mean()) for arm, own in scores.items()}
        ours, best = means["dao_e"], max(EXPERTS, key=lambda expert: means[expert])
        errors = report.errors_above(scores["dao_e"], scores[best])
        above = f"{ours - means[best]:+.2f} points, {errors:+.1f} standard errors"
        name = f"DAO-E, {setting}: test accuracy"
        judged = setting == AUGMENTED
        own = [
            *(Bar(f"{name} minus {EXPERTS[expert]}'s", "above 0 points",
                  f"{ours - means[expert]:+.2f}", ours > means[expert])
              for expert in ("sgd", "rmsprop")),
            Bar(f"{name} minus that of the best expert, {EXPERTS[best]}",
                "at least -1 standard error", above, errors >= -1),
        ]  # fmt: skip
        if judged:
            name_of_best = f"{EXPERTS[best]}, the best expert, {setting}: test accuracy"
            met = means[best] >= size.best
            bars.append(
                Bar(name_of_best, f"at least {size.best} %", f"{means[best]:.2f} %", met)
            )
        bars += own if judged else [bar._replace(met=None) for bar in own]
        if setting == CONSTANT and size.published:
            met, wanted = ours >= size.published, f"at least {size.published} %, as published"
            bars.append(Bar(name, wanted, f"{ours:.2f} %", met))
    return bars


def leads(runs: Runs) -> list[str]:
    """For each setting a sentence or two: which experts lead early, and which late."""
    found = []
    for setting in SEEDS:
        if not (own := runs.get((setting, "dao_e"))):
            continue
        pair, sgd = tenths(own, "adam", "rmsprop"), tenths(own, "sgd")
        last = {EXPERTS[expert]: tenths(own, expert)[1] for expert in EXPERTS}
        first = max(last, key=lambda label: last[label])
        found.append(
            f"DAO-E, {setting}: from the first to the last tenth of the steps the weight of "
            f"Adam and RMSProp together goes from {pair[0]:.1f} to {pair[1]:.1f} %, so they "
            f"{'lead' if pair[0] > 50 else 'do not lead'} early; SGD's goes from "
            f"{sgd[0]:.1f} to {sgd[1]:.1f} %, so it {'gains' if sgd[1] > sgd[0] else 'loses'}"
            f" and {'leads' if first == 'SGD' else 'does not lead'} late. At the end "
            f"{first} has most, {last[first]:.1f} %.\n"
        )
    return found


def sections(records: Records) -> list[Table | str]:
    """For each task its accuracies, the mixture's weights, and what is wanted."""
    found: list[Table | str] = []
    for task, size in SIZES.items():
        if runs := runs_of(records, task):
            config = next(iter(runs.values()))[0].config
            title = f"{config['title']} of {config['images']:,} images"
            found += [_accuracies(runs, title), *_tunings(records, task)]
            found += [*_weights(runs), *leads(runs)]
            found += report.bars_table(bars_of(runs, size))
            found += [f"![{stem}]({stem}.png)\n" for stem in _panels(runs, size)]
    return found


def _accuracies(runs: Runs, title: str) -> Table:
    def cell(arm: str, column: tuple[str, str]) -> str:
        own, kind = runs.get((column[0], arm), []), column[1]
        return str(len(own)) if kind == "seeds" else mean_and_spread(list(_scores(own, kind)))

    kinds, arms = ("validation", "test", "seeds"), {ARMS[arm].label: arm for _, arm in runs}
    ran = dict.fromkeys(setting for setting, _ in runs)
    columns = {f"{setting}: {kind}": (setting, kind) for setting in ran for kind in kinds}
    title += (
        ": accuracy in percent after the last epoch (mean ± standard deviation over seeds); "
        f"fewer than {SEEDS[AUGMENTED]} seeds are indications"
    )
    return grid(title, "optimizer", arms, columns, cell)


def _tunings(records: Records, task: str) -> list[Table]:
    found = records.select(task=task, kind="tuning")
    title = f"Validation loss by rate, after {TUNING_EPOCHS} epochs"
    rates = sorted({rate for each in found for rate in each.result["rates"]})
    rows = []
    for each in found:
        (losses,) = np.transpose(each.result["losses"]).tolist()
        by_rate = dict(zip(each.result["rates"], losses, strict=True))
        cells = [_loss(by_rate[rate]) if rate in by_rate else "" for rate in rates]
        rows.append([f"{each.config['label']}, best {each.result['best']:g}", *cells])
    header = ["optimizer", *(f"{rate:g}" for rate in rates)]
    return [Table(title, header, rows)] if rows else []


def _loss(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.3f}"


def _weights(runs: Runs) -> list[Table]:
    rows = []
    for (setting, arm), own in runs.items():
        for expert, label in EXPERTS.items() if arm == "dao_e" else ():
            names = [name for name in own[0].result["curves"] if f"{expert}/" in name]
            last = np.array([100 * _curves(own, name)[:, -1].mean() for name in names])
            kernels = np.array(["kernel" in name for name in names])
            shares = (*tenths(own, expert), last[kernels].mean(), last[~kernels].mean())
            rows.append([f"DAO-E, {setting}: {label}", *(f"{each:.1f}" for each in shares)])
    title = (
        "Weights in percent, mean over leaves and seeds: in the first and the last tenth of "
        "the steps, and in the last epoch those of the kernels and of the vectors"
    )
    header = ["mixture: expert", "first tenth", "last tenth", "kernels", "vectors"]
    return [Table(title, header, rows)] if rows else []


Panels: TypeAlias = dict[str, list[Curve]]  # by caption


def _panels(runs: Runs, size: Size) -> dict[str, Panels]:
    """Of each picture: accuracies, and the mixture's weights over all and by layer."""

    def curve(label: str, values: np.ndarray) -> Curve:
        places = values.shape[1]
        return Curve(label, values, list(np.arange(1, places + 1) * size.epochs / places))

    def experts(own: Sequence[Record], path: str = "") -> list[Curve]:
        return [curve(label, _curves(own, name + path)) for name, label in EXPERTS.items()]

    drawn: dict[str, Panels] = {"accuracy": {}, "weights": {}, "layers": {}}
    for (setting, arm), own in runs.items():
        scores = curve(ARMS[arm].label, 100 * _curves(own, "validation_accuracy"))
        drawn["accuracy"].setdefault(setting, []).append(scores)
        if arm == "dao_e":
            drawn["weights"][setting] = experts(own)
        if arm == "dao_e" and setting == AUGMENTED:
            layers = [n[4:] for n in own[0].result["curves"] if re.match("sgd/.*kernel", n)]
            drawn["layers"] = {layer: experts(own, f"/{layer}") for layer in layers}
    return {f"{kind}-{size.model}": each for kind, each in drawn.items() if each}


def figures(records: Records) -> dict[str, "Figure"]:
    """For each task the accuracies after each part of an epoch, and the mixture's weights."""
    drawn = {}
    for task, size in SIZES.items():
        for stem, panels in _panels(runs_of(records, task), size).items():
            accuracy, layers = stem.startswith("accuracy"), stem.startswith("layers")
            drawn[stem] = curves_figure(
                list(panels.items()),
                ylabel="validation accuracy in percent" if accuracy else "weight",
                title="Mean over seeds, band from min to max",
                columns=4 if layers else None,
            )
    return drawn
