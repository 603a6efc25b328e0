"""The study's tasks: what is learned, from what, for how many steps.

A task is pure functions of keys and arrays, so that one compiled program trains it for any
seed and any rates. Every loss is at least 0 where nothing is left to learn, so an area under
a training loss is one above the lowest that could be.
"""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import optabs
from benchmarks.arguments import ArgumentError
from benchmarks.dao_e import tasks_data
from benchmarks.dao_e.tasks_networks import Convnet, Network, Transformer, network
from benchmarks.models import MLP
from benchmarks.survey.problems import DIMENSIONS, NOISE, Split, breast_cancer_splits
from optabs.training.batches import rows_of_epoch, take

Evaluate = Callable[[Any, Any, Any], tuple[jax.Array, jax.Array]]


class Task(NamedTuple):
    """What a program needs to know; the seed is in the keys."""

    title: str
    steps: int
    init: Callable[[jax.Array], tuple[Any, Any]]  # key -> parameters, statistics
    loss_fn: Callable[[Any, Any, Any], tuple[jax.Array, Any]]
    """(parameters, statistics, batch) -> loss, statistics."""
    feed: Callable[[jax.Array, int], Any]  # key, steps -> what each step draws [steps, ...]
    batch: Callable[[Any, Any], Any]  # training data, one step's draw -> mini-batch
    train: Any
    validation: Any
    test: Any
    evaluate: Evaluate  # parameters, statistics, data -> loss, accuracy
    classifies: bool = True  # else the accuracy is NaN
    scope: str = "all"  # of the arms that train on it: one of arms.SCOPES
    momentum: float = 0.0  # of the expert SGD
    cosine: bool = False  # the experts' rates follow a cosine to 0
    weight_decay: float = 0.0  # per step, after the update
    by_steps: bool = False  # on CPUs, a call of each step; see program_of


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
    title: str,
    made: Network,
    splits: tuple[Split, Split, Split],
    *,
    steps: int,
    batch_size: int,
    **options: Any,
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

    fields: dict[str, Any] = {
        "feed": lambda key, steps: shuffled(key, steps, len(train.labels), batch_size),
        "batch": take,
        **options,
    }
    return Task(
        title, steps, made.init, loss_fn,
        train=train, validation=validation, test=test, evaluate=evaluate, **fields,
    )  # fmt: skip


def mlp(*widths: int) -> Network:
    """A perceptron of such widths."""
    return network(lambda rngs: MLP(widths, rngs=rngs))


def _quadratic() -> Task:
    # The minimum is at 1, not at the origin, where a decay of weights leads.
    curvature = jnp.geomspace(0.01, 1.0, DIMENSIONS)

    def loss_fn(params: Any, statistics: Any, noise: jax.Array) -> tuple[jax.Array, Any]:
        away = params["point"] - 1
        # The noise is the gradient's alone: the loss is at least 0.
        slope = jnp.sum(noise * away)
        unseen = slope - jax.lax.stop_gradient(slope)
        return jnp.sum(curvature * away**2) / 2 + unseen, statistics

    def evaluate(params: Any, statistics: Any, data: Any) -> tuple[jax.Array, jax.Array]:
        loss, _ = loss_fn(params, statistics, jnp.zeros(DIMENSIONS))
        return loss, jnp.array(jnp.nan)

    return Task(
        f"a quadratic in {DIMENSIONS} dimensions, noisy gradients",
        2000,
        lambda key: ({"point": jax.random.normal(key, (DIMENSIONS,))}, {}),
        loss_fn,
        lambda key, steps: NOISE * jax.random.normal(key, (steps, DIMENSIONS)),
        lambda train, noise: noise,
        (), (), (),
        evaluate,
        classifies=False,
    )  # fmt: skip


