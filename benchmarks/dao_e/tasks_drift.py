"""Tasks whose data change while training runs, for the features' trial.

Batches are drawn with replacement, since an order of epochs would not fit a set that grows.
Validation and test data are those of the end: clean labels, all classes, full brightness.
"""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.lab import tasks_data
from benchmarks.lab.tasks import Maker, Task, classification, mlp
from benchmarks.survey.problems import Split

CHANGE = 0.5  # share of the steps after which labels get noisy, or a class appears
NOISY_LABELS = 0.4  # share of the labels that are then drawn at random
NEW_CLASS = 9
BRIGHTNESS = 1.0  # added to all pixels at the end, from 0 at the start
CLASSES = 10
STEPS = 2000
BATCH_SIZE = 32


class Draw(NamedTuple):
    """What a step draws."""

    progress: jax.Array  # float32 []: share of the steps that are done
    places: jax.Array  # float32 [batch], in [0, 1): rows as shares of the training set
    noise: jax.Array  # float32 [batch], in [0, 1)
    labels: jax.Array  # int32 [batch]: what a noisy label becomes


def feed(key: jax.Array, steps: int) -> Draw:
    """The draws of all steps, the same for the three tasks."""
    keys = jax.random.split(key, 3)
    shape = (steps, BATCH_SIZE)
    return Draw(
        jnp.arange(steps) / steps,
        jax.random.uniform(keys[0], shape),
        jax.random.uniform(keys[1], shape),
        jax.random.randint(keys[2], shape, 0, CLASSES),
    )


def noisy_labels(train: Split, draw: Draw) -> Split:
    """Some labels are random from halfway on."""
    rows = _rows(draw.places, len(train.labels))
    noisy = (draw.progress >= CHANGE) & (draw.noise < NOISY_LABELS)
    return Split(train.inputs[rows], jnp.where(noisy, draw.labels, train.labels[rows]))


def new_class(train: Split, draw: Draw) -> Split:
    """A class appears halfway; the training set has its images last."""
    known = (train.labels != NEW_CLASS).sum()
    count = jnp.where(draw.progress >= CHANGE, len(train.labels), known)
    rows = _rows(draw.places, count)
    return Split(train.inputs[rows], train.labels[rows])


def brighter(train: Split, draw: Draw) -> Split:
    """All pixels brighten step by step."""
    rows = _rows(draw.places, len(train.labels))
    return Split(train.inputs[rows] + BRIGHTNESS * draw.progress, train.labels[rows])


def _rows(places: jax.Array, count: Any) -> jax.Array:
    return jnp.minimum((places * count).astype(jnp.int32), count - 1)


def _task(title: str, batch: Any, splits: tuple[Split, Split, Split]) -> Task:
    return classification(
        f"MLP 64-32-10, digits: {title}", mlp(64, 32, 10), splits,
        steps=STEPS, batch_size=BATCH_SIZE, feed=feed, batch=batch, scope="drift",
    )  # fmt: skip


def _noisy_labels(source: pathlib.Path | None) -> Task:
    title = f"{NOISY_LABELS:.0%} of the labels random from {CHANGE:.0%} of the steps on"
    return _task(title, noisy_labels, tasks_data.digits())


def _new_class(source: pathlib.Path | None) -> Task:
    train, validation, test = tasks_data.digits()
    order = jnp.argsort(train.labels == NEW_CLASS, stable=True)
    train = Split(train.inputs[order], train.labels[order])
    title = f"class {NEW_CLASS} appears after {CHANGE:.0%} of the steps"
    return _task(title, new_class, (train, validation, test))


def _brighter(source: pathlib.Path | None) -> Task:
    train, *rest = tasks_data.digits()
    held_out = [Split(split.inputs + BRIGHTNESS, split.labels) for split in rest]
    return _task("brightness rises throughout", brighter, (train, held_out[0], held_out[1]))


DRIFTING: dict[str, Maker] = {
    "noisy_labels": _noisy_labels,
    "new_class": _new_class,
    "brighter": _brighter,
}
