"""What is trained: a ResNet on CIFAR-10, by the mixture and by each of its experts."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import optabs
from benchmarks.dao_e.study import EXPERTS, watch
from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.models import RESNETS, in_pieces, resnet
from benchmarks.lab.tasks import Split, Splits, classification, image_splits
from benchmarks.lab.training import Arm, Task, cosine
from optabs.mixture.experts import DEFAULT

RATE = 1e-3
PADDING = 4  # zeros on each side of an image that is cropped
PARTS = 3  # points of a curve in an epoch
TUNING_EPOCHS = 4
AUGMENTED = "crop, flip, cosine rate"
TUNED = f"{AUGMENTED}, tuned"
CONSTANT = "constant rate"
SEEDS = {AUGMENTED: 5, TUNED: 3, CONSTANT: 2}  # the fewer are indications, not judged


class Size(NamedTuple):
    """A network, how long it is trained, and the accuracies in percent that it should have."""

    model: str
    batch: int
    epochs: int
    best: float  # of the best expert, or there is little to compare
    published: float | None = None  # of DAO-E at a constant rate


SIZES = {
    "cifar10-resnet8-all-b64-e12": Size("resnet8", 64, 12, 80.0),
    "cifar10-resnet18-all-b128-e100": Size("resnet18", 128, 100, 95.0, 91.6),
}


@functools.cache
def splits_of(source: pathlib.Path | None) -> Splits:
    """CIFAR-10, each channel of mean 0 and variance 1 over the training images."""
    train, validation, test = image_splits("cifar10", source)
    pixels, axes = np.asarray(train.inputs), (0, 1, 2)
    mean = pixels.mean(axes, np.float64, keepdims=True).astype(np.float32)
    deviation = pixels.std(axes, np.float64, keepdims=True).astype(np.float32)

    def standardised(split: Split) -> Split:
        return split._replace(inputs=(split.inputs - mean) / deviation)

    return standardised(train), standardised(validation), standardised(test)


def task_of(size: Size, source: pathlib.Path | None) -> Task:
    """The training of a network; a curve has PARTS points an epoch, of as many batches."""
    splits = splits_of(source)
    count, least = len(splits[0].labels), PARTS * size.batch
    if count < least:
        raise ArgumentError(f"data has {count} training images; pass at least {least}.")
    return classification(
        f"{size.model} on cifar10, {size.epochs} epochs",
        in_pieces(resnet(RESNETS[size.model], channels=3, classes=10)), splits,
        steps=count // least * PARTS * size.epochs, batch_size=size.batch,
        points=PARTS * size.epochs, scored=True, by_steps=True,
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
ARMS["dao_e"] = Arm(
    "DAO-E",
    lambda rates: optabs.dao_e(experts={name: DEFAULT[name](rates[name]) for name in rates}),
    watch_leaves,
)
