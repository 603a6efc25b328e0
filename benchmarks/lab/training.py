"""A task, an arm, and the compiled program that trains the one with the other."""

import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.lab.records import rounded
from benchmarks.lab.timing import tree_bytes, tree_size
from optabs._tree import tree_where

POINTS = 100  # of a curve, where the task does not say how many
# Times the first loss: what a loss above it, or a NaN, counts as, and what one below does.
CEILING, FLOOR = 10.0, 1e-4
WARM_UP = 0.05  # share of the steps over which a rate that is warmed up rises
LAST = 0.05  # share of the steps over which the final loss is a mean

Rate = Any  # a number, or a dict of them
Optimizer: TypeAlias = optax.GradientTransformation


def constant(rate: Any, steps: int) -> optax.ScalarOrSchedule:
    """The rate itself."""
    del steps
    return rate


def cosine(rate: Any, steps: int) -> optax.Schedule:
    """A cosine decay of the rate to 0 over the steps."""
    return optax.cosine_decay_schedule(rate, steps)


def warmed_up(rate: Any, steps: int) -> optax.Schedule:
    """A linear rise to the rate over a twentieth of the steps, and a cosine decay to 0."""
    warm = max(1, round(WARM_UP * steps))
    rise, fall = optax.linear_schedule(0.0, rate, warm), cosine(rate, steps - warm)
    return optax.join_schedules([rise, fall], [warm])


class Task(NamedTuple):
    """What is learned: data, model, loss and score, as pure functions of keys and arrays.

    A loss should be at least 0 where nothing is left to learn, so that the area under it is
    one above the lowest that could be.
    """

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
    evaluate: Callable[[Any, Any, Any], tuple[jax.Array, jax.Array]]
    """(parameters, statistics, data) -> loss, accuracy."""
    classifies: bool = True  # else the accuracy is NaN
    schedule: Callable[[Any, int], optax.ScalarOrSchedule] = constant
    wrap: Callable[[Optimizer], Optimizer] = lambda optimizer: optimizer  # a weight decay
    points: int = POINTS  # of a curve; the greatest common divisor with the steps counts
    scored: bool = False  # by the validation data at every point, not only at the end
    best_tested: bool = False  # where test data are seen: at the best of these points, too
    by_steps: bool = False  # on CPUs, a call of each step; see `program_of`
    splits_of: Callable[[int], tuple[Any, Any, Any]] | None = None
    """From a seed to data of the same shapes, for training, validation and test, that it has
    in place of the others."""
    scope: str = "all"  # which of the study's arms train on it

    def optimizer(self, arm: "Arm", rate: Rate) -> optax.GradientTransformationExtraArgs:
        """The arm's optimizer, its rates under the task's schedule."""
        scheduled = jax.tree.map(lambda each: self.schedule(each, self.steps), rate)
        return optax.with_extra_args_support(self.wrap(arm.make(scheduled)))


class Arm(NamedTuple):
    """One contender: a name and how to make its optimizer from a rate."""

    label: str  # in tables and legends
    make: Callable[[Any], Optimizer]  # rate: a number or a schedule, or a dict of them
    watch: Callable[[Any], Mapping[str, jax.Array]] = lambda state: {}
    """From the optimizer's state to what is drawn beside the loss."""
    evaluated: Callable[[Any, Any], Any] = lambda state, params: params
    """(state, parameters) -> those at which the loss counts."""
    halves: bool = False
    """Whether parameters, and so gradients, are bfloat16; the model computes in float32."""


class Outcome(NamedTuple):
    """A finished run."""

    losses: np.ndarray  # float32 [steps]: of each mini-batch, before the step
    validation: tuple[float, float]  # loss and accuracy of the last parameters
    test: tuple[float, float] | None  # likewise, where it was asked for
    watched: dict[str, np.ndarray]  # float32 [points]
    best_test: tuple[float, float] | None = None
    """Where it was asked for: at the point of the curve with the lowest validation loss."""


Program = Callable[[Rate, int], Outcome]


