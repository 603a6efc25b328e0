"""Refuses what cannot be evolved, before anything is."""

from collections.abc import Callable
from typing import Any, get_args

import jax
import optax
from jax.sharding import Mesh

from optabs._checks import check
from optabs.evolution.layout import Layout
from optabs.evolution.state import GadamState, Inheritance, Plan
from optabs.evolution.units import population_size
from optabs.training import batches


def check_plan(plan: Plan) -> None:
    """Raises unless the population can be laid out and bred."""
    check(population_size=plan.population_size, epochs=plan.epochs)
    check(chunk_size=plan.chunk_size)
    for name in ("batch_size", "validation_batch_size"):
        check(**{name: getattr(plan, name)})
    if plan.inheritance not in get_args(Inheritance):
        known = " or ".join(map(repr, get_args(Inheritance)))
        raise ValueError(f"inheritance is {plan.inheritance!r}; pass {known}.")
    if not isinstance(plan.stateful, bool):
        raise ValueError(f"stateful is {plan.stateful!r}; pass True or False.")
    check_function("sample", plan.sample, "a function (key, params) -> a tree like params")
    _check_layout(plan.layout, plan.population_size)


def _check_layout(layout: Layout, size: int) -> None:
    mesh = layout.mesh
    if mesh is None:
        return
    if not isinstance(mesh, Mesh):
        raise ValueError(
            f"mesh is {mesh!r}; pass a jax.sharding.Mesh, such as jax.make_mesh((8,), "
            f"({layout.axis!r},)), or None for one device."
        )
    if layout.axis not in mesh.shape:
        raise ValueError(
            f"axis is {layout.axis!r}, but the mesh has {list(mesh.shape)}; pass one of these."
        )
    if size % layout.devices:
        raise ValueError(
            f"population_size is {size}, which {layout.devices} devices cannot share evenly; "
            f"pass a multiple of {layout.devices}."
        )


def check_function(name: str, function: Any, wanted: str) -> None:
    """Raises unless it can be called, and found again among the compiled programs."""
    if not callable(function):
        raise ValueError(f"{name} is {function!r}; pass {wanted}.")
    try:
        hash(function)
    except TypeError:
        raise ValueError(
            f"{name} is a {type(function).__name__}, which cannot be hashed, so that its "
            f"program cannot be kept; pass {wanted}."
        ) from None


def check_unit(unit: Any) -> optax.GradientTransformation:
    """The unit's optimizer; raises unless it is a transformation."""
    if not isinstance(unit, optax.GradientTransformation):
        raise ValueError(
            f"unit is {unit!r}; pass a gradient transformation, such as optabs.adam(1e-3)."
        )
    return unit


def check_init(init_fn: Callable[[jax.Array], Any], stateful: bool, key: jax.Array) -> None:
    """Raises unless all units start with the same shapes."""
    check_function("init_fn", init_fn, "a function key -> params")
    try:
        made = jax.eval_shape(init_fn, key)
    except jax.errors.ConcretizationTypeError as error:
        raise ValueError(
            "init_fn looks at the value of its key, so that its shapes may depend on it; pass "
            "one whose shapes and choices are the same for every key."
        ) from error
    if stateful and not (isinstance(made, tuple) and len(made) == 2):
        raise ValueError(
            f"init_fn returns a {type(made).__name__}; with stateful=True return the pair "
            "(params, model_state)."
        )
    params = made[0] if stateful else made
    if not jax.tree.leaves(params):
        raise ValueError("init_fn returns no arrays; return a pytree of parameters.")


def check_state(plan: Plan, state: GadamState) -> None:
    """Raises unless the population is stacked, and of the size that was planned."""
    for name, tree in zip(("params", "opt_state", "model_state"), state.units, strict=True):
        if not jax.tree.leaves(tree) and name != "params":
            continue
        size = population_size(tree, f"state.{name}")
        if size != plan.population_size:
            raise ValueError(
                f"state.{name} holds {size} units, but population_size is "
                f"{plan.population_size}; pass a state of this population."
            )


def check_data(data: Any, size: int | None, name: str, size_name: str) -> None:
    """Raises unless batches of that size can be taken."""
    if size is None:
        return
    if data is None:
        raise ValueError(f"{size_name} is {size} but {name} is None; pass data to draw from.")
    batches.check_rows(data, name)
    batches.check_batch_size(size, batches.instances(data), size_name)
