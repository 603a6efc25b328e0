"""The compiled program of `fit`: some steps of descent, across as many epochs as they take."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optabs._numerics import widen
from optabs.training import batches

MAX_EPOCHS_PER_CALL = 1024  # 4 kB for each column of the history that a call returns
MAX_STEPS = 2**31 - 1  # that an int32 counts

RUNNING, LOSS_CONVERGED, PARAMS_CONVERGED, LOSS_NOT_FINITE = range(4)
# A program keeps what its functions close over in memory: enough for a sweep, not for ever.
MAX_CACHED_PROGRAMS = 32

LossFn = Callable[[Any, Any], jax.Array]
Metrics = tuple[tuple[str, LossFn], ...]


class Plan(NamedTuple):
    """What the program is compiled for."""

    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    batch_size: int | None
    sampling: batches.Sampling
    metrics: Metrics
    watch_params: bool  # keeps a copy of an epoch's first parameters


class Run(NamedTuple):
    """What a run needs to go on from, bit for bit."""

    params: Any
    opt_state: Any
    epoch_params: Any  # like params, or None: those at the start of the epoch
    epoch: jax.Array  # int32 []: epochs finished
    position: jax.Array  # int32 []: steps made in this epoch
    step: jax.Array  # int32 []: steps made in all
    loss_sum: jax.Array  # [], at least float32: over the steps of this epoch
    previous_loss: jax.Array  # likewise: mean of the last finished epoch, if there is one
    status: jax.Array  # int32 []: RUNNING or why not


class Inputs(NamedTuple):
    """What a run reads, on the device."""

    key: jax.Array  # of the shuffling
    data: Any  # [n, ...]
    validation: Any  # [m, ...], or None


class Limits(NamedTuple):
    """Where a run stops; numbers, so that they change without a compilation."""

    step: int  # updates made in all
    epochs: int
    tolerance: float
    params_tolerance: float


def start(plan: Plan, params: Any, opt_state: Any, loss: jax.ShapeDtypeStruct) -> Run:
    """The first state of a run; `params` and `opt_state` are copied."""
    wide = jnp.promote_types(loss.dtype, jnp.float32)
    # Outside of jit, where a fresh state takes the parameters' sharding.
    opt_state = plan.optimizer.init(params) if opt_state is None else opt_state
    zero: Any = np.zeros([], np.int32)
    zero_loss: Any = np.zeros([], wide)
    first = Run(
        params=params,
        opt_state=opt_state,
        epoch_params=params if plan.watch_params else None,
        epoch=zero,
        position=zero,
        step=zero,
        loss_sum=zero_loss,
        previous_loss=zero_loss,
        status=zero + RUNNING,
    )
    return copy(first)


class _Programs(NamedTuple):
    advance: Callable[[Run, Inputs, Limits], tuple[Run, dict[str, jax.Array]]]
    last_row: Callable[[Run, Any], dict[str, jax.Array]]


@functools.lru_cache(MAX_CACHED_PROGRAMS)
def _programs(plan: Plan) -> _Programs:
    # A jit of this module with a static plan would keep every plan for ever.
    return _Programs(
        jax.jit(functools.partial(_advance, plan), donate_argnums=0),
        jax.jit(functools.partial(_report, plan)),
    )


def advance(
    plan: Plan, run: Run, inputs: Inputs, limits: Limits
) -> tuple[Run, dict[str, jax.Array]]:
    """Trains until a limit, convergence, a bad loss or MAX_EPOCHS_PER_CALL; compiled.

    Returns:
      The run, whose buffers were donated, and a row per epoch that ended: name -> [rows].
    """
    return _programs(plan).advance(run, inputs, limits)


def last_row(plan: Plan, run: Run, validation: Any) -> dict[str, jax.Array]:
    """The row of an epoch that was cut short."""
    return _programs(plan).last_row(run, validation)


@jax.jit
def copy(run: Run) -> Run:
    """A run of its own, since a donated buffer is gone, of strong types only."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, leaf.dtype), run)


@jax.jit
def all_finite(params: Any) -> jax.Array:
    """Whether every entry of the parameters is finite."""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]
    return jnp.all(jnp.stack(leaves))


