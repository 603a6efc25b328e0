"""DAO-E's published experiment: a ResNet on CIFAR-10, the mixture beside its experts.

All have one rate. The first task takes hours of a CPU; the second is what was published.
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

import optabs
from benchmarks.dao_e.study import EXPERTS, watch
from benchmarks.lab import report
from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.models import RESNETS, in_pieces, resnet
from benchmarks.lab.records import Record, Records, as_floats
from benchmarks.lab.report import Bar, Curve, Table, curves_figure, grid, mean_and_spread
from benchmarks.lab.study import Study, command_of
from benchmarks.lab.tasks import Split, Splits, classification, image_splits
from benchmarks.lab.training import Arm, Task, cosine
from optabs.mixture.experts import DEFAULT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATE, BATCH = 1e-3, 128
PADDING = 4  # zeros on each side of an image that is cropped
HELD_OUT = 5  # training images of a subset for each of its validation images
CONSTANT, AUGMENTED = "constant rate", "crop, flip, cosine rate"
WANTED = {CONSTANT: 91.6, AUGMENTED: 95.0}  # percent; the first is what DAO-E reports
Runs: TypeAlias = Mapping[tuple[str, str], Sequence[Record]]  # by setting and arm


# Of each task the model, the epochs and the number of training images (0: all).
SIZES = {
    "cifar10-resnet8-n5000-b128-e30-r0.001": ("resnet8", 30, 5000),
    "cifar10-resnet18-all-b128-e100-r0.001": ("resnet18", 100, 0),
}


@functools.cache
def splits_of(source: pathlib.Path | None, subset: int) -> Splits:
    """CIFAR-10, each channel of mean 0 and variance 1 over the training images.

    With a subset of these (0: all) go a fifth as many for validation; the test set is whole.
    """
    train, validation, test = image_splits("cifar10", source)
    if (count := len(train.labels)) < (least := max(subset, BATCH)):
        raise ArgumentError(f"data has {count} training images; pass at least {least}.")
    if subset:
        train = jax.tree.map(lambda leaf: leaf[:subset], train)
        validation = jax.tree.map(lambda leaf: leaf[: subset // HELD_OUT], validation)
    pixels, axes = np.asarray(train.inputs), (0, 1, 2)
    mean = pixels.mean(axes, np.float64, keepdims=True).astype(np.float32)
    deviation = pixels.std(axes, np.float64, keepdims=True).astype(np.float32)

    def standardised(split: Split) -> Split:
        return split._replace(inputs=(split.inputs - mean) / deviation)

    return standardised(train), standardised(validation), standardised(test)


def task_of(model: str, epochs: int, subset: int, source: pathlib.Path | None) -> Task:
    """The training of a network; a point of its curves is an epoch."""
    splits = splits_of(source, subset)
    return classification(
        f"{model} on cifar10, {epochs} epochs",
        in_pieces(resnet(RESNETS[model], channels=3, classes=10)), splits,
        steps=len(splits[0].labels) // BATCH * epochs, batch_size=BATCH,
        points=epochs, scored=True, by_steps=True,
    )  # fmt: skip


def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    """Each image cropped at a place of its own, and every other one mirrored, by chance."""
    crop_key, flip_key = jax.random.split(key)
    rows, columns = jax.random.randint(crop_key, (2, len(images)), 0, 2 * PADDING + 1)
    padded = jnp.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))

    def window(image: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (row, column, 0), images.shape[1:])

    cropped = jax.vmap(window)(padded, rows, columns)
    mirrored = jax.random.bernoulli(flip_key, 0.5, (len(images), 1, 1, 1))
    return jnp.where(mirrored, cropped[:, :, ::-1], cropped)


def augmented(task: Task) -> Task:
    """A task whose images are cropped and flipped, under a rate that falls to 0."""

    def feed(key: jax.Array, steps: int) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(jax.random.fold_in(key, 1), steps)
        return keys, task.feed(key, steps)

    def batch(train: Split, item: tuple[jax.Array, jax.Array]) -> Split:
        key, rows = item
        images, labels = task.batch(train, rows)
        return Split(augment(key, images), labels)

    return task._replace(feed=feed, batch=batch, schedule=cosine)


def watch_leaves(state: Any) -> Mapping[str, jax.Array]:
    """The weights and the step multiplier, means over leaves, and the weights of each leaf."""
    shown = watch(state)
    for expert, tree in optabs.mixing_weights(state, per_leaf=True).items():
        for path, weight in jax.tree_util.tree_leaves_with_path(tree):
            shown["/".join([expert, *(str(part.key) for part in path)])] = weight
    return shown


ARMS = {name: Arm(label, DEFAULT[name]) for name, label in EXPERTS.items()}
ARMS["dao_e"] = Arm("DAO-E", optabs.dao_e, watch_leaves)


def runs_of(records: Records, task: str) -> Runs:
    """The runs of a task, in the order of the tables."""
    order = [(setting, arm) for setting in WANTED for arm in ARMS]
    runs = {at: records.select(task=task, setting=at[0], arm=at[1]) for at in order}
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


def bars_of(runs: Runs, *, published: bool) -> list[Bar]:
    """What DAO-E says, and whether it is so where all arms have run, more than once."""
    bars: list[Bar] = []
    for setting, least in WANTED.items():
        if min(len(runs.get((setting, arm), ())) for arm in ARMS) < 2:  # for standard errors
            continue
        scores = {arm: _scores(runs[setting, arm]) for arm in ARMS}
        means = {arm: float(own.mean()) for arm, own in scores.items()}
        ours, best = means["dao_e"], max(EXPERTS, key=lambda expert: means[expert])
        errors = report.errors_above(scores["dao_e"], scores[best])
        above = f"{ours - means[best]:+.2f} points, {errors:+.1f} standard errors"
        early, late = tenths(runs[setting, "dao_e"], "adam", "rmsprop")
        first, last = tenths(runs[setting, "dao_e"], "sgd")
        name = f"DAO-E, {setting}: test accuracy"
        weight = f"DAO-E, {setting}, from the first to the last tenth of the steps: weight of"
        bars += [
            *(Bar(f"{name} minus {EXPERTS[expert]}'s", "above 0 points",
                  f"{ours - means[expert]:+.2f}", ours > means[expert])
              for expert in ("sgd", "rmsprop")),
            Bar(f"{name} minus that of the best expert, {EXPERTS[best]}",
                "at least -1 standard error", above, errors >= -1),
            Bar(name, f"at least {least} %, of resnet18 on all images",
                f"{ours:.2f} %", ours >= least if published else None),
            Bar(f"{weight} Adam and RMSProp", "above 50 %, then less",
                f"{early:.1f} to {late:.1f} %", early > 50 and early > late),
            Bar(f"{weight} SGD", "more at the end",
                f"{first:.1f} to {last:.1f} %", last > first),
        ]  # fmt: skip
    return bars


def sections(records: Records) -> list[Table | str]:
    """For each task its accuracies, the mixture's weights, and what DAO-E says."""
    found: list[Table | str] = []
    for task, (model, epochs, subset) in SIZES.items():
        if runs := runs_of(records, task):
            weights = _weights(runs)
            found += [_accuracies(runs, f"{model} on cifar10, {epochs} epochs"), *weights]
            found += report.bars_table(bars_of(runs, published=not subset))
            found.append(f"![Accuracy](accuracy-{model}.png)\n")
            found += [f"![Weights](weights-{model}.png)\n" for _ in weights]
    return found


