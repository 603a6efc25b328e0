"""The tasks that studies share, and what they learn from: small images, cases and text."""

import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import optabs
from benchmarks.lab.data import load, require
from benchmarks.lab.models import MLP, SYMBOLS, WINDOW, Network, Transformer, network
from benchmarks.lab.training import Task
from optabs.training.batches import rows_of_epoch, take

DIGITS_VALIDATION = 400  # of 1,500, for an accuracy in steps of a quarter point
POOLED = 2  # 28 x 28 images become 14 x 14
HELD_OUT = 0.05  # share of the text for validation, and as much for the test
HELD_OUT_WINDOWS = 128
DIMENSIONS, NOISE = 50, 0.1  # of the quadratic: the standard deviation in each coordinate
HIDDEN = (256, 128)  # widths of the perceptron of the OptimABS experiment
BREAST_CANCER_SPLIT = (300, 400)  # where validation and test begin, of 569 cases
TURNS = 5  # in which cases are held out


class Split(NamedTuple):
    """Images or cases with their labels, on the device."""

    inputs: jax.Array  # float32 [n, ...]
    labels: jax.Array  # int32 [n]


Splits = tuple[Split, Split, Split]  # to train on, for validation, for the test


@functools.cache
def image_splits(
    name: str,
    source: pathlib.Path | None = None,
    *,
    validation: int | None = None,
    half: bool = False,
) -> Splits:
    """The images of a data set, where `half` at half their size."""
    data = load(name, source, validation=validation)
    sized = halved if half else np.asarray
    train, held_out, test = (
        Split(jnp.asarray(sized(images)), jnp.asarray(labels))
        for images, labels in zip(data[:6:2], data[1:6:2], strict=True)
    )
    return train, held_out, test


def digits_splits() -> Splits:
    """scikit-learn's digits, 8 x 8."""
    return image_splits("digits", validation=DIGITS_VALIDATION)


