"""What the named optimizers share: a bound on the ratio, the decay of weights, the step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optabs._checks import check_kind, check_shapes
from optabs._numerics import cast_like, kernel_of, transformation
from optabs.ratio import scale_by_ratio


def descend(
    *directions: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    """The chain of the directions times -learning_rate, rounded once at the end."""
    links = len(directions) + 1
    chain = optax.chain(*map(kernel_of, directions), _scale_by_rate(learning_rate))
    last = optax.ScaleByScheduleState if callable(learning_rate) else optax.EmptyState

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        check_kind(state, tuple)
        if len(state) != links:
            raise ValueError(
                f"state has {len(state)} parts, but this optimizer's has {links}; pass what "
                "init, or the last update, of this optimizer returned."
            )
        check_kind(state[-1], last)
        return chain.update(updates, state, params, **extra_args)

    return transformation(chain.init, update_fn)


def gradient() -> optax.GradientTransformationExtraArgs:
    """optax.identity, which also refuses the state of another numerator."""

    def update_fn(
        updates: optax.Updates, state: optax.OptState, params: Any = None, **_: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        return updates, state

    return transformation(lambda params: optax.EmptyState(), update_fn, optax.EmptyState)


def bounded_ratio(
    numerator: optax.GradientTransformation,
    denominator: optax.GradientTransformation,
    *,
    eps: ArrayLike,
    max_ratio: ArrayLike | None,
) -> optax.GradientTransformationExtraArgs:
    """scale_by_ratio, clipped to [-max_ratio, max_ratio] where that is a number."""
    ratio = scale_by_ratio(numerator, denominator, eps=eps)
    if max_ratio is None:
        return ratio

    def clip(u: jax.Array) -> jax.Array:
        bound = cast_like(max_ratio, u)
        return jnp.clip(u, -bound, bound)

    return optax.chain(kernel_of(ratio), _map_updates(clip))


def decayed_weights(weight_decay: ArrayLike, mask: Any) -> optax.GradientTransformation:
    """Adds weight_decay times the parameters, where the mask says so."""

    def add(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        if params is None:
            raise ValueError(
                "params is None; pass update the parameters as its third argument."
            )
        check_shapes("updates", updates, "params", params)
        return jax.tree.map(lambda u, p: u + cast_like(weight_decay, u) * p, updates, params)

    added = optax.stateless(add)
    return added if mask is None else optax.masked(added, mask)


def _scale_by_rate(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    if callable(learning_rate):
        return optax.scale_by_learning_rate(learning_rate)
    # optax.scale_by_learning_rate lets a float64 number widen the leaves.
    return _map_updates(lambda u: -cast_like(learning_rate, u) * u)


def _map_updates(change: Callable[[jax.Array], jax.Array]) -> optax.GradientTransformation:
    """Changes every array of the updates; the parameters, of whatever tree, are not read."""
    return optax.stateless(lambda updates, _: jax.tree.map(change, updates))
