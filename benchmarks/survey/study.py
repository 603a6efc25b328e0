"""What the survey's questions are put to: optimizers, tasks, and what counts of a run."""

import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import optabs
from benchmarks.lab import tasks
from benchmarks.lab.landscapes import LANDSCAPES, drawable, evaluated, path
from benchmarks.lab.records import Key, rounded
from benchmarks.lab.study import TUNING_SEEDS, Grid, tune
from benchmarks.lab.training import LAST, Arm, Outcome, Task, cosine, program_of

GRID = Grid(-12, 8)  # 1e-6 to 1e4, wide enough for the widest
SEEN = 0.01  # probability with which a coordinate's gradient is seen
BLOWN_UP = 1e3  # times the loss at the start: a divergence, as a loss that is not finite
LOOKS = 5  # steps between two looks at a validation set; elsewhere the loss is seen at each
POINTS = 240  # kept of a curve, and at most of a path

FAMILIES = {
    "momentum": ("sgd", "momentum", "nag"),
    "adaptive": ("adagrad", "rmsprop", "adadelta"),
    "adam": ("adam", "adamw", "nadam"),
    "absolute": ("adagrad_abs", "rmsprop_abs", "adadelta_abs", "rmsprop_abs_steady"),
    "adam_absolute": ("adam_abs", "adamw_abs", "nadam_abs", "adam_abs_steady"),
}
# Only where the gradients are noisy, for the question of adjusting the rate.
DECAYING = ("sgd_cosine", "momentum_cosine", "adam_cosine", "adam_abs_cosine")


def _arm(name: str) -> Arm:
    base, _, extra = name.rpartition("_")
    if extra == "steady":
        make = functools.partial(getattr(optabs, base), steady=True)
    else:
        make = getattr(optabs, base if extra == "cosine" else name)
    label = f"{base}, {extra}" if extra in ("steady", "cosine") else name
    return Arm(label, make, evaluated=evaluated)


# The steady ones at the end of a table, then the decaying ones.
_NAMES = sorted(sum(FAMILIES.values(), ()), key=lambda name: name.endswith("_steady"))
ARMS = {name: _arm(name) for name in (*_NAMES, *DECAYING)}


def arms_of(task: str) -> list[str]:
    """The optimizers that train on a task."""
    return [arm for arm in ARMS if task == "noisy" or arm not in DECAYING]


class Problem(NamedTuple):
    """A task, its target, and whether what is asked is the way or the end."""

    make: Callable[[pathlib.Path | None], Task]  # as a study wants it; the folder is not read
    share: float  # the target, as a share of the loss at the start
    judged_by: str = "steps"  # to the target, or "final" loss


def _landscape(name: str, title: str, steps: int, share: float = 1e-6) -> Problem:
    place = LANDSCAPES[name]
    centre, spread = jnp.array(place.start), jnp.array(place.spread)
    return Problem(
        lambda source: Task(
            title, steps,
            init=lambda key: (centre + spread * jax.random.normal(key, (2,)), {}),
            loss_fn=lambda params, statistics, item: (place.function(params), statistics),
            feed=lambda key, steps: jnp.zeros(steps),
            batch=lambda train, item: item,
            train=(), validation=(), test=(),
            evaluate=lambda params, *_: (place.function(params), jnp.array(jnp.nan)),
            classifies=False,
        ),
        share,
    )  # fmt: skip


def _sparse(source: pathlib.Path | None) -> Task:
    whole = tasks.quadratic()

    def loss_fn(params: Any, statistics: Any, seen: jax.Array) -> tuple[jax.Array, Any]:
        unseen = jax.lax.stop_gradient(params["point"])
        shown = {"point": jnp.where(seen, params["point"], unseen)}
        return whole.evaluate(shown, statistics, ())[0], statistics

    return whole._replace(
        title="the same quadratic, a coordinate's gradient is seen in "
        f"{SEEN:.0%} of the steps",
        steps=10_000,
        loss_fn=loss_fn,
        feed=lambda key, steps: jax.random.bernoulli(key, SEEN, (steps, tasks.DIMENSIONS)),
    )


PROBLEMS = {
    "rosenbrock": _landscape("rosenbrock", "Rosenbrock's valley", 10_000),
    "beale": _landscape("beale", "Beale's function", 5000),
    "saddle": _landscape("saddle", "a saddle", 2000, 1e-2),
    "ravine": _landscape("ravine", "a ravine along an axis, condition 1e4", 10_000),
    "rotated_ravine": _landscape("rotated_ravine", "the ravine turned by 45 degrees", 10_000),
    "noisy": Problem(lambda source: tasks.quadratic()._replace(steps=5000), 1e-2, "final"),
    "sparse": Problem(_sparse, 1e-2),
    "breast_cancer": Problem(
        lambda source: tasks.breast_cancer()._replace(steps=1000), 0.3, "final"
    ),
    "digits": Problem(
        lambda source: tasks.digits(tasks.mlp(64, 32, 10), "MLP 64-32-10", batch_size=64),
        0.1,
        "final",
    ),
}


