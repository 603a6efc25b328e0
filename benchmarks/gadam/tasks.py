"""What the study compares, and on what: rules of a population, functions and networks."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import optabs
from benchmarks.lab.functions import FUNCTIONS, noisy
from benchmarks.lab.tasks import (
    Split,
    Splits,
    breast_cancer_splits,
    digits_splits,
    image_splits,
    mlp,
    needed,
)
from optabs import genetics
from optabs.evolution.state import Inheritance

UNITS, STEPS = 16, 2000  # of a population on a function, and of each unit
NETWORK_UNITS, EPOCHS, BATCH = 8, 40, 50
NEAR = 0.1  # of a mutation near the entry, in half-widths of the box
HIDDEN = 16
SUBSET, SUBSET_VALIDATION = 2000, 1000  # images of MNIST
SAMPLED = 256  # points of the box whose gradients set the size of the noise

Draw = Callable[[jax.Array, Any], Any]  # (key, parameters) -> a tree like them


class Problem(NamedTuple):
    """What one seed's population learns and is judged by."""

    init_fn: Callable[[jax.Array], Any]
    loss_fn: Callable[[Any, Any], jax.Array]
    data: Any
    batch_size: int | None
    judge: Callable[[Any, Any], jax.Array]  # as loss_fn: without noise, on validation data
    validation: Any
    draws: Mapping[str, Draw]


class Task(NamedTuple):
    """What is compared on; a seed's problem is the same for every arm and rate."""

    title: str
    units: int
    epochs: int  # of each unit; on a function, an epoch is one step
    steps: int  # of an epoch
    scale: float  # of the learning rates
    pose: Callable[[jax.Array], Problem]
    test: Callable[[Any], tuple[jax.Array, jax.Array]] | None = None  # -> loss, accuracy


DIMENSIONS = (2, 10, 30, 100)
NOISY = "noisy"
CONDITIONS = {
    "shifted": "the minimum at a random place",
    "rotated": "and the axes turned at random",
    NOISY: "at a random place, with noise in every gradient",
}
NETWORKS = ("digits", "breast_cancer", "mnist")
NEED_IMAGES = ("mnist",)
TASKS = (
    *(f"{name}-{d}-{how}" for how in CONDITIONS for d in DIMENSIONS for name in FUNCTIONS),
    *NETWORKS,
)  # fmt: skip


@functools.cache
def task_of(name: str, source: pathlib.Path | None = None, epochs: int | None = None) -> Task:
    """A task by its name, where `epochs` is given with so many for each unit."""
    if name in NETWORKS:
        task = network_task(name, source)
    else:
        function, dimensions, condition = name.split("-")
        task = function_task(function, int(dimensions), condition)
    return task if epochs is None else task._replace(epochs=epochs)


def function_task(name: str, dimensions: int, condition: str) -> Task:
    """A function in so many dimensions; an epoch is one step."""
    function = FUNCTIONS[name]

    def start(key: jax.Array) -> jax.Array:
        return function.start(key, dimensions)

    def pose(key: jax.Array) -> Problem:
        place_key, noise_key, points_key = jax.random.split(key, 3)
        value, _ = function.placed(place_key, dimensions, rotated=condition == "rotated")
        loss = value
        if condition == NOISY:
            points = jax.vmap(start)(jax.random.split(points_key, SAMPLED))
            loss = noisy(value, noise_key, points)
        near = genetics.normal_around(NEAR * function.half_width)
        anywhere = _as_start(start)
        draws = {
            "unit": genetics.uniform_like,
            "start": anywhere,
            "near": near,
            "mixed": genetics.either(anywhere, near),
        }
        return Problem(
            start, lambda x, _: loss(x), None, None, lambda x, _: value(x), None, draws
        )

    title = f"{function.title}, {dimensions} dimensions, {CONDITIONS[condition]}"
    return Task(title, UNITS, STEPS, 1, function.half_width, pose)


def network_task(name: str, source: pathlib.Path | None = None) -> Task:
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
        NETWORK_UNITS, EPOCHS, -(-len(train.labels) // BATCH), 1.0,
        lambda key: problem, tested,
    )  # fmt: skip


def spread_like(key: jax.Array, params: Any) -> Any:
    """Each entry drawn from the normal distribution of its leaf's mean and spread."""

    def drawn(key: jax.Array, leaf: jax.Array) -> jax.Array:
        return leaf.mean() + leaf.std() * jax.random.normal(key, leaf.shape, leaf.dtype)

    return jax.tree.map(drawn, optax.tree.split_key_like(key, params), params)


def _as_start(start: Callable[[jax.Array], Any]) -> Draw:
    return lambda key, params: start(key)


def _splits(name: str, source: pathlib.Path | None) -> Splits:
    if name == "breast_cancer":
        return breast_cancer_splits()
    if name == "digits":
        return digits_splits()
    train, validation, test = image_splits(name, needed(name, source), half=True)

    def first(split: Split, count: int) -> Split:
        return Split(split.inputs[:count], split.labels[:count])

    return first(train, SUBSET), first(validation, SUBSET_VALIDATION), test


