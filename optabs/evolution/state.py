"""Gadam's static configuration, its state, and its report on a generation."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from jax.typing import ArrayLike

from optabs.evolution.devices import Layout

Inheritance = Literal["crossover", "fresh"]

# The loss before the first survival: finite, so that jax_debug_infs has nothing to report.
UNEVALUATED = float(np.finfo(np.float32).max)


class Unit(NamedTuple):
    """One learner; in a population every array has a leading axis of units."""

    params: Any
    opt_state: Any
    model_state: Any  # what loss_fn updates, such as BatchNorm's running statistics; or ()


class GadamState(NamedTuple):
    """A population of g units between two generations."""

    generation: jax.Array  # int32 []: evolutions so far
    key: jax.Array  # of all that follows
    params: Any  # [g, ...]
    opt_state: Any  # [g, ...]
    model_state: Any  # [g, ...], or ()
    losses: jax.Array  # float32 [g]: in the last survival; UNEVALUATED before the first

    @property
    def units(self) -> Unit:
        """The population."""
        return Unit(self.params, self.opt_state, self.model_state)


class Evolution(NamedTuple):
    """What happened in one generation of g units."""

    losses: jax.Array  # float32 [g]: the parents' fitness, by which they were selected
    parents: jax.Array  # int32 [g, 2]: of each child, indices into the population
    training_losses: jax.Array  # float32 [g]: the children's, mean over their last epoch
    trial_losses: jax.Array  # float32 [2g]: of parents, then children, on the new batch
    survivors: jax.Array  # int32 [g]: indices into these, the best first
    diversity: jax.Array  # float32 []: root mean square distance of an entry from its mean


class Hyperparams(NamedTuple):
    """The numbers of selection and mutation; they may change without a compilation."""

    mutation_rate: ArrayLike
    pressure: ArrayLike


class Plan(NamedTuple):
    """What the programs are compiled for."""

    optimizer: optax.GradientTransformation
    population_size: int
    epochs: int
    batch_size: int | None
    validation_batch_size: int | None
    sample: Callable[[jax.Array, Any], Any]
    inheritance: Inheritance
    stateful: bool
    layout: Layout
    chunk_size: int | None


class Losses(NamedTuple):
    """What the units learn, and what their fitness is."""

    loss_fn: Callable[..., Any]
    fitness_fn: Callable[..., Any]
