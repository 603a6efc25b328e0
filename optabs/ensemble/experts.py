"""The experts: optax transformations by name, their proposals, and who is shut out."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optabs._alike import check_alike
from optabs._checks import RATE, check
from optabs.optimizers.adam_family import adam
from optabs.optimizers.adaptive import rmsprop
from optabs.optimizers.gradient_descent import sgd

Factory: TypeAlias = Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]
Expert: TypeAlias = optax.GradientTransformation | Factory

DEFAULT_RATE = 1e-3


def lion(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    """optax's Lion without its weight decay, which the mixture has no share in."""
    check(RATE, learning_rate=learning_rate)
    return optax.lion(learning_rate, weight_decay=0.0)


DEFAULT: Mapping[str, Factory] = {"sgd": sgd, "adam": adam, "rmsprop": rmsprop, "lion": lion}


class Proposal(NamedTuple):
    """What one expert would do."""

    update: Any  # like the gradient; zero where it is not sound
    state: Any
    sound: jax.Array  # bool []: its norm is finite
    lengths: jax.Array  # float32 [L]: the norm of each leaf of the update


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
        raise ValueError(f"experts is {given!r}; {wanted}, with at least one entry.")
    check(RATE, learning_rate=DEFAULT_RATE if learning_rate is None else learning_rate)
    resolved = {}
    for name in sorted(given, key=str):
        expert = given[name]
        built = isinstance(expert, optax.GradientTransformation)
        if not isinstance(name, str) or not (built or callable(expert)):
            raise ValueError(f"experts holds {name!r}: {expert!r}; {wanted}.")
        if built and learning_rate is not None:
            raise ValueError(
                f"learning_rate is {learning_rate!r}, but expert {name!r} is a transformation "
                "with a rate of its own; pass experts as functions (learning_rate -> "
                "transformation), or no learning_rate."
            )
        if not built:
            expert = expert(DEFAULT_RATE if learning_rate is None else learning_rate)
            if not isinstance(expert, optax.GradientTransformation):
                raise ValueError(f"experts: {name!r} made {expert!r}; {wanted}.")
        resolved[name] = optax.with_extra_args_support(expert)
    return resolved


def propose(
    name: str,
    expert: optax.GradientTransformationExtraArgs,
    state: Any,
    grads: Any,
    params: Any,
    reach: jax.Array | None,
    extra_args: Mapping[str, Any],
) -> Proposal:
    """An expert's update, no longer than `reach`, and whether it may be used.

    Args:
      name: the expert's, for messages.
      expert: the transformation.
      state: the expert's.
      grads: the gradient.
      params: the parameters.
      reach: float32 [], the longest norm over the whole tree; None for no limit.
      extra_args: the keyword arguments of `update`.
    """
    update, state = expert.update(grads, state, params, **extra_args)
    wanted = "an expert's updates must have the gradient's structure, shapes and dtypes"
    check_alike(f"experts: {name!r}", update, grads, wanted)
    squares = squared_norms(jax.tree.leaves(update))
    square = jnp.sum(squares)
    # One that is too long to be measured is as useless as one that is not finite.
    sound = jnp.isfinite(square)
    lengths = root(squares)
    if reach is not None:
        norm = root(square)
        factor = jnp.where(norm > reach, reach / norm, 1.0)
        update = jax.tree.map(lambda u: scaled(factor, u), update)
        lengths = factor * lengths
    update = jax.tree.map(lambda u: jnp.where(sound, u, 0), update)
    return Proposal(update, state, sound, jnp.where(sound, lengths, 0))


def finite(leaves: list[jax.Array], square: jax.Array) -> jax.Array:
    """Whether all entries of all arrays are finite, given the sum of their squares."""

    def entries() -> jax.Array:
        flags = [jnp.all(jnp.isfinite(leaf)) for leaf in leaves]
        return jnp.all(jnp.stack(flags)) if flags else jnp.ones([], bool)

    # The squares of finite numbers may overflow; only then is another pass needed.
    return jax.lax.cond(jnp.isfinite(square), lambda: jnp.ones([], bool), entries)


def squared_norms(leaves: list[jax.Array]) -> jax.Array:
    """The sum of the squares of each array: float32 [L]."""
    sums = [jnp.sum(jnp.real(x * jnp.conj(x))).astype(jnp.float32) for x in leaves]
    return jnp.stack(sums) if sums else jnp.zeros([0], jnp.float32)


def squared_norm(leaves: list[jax.Array]) -> jax.Array:
    """The sum of all squares: float32 []."""
    return jnp.sum(squared_norms(leaves))


def root(square: jax.Array) -> jax.Array:
    """The norm of that square, with a finite slope at 0: float32, like it."""
    return jnp.sqrt(jnp.maximum(square, 1e-30))


def scaled(factor: ArrayLike, leaf: jax.Array) -> jax.Array:
    """A leaf times a real number, in the leaf's dtype."""
    return leaf * jnp.asarray(factor).astype(leaf.real.dtype)