def _advance(
    plan: Plan, run: Run, inputs: Inputs, limits: Limits
) -> tuple[Run, dict[str, jax.Array]]:
    key, data, validation = inputs
    count = batches.num_instances(data)
    full, short = batches.split_epoch(count, plan.batch_size, plan.sampling)
    size = count if plan.batch_size is None else plan.batch_size
    first_epoch = run.epoch
    row = jax.eval_shape(functools.partial(_report, plan), run, validation)
    rows = jax.tree.map(lambda value: jnp.zeros([MAX_EPOCHS_PER_CALL], value.dtype), row)

    def unfinished(run: Run) -> jax.Array:
        return (run.step < limits.step) & (run.status == RUNNING)

    def epoch(carry: tuple[Run, Any]) -> tuple[Run, Any]:
        run, rows = carry
        if plan.batch_size is None:
            run = _step(plan, run, data)
        else:
            indices = batches.rows_of_epoch(key, run.epoch, count, size, plan.sampling)

            def full_step(run: Run) -> Run:
                rows = jax.lax.dynamic_slice_in_dim(indices, run.position * size, size)
                return _step(plan, run, batches.take(data, rows))

            def short_step(run: Run) -> Run:
                return _step(plan, run, batches.take(data, indices[full * size :]))

            run = jax.lax.while_loop(
                lambda run: (run.position < full) & unfinished(run), full_step, run
            )
            if short:
                ready = (run.position == full) & unfinished(run)
                run = jax.lax.cond(ready, short_step, lambda run: run, run)
        epoch_ended = (run.position == full + (short > 0)) & (run.status == RUNNING)
        return jax.lax.cond(epoch_ended, end_epoch, lambda run, rows: (run, rows), run, rows)

    def end_epoch(run: Run, rows: Any) -> tuple[Run, Any]:
        index = run.epoch - first_epoch
        values = _report(plan, run, validation)
        rows = jax.tree.map(lambda column, value: column.at[index].set(value), rows, values)
        return _next_epoch(run, limits), rows

    return jax.lax.while_loop(
        lambda carry: (
            unfinished(carry[0])
            & (carry[0].epoch < limits.epochs)
            & (carry[0].epoch < first_epoch + MAX_EPOCHS_PER_CALL)
        ),
        epoch,
        (run, rows),
    )


def update_with_extra_args(
    optimizer: optax.GradientTransformation,
    grads: Any,
    opt_state: Any,
    params: Any,
    loss: jax.Array,
    loss_fn: LossFn,
    batch: Any,
) -> tuple[Any, Any]:
    """The optimizer's updates and next state, given every extra argument that optax knows."""

    def value_fn(params: Any, batch: Any = batch) -> jax.Array:
        # optax's line searches pass on the keywords that this function has, and refuse others.
        return loss_fn(params, batch)

    return optax.with_extra_args_support(optimizer).update(
        grads, opt_state, params, value=loss, grad=grads, value_fn=value_fn, batch=batch
    )


def update(plan: Plan, grads: Any, run: Run, loss: jax.Array, batch: Any) -> tuple[Any, Any]:
    """The updates and the next state of a run's optimizer."""
    return update_with_extra_args(
        plan.optimizer, grads, run.opt_state, run.params, loss, plan.loss_fn, batch
    )


def _step(plan: Plan, run: Run, batch: Any) -> Run:
    """One update; after a loss that is not finite it is useless, and not counted."""
    loss, grads = jax.value_and_grad(plan.loss_fn)(run.params, batch)
    # To keep the params and the state before it would cost XLA:CPU a copy in every step.
    updates, opt_state = update(plan, grads, run, loss, batch)
    finite = jnp.isfinite(loss)
    counted = finite.astype(jnp.int32)
    return run._replace(
        params=optax.apply_updates(run.params, updates),
        opt_state=opt_state,
        position=run.position + counted,
        step=run.step + counted,
        loss_sum=run.loss_sum + jnp.where(finite, loss, 0).astype(run.loss_sum.dtype),
        status=jnp.where(finite, RUNNING, LOSS_NOT_FINITE).astype(jnp.int32),
    )


def _report(plan: Plan, run: Run, validation: Any) -> dict[str, jax.Array]:
    row = {"loss": _mean_loss(run)}
    if validation is not None:
        row["validation_loss"] = plan.loss_fn(run.params, validation)
        for name, metric in plan.metrics:
            row[name] = widen(metric(run.params, validation))
    return row


def _mean_loss(run: Run) -> jax.Array:
    return run.loss_sum / run.position.astype(run.loss_sum.dtype)


def _next_epoch(run: Run, limits: Limits) -> Run:
    loss = _mean_loss(run)
    status = jnp.full([], RUNNING, jnp.int32)
    if run.epoch_params is not None:
        change = optax.tree.max(
            jax.tree.map(lambda new, old: jnp.abs(new - old), run.params, run.epoch_params)
        )
        status = jnp.where(change < limits.params_tolerance, PARAMS_CONVERGED, status)
    change = jnp.abs(loss - run.previous_loss)
    loss_converged = (run.epoch > 0) & (change < limits.tolerance)
    status = jnp.where(loss_converged, LOSS_CONVERGED, status)
    return run._replace(
        epoch_params=None if run.epoch_params is None else run.params,
        epoch=run.epoch + 1,
        position=jnp.zeros_like(run.position),
        loss_sum=jnp.zeros_like(run.loss_sum),
        previous_loss=loss,
        status=status,
    )