def _autoencoder() -> Task:
    train, validation, test = (
        split.inputs.reshape(len(split.labels), -1) for split in tasks_data.digits()
    )
    pixels = train.shape[1]
    made = mlp(pixels, 32, 8, 32, pixels)

    def loss_of(params: Any, batch: jax.Array) -> jax.Array:
        return optabs.losses.mse(made.apply(params, {}, batch, True)[0], batch).mean()

    return Task(
        f"autoencoder {pixels}-32-8-32-{pixels}, digits",
        2000,
        made.init,
        lambda params, statistics, batch: (loss_of(params, batch), statistics),
        lambda key, steps: shuffled(key, steps, len(train), 32),
        take,
        train,
        validation,
        test,
        lambda params, statistics, data: (loss_of(params, data), jnp.array(jnp.nan)),
        classifies=False,
    )


def transformer(
    width: int = 40, heads: int = 4, title: str = "character transformer, Python's help"
) -> Task:
    """A character-level language model of two blocks, on the text of Python's help."""
    train, validation, test = tasks_data.text()
    made = network(lambda rngs: Transformer(width, heads, 2, rngs=rngs))
    batch_size = 16

    def loss_of(params: Any, windows: jax.Array) -> jax.Array:
        logits, _ = made.apply(params, {}, windows[:, :-1], True)
        return optabs.losses.softmax_cross_entropy(logits, windows[:, 1:]).mean()

    def batch(symbols: jax.Array, starts: jax.Array) -> jax.Array:
        return symbols[starts[:, None] + jnp.arange(tasks_data.WINDOW)[None]]

    return Task(
        title,
        600,
        made.init,
        lambda params, statistics, windows: (loss_of(params, windows), statistics),
        lambda key, steps: jax.random.randint(
            key, (steps, batch_size), 0, len(train) - tasks_data.WINDOW
        ),
        batch,
        train,
        validation,
        test,
        lambda params, statistics, windows: (loss_of(params, windows), jnp.array(jnp.nan)),
        classifies=False,
        scope="few",
    )


def needed(name: str, source: pathlib.Path | None) -> pathlib.Path:
    """Where the images of a data set are; raises ArgumentError where that was not said."""
    if source is None:
        raise ArgumentError(f"tasks that learn from {name} need images; pass data, too.")
    return source


def _images(name: str, source: pathlib.Path | None, **options: Any) -> Task:
    title = f"MLP 196-32-10, {name.replace('_', ' ')} at 14 x 14"
    return classification(
        title + options.pop("also", ""),
        mlp(196, 32, 10), tasks_data.pooled(name, needed(name, source)),
        steps=2000, batch_size=64, **options,
    )  # fmt: skip


def _digits(network: Network, title: str, **options: Any) -> Task:
    settings = {"steps": 1000, "batch_size": 32} | options
    return classification(f"{title}, digits", network, tasks_data.digits(), **settings)


def _breast_cancer() -> Task:
    splits = breast_cancer_splits()
    return classification(
        "logistic regression, breast cancer", mlp(splits[0].inputs.shape[1], 2), splits,
        steps=400, batch_size=32,
    )  # fmt: skip


Maker = Callable[[pathlib.Path | None], Task]
# Made when they are wanted: most read data.
TASKS: dict[str, Maker] = {
    "quadratic": lambda source: _quadratic(),
    "logistic": lambda source: _breast_cancer(),
    "softmax": lambda source: _digits(mlp(64, 10), "softmax regression"),
    "autoencoder": lambda source: _autoencoder(),
    "mnist": lambda source: _images("mnist", source),
    "fashion": lambda source: _images("fashion_mnist", source),
    "convnet": lambda source: _digits(
        network(lambda rngs: Convnet((8, 16), 10, rngs=rngs)), "convnet with batch norm",
        steps=600,
    ),
    "decay": lambda source: _images(
        "fashion_mnist", source, also=", cosine rates, weight decay",
        cosine=True, weight_decay=1e-4,
    ),
    "momentum": lambda source: _digits(
        mlp(64, 32, 10), "MLP 64-32-10, SGD with momentum 0.9", momentum=0.9, steps=2000
    ),
    "long": lambda source: _digits(
        mlp(64, 32, 10), "MLP 64-32-10, 10,000 steps", steps=10_000, scope="few"
    ),
    "transformer": lambda source: transformer(),
}  # fmt: skip
NEED_IMAGES = ("mnist", "fashion", "decay")
