"""Refuses what cannot be trained, before anything is."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental import checkify
from jax.extend.core import jaxprs_in_params

from optabs._checks import cut, short
from optabs.training import batches
from optabs.training.batches import refuse_tracer
from optabs.training.program import MAX_CACHED_PROGRAMS, Limits, LossFn, Metrics


def check_params(params: Any) -> None:
    """Raises unless there is something to differentiate, and nothing else."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError("params has no arrays; pass a pytree of floating-point arrays.")
    for path, leaf in leaves:
        refuse_tracer(leaf)
        name = f"params{cut(jax.tree_util.keystr(path))}"
        try:
            dtype = jnp.result_type(leaf)
        except TypeError:
            raise ValueError(
                f"{name} is a {type(leaf).__name__}; pass a pytree of floating-point arrays."
            ) from None
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise ValueError(
                f"{name} is {dtype}; pass floating-point arrays only, and let loss_fn close "
                "over the rest."
            )


def check_key(key: Any) -> jax.Array:
    """A key: the one given, or 0's."""
    if key is None:
        return jax.random.key(0)
    what = short(key)
    if isinstance(key, jax.Array):
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        if key.ndim == (0 if typed else 1) and (typed or key.dtype == jnp.uint32):
            return key
        what = f"{key.dtype} of shape {key.shape}"
    raise ValueError(f"key is {what}; pass one jax.random.key(seed), or None for seed 0.")


def check_metrics(metrics: Mapping[str, LossFn] | None, validation: Any) -> Metrics:
    """The metrics by name; raises where there is nothing to take them on."""
    if metrics is not None and not isinstance(metrics, Mapping):
        raise ValueError(
            f"metrics is a {type(metrics).__name__}; pass a mapping from names to functions."
        )
    if not metrics:
        return ()
    if not all(isinstance(name, str) for name in metrics):
        raise ValueError(f"metrics has names {short(list(metrics))}; pass strings for names.")
    if validation is None:
        raise ValueError(
            f"metrics has {cut(', '.join(metrics))} but validation_data is None; pass the "
            "data to take them on."
        )
    taken = {"loss", "validation_loss"} & set(metrics)
    if taken:
        raise ValueError(
            f"metrics has {short(taken.pop())}, which the history keeps for loss_fn; rename "
            "it."
        )
    return tuple(metrics.items())


def check_sampling(sampling: Any, batch_size: int | None) -> None:
    """Raises unless the sampling is known and has batches to draw."""
    if sampling not in batches.SAMPLINGS:
        known = " or ".join(map(repr, batches.SAMPLINGS))
        raise ValueError(f"sampling is {short(sampling)}; pass {known}.")
    if sampling == "random" and batch_size is None:
        raise ValueError("sampling is 'random' but batch_size is None; pass a batch_size.")


def check_opt_state(
    optimizer: optax.GradientTransformation, params: Any, opt_state: Any
) -> None:
    """Raises unless the state, where one is given, is of this optimizer and these params."""
    if opt_state is None:
        return
    fresh = jax.eval_shape(optimizer.init, params)

    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)

    if shapes(opt_state) != shapes(fresh):
        raise ValueError(
            "opt_state is not of this optimizer and these params; pass the opt_state of an "
            "earlier result with both, or None for a fresh one."
        )


def check_not_beyond(step: int, epoch: int, limits: Limits) -> None:
    """Raises where the run that was kept is longer than the one asked for."""
    if step > limits.step or epoch > limits.epochs:
        raise ValueError(
            f"checkpoint_dir holds this run after {epoch} epochs and {step} steps; pass no "
            "smaller epochs and max_steps, or another folder."
        )


def check_functions(
    loss_fn: LossFn,
    params: Any,
    data: Any,
    batch_size: int | None,
    validation: Any = None,
    metrics: Metrics = (),
) -> jax.ShapeDtypeStruct:
    """What loss_fn gives for a batch; raises unless it and every metric give one number.

    Then raises what the losses' own checks say of the data, labels out of range above all:
    the losses of optabs leave a `checkify.debug_check` that costs nothing in training, and
    is evaluated here once over each set. The compiler drops all that no check depends on, so
    the network is not run for a check of labels.
    """
    for name, function in (("loss_fn", loss_fn), *metrics):
        _check_function(name, function)
    batch = batches.batch_struct(data, batch_size)
    loss, checked = _trace("loss_fn", loss_fn, params, batch)
    if validation is not None:
        trees = [str(jax.tree.structure(tree)) for tree in (validation, data)]
        if trees[0] != trees[1]:
            raise ValueError(
                "validation_data is another tree than data; pass one of the same structure."
            )
        _, validation_checked = _trace("loss_fn", loss_fn, params, validation)
        for name, metric in metrics:
            _trace(name, metric, params, validation, jnp.number, jnp.bool)
        if validation_checked:
            _check_values(loss_fn, params, validation, None)
    if checked:
        _check_values(loss_fn, params, data, batch_size)
    return loss


def _check_function(name: str, function: Any) -> None:
    try:
        hash(function)
        if callable(function):
            return
        problem = "which cannot be called"
    except TypeError:
        problem = "which cannot be hashed, so that its program cannot be kept"
    raise ValueError(
        f"{name} is a {type(function).__name__}, {problem}; pass a function from params and a "
        "batch to a number."
    )


def _trace(
    name: str, function: LossFn, params: Any, batch: Any, *kinds: Any
) -> tuple[jax.ShapeDtypeStruct, bool]:
    """What a function gives, and whether it has checks; raises unless it is one number."""
    kinds = kinds or (jnp.floating,)
    closed, given = jax.make_jaxpr(function, return_shape=True)(params, batch)
    if isinstance(given, jax.ShapeDtypeStruct):
        real = not jnp.issubdtype(given.dtype, jnp.complexfloating)
        if given.shape == () and real and any(jnp.issubdtype(given.dtype, k) for k in kinds):
            return given, _has_checks(closed.jaxpr)
        what = f"{given.dtype} of shape {given.shape}"
    else:
        what = f"a {type(given).__name__}"
    raise ValueError(
        f"{name} returns {what}; return one floating-point number for a batch, such as the "
        "mean over its instances."
    )


def _check_values(loss_fn: LossFn, params: Any, data: Any, batch_size: int | None) -> None:
    message = _check_program(loss_fn, batch_size)(params, data).get()
    if message is not None:
        raise ValueError(message.removesuffix(" (`check` failed)"))


@functools.lru_cache(MAX_CACHED_PROGRAMS)
def _check_program(
    loss_fn: LossFn, batch_size: int | None
) -> Callable[[Any, Any], checkify.Error]:
    def losses(params: Any, data: Any) -> tuple[jax.Array, ...]:
        count = batches.num_instances(data)
        full, short = batches.split_epoch(count, batch_size, "shuffle")
        rows = jnp.arange(count)
        full_rows = rows[: count - short].reshape(full, -1)
        of_full = jax.lax.map(lambda row: loss_fn(params, batches.take(data, row)), full_rows)
        if not short:
            return (of_full,)
        return of_full, loss_fn(params, batches.take(data, rows[count - short :]))

    checked = checkify.checkify(losses, errors=checkify.user_checks)
    return jax.jit(lambda params, data: checked(params, data)[0])


def _has_checks(jaxpr: Any) -> bool:
    # checkify cannot see into a shard_map of another mesh; labels are NaN there all the same.
    return any(
        equation.primitive.name == "check"
        or any(_has_checks(inner) for inner in jaxprs_in_params(equation.params))
        for equation in jaxpr.eqns
        if equation.primitive.name != "shard_map"
    )
