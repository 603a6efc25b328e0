"""Generation after generation: the stop rule, the history, the bar and the checkpoints."""

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from optabs import genetics
from optabs._checks import can_show_progress, require
from optabs.evolution.devices import Layout
from optabs.evolution.generation import init_program, place_state, programs
from optabs.evolution.state import Evolution, GadamState, Hyperparams, Losses, Plan
from optabs.training.checkpoints import (
    Checkpoints,
    as_numpy,
    digest,
    program_digest,
    structure,
)


class GadamResult(NamedTuple):
    """What a run of Gadam ends with."""

    params: Any  # the best unit's, without a population axis
    model_state: Any  # likewise, or ()
    population: Any  # the parameters of all units, [g, ...], the best one first
    # Of each generation, named as in Evolution: [generations, ...].
    history: dict[str, np.ndarray]
    converged: bool  # the tolerance was met
    message: str  # why it stopped
    state: GadamState  # to go on from


class Inputs(NamedTuple):
    """What a run reads, on its devices."""

    hyperparams: Hyperparams
    data: Any
    validation: Any


class Limits(NamedTuple):
    """Where a run stops."""

    generations: int
    tolerance: float


def run(
    plan: Plan,
    losses: Losses,
    init_fn: Callable[[jax.Array], Any],
    state: GadamState,
    *,
    inputs: Inputs,
    limits: Limits,
    relearn: bool,
    progress: bool | None,
    checkpoint_dir: str | os.PathLike[str] | None,
) -> GadamResult:
    """Evolves to the last generation, or until the sum of the losses converges."""
    generation = programs(plan, losses, relearn).generation
    history: dict[str, list[Any]] = {name: [] for name in Evolution._fields}
    checkpoints = None
    if checkpoint_dir is not None:
        run_identity = identity(
            plan,
            losses,
            init_fn,
            state,
            *inputs,
            tolerance=limits.tolerance,
            relearn=relearn,
        )
        checkpoints = Checkpoints(checkpoint_dir, run_identity)
        restored = checkpoints.restore(plan.layout.replicated_like(state))
        if restored is not None:
            state, history = place_state(plan, restored[0]), restored[1]
    completed = len(history["losses"])
    if completed > limits.generations:
        raise ValueError(
            f"checkpoint_dir holds this run after {completed} generations; pass no smaller "
            "generations, or another folder."
        )
    converged = _has_converged(history, limits.tolerance)
    with _progress_bar(progress, completed, limits.generations) as show:
        while completed < limits.generations and not converged:
            state, evolution = generation(state, *inputs)
            for name, value in jax.device_get(evolution)._asdict().items():
                history[name].append(value.tolist())
            completed += 1
            converged = _has_converged(history, limits.tolerance)
            show(completed, history["trial_losses"][-1])
            if checkpoints:
                checkpoints.save(completed, state, history)
    params, model_state = best_unit(plan.layout, state)
    return GadamResult(
        params=params,
        model_state=model_state,
        population=state.params,
        history={name: np.asarray(rows) for name, rows in history.items()},
        converged=converged,
        message=_message(completed, converged, limits),
        state=state,
    )


def identity(
    plan: Plan,
    losses: Losses,
    init_fn: Callable[[jax.Array], Any],
    state: GadamState,
    hyperparams: Hyperparams,
    data: Any,
    validation: Any,
    *,
    tolerance: float,
    relearn: bool,
) -> dict[str, Any]:
    """Everything that a run's numbers depend on; not where its units are.

    Args:
      plan: what the programs are compiled for.
      losses: what the units learn, and what their fitness is.
      init_fn: what they start from.
      state: the first population.
      hyperparams: the mutation rate, and the pressure of selection.
      data: what they learn from, or None.
      validation: what their fitness is measured on, or None.
      tolerance: of the stop rule; the generations do not count, for a run may be longer.
      relearn: whether survivors learn again.

    Returns:
      name -> a JSON value, the names to be read after "a run with another".
    """
    # A run may go on on other devices, and with other chunks.
    plan = plan._replace(layout=Layout(), chunk_size=None)
    generation = programs(plan, losses, relearn).generation
    keys = jax.eval_shape(lambda key: jax.random.split(key, plan.population_size), state.key)
    return {
        "version of jax": jax.__version__,
        "population_size": plan.population_size,
        "model (names, shapes or dtypes of its parameters)": structure(state.params),
        "train_data": [structure(data), digest(data)],
        "validation_data": [structure(validation), digest(validation)],
        "key": as_numpy(state.key).tolist(),
        "mutation_rate or pressure": [np.asarray(rate).item() for rate in hyperparams],
        "tolerance": tolerance,
        "init_fn": program_digest(init_program(plan, init_fn), keys),
        "loss_fn, unit or setting of gadam": program_digest(
            generation, *map(_shape_dtype_structs, (state, hyperparams, data, validation))
        ),
    }


def _shape_dtype_structs(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def best_unit(layout: Layout, state: GadamState) -> tuple[Any, Any]:
    """The parameters and the model's state of the unit of the smallest loss."""
    return _best_unit_program(layout)(state)


@functools.lru_cache
def _best_unit_program(layout: Layout) -> Callable[[GadamState], tuple[Any, Any]]:
    def select_local(units: Any, losses: jax.Array) -> tuple[Any, Any]:
        return (), layout.select(units, genetics.survivors(losses, 1)[0])

    def best_unit(state: GadamState) -> tuple[Any, Any]:
        units = (state.params, state.model_state)
        return layout.shard_map(select_local)(units, state.losses)[1]

    return jax.jit(best_unit)


@contextlib.contextmanager
def _progress_bar(
    progress: bool | None, completed: int, generations: int
) -> Iterator[Callable[[int, list[float]], None]]:
    """Completed generations and the best loss; None shows them on a terminal only."""
    if progress is None:
        progress = can_show_progress() and jax.process_index() == 0
    if not progress:
        yield lambda completed, losses: None
        return
    tqdm = require("tqdm", "training", "progress").tqdm
    bar = tqdm(total=generations, initial=completed, unit="generation", dynamic_ncols=True)
    with bar:

        def show(completed: int, losses: list[float]) -> None:
            finite = [loss for loss in losses if math.isfinite(loss)]
            best = f"best loss {min(finite):.4g}" if finite else "no finite loss"
            bar.set_postfix_str(best, refresh=False)
            bar.update(completed - bar.n)

        yield show


def _has_converged(history: dict[str, list[Any]], tolerance: float) -> bool:
    rows = list(zip(history["trial_losses"], history["survivors"], strict=True))[-2:]
    if len(rows) < 2 or not tolerance:
        return False
    before, after = (sum(losses[i] for i in survivors) for losses, survivors in rows)
    return abs(before - after) <= tolerance


def _message(completed: int, converged: bool, limits: Limits) -> str:
    if converged:
        return (
            f"converged: the sum of the losses changed by no more than {limits.tolerance} in "
            f"generation {completed}."
        )
    return f"not converged: stopped after {completed} generations."