def scores_of(losses: np.ndarray, share: float, steps: int) -> dict[str, np.ndarray]:
    """What counts of curves [..., looks + 1], the start's loss first: float [...].

    "final", a mean of the last losses, is infinite where the run diverged; "steps", where the
    target is not reached. It is where the loss falls below it and stays there for the rest of
    the run, at least its last twentieth: a path that jumps over a minimum has not arrived.
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
    return {"steps": first, "final": np.where(diverged, np.inf, tail.mean(axis=-1))}


def judged(losses: np.ndarray, problem: Problem, steps: int) -> np.ndarray:
    """What a rate is chosen by, the lower the better, of curves [..., looks + 1].

    By "steps", a run that does not arrive counts as more steps than it had, the more the
    higher its final loss over the one at the start is.
    """
    scores = scores_of(losses, problem.share, steps)
    if problem.judged_by == "final":
        return scores["final"]
    missed = steps * (1 + scores["final"] / losses[..., 0])
    return np.where(np.isfinite(scores["steps"]), scores["steps"], missed)


Run = Callable[[float, int], tuple[Outcome, np.ndarray]]


def run_of(task: Task, arm: str) -> Run:
    """A function from a rate and a seed to the outcome and the curve, float32 [looks + 1].

    The curve is the loss without noise or of the validation set, the start's first.
    """
    every = math.gcd(task.steps, LOOKS) if task.classifies else 1
    task = task._replace(scored=True, points=task.steps // every)
    if arm in DECAYING:
        task = task._replace(schedule=cosine)
    program = program_of(task, ARMS[arm], test=task.classifies)

    @jax.jit
    def loss_at_start(seed: jax.Array) -> jax.Array:
        start_key, _ = jax.random.split(jax.random.key(seed))
        return task.evaluate(*task.init(start_key), task.validation)[0]

    def run(rate: float, seed: int) -> tuple[Outcome, np.ndarray]:
        outcome = program(rate, seed)
        first = np.asarray(loss_at_start(np.asarray(seed)))
        return outcome, np.concatenate([first[None], outcome.watched["validation_loss"]])

    return run


def curves_of(run: Run, rates: Sequence[float], seeds: Sequence[int]) -> np.ndarray:
    """The curves of all rates and seeds: float32 [rates, seeds, looks + 1]."""
    return np.stack([[run(rate, seed)[1] for seed in seeds] for rate in rates])


def results_of(
    steps: int, seeds: int, missing: Sequence[Key], done: Mapping[Key, Any]
) -> Iterator[tuple[Key, dict[str, Any]]]:
    """Chooses the rate on the tuning seeds, then makes what is missing of one arm's keys.

    They are "tuning"; "run" of each seed; "curve", the median over them; and on a landscape
    "path", from its own start.
    """
    name, arm, *_ = missing[0]
    problem = PROBLEMS[name]
    run = functools.cache(run_of(problem.make(None)._replace(steps=steps), arm))

    def losses_of(rates: Sequence[float]) -> np.ndarray:
        return judged(curves_of(run, rates, TUNING_SEEDS), problem, steps)

    def scores(curves: np.ndarray) -> dict[str, Any]:
        found = scores_of(curves, problem.share, steps)
        return {measure: rounded(each) for measure, each in found.items()}

    tuning_key = Key(name, arm, kind="tuning")
    if tuning_key in done:
        best = done[tuning_key]["best"]
    else:
        tuning = tune(losses_of, GRID)
        best, rates = tuning.best, tuning.rates
        tried = scores(curves_of(run, rates, TUNING_SEEDS))
        yield tuning_key, {"best": best, "rates": rates, **tried}
    for key in missing:
        if key.seed is not None:
            outcome, curve = run(best, key.seed)
            result = {"rate": best, **scores(curve)}
            if outcome.test is not None:
                result["test_accuracy"] = rounded(outcome.test[1])
            yield key, result
        elif key.kind == "curve":
            losses = np.median(curves_of(run, [best], range(seeds)), (0, 1))
            last = len(losses) - 1
            looks = np.unique(np.linspace(0, last, POINTS).astype(int))
            yield key, {"steps": looks * (steps // last), "loss": rounded(losses[looks])}
        elif key.kind == "path":
            place = LANDSCAPES[name]
            drawn = drawable(place, path(place, ARMS[arm].make(best), steps))
            # Fewer and fewer of them: a path's first steps are its widest.
            looks = np.unique(np.geomspace(1, len(drawn), POINTS).astype(int)) - 1
            yield key, {"points": drawn[looks].round(4)}
