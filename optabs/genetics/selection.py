"""Who becomes a parent, and who survives."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optabs._numerics import widen


def normalize_losses(losses: ArrayLike) -> jax.Array:
    r"""Losses brought into [0, 1] over the population.

    .. math:: \hat L_i = \frac{L_i - \min_j L_j}{\max_j L_j - \min_j L_j}

    over the finite losses; 0 where these are all equal, infinity for any other loss.

    Args:
      losses: real [g].

    Returns:
      float [g], at least float32.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optabs import genetics
      >>> genetics.normalize_losses(jnp.array([3.0, 1.0, jnp.nan, 2.0])).tolist()
      [1.0, 0.0, inf, 0.5]

    Source: survey section 6, before equation 45.
    """
    losses = widen(losses)
    finite = jnp.isfinite(losses)
    # Of the largest numbers the difference overflows, and its reciprocal underflows.
    parts = jnp.where(finite, losses, 0) / 16
    low = jnp.min(parts, where=finite, initial=jnp.inf)
    high = jnp.max(parts, where=finite, initial=-jnp.inf)
    spread = jnp.where(high > low, high - low, 1)
    return jnp.where(finite, (parts - low) / spread, jnp.inf)


def selection_probabilities(losses: ArrayLike, pressure: ArrayLike = 1.0) -> jax.Array:
    r"""How probably each individual is drawn as a parent.

    .. math:: P_i = \frac{\exp(-s \hat L_i)}{\sum_j \exp(-s \hat L_j)}

    with the losses normalised into [0, 1] by :func:`normalize_losses`. An individual whose
    loss is not finite has a probability of 0; if there is no other, all are equal.

    Args:
      losses: real [g].
      pressure: :math:`s`, 0 or more; 1 is the paper's.

    Returns:
      float [g], at least float32, with a sum of 1.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optabs import genetics
      >>> chances = genetics.selection_probabilities(jnp.array([0.2, 0.9, jnp.inf]))
      >>> [round(float(chance), 3) for chance in chances]
      [0.731, 0.269, 0.0]

    Source: survey equation 45.
    """
    normalized = normalize_losses(losses)
    finite = jnp.isfinite(normalized)
    shares = jnp.where(
        finite, jnp.exp(-jnp.asarray(pressure) * jnp.where(finite, normalized, 0)), 0
    )
    shares = jnp.where(jnp.any(finite), shares, 1)
    return shares / jnp.sum(shares)


def select_parents(key: jax.Array, probabilities: ArrayLike, pairs: int) -> jax.Array:
    """Pairs of parents, each drawn independently; a pair may be one individual twice.

    Args:
      key: a `jax.random.key`.
      probabilities: float [g].
      pairs: how many.

    Returns:
      int32 [pairs, 2], indices into the population.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from optabs import genetics
      >>> genetics.select_parents(jax.random.key(0), jnp.array([0.0, 1.0]), 2).tolist()
      [[1, 1], [1, 1]]

    Source: survey section 6, after equation 45.
    """
    chances = widen(probabilities)
    never = chances == 0
    # The draw adds at most some hundreds, so the least number is as good as minus infinity.
    logits = jnp.where(
        never, jnp.finfo(chances.dtype).min, jnp.log(jnp.where(never, 1, chances))
    )
    return jax.random.categorical(key, logits, shape=(pairs, 2))


def survivors(losses: ArrayLike, size: int) -> jax.Array:
    """The individuals of the smallest losses, the best one first.

    Of equal losses the earlier one survives; what is not finite comes last.

    Args:
      losses: real [n].
      size: how many survive.

    Returns:
      int32 [size], indices.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optabs import genetics
      >>> genetics.survivors(jnp.array([3.0, jnp.nan, 1.0, 2.0]), 2).tolist()
      [2, 3]

    Source: survey section 6, the survival of the fittest.
    """
    losses = jnp.asarray(losses)
    ranked = jnp.argsort(jnp.where(jnp.isfinite(losses), losses, jnp.inf), stable=True)
    return ranked[:size].astype(jnp.int32)
