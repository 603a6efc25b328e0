"""Gadam: a population that learns by gradients and evolves."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from optabs._checks import NONNEGATIVE, SHARE, WHOLE, as_transformation, check, concrete
from optabs.evolution import checks, generation, running
from optabs.evolution.devices import Layout
from optabs.evolution.running import GadamResult, Inputs, Limits
from optabs.evolution.state import (
    UNEVALUATED,
    Evolution,
    GadamState,
    Hyperparams,
    Inheritance,
    Plan,
)
from optabs.genetics import uniform_like
from optabs.optimizers.adam_family import adam
from optabs.training import batches
from optabs.training.checks import check_key


@dataclasses.dataclass(frozen=True)
class Gadam:
    """A population's rules, as :func:`gadam` makes them.

    Its methods are pure functions of their arguments, compiled; `init`, `learn`, `evolve` and
    `best` can be called inside of `jax.jit` and under `jax.vmap` over keys.
    """

    plan: Plan
    hyperparams: Hyperparams

    def init(self, key: jax.Array, init_fn: Callable[[jax.Array], Any]) -> GadamState:
        """A population, each unit from a key of its own.

        Args:
          key: a `jax.random.key`.
          init_fn: key -> params, a pytree of arrays; with stateful, -> (params, model_state).

        Returns:
          The state before the first generation, in the layout of the units.

        Raises:
          ValueError: for an init_fn that cannot be called, or whose shapes depend on the key.
        """
        layout = self.plan.layout
        key = check_key(key)
        checks.check_init(init_fn, self.plan.stateful, key)
        key, unit_key = jax.random.split(key)
        keys = layout.sharded(jax.random.split(unit_key, self.plan.population_size))
        units = generation.init_program(self.plan, init_fn)(keys)
        losses = jnp.full(self.plan.population_size, UNEVALUATED, jnp.float32)
        state = GadamState(jnp.zeros([], jnp.int32), key, *units, losses)
        return generation.place_state(self.plan, state)

    def learn(
        self, state: GadamState, loss_fn: Callable[..., Any], data: Any = None
    ) -> tuple[GadamState, jax.Array]:
        """Trains every unit for some epochs on batches of its own; no device waits for others.

        Args:
          state: the population.
          loss_fn: (params, batch) -> a real number; with stateful, (params, model_state,
            batch) -> (the number, model_state).
          data: a pytree of arrays [n, ...], or None where `loss_fn` needs none.

        Returns:
          The state, and each unit's mean loss over the steps of its last epoch: float32 [g].

        Raises:
          ValueError: for a state that is not of this population, or a loss that is no number.
        """
        learn = generation.programs(self.plan, checks.check_losses(loss_fn, None)).learn
        return learn(
            generation.place_state(self.plan, state), self.plan.layout.replicated(data)
        )

    def evolve(
        self,
        state: GadamState,
        loss_fn: Callable[..., Any],
        data: Any = None,
        validation_data: Any = None,
        *,
        fitness_fn: Callable[..., Any] | None = None,
    ) -> tuple[GadamState, Evolution]:
        """Breeds as many children as there are units, trains them, and keeps the best of all.

        Args:
          state: the population, which has learned.
          loss_fn: as in `learn`; the children learn it.
          data: what they learn it from.
          validation_data: what parents are selected by, and what parents and children compete
            on: two batches of it. None: the loss is given None.
          fitness_fn: like `loss_fn`, to select by; None for `loss_fn` itself.

        Returns:
          The next generation, the best unit first, and what happened.

        Raises:
          ValueError: as `learn`.
        """
        losses, put = checks.check_losses(loss_fn, fitness_fn), self.plan.layout.replicated
        evolve = generation.programs(self.plan, losses).evolve
        state = generation.place_state(self.plan, state)
        return evolve(state, self._float32_hyperparams(), put(data), put(validation_data))

    def best(self, state: GadamState) -> Any:
        """The parameters of the unit that did best in the last survival; before it, any."""
        return running.best_unit(self.plan.layout, generation.place_state(self.plan, state))[0]

    def run(
        self,
        key: jax.Array,
        init_fn: Callable[[jax.Array], Any],
        loss_fn: Callable[..., Any],
        train_data: Any,
        validation_data: Any,
        *,
        generations: int = 10,
        tolerance: float = 0.0,
        relearn: bool = True,
        fitness_fn: Callable[..., Any] | None = None,
        progress: bool | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
    ) -> GadamResult:
        r"""Learns and evolves for some generations.

        It stops after `generations`, or where
        :math:`|\sum_i L_i^{(k)} - \sum_i L_i^{(k+1)}| \le` `tolerance`, the survivors' losses
        of two generations.

        Args:
          key: a `jax.random.key`; the same key gives the same run.
          init_fn: as in `init`.
          loss_fn: as in `learn`.
          train_data: a pytree of arrays [n, ...], or None.
          validation_data: likewise, or None.
          generations: at most so many.
          tolerance: in units of the loss; 0 is off.
          relearn: whether the units learn before each evolution, as in the survey, where
            survivors learn again and again; without, only children learn, once, in half
            of the time, and the first population is evaluated as it was drawn.
          fitness_fn: as in `evolve`.
          progress: a bar; None for one where stderr is a terminal and tqdm is installed.
          checkpoint_dir: where to keep the run after each generation (needs orbax). The same
            call goes on from the newest checkpoint, and ends bit for bit where the
            uninterrupted one ends; on other devices it goes on, too, up to rounding.

        Returns:
          A GadamResult: `params`, `model_state`, `population`, `history`, `converged`,
          `message`, `state`.

        Raises:
          ValueError: before any training, for an argument that cannot be used.
          ImportError: an optional package is asked for and not installed.
        """
        check(WHOLE, generations=generations)
        check(concrete(NONNEGATIVE), tolerance=tolerance)
        layout = self.plan.layout
        state = self.init(key, init_fn)
        named = {"train_data": train_data, "validation_data": validation_data}
        data, validation = (
            None if given is None else layout.replicated(batches.to_device(given, name))
            for name, given in named.items()
        )
        losses = checks.check_losses(loss_fn, fitness_fn)
        unit = running.best_unit(layout, state)
        checks.check_values(self.plan, losses, unit, data, validation)
        return running.run(
            self.plan,
            losses,
            init_fn,
            state,
            inputs=Inputs(self._float32_hyperparams(), data, validation),
            limits=Limits(generations, float(tolerance)),
            relearn=relearn,
            progress=progress,
            checkpoint_dir=checkpoint_dir,
        )

    def _float32_hyperparams(self) -> Hyperparams:
        # As arrays of one dtype, so that other numbers need no compilation.
        hyperparams = (jnp.asarray(value, jnp.float32) for value in self.hyperparams)
        return self.plan.layout.replicated(Hyperparams(*hyperparams))


# One object, so that populations of the default unit share their programs.
_ADAM = adam(1e-3)


def gadam(
    unit: optax.GradientTransformation | None = None,
    population_size: int = 8,
    mutation_rate: ArrayLike = 0.01,
    *,
    epochs: int = 1,
    batch_size: int | None = None,
    validation_batch_size: int | None = None,
    pressure: ArrayLike = 1.0,
    sample: Callable[[jax.Array, Any], Any] = uniform_like,
    inheritance: Inheritance = "fresh",
    stateful: bool = False,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
    axis: str = "population",
) -> Gadam:
    r"""A population of learners, trained by gradients and evolved.

    In every generation each of the g units :math:`\theta_i` is trained by its own optimizer
    on batches of its own. Their losses :math:`L_i` on a validation batch, normalised to
    :math:`\hat L_i \in [0, 1]`, decide who is a parent, what a child takes from whom, and how
    much it mutates:

    .. math:: P_i = \frac{\exp(-s \hat L_i)}{\sum_j \exp(-s \hat L_j)}, \qquad
              p_{ij} = \frac{\exp(-\hat L_i)}{\exp(-\hat L_i) + \exp(-\hat L_j)}, \qquad
              p_q = p\,\max(1 - P_i - P_j, 0)
    .. math:: \theta_{ij}(m) = d(m) \text{ with probability } p_q, \text{ else }
              \theta_i(m) \text{ with } p_{ij}, \text{ else } \theta_j(m)

    The g children of g pairs are trained likewise, and of parents and children the g with the
    smallest losses on another validation batch live on. So the best loss on that batch is
    never above the best parent's. A unit whose loss is not finite is never a parent while
    there is another, and is replaced.

    Args:
      unit: any optax transformation; None for :func:`optabs.adam` at 0.001.
      population_size: g, 1 or more. Of 1, `learn` is its optimizer, and `evolve` keeps the
        better of the unit and its trained copy.
      mutation_rate: p in [0, 1].
      epochs: how long units learn at a time; without batches an epoch is a step.
      batch_size: of the mini-batches; None for all the data in each step.
      validation_batch_size: instances drawn for each evaluation; None for all.
      pressure: s, 0 or more; 1 is the survey's.
      sample: (key, params) -> a tree like `params`, what mutated entries become. The survey's
        is U(0, 1); :mod:`optabs.genetics` has others. `lambda key, _: init_fn(key)` draws
        from the units' own start.
      inheritance: the optimizer's state of a child: "fresh" starts anew, which did better
        where parents learn again; "crossover" takes each entry from the parent that gave the
        parameter (what is not shaped like the parameters, such as step counts, from the
        better parent).
      stateful: units have a state beside their parameters, such as BatchNorm's running means.
        `init_fn` returns (params, model_state), `loss_fn` takes (params, model_state, batch)
        and returns (loss, model_state); of flax.nnx, `nnx.merge(..., copy=True)`. A child
        takes it whole from its better parent, and its own training moves it on.
      chunk_size: how many units of a device are trained at once; None for all. The result is
        the same, the memory of activations and gradients smaller.
      mesh: lays the units over the devices of a mesh, also of many processes
        (:func:`optabs.connect`). Learning then communicates nothing; an evolution gathers
        every parent and every child, with its optimizer's state, once on every device. The
        operators are those of one device bit for bit; gradients are so up to rounding, which
        long training makes larger. None: one device.
      axis: the name of the mesh's axis for the units.

    Returns:
      A :class:`Gadam`, with `init`, `learn`, `evolve`, `best` and `run`.

    Raises:
      ValueError: for an argument out of its range, or a population that the mesh's devices
        cannot share evenly.

    Examples:
      A function with many local minima, which Adam alone does not leave:

      >>> import jax, jax.numpy as jnp, optabs
      >>> def rastrigin(x, batch):
      ...     return jnp.sum(x**2 - 10 * jnp.cos(2 * jnp.pi * x) + 10)
      >>> def init_fn(key):
      ...     return jax.random.uniform(key, 5, minval=-5.12, maxval=5.12)
      >>> learner = optabs.gadam(optabs.adam(0.02), 16, 0.05, epochs=10)
      >>> result = learner.run(
      ...     jax.random.key(0), init_fn, rastrigin, None, None, generations=100, relearn=False
      ... )
      >>> bool(rastrigin(result.params, None) < 1.0)
      True

      Step by step, within a loop of your own:

      >>> state = learner.init(jax.random.key(0), init_fn)
      >>> state, losses = learner.learn(state, rastrigin)
      >>> state, evolution = learner.evolve(state, rastrigin)
      >>> learner.best(state).shape, evolution.parents.shape
      ((5,), (16, 2))

    Source: survey section 6, equations 43 to 50; Gadam, Zhang and Gouza, arXiv 1805.07500.
    """
    check(SHARE, mutation_rate=mutation_rate)
    check(NONNEGATIVE, pressure=pressure)
    plan = Plan(
        optimizer=as_transformation("unit", _ADAM if unit is None else unit),
        population_size=population_size,
        epochs=epochs,
        batch_size=batch_size,
        validation_batch_size=validation_batch_size,
        sample=sample,
        inheritance=inheritance,
        stateful=stateful,
        layout=Layout(mesh, axis),
        chunk_size=chunk_size,
    )
    checks.check_plan(plan)
    return Gadam(plan, Hyperparams(mutation_rate, pressure))
