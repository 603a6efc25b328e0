"""Black-box methods of evosax, as programs that run for a number of generations."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.gadam.program import Best
from benchmarks.gadam.tasks import Problem, Task
from benchmarks.lab.arguments import ArgumentError

Search = Callable[[jax.Array, jax.Array], Best]  # (seed [], generations []) -> the best point


class Setting(NamedTuple):
    """One of those a method may choose from."""

    population: int
    strength: float  # the spread of the first population, or the weight of a difference


class Peer(NamedTuple):
    """A method of evosax, by the name that it has there."""

    label: str
    algorithm: str
    settings: tuple[Setting, ...]
    start: Callable[[Any, jax.Array, Problem, Setting, float], Any]
    largest: int | None = None  # number of parameters that it is made for


def load_evosax() -> Any:
    """The algorithms of evosax; raises ArgumentError where it is missing."""
    try:
        return importlib.import_module("evosax.algorithms")
    except ImportError as error:
        raise ArgumentError(
            f"evosax cannot be imported ({error}); call `make peers`, or leave out peers."
        ) from error


def search_of(task: Task, peer: Peer, setting: Setting) -> Search:
    """The method on a task, compiled; the number of generations is an argument.

    It sees the loss on all the data that the units learn from. The best of each generation
    is judged as the arms are, and the best of those is the result.
    """
    algorithm = getattr(load_evosax(), peer.algorithm)

    def search(seed: jax.Array, generations: jax.Array) -> Best:
        pose_key, run_key = jax.random.split(jax.random.key(seed))
        problem = task.pose(pose_key)
        start_key, run_key = jax.random.split(run_key)
        shape = jax.eval_shape(problem.init_fn, start_key)
        solution = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)
        method = algorithm(population_size=setting.population, solution=solution)
        state, params = peer.start(method, start_key, problem, setting, task.scale)
        losses_of = jax.vmap(lambda point: problem.loss_fn(point, problem.data))

        def generation(index: jax.Array, carry: tuple[Any, Best]) -> tuple[Any, Best]:
            state, best = carry
            ask_key, tell_key = jax.random.split(jax.random.fold_in(run_key, index))
            points, state = method.ask(ask_key, state, params)
            losses = losses_of(points)
            # A method that was told a NaN would be lost.
            losses = jnp.where(jnp.isnan(losses), jnp.inf, losses)
            state, _ = method.tell(tell_key, points, losses, state, params)
            first = jax.tree.map(lambda leaf: leaf[jnp.argmin(losses)], points)
            loss = problem.judge(first, problem.validation)
            better = loss < best.loss
            kept = jax.tree.map(
                lambda new, old: jnp.where(better, new, old), first, best.params
            )
            return state, Best(jnp.where(better, loss, best.loss), kept)

        best = Best(jnp.array(jnp.inf), solution)
        return jax.lax.fori_loop(0, generations, generation, (state, best))[1]

    return jax.jit(search)


def _distribution(
    method: Any, key: jax.Array, problem: Problem, setting: Setting, scale: float
) -> Any:
    params = method.default_params.replace(std_init=jnp.asarray(setting.strength * scale))
    start_key, init_key = jax.random.split(key)
    return method.init(init_key, problem.init_fn(start_key), params), params


def _population(
    method: Any, key: jax.Array, problem: Problem, setting: Setting, scale: float
) -> Any:
    params = method.default_params.replace(
        elitism=False,
        differential_weight=setting.strength,
        differential_weight_min=setting.strength,
        differential_weight_max=setting.strength,
    )
    start_key, init_key = jax.random.split(key)
    points = jax.vmap(problem.init_fn)(jax.random.split(start_key, setting.population))
    losses = jax.vmap(lambda point: problem.loss_fn(point, problem.data))(points)
    return method.init(init_key, points, losses, params), params


# As many settings as the arms have rates; spreads are in half-widths of a function's box.
_SPREADS = tuple(Setting(size, spread) for size in (16, 256) for spread in (0.03, 0.1, 0.5))
_WEIGHTS = tuple(Setting(size, weight) for size in (64, 256) for weight in (0.3, 0.5, 0.8))
PEERS: Mapping[str, Peer] = {
    "cma_es": Peer("CMA-ES", "CMA_ES", _SPREADS, _distribution, largest=200),
    "sep_cma_es": Peer("separable CMA-ES", "Sep_CMA_ES", _SPREADS, _distribution),
    "snes": Peer("SNES", "SNES", _SPREADS, _distribution),
    "differential_evolution": Peer(
        "differential evolution", "DifferentialEvolution", _WEIGHTS, _population
    ),
}