def program_of(task: Task, arm: Arm, *, test: bool = False) -> Program:
    """Compiles the training of a task with an arm, for any rate and any seed.

    A seed's start, noise and batches are the same for every arm. A training is one program,
    but for tasks `by_steps` on CPUs, where XLA's convolutions inside of a loop take 40 times
    as long.

    With `test`, the last parameters are scored on the test data, and for tasks `best_tested`
    those of the point with the lowest validation loss, which are kept for it: the test data
    choose nothing, and are seen twice however many points there are.
    """
    evaluate = jax.jit(task.evaluate)
    if task.by_steps and jax.default_backend() == "cpu":
        run = _run_of(task, arm, evaluate, scan=_scan, jit=jax.jit)
    else:
        run = jax.jit(_run_of(task, arm, evaluate))

    def program(rate: Rate, seed: int) -> Outcome:
        rate = jax.tree.map(np.float32, rate)
        data = task.train, task.validation, task.test
        train, validation, held_out = task.splits_of(seed) if task.splits_of else data
        found = run(rate, np.asarray(seed), train, validation)
        last, best, losses, scores, watched = found
        seen, best_seen = (
            _floats(evaluate(*model, held_out)) if test and model else None
            for model in (last, best)
        )
        watched = {name: np.asarray(values) for name, values in watched.items()}
        return Outcome(np.asarray(losses), _floats(scores), seen, watched, best_seen)

    return program


def training_step(
    loss_fn: Callable[..., Any], optimizer: Optimizer
) -> Callable[[Any, Any], tuple[Any, jax.Array]]:
    """A step: (parameters, statistics, optimizer's state) and a batch -> the same, loss."""
    update = optax.with_extra_args_support(optimizer).update

    def step(carry: Any, batch: Any) -> tuple[Any, jax.Array]:
        params, statistics, state = carry
        (loss, statistics), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            params, statistics, batch
        )
        updates, state = update(grads, state, params, value=loss, batch=batch)
        return (optax.apply_updates(params, updates), statistics, state), loss

    return step


def _run_of(
    task: Task,
    arm: Arm,
    evaluate: Callable[..., Any],
    scan: Callable[..., Any] = jax.lax.scan,
    jit: Callable[..., Any] = lambda function, **_: function,
) -> Callable[..., Any]:
    """(rate, seed, train, validation) -> last and best model, losses, scores, watched.

    A model is its parameters and statistics; the best one is () where none is asked for.
    """
    points = math.gcd(task.steps, task.points)

    def start(rate: Rate, seed: jax.Array) -> tuple[Any, Any]:
        start_key, feed_key = jax.random.split(jax.random.key(seed))
        params, statistics = task.init(start_key)
        items = jax.tree.map(
            lambda leaf: leaf.reshape(points, -1, *leaf.shape[1:]),
            task.feed(feed_key, task.steps),
        )
        state = task.optimizer(arm, rate).init(params)
        params = optax.tree.cast(params, jnp.bfloat16 if arm.halves else None)
        return (params, statistics, state), items

    def loss_fn(params: Any, statistics: Any, batch: Any) -> tuple[jax.Array, Any]:
        params = optax.tree.cast(params, jnp.float32 if arm.halves else None)
        return task.loss_fn(params, statistics, batch)

    def step(rate: Rate, train: Any, carry: Any, item: Any) -> Any:
        own = training_step(loss_fn, task.optimizer(arm, rate))
        return own(carry, task.batch(train, item))

    def better(best: Any, loss: jax.Array, model: Any) -> Any:
        # Whatever the first point is, it is the best one so far.
        better = (loss < best[0]) | jnp.isnan(best[0])
        return tree_where(better, (loss, model), best)

    starts, steps, better = jit(start), jit(step, donate_argnums=2), jit(better)

    def run(rate: Rate, seed: jax.Array, train: Any, validation: Any) -> Any:
        def point(carry: Any, items: Any) -> Any:
            carry, best = carry
            carry, losses = scan(functools.partial(steps, rate, train), carry, items)
            params, statistics, state = carry
            seen = dict(arm.watch(state))
            if task.scored:
                names = ("validation_loss", "validation_accuracy")
                model = arm.evaluated(state, params), statistics
                scores = evaluate(*model, validation)
                seen |= dict(zip(names, scores, strict=True))
                if task.best_tested:
                    best = better(best, scores[0], model)
            return (carry, best), (losses, seen)

        carry, items = starts(rate, seed)
        params, statistics, state = carry
        # Not the start itself, whose buffers the first step takes.
        model = jax.tree.map(jnp.zeros_like, (arm.evaluated(state, params), statistics))
        best = (jnp.float32(jnp.nan), model) if task.best_tested else (None, ())
        (carry, (_, best)), (losses, watched) = scan(point, (carry, best), items)
        params, statistics, state = carry
        last = arm.evaluated(state, params), statistics
        scores = evaluate(*last, validation)
        return last, best, losses.reshape(-1), scores, watched

    return run