def halved(images: np.ndarray) -> np.ndarray:
    """Images at half their size, by means: from float32 [n, height, width, channels]."""
    count, height, width, channels = images.shape
    shape = (count, height // POOLED, POOLED, width // POOLED, POOLED, channels)
    return images.reshape(shape).mean((2, 4))


@functools.cache
def text_splits() -> tuple[jnp.ndarray, jnp.ndarray, jnp.ndarray]:
    """Python's help topics as symbols: int32 [characters] to train on, and held out ones.

    Those for validation and for the test are windows int32 [windows, WINDOW], from the end
    of the text. Other Python versions have other topics, so figures hold for the one that
    the records name.
    """
    from pydoc_data.topics import topics

    places = {symbol: place for place, symbol in enumerate(SYMBOLS)}
    unknown = places["?"]
    whole = "\n".join(topics[name] for name in sorted(topics))
    symbols = np.array([places.get(symbol, unknown) for symbol in whole], np.int32)
    share = math.floor(HELD_OUT * len(symbols))
    train, validation, test = np.split(symbols, [-2 * share, -share])
    return jnp.asarray(train), _windows(validation), _windows(test)


def _windows(symbols: np.ndarray) -> jnp.ndarray:
    starts = np.linspace(0, len(symbols) - WINDOW, HELD_OUT_WINDOWS).astype(int)
    return jnp.asarray(symbols[starts[:, None] + np.arange(WINDOW)])


def held_out_in_turns(order: np.ndarray, turn: int) -> list[np.ndarray]:
    """Rows to train on, for validation and for the test, where a few hundred are all.

    Two fifths of one half are for validation, two fifths of the other half for the test, and
    all others to train on. Three turns in a row validate on every row of the one half, five
    test on every one of the other, and no row is ever of both kinds. One test set of so few
    rows, of which very few are hard, ranks optimizers by chance; a mean over turns less so.
    """
    held_out = len(order) // TURNS
    halves = [np.roll(half, -turn * held_out) for half in np.array_split(order, 2)]
    rest = np.concatenate([half[held_out:] for half in halves])
    return [rest, *(half[:held_out] for half in halves)]


@functools.cache
def breast_cancer_splits(turn: int | None = None) -> Splits:
    """Training, validation and test cases, standardised by the training cases' statistics.

    A turn, from 0 to 4, holds out its own ones: see `held_out_in_turns`.
    """
    bunch = require("sklearn.datasets", "benchmarks").load_breast_cancer()
    # RandomState, unlike Generator, promises the same stream in every numpy.
    order = np.random.RandomState(0).permutation(len(bunch.target))
    if turn is None:
        parts = np.split(order, BREAST_CANCER_SPLIT)
    else:
        parts = held_out_in_turns(order, turn)
    mean, deviation = bunch.data[parts[0]].mean(0), bunch.data[parts[0]].std(0)
    inputs = ((bunch.data - mean) / deviation).astype(np.float32)
    labels = bunch.target.astype(np.int32)
    train, validation, test = (
        Split(jnp.asarray(inputs[part]), jnp.asarray(labels[part])) for part in parts
    )
    return train, validation, test


def shuffled(key: jax.Array, steps: int, examples: int, batch_size: int) -> jax.Array:
    """The rows of each step's batch, int32 [steps, batch]; each epoch has its own order.

    The remainder that fills no batch is left out of an epoch.
    """
    batches = examples // batch_size
    epochs = jnp.arange(-(-steps // batches))
    rows = jax.vmap(lambda epoch: rows_of_epoch(key, epoch, examples, batch_size, "shuffle"))(
        epochs
    )
    return rows[:, : batches * batch_size].reshape(-1, batch_size)[:steps]


def classification(
    title: str, made: Network, splits: Splits, *, steps: int, batch_size: int, **options: Any
) -> Task:
    """Mini-batches of a shuffled training set, softmax and cross entropy."""
    train, validation, test = splits

    def losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return optabs.losses.softmax_cross_entropy(logits, labels).mean()

    def loss_fn(params: Any, statistics: Any, batch: Split) -> tuple[jax.Array, Any]:
        logits, statistics = made.apply(params, statistics, batch.inputs, True)
        return losses(logits, batch.labels), statistics

    def evaluate(params: Any, statistics: Any, data: Split) -> tuple[jax.Array, jax.Array]:
        logits, _ = made.apply(params, statistics, data.inputs, False)
        return losses(logits, data.labels), (logits.argmax(-1) == data.labels).mean()

    return Task(
        title, steps, made.init, loss_fn,
        feed=lambda key, steps: shuffled(key, steps, len(train.labels), batch_size),
        batch=take, train=train, validation=validation, test=test, evaluate=evaluate,
    )._replace(**options)  # fmt: skip


def mlp(*widths: int) -> Network:
    """A perceptron of such widths."""
    return network(lambda rngs: MLP(widths, rngs=rngs))


def permuted(key: jax.Array, steps: int, examples: int, batch_size: int) -> jax.Array:
    """As `shuffled`, in the orders that the records of optimabs and steady have seen."""
    batches = examples // batch_size

    def epoch(key: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        key, own = jax.random.split(key)
        rows = jax.random.permutation(own, examples)
        return key, rows[: batches * batch_size].reshape(batches, batch_size)

    _, rows = jax.lax.scan(epoch, key, length=-(-steps // batches))
    return rows.reshape(-1, batch_size)[:steps]


def perceptron(name: str, source: pathlib.Path | None) -> Task:
    """The perceptron of the OptimABS experiment, on the images of a data set."""
    splits = image_splits(name, source)
    widths = (math.prod(splits[0].inputs.shape[1:]), *HIDDEN, 10)
    title = f"MLP {'-'.join(map(str, widths))}, {name.replace('_', ' ')}"
    return classification(title, mlp(*widths), splits, steps=2000, batch_size=64)


def in_epochs(task: Task, batch_size: int, epochs: int) -> Task:
    """A classification in whole epochs of such batches, looked at after each."""
    examples = len(task.train.labels)
    return task._replace(
        title=f"{task.title}, batch {batch_size}",
        steps=examples // batch_size * epochs,
        feed=lambda key, steps: permuted(key, steps, examples, batch_size),
        points=epochs,
        scored=True,
    )


def unscored(
    title: str,
    steps: int,
    init: Callable[[jax.Array], tuple[Any, Any]],
    loss_of: Callable[[Any, Any], jax.Array],
    **fields: Any,
) -> Task:
    """A task of a loss of parameters and data, which has no accuracy and no statistics."""
    return Task(
        title, steps, init,
        loss_fn=lambda params, statistics, batch: (loss_of(params, batch), statistics),
        evaluate=lambda params, statistics, data: (loss_of(params, data), jnp.array(jnp.nan)),
        classifies=False, **fields,
    )  # fmt: skip


def quadratic() -> Task:
    """A quadratic of curvatures from 0.01 to 1, with noise in every gradient."""
    # The minimum is at 1, not at the origin, where a decay of weights leads.
    curvature = jnp.geomspace(0.01, 1.0, DIMENSIONS)

    def loss_of(params: Any, noise: jax.Array | float) -> jax.Array:
        away = params["point"] - 1
        # The noise is the gradient's alone: the loss is at least 0.
        slope = jnp.sum(noise * away)
        return jnp.sum(curvature * away**2) / 2 + (slope - jax.lax.stop_gradient(slope))

    task = unscored(
        f"a quadratic in {DIMENSIONS} dimensions, noisy gradients", 2000,
        lambda key: ({"point": jax.random.normal(key, (DIMENSIONS,))}, {}),
        loss_of,
        feed=lambda key, steps: NOISE * jax.random.normal(key, (steps, DIMENSIONS)),
        batch=lambda train, noise: noise,
        train=(), validation=(), test=(),
    )  # fmt: skip
    return task._replace(
        evaluate=lambda params, *_: (loss_of(params, 0.0), jnp.array(jnp.nan))
    )


def autoencoder() -> Task:
    """An autoencoder of digits, by the squared error."""
    train, validation, test = (
        split.inputs.reshape(len(split.labels), -1) for split in digits_splits()
    )
    pixels = train.shape[1]
    made = mlp(pixels, 32, 8, 32, pixels)
    return unscored(
        f"autoencoder {pixels}-32-8-32-{pixels}, digits", 2000, made.init,
        lambda params, batch: optabs.losses.mse(
            made.apply(params, {}, batch, True)[0], batch
        ).mean(),
        feed=lambda key, steps: shuffled(key, steps, len(train), 32), batch=take,
        train=train, validation=validation, test=test,
    )  # fmt: skip


def transformer(
    width: int = 40,
    heads: int = 4,
    title: str = "character transformer, Python's help",
    blocks: int = 2,
    **options: Any,
) -> Task:
    """A character-level language model of two blocks or more, on the text of Python's help."""
    train, validation, test = text_splits()
    made = network(lambda rngs: Transformer(width, heads, blocks, rngs=rngs))

    def loss_of(params: Any, windows: jax.Array) -> jax.Array:
        logits, _ = made.apply(params, {}, windows[:, :-1], True)
        return optabs.losses.softmax_cross_entropy(logits, windows[:, 1:]).mean()

    def feed(key: jax.Array, steps: int) -> jax.Array:
        return jax.random.randint(key, (steps, 16), 0, len(train) - WINDOW)

    return unscored(
        title, 600, made.init, loss_of, feed=feed,
        batch=lambda symbols, starts: symbols[starts[:, None] + jnp.arange(WINDOW)[None]],
        train=train, validation=validation, test=test, scope="few",
    )._replace(**options)  # fmt: skip


def small_images(name: str, source: pathlib.Path | None, **options: Any) -> Task:
    """A small perceptron on images at half their size; `also` goes into the title."""
    title = f"MLP 196-32-10, {name.replace('_', ' ')} at 14 x 14"
    return classification(
        title + options.pop("also", ""),
        mlp(196, 32, 10), image_splits(name, source, half=True),
        steps=2000, batch_size=64, **options,
    )  # fmt: skip


def digits(network: Network, title: str, **options: Any) -> Task:
    """A network on digits."""
    settings = {"steps": 1000, "batch_size": 32} | options
    return classification(f"{title}, digits", network, digits_splits(), **settings)


def breast_cancer(*, in_turns: bool = False) -> Task:
    """Logistic regression; `in_turns`, of other cases that are held out for every seed."""
    splits = breast_cancer_splits(0 if in_turns else None)
    title = "logistic regression, breast cancer" + ", cases held out in turns" * in_turns
    return classification(
        title, mlp(splits[0].inputs.shape[1], 2), splits, steps=400, batch_size=32,
        splits_of=(lambda seed: breast_cancer_splits(seed % TURNS)) if in_turns else None,
    )  # fmt: skip
