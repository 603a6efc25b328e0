"""The problems that the survey study trains on, each as pure functions of a key."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.lab.data import load, require
from benchmarks.lab.landscapes import LANDSCAPES, Landscape
from benchmarks.lab.models import MLP

DIMENSIONS = 50
NOISE = 0.1  # standard deviation, for each coordinate of a gradient
SEEN = 0.01  # probability with which a coordinate's gradient is seen
HIDDEN = 32
BREAST_CANCER_SPLIT = (300, 400)  # where validation and test begin, of 569 cases


class Problem(NamedTuple):
    """What a run needs to know; the seed is in the keys."""

    title: str
    start: Callable[[jax.Array], Any]  # key -> parameters
    feed: Callable[
        [jax.Array, int], jax.Array
    ]  # key, steps -> what each step sees [steps, ..]
    gradient: Callable[[Any, jax.Array], Any]  # parameters, what the step sees -> gradient
    loss: Callable[[Any], jax.Array]  # without noise, or of the validation set
    steps: int
    share: float  # the target, as a share of the loss at the start
    judged_by: str  # "steps" to the target, or "final" loss
    every: int = 1  # steps between two looks at the loss
    accuracy: Callable[[Any], jax.Array] | None = None  # on the test set


def _of_landscape(landscape: Landscape, title: str, steps: int, share: float) -> Problem:
    centre, spread = jnp.array(landscape.start), jnp.array(landscape.spread)
    slope = jax.grad(landscape.function)
    return Problem(
        title,
        start=lambda key: centre + spread * jax.random.normal(key, (2,)),
        feed=lambda key, steps: jnp.zeros(steps),
        gradient=lambda params, _: slope(params),
        loss=landscape.function,
        steps=steps,
        share=share,
        judged_by="steps",
    )


def _quadratic(
    title: str,
    feed: Callable[[jax.Array, int], jax.Array],
    seen: Callable[[jax.Array, jax.Array], jax.Array],
    steps: int,
    judged_by: str,
) -> Problem:
    # The minimum is at 1, not at the origin, where weight decay leads.
    curvature = jnp.geomspace(0.01, 1.0, DIMENSIONS)
    return Problem(
        title,
        start=lambda key: jax.random.normal(key, (DIMENSIONS,)),
        feed=feed,
        gradient=lambda params, item: seen(curvature * (params - 1), item),
        loss=lambda params: jnp.sum(curvature * (params - 1) ** 2) / 2,
        steps=steps,
        share=1e-2,
        judged_by=judged_by,
    )


class Split(NamedTuple):
    """Cases to classify."""

    inputs: jax.Array  # float32 [n, features]
    labels: jax.Array  # int32 [n]


def _classification(
    title: str,
    start: Callable[[jax.Array], Any],
    logits: Callable[[Any, jax.Array], jax.Array],
    splits: tuple[Split, Split, Split],
    *,
    batch_size: int,
    share: float,
) -> Problem:
    """Mini-batches of a shuffled training set; a remainder that fills no batch is left out."""
    train, validation, test = splits
    examples = len(train.labels)
    batches = examples // batch_size

    def feed(key: jax.Array, steps: int) -> jax.Array:
        keys = jax.random.split(key, math.ceil(steps / batches))
        orders = jax.vmap(lambda key: jax.random.permutation(key, examples))(keys)
        return orders[:, : batches * batch_size].reshape(-1, batch_size)[:steps]

    def loss(params: Any, split: Split) -> jax.Array:
        scores = logits(params, split.inputs)
        return optax.softmax_cross_entropy_with_integer_labels(scores, split.labels).mean()

    return Problem(
        title,
        start=start,
        feed=feed,
        gradient=lambda params, rows: jax.grad(loss)(
            params, Split(train.inputs[rows], train.labels[rows])
        ),
        loss=lambda params: loss(params, validation),
        steps=1000,
        share=share,
        judged_by="final",
        every=5,
        accuracy=lambda params: (logits(params, test.inputs).argmax(-1) == test.labels).mean(),
    )


def breast_cancer_splits() -> tuple[Split, Split, Split]:
    """Training, validation and test cases, standardised by the training cases' statistics."""
    bunch = require("sklearn.datasets", "benchmarks").load_breast_cancer()
    # RandomState, unlike Generator, promises the same stream in every numpy.
    order = np.random.RandomState(0).permutation(len(bunch.target))
    parts = np.split(order, BREAST_CANCER_SPLIT)
    mean, deviation = bunch.data[parts[0]].mean(0), bunch.data[parts[0]].std(0)
    inputs = ((bunch.data - mean) / deviation).astype(np.float32)
    labels = bunch.target.astype(np.int32)
    train, validation, test = (
        Split(jnp.asarray(inputs[part]), jnp.asarray(labels[part])) for part in parts
    )
    return train, validation, test


