"""What the named optimizers share: the cures of a ratio and the step downhill."""

import optax
from jax.typing import ArrayLike

from optabs.precision import full_precision
from optabs.ratio import scale_by_ratio
from optabs.sizes import running_max


def descend(
    *directions: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    """The chain of the directions times -learning_rate, rounded once at the end."""
    return full_precision(
        optax.chain(*directions, optax.scale_by_learning_rate(learning_rate))
    )


def steadied_ratio(
    numerator: optax.GradientTransformation,
    denominator: optax.GradientTransformation,
    *,
    eps: ArrayLike,
    keep_max: bool,
    max_ratio: ArrayLike | None,
) -> optax.GradientTransformationExtraArgs:
    """scale_by_ratio with the two cures against long steps, each of them optional."""
    if keep_max:
        denominator = optax.chain(denominator, running_max())
    ratio = scale_by_ratio(numerator, denominator, eps=eps)
    return ratio if max_ratio is None else optax.chain(ratio, optax.clip(max_ratio))
