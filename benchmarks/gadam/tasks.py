"""What the study compares, and on what: rules of a population, functions and networks."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from benchmarks.lab import tasks as lab
from benchmarks.lab.functions import FUNCTIONS, noisy
from optabs import genetics
from optabs.evolution.state import Inheritance

UNITS, STEPS = 16, 2000  # of a population on a function, and of each unit
NETWORK_UNITS, EPOCHS, BATCH, HIDDEN = 8, 40, 50, 16
NEAR = 0.1  # of a mutation near the entry, in half-widths of the box
SUBSET = (2000, 1000, None)  # images of MNIST to learn from, for validation and for the test
SAMPLED = 256  # points of the box whose gradients set the size of the noise

DIMENSIONS = (2, 10, 30, 100)
NOISY = "noisy"
CONDITIONS = ("shifted", "rotated", NOISY)  # a random place; turned axes, too; or noise, too
NETWORKS = ("digits", "breast_cancer", "mnist")
TASKS = (
    *(f"{name}-{d}-{how}" for how in CONDITIONS for d in DIMENSIONS for name in FUNCTIONS),
    *NETWORKS,
)  # fmt: skip


class Problem(NamedTuple):
    """What one seed's population learns and is judged by."""

    init_fn: Callable[[jax.Array], Any]
    loss_fn: Callable[[Any, Any], jax.Array]
    judge: Callable[[Any, Any], jax.Array]  # as loss_fn: without noise, on validation data
    draws: Mapping[str, Callable[[jax.Array, Any], Any]]  # (key, parameters) -> like them
    data: Any = None
    validation: Any = None
    batch_size: int | None = None


class Task(NamedTuple):
    """What is compared on; a seed's problem is the same for every arm and rate."""

    units: int
    epochs: int  # of each unit; on a function, an epoch is one step
    steps: int  # of an epoch
    scale: float  # of the learning rates
    pose: Callable[[jax.Array], Problem]
    test: Callable[[Any], tuple[jax.Array, jax.Array]] | None = None  # -> loss, accuracy


