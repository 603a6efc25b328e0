"""Compiled programs: an arm on a task over rates and seeds, and methods of evosax."""

import functools
import importlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import optabs
from benchmarks.gadam.tasks import Arm, Task
from optabs import GadamState, genetics

TOGETHER = 18  # pairs of a rate and a seed in one call; always so many, for one compilation
EVOSAX = "evosax.algorithms"


class Best(NamedTuple):
    """The best point that was judged so far."""

    loss: jax.Array  # float32 []
    params: Any

    def lower(self, other: "Best") -> "Best":
        """The one of the lower loss."""
        lower = other.loss < self.loss
        return jax.tree.map(lambda old, new: jnp.where(lower, new, old), self, other)


class Outcome(NamedTuple):
    """A finished run, or several along a leading axis."""

    curve: Any  # float32 [points]: the best loss so far, after equal shares of the budget
    params: Any  # where it was
    diversity: Any  # float32 [points]: of the population, or None


def run(task: Task, arm: Arm, rate: Any, seed: Any) -> Outcome:
    """Runs an arm, which keeps the best point that it judged.

    So Adam alone is not charged for a rate that leads past it.
    """
    pose_key, run_key = jax.random.split(jax.random.key(seed))
    problem = task.pose(pose_key)
    loss_fn, data, validation = problem.loss_fn, problem.data, problem.validation
    learner = optabs.gadam(
        optabs.adam(rate * task.scale), task.units, arm.mutation_rate, epochs=arm.epochs,
        batch_size=problem.batch_size, pressure=arm.pressure, sample=problem.draws[arm.draw],
        inheritance=arm.inheritance,
    )  # fmt: skip

    def point(carry: tuple[GadamState, Best], _: Any) -> Any:
        (state, best), diversity = carry, None
        if arm.relearn:
            state, _ = learner.learn(state, loss_fn, data)
        if arm.restarts:
            losses = jax.vmap(lambda params: problem.judge(params, validation))(state.params)
        else:
            state, evolution = learner.evolve(
                state, loss_fn, data, validation, fitness_fn=problem.judge
            )
            losses, diversity = state.losses, evolution.diversity
        first = genetics.survivors(losses, 1)[0]
        unit = jax.tree.map(lambda units: units[first], state.params)
        best = best.lower(Best(losses[first], unit))
        return (state, best), (best.loss, diversity)

    def start(best: Best, key: jax.Array) -> tuple[Best, Any]:
        state = learner.init(key, problem.init_fn)
        if not arm.relearn:
            state, _ = learner.learn(state, loss_fn, data)
        (_, best), seen = jax.lax.scan(point, (state, best), length=arm.points(task.epochs))
        return best, seen

    split = jax.random.split
    keys = split(run_key, arm.restarts) if arm.restarts else split(run_key)[1:]
    first = Best(jnp.array(jnp.inf), problem.init_fn(run_key))
    best, (curve, diversity) = jax.lax.scan(start, first, keys)
    return Outcome(curve.ravel(), best.params, None if arm.restarts else diversity[0])


def program_of(task: Task, arm: Arm) -> Callable[..., Outcome]:
    """The arm's compiled program, of a sequence of rates and one of as many seeds."""
    # On a CPU compiling takes longer than running: 3 s in place of 16 s for one on digits.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}
    compiled = jax.jit(jax.vmap(functools.partial(run, task, arm)), compiler_options=options)

    def program(rates: Sequence[float], seeds: Sequence[int]) -> Outcome:
        # The last call's missing pairs are the first ones again.
        shape = (-(-len(seeds) // TOGETHER), TOGETHER)
        calls = np.resize(np.asarray(rates, np.float32), shape), np.resize(seeds, shape)
        outcomes = [jax.device_get(compiled(*pairs)) for pairs in zip(*calls, strict=True)]
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(seeds)], *outcomes)

    return program


class Peer(NamedTuple):
    """A method of evosax, by the name that it has there."""

    label: str
    algorithm: str
    settings: Sequence[tuple[int, float]]  # to choose from


# As many as the arms have rates: spreads at the start, in half-widths of a box, or weights.
SPREADS = tuple(itertools.product((16, 256), (0.03, 0.1, 0.5)))
WEIGHTS = tuple(itertools.product((64, 256), (0.3, 0.5, 0.8)))
PEERS: Mapping[str, Peer] = {
    "cma_es": Peer("CMA-ES", "CMA_ES", SPREADS),
    "sep_cma_es": Peer("separable CMA-ES", "Sep_CMA_ES", SPREADS),
    "snes": Peer("SNES", "SNES", SPREADS),
    "differential_evolution": Peer("differential evolution", "DifferentialEvolution", WEIGHTS),
}
SMALL = "cma_es"  # for functions alone: a network's covariances would be too many


def search(
    task: Task, peer: Peer, setting: tuple[int, float], seed: jax.Array, generations: jax.Array
) -> Best:
    """Runs a method, which sees the loss on all the data that the units learn from.

    The best of each generation is judged as the arms are, and the best of those counts.
    """
    size, strength = setting
    pose_key, run_key = jax.random.split(jax.random.key(seed))
    problem = task.pose(pose_key)
    start_key, run_key = jax.random.split(run_key)
    start_key, init_key = jax.random.split(start_key)
    start = problem.init_fn(start_key)
    losses_of = jax.vmap(lambda point: problem.loss_fn(point, problem.data))
    algorithm = getattr(importlib.import_module(EVOSAX), peer.algorithm)
    method = algorithm(population_size=size, solution=start)
    params = method.default_params
    if hasattr(params, "std_init"):
        params = params.replace(std_init=jnp.asarray(strength * task.scale))
        state = method.init(init_key, start, params)
    else:
        names = (f"differential_weight{end}" for end in ("", "_min", "_max"))
        params = params.replace(elitism=False, **dict.fromkeys(names, strength))
        points = jax.vmap(problem.init_fn)(jax.random.split(start_key, size))
        state = method.init(init_key, points, losses_of(points), params)

    def generation(index: jax.Array, carry: tuple[Any, Best]) -> tuple[Any, Best]:
        state, best = carry
        ask_key, tell_key = jax.random.split(jax.random.fold_in(run_key, index))
        points, state = method.ask(ask_key, state, params)
        # A method that is given a NaN is lost.
        losses = jnp.nan_to_num(losses_of(points), nan=jnp.inf, posinf=jnp.inf)
        state, _ = method.tell(tell_key, points, losses, state, params)
        first = jax.tree.map(lambda leaf: leaf[jnp.argmin(losses)], points)
        return state, best.lower(Best(problem.judge(first, problem.validation), first))

    best = Best(jnp.array(jnp.inf), start)
    return jax.lax.fori_loop(0, generations, generation, (state, best))[1]