def _accuracies(runs: Runs, title: str) -> Table:
    def cell(arm: str, column: tuple[str, str]) -> str:
        own, kind = runs.get((column[0], arm), []), column[1]
        return str(len(own)) if kind == "seeds" else mean_and_spread(list(_scores(own, kind)))

    kinds, arms = ("validation", "test", "seeds"), {ARMS[arm].label: arm for _, arm in runs}
    columns = {f"{setting}: {kind}": (setting, kind) for setting in WANTED for kind in kinds}
    title += (
        ": accuracy in percent after the last epoch (mean ± standard deviation over seeds)"
    )
    return grid(title, "optimizer", arms, columns, cell)


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


def figures(records: Records) -> dict[str, "Figure"]:
    """For each task the accuracies of each epoch, and the mixture's weights."""
    drawn = {}
    draw = functools.partial(curves_figure, title="Mean over seeds, band from min to max")
    for task, (model, *_) in SIZES.items():
        accuracy: dict[str, list[Curve]] = {}
        weights: dict[str, list[Curve]] = {}
        for (setting, arm), own in runs_of(records, task).items():
            scores = 100 * _curves(own, "validation_accuracy")
            accuracy.setdefault(setting, []).append(Curve(ARMS[arm].label, scores))
            if arm == "dao_e":
                shape = (*scores.shape, -1)  # of several points in an epoch, their mean
                weights[f"DAO-E, {setting}"] = [
                    Curve(label, _curves(own, expert).reshape(shape).mean(2))
                    for expert, label in EXPERTS.items()
                ]
        if accuracy:
            label = "validation accuracy in percent"
            drawn[f"accuracy-{model}"] = draw(list(accuracy.items()), ylabel=label)
        if weights:
            drawn[f"weights-{model}"] = draw(list(weights.items()), ylabel="weight")
    return drawn


STUDY = Study(
    name="dao_e_cifar10",
    doc="A ResNet on CIFAR-10 at one rate for all: the mixture beside each of its experts.",
    tasks={name: functools.partial(task_of, *size) for name, size in SIZES.items()},
    arms=ARMS,
    need_images=list(SIZES),
    module=__name__,
    rate=RATE,
    settings={CONSTANT: lambda task: task, AUGMENTED: augmented},
    sections=sections,
    figures=figures,
)
command = command_of(STUDY)
