"""Vanilla, stochastic and mini-batch descent: one function."""

import functools
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax

from optabs._checks import NONNEGATIVE, WHOLE, as_transformation, check, concrete, optional
from optabs.training import batches, checks, program
from optabs.training.checkpoints import Checkpoints, identity
from optabs.training.loop import Outcome, Rows, last_finite_state, train
from optabs.training.program import (
    LOSS_CONVERGED,
    LOSS_NOT_FINITE,
    MAX_STEPS,
    PARAMS_CONVERGED,
    Inputs,
    Limits,
    Plan,
    Run,
)


class FitResult(NamedTuple):
    """What `fit` returns."""

    params: Any  # like those given
    opt_state: Any
    history: dict[str, np.ndarray]  # name -> [epochs made]
    converged: bool  # a tolerance was met
    steps: int  # updates made
    message: str  # why it stopped


def fit(
    loss_fn: Callable[[Any, Any], jax.Array],
    params: Any,
    optimizer: optax.GradientTransformation,
    data: Any,
    *,
    batch_size: int | None = None,
    epochs: int = 100,
    key: jax.Array | None = None,
    tolerance: float = 0.0,
    params_tolerance: float = 0.0,
    max_steps: int | None = None,
    sampling: Literal["shuffle", "random"] = "shuffle",
    opt_state: Any = None,
    validation_data: Any = None,
    metrics: Mapping[str, Callable[[Any, Any], jax.Array]] | None = None,
    progress: bool | None = None,
    checkpoint_dir: str | pathlib.Path | None = None,
    checkpoint_seconds: float = 60.0,
) -> FitResult:
    r"""Trains by vanilla, stochastic or mini-batch gradient descent, compiled.

    .. math:: \theta \leftarrow \theta + u\big(\nabla L(\theta; B)\big)

    with :math:`u` the optimizer's update and :math:`B` all instances, one, or a batch.

    An epoch visits a fresh permutation of the instances in batches of `batch_size`; the
    instances that fill no batch make a short one at its end. With sampling "random" the same
    number of batches, all full, is drawn uniformly with replacement. Steps run in one
    compiled program, which is the same for every epoch and for later calls with the same
    functions and optimizer (the same objects, not equal ones) and the same shapes; the last
    32 programs are kept.

    Training stops after `epochs`, after `max_steps`, or as soon as two successive epochs
    differ by less than a tolerance: :math:`|L_e - L_{e-1}|` < `tolerance`, where
    :math:`L_e` is the mean loss of the steps of epoch e, or
    :math:`\max_i |\theta_{e,i} - \theta_{e-1,i}|` < `params_tolerance`. With
    `batch_size=None` an epoch is one step, and these are the survey's tests between two
    iterations.

    A loss that is not finite stops it too, with a RuntimeWarning that names the step, and so
    do parameters that are not. The result then has the last parameters with a finite loss,
    and all else as it was with them: the run is made once more up to there, from its start or
    its newest checkpoint.

    Args:
      loss_fn: (params, batch) -> a real number; sum or mean, as you like. A batch is shaped
        like `data`. What is not trained it closes over; statistics as BatchNorm's stay as
        they are (of a flax.nnx model, `nnx.merge(graph, params, others, copy=True)`).
      params: a pytree of floating-point arrays; not changed, not donated.
      optimizer: an optax transformation. It is given `value`, `grad`, `value_fn` and
        `batch`, so line searches and mixtures work; one that needs other keywords does not.
      data: a pytree of arrays [n, ...], one row per instance; kept on the device.
      batch_size: b; None for all instances (vanilla), 1 for stochastic descent.
      epochs: at most so many passes.
      key: of the shuffling; None for `jax.random.key(0)`.
      tolerance: in units of the loss; 0 is off.
      params_tolerance: in parameter units; 0 is off.
      max_steps: at most so many updates; None for no limit.
      sampling: "shuffle" or "random".
      opt_state: to go on from an earlier result; None for a fresh one.
      validation_data: like `data`; `loss_fn` and the metrics see it whole, after each epoch.
      metrics: name -> (params, validation data) -> a real number.
      progress: a bar with loss and time left; None for one where stderr is a terminal and
        tqdm is installed.
      checkpoint_dir: where to keep the run (needs orbax). The same call goes on from the
        newest checkpoint, and ends bit for bit where the uninterrupted one ends; a larger
        `epochs` or `max_steps` goes on from it. One folder holds one run; a call whose
        model, data, settings, version of jax, or programs of the loss's value and of the
        optimizer's update are others is refused. Not compared are derivatives with rules of
        their own (`jax.custom_vjp`) and what metrics compute, only their names.
      checkpoint_seconds: time between two checkpoints; the last state is always kept.

    Returns:
      A FitResult: `params`, `opt_state`, `history` (mean training "loss" per epoch, as the
      parameters moved; "validation_loss" and the metrics at its end; an epoch cut short has
      a row too), `converged`, `steps`, and `message`, why it stopped. Under
      :func:`optabs.nag` the parameters are the look-ahead point.

    Raises:
      ValueError: before any training, for an argument that cannot be used, labels out of
        range in a loss of :mod:`optabs.losses`, or a checkpoint of another run.
      ImportError: an optional package is asked for and not installed.

    Examples:
      A plain dict of parameters, mini-batches of 4:

      >>> import jax, jax.numpy as jnp, optabs
      >>> x = jnp.linspace(-1, 1, 10)[:, None]
      >>> data = (x, 3 * x - 1)
      >>> def loss_fn(params, batch):
      ...     x, y = batch
      ...     return optabs.losses.mse(x @ params["w"] + params["b"], y).mean()
      >>> params = {"w": jnp.zeros((1, 1)), "b": jnp.zeros(())}
      >>> result = optabs.fit(loss_fn, params, optabs.adam(0.1), data, batch_size=4)
      >>> result.steps, round(float(result.params["b"]), 3)
      (300, -1.0)

      A flax.nnx model:

      >>> from flax import nnx
      >>> model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
      >>> graph, params = nnx.split(model)
      >>> def loss_fn(params, batch):
      ...     x, y = batch
      ...     return optabs.losses.mse(nnx.merge(graph, params)(x), y).mean()
      >>> result = optabs.fit(loss_fn, params, optabs.sgd(0.5), data, tolerance=1e-9)
      >>> result.converged
      True
      >>> nnx.update(model, result.params)

    Source: survey section 2, eqs. 13 to 15, algorithms 1 to 3.
    """
    check(WHOLE, epochs=epochs)
    check(
        concrete(NONNEGATIVE),
        tolerance=tolerance,
        params_tolerance=params_tolerance,
        checkpoint_seconds=checkpoint_seconds,
    )
    check(optional(WHOLE), max_steps=max_steps)
    checks.check_params(params)
    data = batches.to_device(data, "data")
    batches.check_batch_size(batch_size, batches.num_instances(data))
    checks.check_sampling(sampling, batch_size)
    if validation_data is not None:
        validation_data = batches.to_device(validation_data, "validation_data")
    plan = Plan(
        loss_fn=loss_fn,
        optimizer=as_transformation("optimizer", optimizer),
        batch_size=batch_size,
        sampling=sampling,
        metrics=checks.check_metrics(metrics, validation_data),
        watch_params=float(params_tolerance) > 0,
    )
    loss = checks.check_functions(
        loss_fn, params, data, batch_size, validation_data, plan.metrics
    )
    checks.check_opt_state(plan.optimizer, params, opt_state)
    inputs = Inputs(checks.check_key(key), data, validation_data)
    limits = Limits(max_steps or MAX_STEPS, epochs, float(tolerance), float(params_tolerance))
    start_run = functools.partial(program.start, plan, params, opt_state, loss)
    checkpoints = None
    if checkpoint_dir is not None:
        run_identity = identity(plan, start_run(), (params, opt_state), inputs, limits)
        checkpoints = Checkpoints(checkpoint_dir, run_identity)

    def restore_or_start(at_most: int | None = None) -> tuple[Run, Rows]:
        names = ["loss"]
        if validation_data is not None:
            names += ["validation_loss", *(name for name, _ in plan.metrics)]
        fresh: tuple[Run, Rows] = start_run(), {name: [] for name in names}
        return (checkpoints and checkpoints.restore(fresh[0], at_most)) or fresh

    run, rows = restore_or_start()
    checks.check_not_beyond(int(run.step), int(run.epoch), limits)
    outcome = train(
        plan,
        run,
        rows,
        inputs=inputs,
        limits=limits,
        progress=progress,
        checkpoints=checkpoints,
        checkpoint_seconds=float(checkpoint_seconds),
    )
    run, rows = outcome.run, outcome.rows
    converged = int(run.status) in (LOSS_CONVERGED, PARAMS_CONVERGED)
    message = _message(outcome, limits)
    if outcome.last_finite_step is not None:
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        converged = False
        run, rows = last_finite_state(plan, restore_or_start, outcome, inputs, limits)
        message += f" The result is after {int(run.step)} updates, the last that was finite."
    if int(run.position):
        row = program.last_row(plan, run, validation_data)
        rows = {name: [*rows[name], float(value)] for name, value in row.items()}
    return FitResult(
        params=run.params,
        opt_state=run.opt_state,
        history={name: np.asarray(values) for name, values in rows.items()},
        converged=converged,
        steps=int(run.step),
        message=message,
    )


def _message(outcome: Outcome, limits: Limits) -> str:
    run = outcome.run
    status, step, epoch = int(run.status), int(run.step), int(run.epoch)
    if status == LOSS_NOT_FINITE:
        return (
            f"loss is not finite at step {step + 1}, in epoch {epoch + 1}: lower the learning "
            "rate, or look at the data."
        )
    if outcome.last_finite_step is not None:
        return (
            f"params are not finite after step {step}, while the loss is: look for a gradient "
            f"that is not finite after step {outcome.last_finite_step}."
        )
    if status == LOSS_CONVERGED:
        return f"converged: the loss changed by less than {limits.tolerance} in epoch {epoch}."
    if status == PARAMS_CONVERGED:
        return (
            f"converged: no parameter changed by {limits.params_tolerance} in epoch {epoch}."
        )
    return f"not converged: stopped after {epoch} epochs, {step} steps."
