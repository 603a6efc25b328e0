"""What the named optimizers share: a bound on the ratio and the step downhill."""

import optax
from jax.typing import ArrayLike

from optabs.precision import full_precision
from optabs.ratio import scale_by_ratio


def descend(
    *directions: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    """The chain of the directions times -learning_rate, rounded once at the end."""
    return full_precision(
        optax.chain(*directions, optax.scale_by_learning_rate(learning_rate))
    )


def bounded_ratio(
    numerator: optax.GradientTransformation,
    denominator: optax.GradientTransformation,
    *,
    eps: ArrayLike,
    max_ratio: ArrayLike | None,
) -> optax.GradientTransformationExtraArgs:
    """scale_by_ratio, clipped to [-max_ratio, max_ratio] where that is a number."""
    ratio = scale_by_ratio(numerator, denominator, eps=eps)
    return ratio if max_ratio is None else optax.chain(ratio, optax.clip(max_ratio))
