"""The study's tasks: functions of many minima, and small networks."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

import optabs
from benchmarks.gadam.functions import FUNCTIONS, SAMPLED, noisy
from benchmarks.lab import tasks_data
from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.tasks import mlp
from benchmarks.survey.problems import Split, breast_cancer_splits
from optabs import genetics

UNITS, STEPS = 16, 2000  # of a population on a function, and of each unit
NETWORK_UNITS, EPOCHS, BATCH = 8, 40, 50
NEAR = 0.1  # of a mutation near the entry: half-widths of the box, or spreads of the leaf
HIDDEN = 16
SUBSET, SUBSET_VALIDATION = 2000, 1000  # images of MNIST, by default
CONDITIONS = {
    "shifted": "the minimum at a random place",
    "rotated": "and the axes turned at random",
    "noisy": "at a random place, with noise in every gradient",
}
NETWORKS = ("digits", "breast_cancer", "mnist")

Draw = Callable[[jax.Array, Any], Any]  # (key, parameters) -> a tree like them


class Problem(NamedTuple):
    """What one seed's population learns and is judged by."""

    init_fn: Callable[[jax.Array], Any]
    loss_fn: Callable[[Any, Any], jax.Array]
    data: Any
    batch_size: int | None
    judge: Callable[
        [Any, Any], jax.Array
    ]  # like loss_fn: without noise, on the validation data
    validation: Any
    draws: Mapping[str, Draw]


class Task(NamedTuple):
    """What is compared on; a seed's problem is the same for every arm and rate."""

    title: str
    units: int
    epochs: int  # of each unit
    steps: int  # of an epoch
    scale: float  # of the learning rates
    pose: Callable[[jax.Array], Problem]
    test: Callable[[Any], tuple[jax.Array, jax.Array]] | None = None  # -> loss, accuracy


def function_task(
    name: str, dimensions: int, condition: str, *, units: int = UNITS, steps: int = STEPS
) -> Task:
    """A function in so many dimensions; an epoch is one step."""
    function = FUNCTIONS[name]

    def start(key: jax.Array) -> jax.Array:
        return function.start(key, dimensions)

    def pose(key: jax.Array) -> Problem:
        place_key, noise_key, points_key = jax.random.split(key, 3)
        value = function.placed(place_key, dimensions, rotated=condition == "rotated").value
        loss = value
        if condition == "noisy":
            points = jax.vmap(start)(jax.random.split(points_key, SAMPLED))
            loss = noisy(value, noise_key, points)
        near = genetics.normal_around(NEAR * function.half_width)
        anywhere = _as_start(start)
        return Problem(
            start, lambda x, _: loss(x), None, None, lambda x, _: value(x), None,
            {
                "unit": genetics.uniform_like,
                "start": anywhere,
                "near": near,
                "mixed": genetics.either(anywhere, near),
            },
        )  # fmt: skip

    title = f"{function.title}, {dimensions} dimensions, {CONDITIONS[condition]}"
    return Task(title, units, steps, 1, function.half_width, pose)


def network_task(
    name: str, source: pathlib.Path | None = None, *, units: int = NETWORK_UNITS,
    epochs: int = EPOCHS,
) -> Task:  # fmt: skip
    """A perceptron with one hidden layer on a data set."""
    train, validation, test = _splits(name, source)
    widths = (train.inputs[0].size, HIDDEN, 10 if name != "breast_cancer" else 2)
    made = mlp(*widths)

    def start(key: jax.Array) -> Any:
        return made.init(key)[0]

    def logits(params: Any, inputs: jax.Array) -> jax.Array:
        return made.apply(params, {}, inputs, True)[0]

    def loss_fn(params: Any, batch: Split) -> jax.Array:
        scores = logits(params, batch.inputs)
        return optabs.losses.softmax_cross_entropy(scores, batch.labels).mean()

    def tested(params: Any) -> tuple[jax.Array, jax.Array]:
        right = logits(params, test.inputs).argmax(-1) == test.labels
        return loss_fn(params, test), right.mean()

    draws = {"unit": genetics.uniform_like, "start": _as_start(start), "spread": spread_like}
    problem = Problem(start, loss_fn, train, BATCH, loss_fn, validation, draws)
    shape = "-".join(map(str, widths))
    counts = f"{len(train.labels)} to learn from, {len(validation.labels)} to judge by"
    return Task(
        f"MLP {shape}, {name.replace('_', ' ')} ({counts})",
        units, epochs, -(-len(train.labels) // BATCH), 1.0,
        lambda key: problem, tested,
    )  # fmt: skip


def spread_like(key: jax.Array, params: Any) -> Any:
    """Each entry drawn from the normal distribution of its leaf's mean and spread."""
    return jax.tree.map(
        lambda key, leaf: (
            leaf.mean() + leaf.std() * jax.random.normal(key, leaf.shape, leaf.dtype)
        ),
        optax.tree.split_key_like(key, params),
        params,
    )


def near_one(start: Callable[[jax.Array], Any], share: float, key: jax.Array) -> Any:
    """A start for all units: one draw, and around it `share` of the leaf's spread."""
    centre = start(key)

    def init_fn(key: jax.Array) -> Any:
        return jax.tree.map(
            lambda middle, drawn: middle + share * (drawn - drawn.mean()),
            centre,
            start(key),
        )

    return init_fn


def _as_start(start: Callable[[jax.Array], Any]) -> Draw:
    return lambda key, params: start(key)


def _splits(name: str, source: pathlib.Path | None) -> tuple[Split, Split, Split]:
    if name == "breast_cancer":
        return breast_cancer_splits()
    if name == "digits":
        return tasks_data.digits()
    if source is None:
        raise ArgumentError("networks has mnist, which needs images; pass data, too.")
    train, validation, test = tasks_data.pooled(name, source)

    def first(split: Split, count: int) -> Split:
        return Split(split.inputs[:count], split.labels[:count])

    return first(train, SUBSET), first(validation, SUBSET_VALIDATION), test
