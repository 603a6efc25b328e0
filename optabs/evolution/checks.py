"""Refuses what cannot be evolved, before anything is."""

import functools
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from optabs._checks import WHOLE, check, cut, optional, short
from optabs.evolution.devices import Layout
from optabs.evolution.learning import fitness_name, population_size, standardize_loss
from optabs.evolution.state import GadamState, Inheritance, Losses, Plan
from optabs.training import batches
from optabs.training.checks import check_functions
from optabs.training.program import MAX_CACHED_PROGRAMS

# What jax raises where Python reads a traced value, as for a shape that depends on it.
_TRACER_ERRORS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
_KEY_DEPENDENT_SHAPES = (
    "init_fn looks at the value of its key, so that its shapes may depend on it; pass one "
    "whose shapes and choices are the same for every key."
)


def check_plan(plan: Plan) -> None:
    """Raises unless the population can be laid out and bred."""
    check(WHOLE, population_size=plan.population_size, epochs=plan.epochs)
    check(
        optional(WHOLE),
        chunk_size=plan.chunk_size,
        batch_size=plan.batch_size,
        validation_batch_size=plan.validation_batch_size,
    )
    if plan.inheritance not in get_args(Inheritance):
        known = " or ".join(map(repr, get_args(Inheritance)))
        raise ValueError(f"inheritance is {short(plan.inheritance)}; pass {known}.")
    if not isinstance(plan.stateful, bool):
        raise ValueError(f"stateful is {short(plan.stateful)}; pass True or False.")
    check_function("sample", plan.sample, "a function (key, params) -> a tree like params")
    _check_layout(plan.layout, plan.population_size)


def _check_layout(layout: Layout, size: int) -> None:
    mesh = layout.mesh
    if mesh is None:
        return
    if not isinstance(mesh, Mesh):
        raise ValueError(
            f"mesh is {short(mesh)}; pass a jax.sharding.Mesh, such as jax.make_mesh((8,), "
            f"({short(layout.axis)},)), or None for one device."
        )
    if layout.axis not in mesh.shape:
        raise ValueError(
            f"axis is {short(layout.axis)}, but the mesh has {short(list(mesh.shape))}; "
            "pass one of these."
        )
    if size % layout.devices:
        raise ValueError(
            f"population_size is {size}, which {layout.devices} devices cannot share evenly; "
            f"pass a multiple of {layout.devices}."
        )


def check_function(name: str, function: Any, wanted: str) -> None:
    """Raises unless it can be called, and found again among the compiled programs."""
    if not callable(function):
        raise ValueError(f"{name} is {short(function)}; pass {wanted}.")
    try:
        hash(function)
    except TypeError:
        raise ValueError(
            f"{name} is a {type(function).__name__}, which cannot be hashed, so that its "
            f"program cannot be kept; pass {wanted}."
        ) from None


def check_init(init_fn: Callable[[jax.Array], Any], stateful: bool, key: jax.Array) -> None:
    """Raises unless all units start with the same shapes, and with something to learn."""
    check_function("init_fn", init_fn, "a function key -> params")
    try:
        initial = jax.eval_shape(init_fn, key)
    except _TRACER_ERRORS as error:
        raise ValueError(_KEY_DEPENDENT_SHAPES) from error
    except TypeError as error:
        # jax has no type of its own for a shape that is traced.
        if "Shapes must be 1D sequences of concrete values" not in str(error):
            raise
        raise ValueError(_KEY_DEPENDENT_SHAPES) from error
    if stateful and not (isinstance(initial, tuple) and len(initial) == 2):
        raise ValueError(
            f"init_fn returns a {type(initial).__name__}; with stateful=True return the pair "
            "(params, model_state)."
        )
    params = initial[0] if stateful else initial
    if not jax.tree.leaves(params):
        raise ValueError("init_fn returns no arrays; return a pytree of parameters.")
    _check_learnable("init_fn's params", params)


def _check_learnable(name: str, params: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ValueError(
                f"{name}{cut(jax.tree_util.keystr(path))} is {leaf.dtype}, which has no "
                "gradient; pass floating-point arrays only, and let loss_fn close over the "
                "rest or keep it in the model_state of stateful=True."
            )


def check_state(plan: Plan, state: GadamState) -> None:
    """Raises unless the population is stacked, and of the size that was planned."""
    if not isinstance(state, GadamState):
        raise ValueError(
            f"state is a {type(state).__name__}; pass a GadamState, such as init returns."
        )
    for name, tree in zip(("params", "opt_state", "model_state"), state.units, strict=True):
        if not jax.tree.leaves(tree) and name != "params":
            continue
        size = population_size(tree, f"state.{name}")
        if size != plan.population_size:
            raise ValueError(
                f"state.{name} holds {size} units, but population_size is "
                f"{plan.population_size}; pass a state of this population."
            )
    _check_learnable("state.params", state.params)


def check_data(data: Any, size: int | None, name: str, size_name: str) -> None:
    """Raises unless batches of that size can be taken."""
    if size is None:
        return
    if data is None:
        raise ValueError(f"{size_name} is {size} but {name} is None; pass data to draw from.")
    batches.check_rows(data, name)
    batches.check_batch_size(size, batches.num_instances(data), size_name)


def check_losses(loss_fn: Callable[..., Any], fitness_fn: Callable[..., Any] | None) -> Losses:
    """What the units learn and their fitness; raises unless these are functions."""
    wanted = "a function (params, batch) -> a number"
    check_function("loss_fn", loss_fn, wanted)
    if fitness_fn is None:
        return Losses(loss_fn, loss_fn)
    check_function("fitness_fn", fitness_fn, wanted)
    return Losses(loss_fn, fitness_fn)


def check_values(
    plan: Plan, losses: Losses, unit: tuple[Any, Any], data: Any, validation: Any
) -> None:
    """Raises for a loss that is not one number, and for labels out of range.

    Args:
      plan: how the units learn.
      losses: what they learn, and what their fitness is.
      unit: the parameters and the model's state of one of them.
      data: what they learn from, or None.
      validation: what their fitness is measured on, or None.
    """
    check_data(data, plan.batch_size, "train_data", "batch_size")
    check_data(
        validation, plan.validation_batch_size, "validation_data", "validation_batch_size"
    )
    for name, function, data_name, given, size in (
        ("loss_fn", losses.loss_fn, "train_data", data, plan.batch_size),
        (
            fitness_name(losses),
            losses.fitness_fn,
            "validation_data",
            validation,
            plan.validation_batch_size,
        ),
    ):
        batch = batches.batch_struct(given, size)
        jax.eval_shape(standardize_loss(plan, name, function, data_name), *unit, batch)
        if given is not None:
            check_functions(_unit_loss(plan.stateful, function), unit, given, size)


@functools.lru_cache(MAX_CACHED_PROGRAMS)
def _unit_loss(
    stateful: bool, function: Callable[..., Any]
) -> Callable[[Any, Any], jax.Array]:
    """loss_fn(unit, batch), as `fit` takes it; the same object for the same function."""
    if stateful:
        return lambda unit, batch: function(*unit, batch)[0]
    return lambda unit, batch: function(unit[0], batch)
