"""Where training starts."""

from typing import Any

import jax
import optax
from jax.typing import ArrayLike

from optabs._checks import NONNEGATIVE, check
from optabs._numerics import arrays


def normal_like(key: jax.Array, params: Any, stddev: ArrayLike = 0.01) -> Any:
    r"""Parameters drawn from a normal distribution.

    .. math:: \theta_i \sim N(0, \sigma^2)

    Args:
      key: a `jax.random.key`.
      params: a pytree of floating-point or complex arrays, or of ShapeDtypeStructs, of which
        shapes and dtypes are used.
      stddev: :math:`\sigma`, in parameter units, 0 or more.

    Returns:
      A tree like `params`; every leaf has a stream of its own.

    Raises:
      ValueError: for a negative stddev.

    Examples:
      >>> import jax, jax.numpy as jnp, optabs
      >>> params = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}
      >>> start = optabs.normal_like(jax.random.key(0), params, stddev=0.1)
      >>> start["w"].shape, start["b"].dtype
      ((3, 2), dtype('float32'))

    Source: survey section 2, algorithms 1 to 3.
    """
    check(NONNEGATIVE, stddev=stddev)
    draws = optax.tree.random_like(key, arrays(params), jax.random.normal)
    return jax.tree.map(lambda draw: (stddev * draw).astype(draw.dtype), draws)
