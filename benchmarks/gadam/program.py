"""Compiled programs: an arm on a task over rates and seeds, and methods of evosax."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import optabs
from benchmarks.gadam.tasks import Alone, Arm, Problem, Rule, Task, task_of
from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.processes import received
from benchmarks.lab.timing import tree_bytes
from optabs import GadamState, genetics
from optabs.evolution.devices import connect

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
    state = learner.init(run_key, problem.init_fn)
    if not arm.relearn:
        state, _ = learner.learn(state, problem.loss_fn, problem.data)
    start = Best(jnp.array(jnp.inf), problem.init_fn(start_key))

    def generation(carry: tuple[GadamState, Best], _: Any) -> Any:
        state, best = carry
        if arm.relearn:
            state, _ = learner.learn(state, problem.loss_fn, problem.data)
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
    unit = jax.tree.map(lambda units: units[first], params)
    return _lower(best, Best(losses[first], unit))


def _lower(best: Best, other: Best) -> Best:
    """The one of the lower loss."""
    return jax.tree.map(
        lambda old, new: jnp.where(other.loss < best.loss, new, old), best, other
    )


class Setting(NamedTuple):
    """One of those a method of evosax may choose from."""

    population: int
    strength: float  # the spread of the first population, or the weight of a difference


class Peer(NamedTuple):
    """A method of evosax, by the name that it has there."""

    label: str
    algorithm: str
    settings: tuple[Setting, ...]
    start: Callable[[Any, jax.Array, Problem, Setting, float], Any]
    largest: float = np.inf  # number of parameters that it is made for


def parameters_of(task: Task) -> int:
    """The number of parameters of a unit."""
    shape = jax.eval_shape(lambda: task.pose(jax.random.key(0)).init_fn(jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(shape))


Search = Callable[[Any, Any], Best]  # (seed [], generations []) -> the best point


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
            return state, _lower(best, Best(problem.judge(first, problem.validation), first))

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


def on_all_devices(generations: int = 5) -> dict[str, Any]:
    """Gadam on digits, over the devices of all processes that join in.

    Returns:
      The best loss of each generation, and the bytes that each device receives in a learning
      and in an evolution; also as a share of the population with its optimizers' states.
    """
    connect()
    devices = jax.device_count()
    problem = task_of("digits").pose(jax.random.key(0))
    learner = optabs.gadam(
        optabs.adam(1e-2), 2 * devices, epochs=2, batch_size=problem.batch_size,
        sample=problem.draws["spread"], mesh=jax.make_mesh((devices,), ("population",)),
    )  # fmt: skip
    data, loss_fn = (problem.data, problem.validation), problem.loss_fn
    result = learner.run(
        jax.random.key(0), problem.init_fn, loss_fn, *data,
        generations=generations, progress=False,
    )  # fmt: skip
    state, data = result.state, learner.plan.layout.replicated(data)
    learning = jax.jit(lambda state, train, _: learner.learn(state, loss_fn, train))
    evolution = jax.jit(lambda state, *data: learner.evolve(state, loss_fn, *data))
    sent = [
        sum(received(function.lower(state, *data).compile().as_text() or "").values())
        for function in (learning, evolution)
    ]
    return {
        "units": 2 * devices,
        "devices": devices,
        "processes": jax.process_count(),
        "best": [float(row.min()) for row in result.history["trial_losses"]],
        "learning_receives": sent[0],
        "evolution_receives": sent[1],
        "share": sent[1] / tree_bytes((state.params, state.opt_state)),
    }
