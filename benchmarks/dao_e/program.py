"""One compiled program that trains a task with an arm, for any rates and any seed."""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import optabs
from benchmarks.dao_e.arms import Arm
from benchmarks.lab.tasks import Task

POINTS = 100  # looks at the weights in a run, and points kept of its loss curve
# Times the first loss: what a loss above it, or a NaN, counts as, and what one below does.
CEILING, FLOOR = 10.0, 1e-4
LAST = 0.05  # share of the steps over which the final loss is a mean


class Outcome(NamedTuple):
    """A finished run."""

    losses: np.ndarray  # float32 [steps]: of each mini-batch, before the step
    validation: tuple[float, float]  # loss and accuracy
    test: tuple[float, float] | None  # the same, where it was wanted
    watched: dict[str, np.ndarray]  # float32 [looks] each: weights and multiplier


Program = Callable[[Sequence[float], int], Outcome]


def program_of(task: Task, arm: Arm, *, test: bool = False) -> Program:
    """Compiles a training once; a seed's start, noise and batches are those of every arm.

    A training is one program, but for tasks `by_steps` on CPUs, where XLA's convolutions
    inside of a loop take 40 times as long.

    Args:
      task: what is learned.
      arm: by what.
      test: whether the last parameters are scored on the test data.

    Returns:
      A function from the rates of the arm's experts and a seed to the outcome.
    """
    looks = math.gcd(task.steps, POINTS)

    def optimizer_of(rates: jax.Array) -> optax.GradientTransformationExtraArgs:
        return arm.build(task, dict(zip(arm.experts, rates, strict=True)))

    def start(rates: jax.Array, seed: jax.Array) -> tuple[Any, Any]:
        start_key, feed_key = jax.random.split(jax.random.key(seed))
        params, statistics = task.init(start_key)
        items = jax.tree.map(
            lambda leaf: leaf.reshape(looks, -1, *leaf.shape[1:]),
            task.feed(feed_key, task.steps),
        )
        return (params, statistics, optimizer_of(rates).init(params)), items

    def step(rates: jax.Array, train: Any, carry: Any, item: Any) -> Any:
        params, statistics, state = carry
        batch = task.batch(train, item)
        (loss, statistics), grads = jax.value_and_grad(task.loss_fn, has_aux=True)(
            params, statistics, batch
        )
        updates, state = optimizer_of(rates).update(
            grads, state, params, value=loss, batch=batch
        )
        return (optax.apply_updates(params, updates), statistics, state), loss

    evaluate = jax.jit(task.evaluate)

    def train_with(scan: Any, starts: Any, steps: Any) -> Any:
        def run(rates: jax.Array, seed: jax.Array, train: Any, validation: Any) -> Any:
            def look(carry: Any, items: Any) -> Any:
                carry, losses = scan(functools.partial(steps, rates, train), carry, items)
                return carry, (losses, _watch(arm, carry[-1]))

            carry, (losses, watched) = scan(look, *starts(rates, seed))
            params, statistics, state = carry
            params = arm.evaluated(state, params)
            scores = evaluate(params, statistics, validation)
            return params, statistics, losses.reshape(-1), scores, watched

        return run

    if task.by_steps and jax.default_backend() == "cpu":
        compiled = train_with(_scan, jax.jit(start), jax.jit(step, donate_argnums=2))
    else:
        compiled = jax.jit(train_with(jax.lax.scan, start, step))

    def program(rates: Sequence[float], seed: int) -> Outcome:
        params, statistics, losses, scores, watched = compiled(
            np.asarray(rates, np.float32), np.asarray(seed), task.train, task.validation
        )
        seen = _floats(evaluate(params, statistics, task.test)) if test else None
        watched = {name: np.asarray(values) for name, values in watched.items()}
        return Outcome(np.asarray(losses), _floats(scores), seen, watched)

    return program


def _scan(function: Callable[..., Any], carry: Any, items: Any) -> tuple[Any, Any]:
    """What jax.lax.scan computes, in calls from Python."""
    results = []
    for place in range(len(jax.tree.leaves(items)[0])):
        carry, result = function(carry, jax.tree.map(operator.itemgetter(place), items))
        results.append(result)
    return carry, jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *results)


def validation_loss(program: Program, rate: float, seed: int) -> float:
    """Of a run with one rate; infinite where it diverged."""
    measures = measures_of(program([rate], seed))
    return math.inf if measures["diverged"] else measures["validation_loss"]


def _watch(arm: Arm, state: Any) -> dict[str, jax.Array]:
    if not arm.mixes:
        return {}
    multiplier = jax.numpy.exp(optax.tree.get(state, "log_multiplier"))
    return optabs.mixing_weights(state) | {"multiplier": multiplier}


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
      validation_accuracy, and after a look at the test data test_loss and test_accuracy.
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
        "diverged": not finite or bool(tail > losses[0]),
    }
    if outcome.test is not None:
        loss, accuracy = outcome.test
        measures["test_loss"] = float(_bounded(loss, losses[0]))
        measures["test_accuracy"] = accuracy
    return measures


def curve_of(losses: np.ndarray) -> np.ndarray:
    """Means of the training loss over equal stretches of a run: float [points].

    Bounded as the measures are.
    """
    bounded = _bounded(losses, losses[0])
    return bounded.reshape(math.gcd(len(losses), POINTS), -1).mean(1)


def _bounded(losses: np.ndarray | float, first: float) -> np.ndarray:
    known = np.where(np.isnan(losses), np.inf, losses)
    return np.clip(known, FLOOR * first, CEILING * first)
