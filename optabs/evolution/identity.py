"""What makes a run of Gadam what it is, as values that a checkpoint can keep and compare."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from optabs.evolution import programs
from optabs.evolution.layout import Layout
from optabs.evolution.state import GadamState, Genetics, Losses, Plan
from optabs.training.checkpoints import digest, numbers, program_text, structure


def identity(
    plan: Plan,
    losses: Losses,
    init_fn: Callable[[jax.Array], Any],
    state: GadamState,
    rates: Genetics,
    data: Any,
    validation: Any,
    *,
    tolerance: float,
    relearn: bool,
) -> dict[str, Any]:
    """Everything that a run's numbers depend on; not where its units are.

    Args:
      plan: what the programs are compiled for.
      losses: what the units learn and are judged by.
      init_fn: what they start from.
      state: the first population.
      rates: of mutation, and the pressure of selection.
      data: what they learn from, or None.
      validation: what they are judged on, or None.
      tolerance: of the stop rule; the generations do not count, for a run may be longer.
      relearn: whether survivors learn again.

    Returns:
      name -> a JSON value, the names to be read after "a run with another".
    """
    anywhere = plan._replace(layout=Layout(), chunk_size=None)
    generation = programs.programs(anywhere, losses, relearn).generation
    keys = jax.eval_shape(lambda key: jax.random.split(key, plan.population_size), state.key)
    return {
        "version of jax": jax.__version__,
        "population_size": plan.population_size,
        "model (names, shapes or dtypes of its parameters)": structure(state.params),
        "train_data": [structure(data), digest(data)],
        "validation_data": [structure(validation), digest(validation)],
        "key": numbers(state.key).tolist(),
        "mutation_rate or pressure": [np.asarray(rate).item() for rate in rates],
        "tolerance": tolerance,
        "init_fn": program_text(programs.start(anywhere, init_fn), keys),
        "loss_fn, unit or setting of gadam": program_text(
            generation, *map(_shapes, (state, rates, data, validation))
        ),
    }


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
