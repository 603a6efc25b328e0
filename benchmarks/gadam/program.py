"""One compiled program for an arm on a task, over rates and seeds."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import optabs
from benchmarks.gadam.alignment import aligned
from benchmarks.gadam.arms import Alone, Arm, Rule
from benchmarks.gadam.tasks import Problem, Task, near_one
from optabs import GadamState, genetics

TOGETHER = 18  # pairs of a rate and a seed in one call; always so many, for one compilation
# On a CPU compiling takes longer than running: 3 s in place of 16 s for one on digits.
CPU_OPTIONS = {"xla_backend_optimization_level": 1}


class Best(NamedTuple):
    """The best point that was judged so far."""

    loss: jax.Array  # float32 []
    params: Any


class Lineage(NamedTuple):
    """Who descends from whom, generation by generation."""

    parents: Any  # int32 [generations, g, 2]
    survivors: Any  # int32 [generations, g]
    diversity: Any  # float32 [generations]


class Outcome(NamedTuple):
    """Finished runs; every array has a leading axis, a row per rate and seed."""

    curve: Any  # float32 [n, looks]: the best loss so far, after equal shares of the budget
    params: Any  # [n, ...]: where it was
    lineage: Lineage | None


Pair = Callable[[jax.Array, jax.Array], Outcome]
Program = Callable[[Sequence[float], Sequence[int]], Outcome]


def pair_of(task: Task, arm: Arm) -> Pair:
    """The arm's run for one rate and one seed.

    Every arm keeps the best point that it judged, so that Adam alone is not charged for a
    rate that leads past it.
    """

    def of_pair(rate: jax.Array, seed: jax.Array) -> Outcome:
        pose_key, run_key = jax.random.split(jax.random.key(seed))
        problem, unit = task.pose(pose_key), optabs.adam(rate * task.scale)
        if isinstance(arm, Alone):
            return _alone(task, arm, problem, unit, run_key)
        return _evolved(task, arm, problem, unit, run_key)

    return of_pair


def program_of(task: Task, arm: Arm) -> Program:
    """The arm's compiled program, for pairs of a rate and a seed."""
    options = CPU_OPTIONS if jax.default_backend() == "cpu" else {}
    compiled = jax.jit(jax.vmap(pair_of(task, arm)), compiler_options=options)

    def program(rates: Sequence[float], seeds: Sequence[int]) -> Outcome:
        count = len(seeds)
        given = np.asarray(rates, np.float32), np.asarray(seeds)
        # The last call's missing pairs are the first ones again.
        pairs = tuple(np.resize(each, -(-count // TOGETHER) * TOGETHER) for each in given)
        outcomes = [
            jax.tree.map(np.asarray, compiled(*(each[at : at + TOGETHER] for each in pairs)))
            for at in range(0, count, TOGETHER)
        ]
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *outcomes)

    return program


def _alone(task: Task, arm: Alone, problem: Problem, unit: Any, key: jax.Array) -> Outcome:
    learner = optabs.gadam(unit, task.units, epochs=1, batch_size=problem.batch_size)

    def epoch(carry: tuple[GadamState, Best], _: Any) -> Any:
        state, best = carry
        state, _ = learner.learn(state, problem.loss_fn, problem.data)
        losses = jax.vmap(lambda params: problem.judge(params, problem.validation))(
            state.params
        )
        best = _better(best, losses, state.params)
        return (state, best), best.loss

    def restart(best: Best, key: jax.Array) -> tuple[Best, jax.Array]:
        state = learner.init(key, problem.init_fn)
        length = task.epochs // arm.restarts
        (_, best), curve = jax.lax.scan(epoch, (state, best), length=length)
        return best, curve

    start = Best(jnp.array(jnp.inf), problem.init_fn(key))
    best, curve = jax.lax.scan(restart, start, jax.random.split(key, arm.restarts))
    return Outcome(curve.ravel(), best.params, None)


def _evolved(task: Task, arm: Rule, problem: Problem, unit: Any, key: jax.Array) -> Outcome:
    start_key, run_key = jax.random.split(key)
    learner = optabs.gadam(
        unit,
        task.units,
        arm.mutation_rate,
        epochs=arm.epochs,
        batch_size=problem.batch_size,
        pressure=arm.pressure,
        sample=problem.draws[arm.draw],
        inheritance=arm.inheritance,
    )
    init_fn = problem.init_fn
    if arm.shared is not None:
        init_fn = near_one(init_fn, arm.shared, start_key)
    state = learner.init(run_key, init_fn)
    if not arm.relearn:
        state, _ = learner.learn(state, problem.loss_fn, problem.data)
    start = Best(jnp.array(jnp.inf), init_fn(start_key))

    def generation(carry: tuple[GadamState, Best], _: Any) -> Any:
        state, best = carry
        if arm.relearn:
            state, _ = learner.learn(state, problem.loss_fn, problem.data)
        if arm.aligned:
            state = aligned(state)
        state, told = learner.evolve(
            state, problem.loss_fn, problem.data, problem.validation, fitness_fn=problem.judge
        )
        best = _better(best, state.losses, state.params)
        lineage = Lineage(told.parents, told.survivors, told.diversity)
        return (state, best), (best.loss, lineage)

    length = arm.generations(task.epochs)
    (_, best), (curve, lineage) = jax.lax.scan(generation, (state, start), length=length)
    return Outcome(curve, best.params, lineage)


def _better(best: Best, losses: jax.Array, params: Any) -> Best:
    """The best so far, or the best unit where it is better."""
    first = genetics.survivors(losses, 1)[0]
    better = losses[first] < best.loss
    kept = jax.tree.map(
        lambda old, units: jnp.where(better, units[first], old), best.params, params
    )
    return Best(jnp.where(better, losses[first], best.loss), kept)