def task_of(name: str, source: pathlib.Path | None = None, share: int = 1) -> Task:
    """A task by its name, where `share` is above 1 with a share of its epochs."""
    if name in NETWORKS:
        task = _network(name, source)
    else:
        function, dimensions, condition = name.split("-")
        task = _function(function, int(dimensions), condition)
    return task._replace(epochs=task.epochs // share)


def _function(name: str, dimensions: int, condition: str) -> Task:
    function = FUNCTIONS[name]

    def start(key: jax.Array, _: Any = None) -> jax.Array:
        return function.start(key, dimensions)

    def pose(key: jax.Array) -> Problem:
        place_key, noise_key, points_key = jax.random.split(key, 3)
        value, _ = function.placed(place_key, dimensions, rotated=condition == "rotated")
        loss = value
        if condition == NOISY:
            points = jax.vmap(start)(jax.random.split(points_key, SAMPLED))
            loss = noisy(value, noise_key, points)
        near = genetics.normal_around(NEAR * function.half_width)
        return Problem(
            start, lambda x, _: loss(x), lambda x, _: value(x),
            {"unit": genetics.uniform_like, "start": start, "near": near,
             "mixed": genetics.either(start, near)},
        )  # fmt: skip

    return Task(UNITS, STEPS, 1, function.half_width, pose)


def _network(name: str, source: pathlib.Path | None) -> Task:
    """A perceptron with one hidden layer on a data set."""
    if name == "mnist":
        images = lab.image_splits(name, source, half=True)
        train, validation, test = (
            lab.Split(split.inputs[:size], split.labels[:size])
            for split, size in zip(images, SUBSET, strict=True)
        )
    else:
        load = lab.digits_splits if name == "digits" else lab.breast_cancer_splits
        train, validation, test = load()
    widths = (train.inputs[0].size, HIDDEN, 10 if name != "breast_cancer" else 2)
    splits, steps = (train, validation, test), -(-len(train.labels) // BATCH)
    net = lab.classification(name, lab.mlp(*widths), splits, steps=steps, batch_size=BATCH)

    def loss_fn(params: Any, data: lab.Split) -> jax.Array:
        return net.evaluate(params, {}, data)[0]

    draws = {"unit": genetics.uniform_like, "spread": spread_like}
    problem = Problem(
        lambda key: net.init(key)[0], loss_fn, loss_fn, draws, train, validation, BATCH
    )
    return Task(
        NETWORK_UNITS, EPOCHS, steps, 1.0,
        lambda key: problem, lambda params: net.evaluate(params, {}, test),
    )  # fmt: skip


def spread_like(key: jax.Array, params: Any) -> Any:
    """Each entry drawn from the normal distribution of its leaf's mean and spread."""

    def drawn(key: jax.Array, leaf: jax.Array) -> jax.Array:
        return leaf.mean() + leaf.std() * jax.random.normal(key, leaf.shape, leaf.dtype)

    return jax.tree.map(drawn, optax.tree.split_key_like(key, params), params)


class Arm(NamedTuple):
    """Gadam under one choice of its settings, or independent runs of Adam."""

    label: str
    epochs: int = 1  # of each learning
    mutation_rate: float = 0.01
    draw: str = "unit"  # what mutation draws from, by its name in Problem.draws
    pressure: float = 1.0
    inheritance: Inheritance = "crossover"
    relearn: bool = True
    restarts: int = 0  # of each unit, which share its steps; above 0 nothing evolves

    def points(self, epochs: int) -> int:
        """How often the units of a start are judged, in so many epochs of each."""
        if self.restarts:
            return epochs // self.restarts
        return epochs // (2 * self.epochs) if self.relearn else epochs // self.epochs - 1


BASELINE, LITERAL, TUNED = "best_of_g", "literal", "tuned"
MAIN = (BASELINE, "restarts", LITERAL, TUNED)  # the others change a setting of the last two

# On functions, where an epoch is a step.
_LITERAL = Arm("Gadam, literal", 50)
_TUNED = Arm("Gadam, tuned", 2, 0.03, "mixed", inheritance="fresh")
_CROSS = _TUNED._replace(label="optimizer states crossed", inheritance="crossover")
FUNCTION_ARMS: dict[str, Arm] = {
    BASELINE: Arm("best of g Adam", restarts=1),
    "restarts": Arm("Adam, 40 restarts", restarts=40),
    LITERAL: _LITERAL,
    TUNED: _TUNED,
    "epochs_1": _TUNED._replace(label="1 step a learning", epochs=1),
    "epochs_5": _TUNED._replace(label="5 steps", epochs=5),
    "epochs_10": _TUNED._replace(label="10 steps", epochs=10),
    "epochs_50": _TUNED._replace(label="50 steps", epochs=50),
    "crossover": _CROSS,
    "once": _TUNED._replace(label="parents learn once", relearn=False),
    "crossover_once": _CROSS._replace(
        label="states crossed, parents learn once", relearn=False
    ),
    "mutation_0.01": _TUNED._replace(label="mutation 0.01", mutation_rate=0.01),
    "mutation_0.1": _TUNED._replace(label="mutation 0.1", mutation_rate=0.1),
    "draw_unit": _TUNED._replace(label="drawn from U(0, 1)", draw="unit"),
    "draw_start": _TUNED._replace(label="drawn as the start", draw="start"),
    "draw_near": _TUNED._replace(label="drawn near the entry", draw="near"),
    "pressure_0": _TUNED._replace(label="no pressure", pressure=0.0),
    "pressure_4": _TUNED._replace(label="pressure 4", pressure=4.0),
    "pressure_8": _TUNED._replace(label="pressure 8", pressure=8.0),
    "literal_mixed": _LITERAL._replace(label="literal, mixed draw", draw="mixed"),
    "literal_once": _LITERAL._replace(label="literal, parents learn once", relearn=False),
    "literal_fresh": _LITERAL._replace(label="literal, fresh states", inheritance="fresh"),
    "literal_10": _LITERAL._replace(label="literal, 10 steps", epochs=10),
    "literal_2": _LITERAL._replace(label="literal, 2 steps", epochs=2),
}
_NETWORK = Arm("Gadam, tuned", 2, 0.01, "spread", relearn=False)
_AGAIN = _NETWORK._replace(label="parents relearn", relearn=True)
NETWORK_ARMS: dict[str, Arm] = {
    BASELINE: Arm("best of g Adam", restarts=1),
    "restarts": Arm("Adam, 4 restarts", restarts=4),
    LITERAL: Arm("Gadam, literal", 2),
    TUNED: _NETWORK,
    "epochs_1": _NETWORK._replace(label="1 epoch a learning", epochs=1),
    "epochs_5": _NETWORK._replace(label="5 epochs", epochs=5),
    "fresh": _NETWORK._replace(label="fresh optimizer states", inheritance="fresh"),
    "relearn": _AGAIN,
    "relearn_fresh": _AGAIN._replace(
        label="parents relearn, fresh states", inheritance="fresh"
    ),
}
ARMS = FUNCTION_ARMS | NETWORK_ARMS


def arms_of(task: str) -> dict[str, Arm]:
    """The arms that train on a task."""
    return NETWORK_ARMS if task in NETWORKS else FUNCTION_ARMS


def spent_of(arm: Arm, task: Task) -> np.ndarray:
    """Gradient evaluations for one seed before each point of its curve: int [points]."""
    points = np.arange(arm.points(task.epochs) * max(arm.restarts, 1))
    first, each = (1, 1) if arm.restarts else (2, 2 if arm.relearn else 1)
    return task.units * task.steps * arm.epochs * (first + each * points)