def _breast_cancer() -> Problem:
    splits = breast_cancer_splits()
    features = splits[0].inputs.shape[1]

    # Two classes by one logit: the other one's is 0.
    def logits(params: Any, inputs: jax.Array) -> jax.Array:
        score = inputs @ params["weights"] + params["bias"]
        return jnp.stack([jnp.zeros_like(score), score], axis=-1)

    return _classification(
        "logistic regression, breast cancer",
        lambda key: {
            "weights": 0.1 * jax.random.normal(key, (features,)),
            "bias": jnp.zeros(()),
        },
        logits,
        splits,
        batch_size=32,
        share=0.3,
    )


def _digits() -> Problem:
    data = load("digits")
    pixels = math.prod(data.train_images.shape[1:])
    widths = (pixels, HIDDEN, data.classes)
    graph = nnx.graphdef(MLP(widths, rngs=nnx.Rngs(0)))

    def start(key: jax.Array) -> Any:
        return nnx.to_pure_dict(nnx.state(MLP(widths, rngs=nnx.Rngs(key)), nnx.Param))

    def split(images: np.ndarray, labels: np.ndarray) -> Split:
        return Split(jnp.asarray(images.reshape(-1, pixels)), jnp.asarray(labels))

    return _classification(
        f"MLP {pixels}-{HIDDEN}-{data.classes}, digits",
        start,
        lambda params, inputs: nnx.merge(graph, params)(inputs),
        (
            split(data.train_images, data.train_labels),
            split(data.validation_images, data.validation_labels),
            split(data.test_images, data.test_labels),
        ),
        batch_size=64,
        share=0.1,
    )


# Made when it is wanted: the last two read data.
PROBLEMS: dict[str, Callable[[], Problem]] = {
    "rosenbrock": lambda: _of_landscape(
        LANDSCAPES["rosenbrock"], "Rosenbrock's valley", 10_000, 1e-6
    ),
    "beale": lambda: _of_landscape(LANDSCAPES["beale"], "Beale's function", 5000, 1e-6),
    "saddle": lambda: _of_landscape(LANDSCAPES["saddle"], "a saddle", 2000, 1e-2),
    "ravine": lambda: _of_landscape(
        LANDSCAPES["ravine"], "a ravine along an axis, condition 1e4", 10_000, 1e-6
    ),
    "rotated_ravine": lambda: _of_landscape(
        LANDSCAPES["rotated_ravine"], "the ravine turned by 45 degrees", 10_000, 1e-6
    ),
    "noisy": lambda: _quadratic(
        f"a quadratic in {DIMENSIONS} dimensions, noisy gradients",
        lambda key, steps: NOISE * jax.random.normal(key, (steps, DIMENSIONS)),
        jnp.add,
        steps=5000,
        judged_by="final",
    ),
    "sparse": lambda: _quadratic(
        f"the same quadratic, a coordinate's gradient is seen in {SEEN:.0%} of the steps",
        lambda key, steps: jax.random.bernoulli(key, SEEN, (steps, DIMENSIONS)),
        jnp.multiply,
        steps=10_000,
        judged_by="steps",
    ),
    "breast_cancer": _breast_cancer,
    "digits": _digits,
}
