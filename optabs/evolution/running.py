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
from optabs.evolution import programs
from optabs.evolution.identity import identity
from optabs.evolution.layout import Layout
from optabs.evolution.state import Evolution, GadamState, Genetics, Losses, Plan
from optabs.training.checkpoints import Checkpoints


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

    rates: Genetics
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
    """Evolves to the last generation, or until the sum of the losses stands still."""
    generation = programs.programs(plan, losses, relearn).generation
    history: dict[str, list[Any]] = {name: [] for name in Evolution._fields}
    checkpoints = None
    if checkpoint_dir is not None:
        of = identity(
            plan,
            losses,
            init_fn,
            state,
            *inputs,
            tolerance=limits.tolerance,
            relearn=relearn,
        )
        checkpoints = Checkpoints(checkpoint_dir, of)
        found = checkpoints.restore(plan.layout.whole(state))
        if found is not None:
            state, history = programs.placed(plan, found[0]), found[1]
    made = len(history["losses"])
    if made > limits.generations:
        raise ValueError(
            f"checkpoint_dir holds this run after {made} generations; pass no smaller "
            "generations, or another folder."
        )
    converged = _stands_still(history, limits.tolerance)
    with _bar(progress, made, limits.generations) as bar:
        while made < limits.generations and not converged:
            state, told = generation(state, *inputs)
            for name, value in jax.device_get(told)._asdict().items():
                history[name].append(value.tolist())
            made += 1
            converged = _stands_still(history, limits.tolerance)
            bar(made, history["trial_losses"][-1])
            if checkpoints:
                checkpoints.save(made, state, history)
    best, model_state = best_of(plan.layout, state)
    return GadamResult(
        params=best,
        model_state=model_state,
        population=state.params,
        history={name: np.asarray(rows) for name, rows in history.items()},
        converged=converged,
        message=_message(made, converged, limits),
        state=state,
    )


def best_of(layout: Layout, state: GadamState) -> tuple[Any, Any]:
    """The parameters and the model's state of the unit of the smallest loss."""
    return _best(layout)(state)


@functools.lru_cache
def _best(layout: Layout) -> Callable[[GadamState], tuple[Any, Any]]:
    def own(units: Any, losses: jax.Array) -> tuple[Any, Any]:
        return (), layout.unit(units, genetics.survivors(losses, 1)[0])

    def best(state: GadamState) -> tuple[Any, Any]:
        units = (state.params, state.model_state)
        return layout.spread(own)(units, state.losses)[1]

    return jax.jit(best)


@contextlib.contextmanager
def _bar(
    wanted: bool | None, made: int, generations: int
) -> Iterator[Callable[[int, list[float]], None]]:
    """Generations made and the best loss, where there is someone to see them."""
    if wanted is None:
        wanted = can_show_progress() and jax.process_index() == 0
    if not wanted:
        yield lambda made, losses: None
        return
    tqdm = require("tqdm", "training", "progress").tqdm
    with tqdm(total=generations, initial=made, unit="generation", dynamic_ncols=True) as bar:

        def show(made: int, losses: list[float]) -> None:
            finite = [loss for loss in losses if math.isfinite(loss)]
            best = f"best loss {min(finite):.4g}" if finite else "no finite loss"
            bar.set_postfix_str(best, refresh=False)
            bar.update(made - bar.n)

        yield show


def _stands_still(history: dict[str, list[Any]], tolerance: float) -> bool:
    rows = list(zip(history["trial_losses"], history["survivors"], strict=True))[-2:]
    if len(rows) < 2 or not tolerance:
        return False
    before, now = (sum(row[who] for who in kept) for row, kept in rows)
    return abs(before - now) <= tolerance


def _message(made: int, converged: bool, limits: Limits) -> str:
    if converged:
        return (
            f"converged: the sum of the losses changed by no more than {limits.tolerance} in "
            f"generation {made}."
        )
    return f"not converged: stopped after {made} generations."
