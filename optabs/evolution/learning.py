"""How one unit learns, and how its fitness is measured."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optabs._checks import cut
from optabs.evolution.state import Losses, Plan, Unit
from optabs.evolution.units import map_units
from optabs.training import batches
from optabs.training.program import informed_update


def learn(
    plan: Plan, losses: Losses, units: Unit, keys: jax.Array, data: Any
) -> tuple[Unit, jax.Array]:
    """All units after some epochs, each on batches of its own, and their losses [g].

    A loss is the mean over the steps of the last epoch, as the parameters moved.
    """
    function = complete(plan, "loss_fn", losses.loss_fn, "data")

    def train(unit: Unit, key: jax.Array) -> tuple[Unit, jax.Array]:
        return _train(plan, function, unit, key, data)

    return map_units(train, units, keys, chunk_size=plan.chunk_size)


def fitness(plan: Plan, losses: Losses, units: Unit, batch: Any) -> jax.Array:
    """The loss of every unit on one batch: float32 [g]."""
    function = complete(plan, judged_by(losses), losses.fitness_fn, "validation_data")

    def of(unit: Unit) -> jax.Array:
        return function(unit.params, unit.model_state, batch)[0].astype(jnp.float32)

    return map_units(of, units, chunk_size=plan.chunk_size)


def validation_batch(plan: Plan, key: jax.Array, data: Any) -> Any:
    """Instances drawn without replacement, or all of them."""
    size = plan.validation_batch_size
    if size is None:
        return data
    return batches.take(data, jax.random.permutation(key, batches.instances(data))[:size])


def judged_by(losses: Losses) -> str:
    """The name of the argument that the units are judged by."""
    return "loss_fn" if losses.fitness_fn is losses.loss_fn else "fitness_fn"


def complete(
    plan: Plan, name: str, function: Callable[..., Any], data: str
) -> Callable[[Any, Any, Any], tuple[jax.Array, Any]]:
    """(params, model_state, batch) -> (loss, model_state), whatever the user's takes.

    Args:
      plan: how the units learn.
      name: of the function, for messages.
      function: the user's.
      data: what its batches are taken from, for messages.
    """

    def called(*args: Any) -> Any:
        try:
            return function(*args)
        except (AttributeError, TypeError) as error:
            if args[-1] is not None:
                raise
            raise ValueError(
                f"{data} is None, and {name} fails on it ({cut(str(error))}); pass {data}, or "
                f"a {name} that needs no batch."
            ) from error

    def complete(params: Any, model_state: Any, batch: Any) -> tuple[jax.Array, Any]:
        if plan.stateful:
            made = called(params, model_state, batch)
            if not isinstance(made, tuple) or len(made) != 2:
                what = "an array" if isinstance(made, jax.Array) else type(made).__name__
                raise ValueError(
                    f"{name} returns {what}; with stateful=True return the pair (loss, "
                    "model_state)."
                )
            loss, model_state = made
        else:
            loss = called(params, batch)
        if isinstance(loss, tuple):
            raise ValueError(
                f"{name} returns a tuple; return one number, or with stateful=True the pair "
                "(loss, model_state)."
            )
        loss = jnp.asarray(loss)
        if loss.shape or not jnp.issubdtype(loss.dtype, jnp.floating):
            raise ValueError(
                f"{name} returns {loss.dtype.name}{list(loss.shape)}; return one "
                "floating-point number for a batch, such as the mean over its instances."
            )
        return loss, model_state

    return complete


def _train(
    plan: Plan,
    loss_fn: Callable[[Any, Any, Any], tuple[jax.Array, Any]],
    unit: Unit,
    key: jax.Array,
    data: Any,
) -> tuple[Unit, jax.Array]:
    def step(unit: Unit, batch: Any) -> tuple[Unit, jax.Array]:
        def value_fn(params: Any, batch: Any) -> jax.Array:
            return loss_fn(params, unit.model_state, batch)[0]

        slopes = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, model_state), grads = slopes(unit.params, unit.model_state, batch)
        updates, opt_state = informed_update(
            plan.optimizer, grads, unit.opt_state, unit.params, loss, value_fn, batch
        )
        params = optax.apply_updates(unit.params, updates)
        return Unit(params, opt_state, model_state), loss.astype(jnp.float32)

    size = plan.batch_size
    if size is None:
        unit, means = jax.lax.scan(lambda unit, _: step(unit, data), unit, length=plan.epochs)
        return unit, means[-1]
    count = batches.instances(data)
    full, short = batches.sizes(count, size, "shuffle")

    def epoch(unit: Unit, number: jax.Array) -> tuple[Unit, jax.Array]:
        rows = batches.rows_of_epoch(key, number, count, size, "shuffle")
        unit, losses = jax.lax.scan(
            lambda unit, here: step(unit, batches.take(data, here)),
            unit,
            rows[: full * size].reshape(full, size),
        )
        total = jnp.sum(losses)
        if short:
            unit, last = step(unit, batches.take(data, rows[full * size :]))
            total = total + last
        return unit, total / (full + (short > 0))

    unit, means = jax.lax.scan(epoch, unit, jnp.arange(plan.epochs))
    return unit, means[-1]
