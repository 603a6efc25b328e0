"""One optimizer on one problem: rates chosen on some seeds, results reported on others."""

import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from benchmarks import store
from benchmarks.lab.paths import evaluated
from benchmarks.survey.optimizers import Entry
from benchmarks.survey.problems import Problem

# Half decades. One grid for every optimizer and problem, wide enough for the widest.
RATES = tuple(float(f"{10 ** (half / 2):.3g}") for half in range(-12, 9))
TUNING_SEEDS = tuple(range(1_000_000, 1_000_005))  # the reported ones count from 0
BLOWN_UP = 1e3  # times the loss at the start: a divergence, as a loss that is not finite
LAST = 0.05  # share of the steps over which the final loss is a mean
CURVE = 120  # points kept of a curve, evenly in the step and as many in its logarithm
DIGITS_KEPT = 5


class Runs(NamedTuple):
    """Finished runs of one optimizer on one problem."""

    params: Any  # with leading axes [seeds, rates]
    losses: np.ndarray  # float32 [seeds, rates, looks + 1], the start's first


class Scores(NamedTuple):
    """What counts of some runs."""

    steps: np.ndarray  # float [seeds, rates]: to the target, infinite if not reached
    final: np.ndarray  # float [seeds, rates]: mean of the last, infinite if diverged


Sweep = Callable[[Sequence[float], Sequence[int]], Runs]


def sweep_of(problem: Problem, entry: Entry, steps: int) -> Sweep:
    """One compiled program for all rates and seeds of an optimizer on a problem.

    A seed's start, noise and batches are the same for every rate and every optimizer.
    """
    every = math.gcd(steps, problem.every)

    def run(rate: jax.Array, start: Any, feed: jax.Array) -> tuple[Any, jax.Array]:
        optimizer = optax.with_extra_args_support(entry.optimizer(rate, steps))

        def step(carry: Any, item: jax.Array) -> Any:
            params, state = carry
            grads = problem.gradient(params, item)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        def look(carry: Any, items: jax.Array) -> Any:
            (params, state), _ = jax.lax.scan(step, carry, items)
            return (params, state), problem.loss(evaluated(state, params))

        (params, state), losses = jax.lax.scan(look, (start, optimizer.init(start)), feed)
        return evaluated(state, params), losses

    def of_seed(rates: jax.Array, seed: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        start_key, feed_key = jax.random.split(jax.random.key(seed))
        start = problem.start(start_key)
        feed = problem.feed(feed_key, steps)
        feed = feed.reshape(steps // every, every, *feed.shape[1:])
        params, losses = jax.vmap(run, in_axes=(0, None, None))(rates, start, feed)
        return params, problem.loss(start), losses

    program = jax.jit(jax.vmap(of_seed, in_axes=(None, 0)))

    def sweep(rates: Sequence[float], seeds: Sequence[int]) -> Runs:
        params, first, rest = program(np.asarray(rates, np.float32), np.asarray(seeds))
        begin = np.broadcast_to(np.asarray(first)[:, None, None], (*rest.shape[:2], 1))
        return Runs(params, np.concatenate([begin, np.asarray(rest)], axis=-1))

    return sweep


def scores_of(losses: np.ndarray, share: float, steps: int) -> Scores:
    """Steps to the target and final losses of curves [..., looks + 1].

    The target is reached where the loss falls below it and stays there for the rest of the
    run, which is at least its last twentieth: a path that jumps over a minimum, again and
    again, has not arrived.
    """
    looks = losses.shape[-1] - 1
    last = max(1, round(LAST * looks))
    diverged = ~(losses <= BLOWN_UP * losses[..., :1]).all(axis=-1)
    # From the end: the first look above the target is the last one of the run.
    above = ~(losses <= share * losses[..., :1])[..., ::-1]
    arrival = looks - above.argmax(axis=-1) + 1
    arrived = (arrival <= looks + 1 - last) & ~diverged
    first = np.where(arrived, arrival * (steps // looks), np.inf)
    tail = losses[..., -last:].astype(np.float64)
    return Scores(first, np.where(diverged, np.inf, tail.mean(axis=-1)))


def choose(scores: Scores, judged_by: str) -> int:
    """The index of the best rate: medians over seeds, ties by the other measure."""
    steps, final = (np.median(score, axis=0) for score in scores)
    first, second = (steps, final) if judged_by == "steps" else (final, steps)
    return int(np.lexsort((second, first))[0])


class Task(NamedTuple):
    """One record to make: an optimizer on a problem."""

    problem_name: str
    name: str
    entry: Entry
    steps: int
    seeds: tuple[int, ...]

    def config(self, problem: Problem) -> dict[str, Any]:
        """What distinguishes the record."""
        return {
            "problem": self.problem_name,
            "title": problem.title,
            "optimizer": self.name,
            "steps": self.steps,
            "rates": RATES,
            "tuning_seeds": TUNING_SEEDS,
            "seeds": self.seeds,
            "share": problem.share,
            "judged_by": problem.judged_by,
        }

    def path(self, folder: pathlib.Path) -> pathlib.Path:
        """Where the record is kept."""
        return folder / "runs" / self.problem_name / f"{self.name}.json"


def study(task: Task, problem: Problem) -> dict[str, Any]:
    """Chooses the rate on the tuning seeds, then runs the reported ones, once."""
    sweep = sweep_of(problem, task.entry, task.steps)
    tuning = scores_of(sweep(RATES, TUNING_SEEDS).losses, problem.share, task.steps)
    best = choose(tuning, problem.judged_by)
    runs = sweep(RATES[best : best + 1], task.seeds)
    reported = scores_of(runs.losses, problem.share, task.steps)
    curve = np.median(runs.losses[:, 0], axis=0)
    last = len(curve) - 1
    spaced = [np.linspace(0, last, CURVE), np.geomspace(1, last, CURVE)]
    looks = np.unique(np.concatenate(spaced).round().astype(int))
    results: dict[str, Any] = {
        "rate": RATES[best],
        "at_edge": best in (0, len(RATES) - 1),
        "steps_to_target": _kept(reported.steps[:, 0]),
        "final_loss": _kept(reported.final[:, 0]),
        "curve_steps": (looks * (task.steps // last)).tolist(),
        "curve_loss": _kept(curve[looks]),
        "tuning_steps": [_kept(row) for row in tuning.steps.T],
        "tuning_final_loss": [_kept(row) for row in tuning.final.T],
    }
    if problem.accuracy is not None:
        of_all = jax.jit(jax.vmap(jax.vmap(problem.accuracy)))
        results["test_accuracy"] = _kept(np.asarray(of_all(runs.params))[:, 0])
    return {
        "config": task.config(problem),
        "results": results,
        "environment": store.environment(),
    }


def _kept(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{DIGITS_KEPT}g}") for value in values]
