"""A classifier trained by one compiled program per epoch, for one seed or for many at once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from jax.typing import ArrayLike

from benchmarks.lab.models import MLP

HIDDEN = (256, 128)
MODEL = "mlp-256-128"


class Split(NamedTuple):
    """Images and labels on the device."""

    images: jax.Array  # float32 [n, ...]
    labels: jax.Array  # int32 [n]


class Learner(NamedTuple):
    """What training changes; with a leading axis of seeds where they train together."""

    params: Any
    opt_state: Any
    key: jax.Array


class EpochResult(NamedTuple):
    """What one epoch shows."""

    loss: jax.Array  # float32 []: mean over the batches of the epoch
    validation_accuracy: jax.Array  # float32 []: share of the validation set


class Trainer(NamedTuple):
    """Compiled programs that share a model, an optimizer and a batch size."""

    start: Callable[[ArrayLike], Learner]
    epoch: Callable[[Learner, Split, Split], tuple[Learner, EpochResult]]
    accuracy: Callable[[Any, Split], jax.Array]


class Outcome(NamedTuple):
    """A finished training of some seeds."""

    params: Any
    loss: np.ndarray  # float [epochs] or [epochs, seeds]
    validation_accuracy: np.ndarray  # likewise


def make_trainer(
    optimizer: optax.GradientTransformation,
    *,
    input_size: int,
    classes: int,
    batch_size: int,
    together: bool = False,
) -> Trainer:
    """Builds the programs for an MLP of widths input-256-128-classes.

    `epoch` visits a fresh permutation of the training set in batches; the remainder that
    fills no batch is left out of that epoch. Its first argument is donated. With
    `together`, `start` takes an array of seeds and all of them train at once.
    """
    widths = (input_size, *HIDDEN, classes)
    optimizer = optax.with_extra_args_support(optimizer)
    graph = nnx.graphdef(MLP(widths, rngs=nnx.Rngs(0)))

    def start(seed: ArrayLike) -> Learner:
        init_key, train_key = jax.random.split(jax.random.key(seed))
        model = MLP(widths, rngs=nnx.Rngs(init_key))
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        return Learner(params, optimizer.init(params), train_key)

    def logits(params: Any, images: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(images)

    def loss_fn(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits(params, images), labels
        )
        return losses.mean()

    def accuracy(params: Any, split: Split) -> jax.Array:
        return (logits(params, split.images).argmax(-1) == split.labels).mean()

    def epoch(
        learner: Learner, train: Split, validation: Split
    ) -> tuple[Learner, EpochResult]:
        examples = train.labels.shape[0]
        batches = examples // batch_size
        key, shuffle_key = jax.random.split(learner.key)
        order = jax.random.permutation(shuffle_key, examples)
        order = order[: batches * batch_size].reshape(batches, batch_size)

        def step(carry: tuple[Any, Any], rows: jax.Array) -> tuple[tuple[Any, Any], Any]:
            params, opt_state = carry
            loss, grads = jax.value_and_grad(loss_fn)(
                params, train.images[rows], train.labels[rows]
            )
            updates, opt_state = optimizer.update(grads, opt_state, params, value=loss)
            return (optax.apply_updates(params, updates), opt_state), loss

        (params, opt_state), losses = jax.lax.scan(
            step, (learner.params, learner.opt_state), order
        )
        result = EpochResult(losses.mean(), accuracy(params, validation))
        return Learner(params, opt_state, key), result

    if together:
        return Trainer(
            start=jax.jit(jax.vmap(start)),
            epoch=jax.jit(jax.vmap(epoch, in_axes=(0, None, None)), donate_argnums=0),
            accuracy=jax.jit(jax.vmap(accuracy, in_axes=(0, None))),
        )
    return Trainer(
        start=jax.jit(start),
        epoch=jax.jit(epoch, donate_argnums=0),
        accuracy=jax.jit(accuracy),
    )


def train(
    trainer: Trainer,
    seed: ArrayLike,
    epochs: int,
    data: Callable[[int], tuple[Split, Split]],
    on_epoch: Callable[[float], None] = lambda accuracy: None,
) -> Outcome:
    """Trains a seed, or an array of seeds together.

    Args:
      trainer: the compiled programs.
      seed: int32, shape [] or, for a trainer with `together`, [seeds].
      epochs: how many.
      data: from the number of an epoch to its training and validation set.
      on_epoch: called after each epoch with the mean validation accuracy.
    """
    learner = trainer.start(seed)
    losses, accuracies = [], []
    for number in range(epochs):
        learner, result = trainer.epoch(learner, *data(number))
        losses.append(np.asarray(result.loss))
        accuracies.append(np.asarray(result.validation_accuracy))
        on_epoch(float(accuracies[-1].mean()))
    return Outcome(learner.params, np.stack(losses), np.stack(accuracies))
