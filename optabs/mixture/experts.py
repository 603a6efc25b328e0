"""The experts: optax transformations by name, their updates, and states made good."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optabs._checks import RATE, as_transformation, check, check_alike, cut, short
from optabs._numerics import full_precision
from optabs._tree import tree_where
from optabs.mixture.state import barrier, root, square_of
from optabs.optimizers.adam_family import adam
from optabs.optimizers.adaptive import rmsprop
from optabs.optimizers.gradient_descent import sgd

Factory: TypeAlias = Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]
Expert: TypeAlias = optax.GradientTransformation | Factory

_BUILT = optax.GradientTransformation | optax.MultiSteps  # what is no function of a rate
DEFAULT_RATE = 1e-3


def lion(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    """optax.lion without weight decay, bit for bit, and without the slow form of its sign.

    Wider gradients do not widen its state.
    """
    check(RATE, learning_rate=learning_rate)
    inner, b1 = optax.scale_by_lion(), 0.9

    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, Any]:
        signs = jax.tree.map(lambda g, m: _sign((1.0 - b1) * g + b1 * m), updates, state.mu)
        return signs, optax.tree.cast_like(inner.update(updates, state, params)[1], state)

    signs = optax.GradientTransformation(inner.init, update_fn)
    return full_precision(optax.chain(signs, optax.scale_by_learning_rate(learning_rate)))


def _sign(x: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(x):
        return jnp.sign(x)
    x = jax.lax.stop_gradient(x)
    return jnp.where(x > 0, 1, jnp.where(x < 0, -1, x))  # a NaN stays one


DEFAULT: Mapping[str, Factory] = {"sgd": sgd, "adam": adam, "rmsprop": rmsprop, "lion": lion}


def resolve(
    learning_rate: optax.ScalarOrSchedule | None, experts: Mapping[str, Expert] | None
) -> dict[str, optax.GradientTransformationExtraArgs]:
    """The experts in the order of their names, each with its rate."""
    given = DEFAULT if experts is None else experts
    wanted = (
        "pass a mapping of names to optax transformations, or to functions (learning_rate -> "
        "transformation)"
    )
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"experts is {short(given)}; {wanted}, with at least one entry.")
    if isinstance(learning_rate, Mapping | list | tuple):  # a transformation is a tuple
        raise ValueError(
            f"learning_rate is {short(learning_rate)}; pass one number or schedule, and "
            "optimizers with rates of their own as experts={name: optimizer}."
        )
    check(RATE, learning_rate=DEFAULT_RATE if learning_rate is None else learning_rate)
    resolved = {}
    for name in sorted(given, key=str):
        expert = given[name]
        built = isinstance(expert, _BUILT)
        if not isinstance(name, str) or not (built or callable(expert)):
            raise ValueError(f"experts holds {short(name)}: {short(expert)}; {wanted}.")
        if built and learning_rate is not None:
            raise ValueError(
                f"learning_rate is {short(learning_rate)}, but expert {short(name)} is a "
                "transformation with a rate of its own; pass experts as functions "
                "(learning_rate -> transformation), or no learning_rate."
            )
        if not built:
            if not _takes_a_rate(expert):
                raise ValueError(
                    f"experts holds {short(name)}: {short(expert)}, which does not take a "
                    f"learning_rate alone; {wanted}."
                )
            expert = expert(DEFAULT_RATE if learning_rate is None else learning_rate)
            if not isinstance(expert, _BUILT):
                raise ValueError(f"experts: {short(name)} made {short(expert)}; {wanted}.")
        resolved[name] = optax.with_extra_args_support(as_transformation(name, expert))
    return resolved


def _takes_a_rate(function: Any) -> bool:
    try:
        inspect.signature(function).bind(DEFAULT_RATE)
    except TypeError:
        return False
    except ValueError:  # functions written in C may have no signature
        return True
    return True


def updated(
    members: Mapping[str, optax.GradientTransformationExtraArgs],
    grads: Any,
    states: Mapping[str, Any],
    params: Any,
    extra_args: Mapping[str, Any],
) -> tuple[list[Any], dict[str, Any]]:
    """The experts' updates, in their order, and their states."""
    wanted = "an expert's updates must have the gradient's structure, shapes and dtypes"
    kept = "an expert's state must keep its structure, shapes and dtypes"
    proposed, new = [], {}
    for name, member in members.items():
        try:
            update, new[name] = member.update(grads, states[name], params, **extra_args)
        except TypeError as error:
            _, missing, needed = str(error).rpartition("required keyword-only argument")
            if not missing:
                raise  # a fault of the expert's own
            raise ValueError(
                f"experts: {short(name)} needs {cut(needed.rpartition(': ')[2])}; pass it to "
                "update by name, such as value=loss."
            ) from error
        check_alike(f"experts: {short(name)}", update, grads, wanted)
        check_alike(f"experts: {short(name)}", new[name], states[name], kept)
        proposed.append(update)
    return proposed, new


def repaired(
    members: Mapping[str, optax.GradientTransformationExtraArgs],
    states: Mapping[str, Any],
    params: Any,
) -> dict[str, Any]:
    """The experts' states, with what init makes in place of entries that are not finite."""

    def entry(old: jax.Array, new: jax.Array) -> jax.Array:
        if jnp.shape(old) != jnp.shape(new):
            raise ValueError
        if not jnp.issubdtype(jnp.result_type(old), jnp.inexact):
            return old
        return tree_where(jnp.isfinite(old), jnp.asarray(old), jnp.asarray(new))

    good = {}
    for name, member in members.items():
        new = member.init(params)
        try:
            good[name] = jax.tree.map(entry, states[name], new)
        except ValueError:
            raise ValueError(
                f"state holds another optimizer's for {short(name)}, or one of other "
                "parameters; pass update the state that this optimizer's init made of these."
            ) from None
    return good


def cap_factors(
    cap: ArrayLike, stretch: ArrayLike, params: Any, proposed: list[Any]
) -> jax.Array:
    """What shortens each update to its cap, `stretch` being the multiplier: float32 [K]."""
    # Exactly, not by the entries that are kept: an embedding's update may be a few rows.
    known = jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(leaf), leaf, 0), params)
    norms = jnp.stack([root(square_of(jax.tree.leaves(x))) for x in (known, *proposed)])
    longest = jnp.asarray(cap) * jnp.maximum(norms[0], 1.0) / jnp.maximum(stretch, 1.0)
    # No longer norm is finite; an update whose norm is not counts as 0.
    factors = 1 / jnp.maximum(norms[1:] / jnp.minimum(longest, 1e20), 1.0)
    return barrier(factors.astype(jnp.float32))
