"""The experts: optax transformations by name, their proposals, and who is shut out."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from optabs._checks import RATE, check, check_alike, short
from optabs.ensemble.scalars import barrier, root, squared_norms
from optabs.optimizers.adam_family import adam
from optabs.optimizers.adaptive import rmsprop
from optabs.optimizers.gradient_descent import sgd

Factory: TypeAlias = Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]
Expert: TypeAlias = optax.GradientTransformation | Factory

DEFAULT_RATE = 1e-3


def lion(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    """optax's Lion without weight decay, as the other default experts are."""
    check(RATE, learning_rate=learning_rate)
    return optax.lion(learning_rate, weight_decay=0.0)


DEFAULT: Mapping[str, Factory] = {"sgd": sgd, "adam": adam, "rmsprop": rmsprop, "lion": lion}


class Proposal(NamedTuple):
    """One expert's update, and what the mixture measures of it."""

    update: Any  # like the gradient
    state: Any
    finite: jax.Array  # bool []: the update's norm is finite
    divisor: jax.Array  # float32 []: what brings the update to max_norm, 1 or more
    lengths: jax.Array  # float32 [L]: the norm of each leaf of the update after that, or 0


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
    check(RATE, learning_rate=DEFAULT_RATE if learning_rate is None else learning_rate)
    resolved = {}
    for name in sorted(given, key=str):
        expert = given[name]
        built = isinstance(expert, optax.GradientTransformation)
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
            if not isinstance(expert, optax.GradientTransformation):
                raise ValueError(f"experts: {short(name)} made {short(expert)}; {wanted}.")
        resolved[name] = optax.with_extra_args_support(expert)
    return resolved


def _takes_a_rate(function: Any) -> bool:
    try:
        inspect.signature(function).bind(DEFAULT_RATE)
    except TypeError:
        return False
    except ValueError:  # functions written in C may have no signature
        return True
    return True


def propose(
    name: str,
    expert: optax.GradientTransformationExtraArgs,
    state: Any,
    grads: Any,
    params: Any,
    max_norm: jax.Array | None,
    extra_args: Mapping[str, Any],
) -> Proposal:
    """An expert's update, whether it is finite, and by what `max_norm` asks to divide it.

    Args:
      name: the expert's, for messages.
      expert: the transformation.
      state: the expert's.
      grads: the gradient.
      params: the parameters.
      max_norm: float32 [], of the update over the whole tree; None for no limit.
      extra_args: the keyword arguments of `update`.
    """
    update, state = expert.update(grads, state, params, **extra_args)
    wanted = "an expert's updates must have the gradient's structure, shapes and dtypes"
    check_alike(f"experts: {short(name)}", update, grads, wanted)
    squares = squared_norms(jax.tree.leaves(update))
    square = jnp.sum(squares)
    # An update whose norm overflows is refused as one that is not finite.
    finite = jnp.isfinite(square)
    lengths = jnp.where(finite, root(squares), 0)
    if max_norm is None:
        divisor = jnp.ones([], jnp.float32)
    else:
        divisor = jnp.maximum(root(jnp.where(finite, square, 0)) / max_norm, 1.0)
        lengths = lengths / divisor
    return Proposal(update, state, *barrier((finite, divisor, lengths)))