def _scan(function: Callable[..., Any], carry: Any, items: Any) -> tuple[Any, Any]:
    """What jax.lax.scan computes, in calls from Python."""
    results = []
    for place in range(len(jax.tree.leaves(items)[0])):
        carry, result = function(carry, jax.tree.map(operator.itemgetter(place), items))
        results.append(result)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def _floats(scores: Sequence[jax.Array]) -> tuple[float, float]:
    loss, accuracy = map(float, scores)
    return loss, accuracy


def measures_of(outcome: Outcome) -> dict[str, Any]:
    """What counts of a run.

    Returns:
      area: mean training loss over the steps. final_loss: the same over the last twentieth.
      validation_loss. In all three a loss is between FLOOR and CEILING times the first one,
      the latter where it is not finite: a divergence is bad but not infinitely so, and a
      ratio of two losses is not one of two roundings.
      validation_accuracy, and after a look at the test data test_loss and test_accuracy, and
      best_test_loss and best_test_accuracy of the point with the lowest validation loss.
      diverged: some loss was not finite, or the last twentieth's mean was above the first.
    """
    losses = outcome.losses.astype(np.float64)
    last = max(1, round(LAST * len(losses)))
    bounded = _bounded(losses, losses[0])
    tail = bounded[-last:].mean()
    loss, accuracy = outcome.validation
    finite = bool(np.isfinite(losses).all() and math.isfinite(loss))
    measures: dict[str, Any] = {
        "area": bounded.mean(),
        "final_loss": tail,
        "validation_loss": float(_bounded(loss, losses[0])),
        "validation_accuracy": accuracy,
    }
    for name, scores in (("test", outcome.test), ("best_test", outcome.best_test)):
        if scores is not None:
            measures[f"{name}_loss"] = float(_bounded(scores[0], losses[0]))
            measures[f"{name}_accuracy"] = scores[1]
    kept = {name: rounded(value) for name, value in measures.items()}
    return kept | {"diverged": not finite or bool(tail > losses[0])}


def curves_of(outcome: Outcome, points: int = POINTS) -> dict[str, Any]:
    """Curves of a run: the training loss, means over equal stretches, and what was watched.

    The loss is bounded as the measures are.
    """
    bounded = _bounded(outcome.losses, outcome.losses[0])
    loss = bounded.reshape(math.gcd(len(bounded), points), -1).mean(1)
    return {"loss": rounded(loss)} | {n: rounded(each) for n, each in outcome.watched.items()}


def _bounded(losses: np.ndarray | float, first: float) -> np.ndarray:
    known = np.where(np.isnan(losses), np.inf, losses)
    return np.clip(known, FLOOR * first, CEILING * first)


def state_bytes(task: Task, arm: Arm, rate: Rate = 1.0) -> float:
    """Bytes of the optimizer's state for each parameter."""
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    state = jax.eval_shape(task.optimizer(arm, rate).init, params)
    return tree_bytes(state) / tree_size(params)