class Alone(NamedTuple):
    """Independent runs of Adam, the best of which counts."""

    label: str
    restarts: int = 1  # of each unit, which share its steps


class Rule(NamedTuple):
    """Gadam under one choice of its settings."""

    label: str
    epochs: int  # of each learning
    mutation_rate: float = 0.01
    draw: str = "unit"  # what mutation draws from, by its name in Problem.draws
    pressure: float = 1.0
    inheritance: Inheritance = "crossover"
    relearn: bool = True

    def generations(self, epochs: int) -> int:
        """How many fit into the epochs of one unit."""
        if self.relearn:
            return epochs // (2 * self.epochs)
        return epochs // self.epochs - 1


Arm = Alone | Rule
BASELINE, RESTARTS, LITERAL, TUNED = "best_of_g", "restarts", "literal", "tuned"
MAIN = (BASELINE, RESTARTS, LITERAL, TUNED)  # the others change a setting of the last two

# On functions, where an epoch is a step.
_LITERAL = Rule("Gadam, literal", 50)
_TUNED = Rule("Gadam, tuned", 2, 0.03, "mixed", inheritance="fresh")
FUNCTION_ARMS: dict[str, Arm] = {
    BASELINE: Alone("best of g Adam"),
    RESTARTS: Alone("Adam, 40 restarts", 40),
    LITERAL: _LITERAL,
    TUNED: _TUNED,
    "epochs_1": _TUNED._replace(label="1 step a learning", epochs=1),
    "epochs_5": _TUNED._replace(label="5 steps", epochs=5),
    "epochs_10": _TUNED._replace(label="10 steps", epochs=10),
    "epochs_50": _TUNED._replace(label="50 steps", epochs=50),
    "crossover": _TUNED._replace(label="optimizer states crossed", inheritance="crossover"),
    "once": _TUNED._replace(label="parents learn once", relearn=False),
    "crossover_once": _TUNED._replace(
        label="states crossed, parents learn once", relearn=False, inheritance="crossover"
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
_NETWORK = Rule("Gadam, tuned", 2, 0.01, "spread", relearn=False)
NETWORK_ARMS: dict[str, Arm] = {
    BASELINE: Alone("best of g Adam"),
    RESTARTS: Alone("Adam, 4 restarts", 4),
    LITERAL: Rule("Gadam, literal", 2),
    TUNED: _NETWORK,
    "epochs_1": _NETWORK._replace(label="1 epoch a learning", epochs=1),
    "epochs_5": _NETWORK._replace(label="5 epochs", epochs=5),
    "fresh": _NETWORK._replace(label="fresh optimizer states", inheritance="fresh"),
    "relearn": _NETWORK._replace(label="parents relearn", relearn=True),
    "relearn_fresh": _NETWORK._replace(
        label="parents relearn, fresh states", relearn=True, inheritance="fresh"
    ),
    "mutation_0": _NETWORK._replace(label="no mutation", mutation_rate=0.0),
    "mutation_0.1": _NETWORK._replace(label="mutation 0.1", mutation_rate=0.1),
    "draw_unit": _NETWORK._replace(label="drawn from U(0, 1)", draw="unit"),
    "draw_start": _NETWORK._replace(label="drawn as the start", draw="start"),
    "pressure_4": _NETWORK._replace(label="pressure 4", pressure=4.0),
}


ARMS = FUNCTION_ARMS | NETWORK_ARMS


def arms_of(task: str) -> dict[str, Arm]:
    """The arms that train on a task."""
    return NETWORK_ARMS if task in NETWORKS else FUNCTION_ARMS


def fewest_epochs(task: str) -> int:
    """In which every arm has a generation, and every restart an epoch."""
    arms = arms_of(task).values()
    return max(arm.restarts if isinstance(arm, Alone) else 2 * arm.epochs for arm in arms)


class Count(NamedTuple):
    """What an arm spends, for one seed at one rate."""

    gradients: int
    judged: int  # losses evaluated to judge


def count_of(arm: Arm, task: Task) -> Count:
    """What an arm spends on a task."""
    units, epochs, steps = task.units, task.epochs, task.steps
    if isinstance(arm, Alone):
        learned = epochs // arm.restarts * arm.restarts
        return Count(units * learned * steps, units * learned)
    generations = arm.generations(epochs)
    learnings = 2 * generations if arm.relearn else 1 + generations
    return Count(units * learnings * arm.epochs * steps, 3 * units * generations)


def spent_at(arm: Arm, task: Task, length: int) -> np.ndarray:
    """The gradient evaluations before each point of a curve: int [length]."""
    total, first = count_of(arm, task).gradients, 0
    if isinstance(arm, Rule) and not arm.relearn:
        first = task.units * arm.epochs * task.steps  # before the first generation
    return first + (total - first) // length * np.arange(1, length + 1)
