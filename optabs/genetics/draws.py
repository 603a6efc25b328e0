"""What a mutated entry is drawn from."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optabs._checks import NONNEGATIVE, check, check_alike, short
from optabs._numerics import arrays

Sample = Callable[[jax.Array, Any], Any]


def uniform_like(key: jax.Array, params: Any) -> Any:
    r"""Entries drawn from :math:`U(0, 1)`, the draw of the paper's mutation.

    Args:
      key: a `jax.random.key`; each leaf has a stream of its own.
      params: a pytree of arrays. Leaves that are not floating-point stay as they are.

    Returns:
      A tree like `params`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from optabs import genetics
      >>> draw = genetics.uniform_like(jax.random.key(0), {"w": jnp.zeros((3, 2))})
      >>> bool((draw["w"] > 0).all() & (draw["w"] < 1).all())
      True

    Source: survey equation 48.
    """

    params = arrays(params)

    def draw(key: jax.Array, leaf: jax.Array) -> jax.Array:
        if not is_floating(leaf):
            return leaf
        return jax.random.uniform(key, leaf.shape, leaf.dtype)

    return jax.tree.map(draw, optax.tree.split_key_like(key, params), params)


def normal_around(stddev: ArrayLike) -> Sample:
    r"""Draws from a normal distribution around the entries that are there.

    .. math:: d_m \sim N(\theta_m, \sigma^2)

    Args:
      stddev: :math:`\sigma`, in parameter units, 0 or more.

    Returns:
      (key, params) -> a tree like `params`; leaves that are not floating-point stay.

    Raises:
      ValueError: for a negative stddev.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from optabs import genetics
      >>> near = genetics.normal_around(0.1)(jax.random.key(0), jnp.full(1000, 5.0))
      >>> 0.09 < float(jnp.std(near)) < 0.11
      True
    """
    check(NONNEGATIVE, stddev=stddev)

    def sample(key: jax.Array, params: Any) -> Any:
        params = arrays(params)

        def draw(key: jax.Array, leaf: jax.Array) -> jax.Array:
            if not is_floating(leaf):
                return leaf
            steps = jax.random.normal(key, leaf.shape, leaf.dtype)
            return leaf + jnp.asarray(stddev).astype(leaf.dtype) * steps

        return jax.tree.map(draw, optax.tree.split_key_like(key, params), params)

    return sample


def either(*samples: Sample) -> Sample:
    r"""Draws from one of several distributions, another one for every entry.

    .. math:: d_m = d^{(j)}_m, \qquad j \sim U\{1..n\}

    Args:
      samples: each (key, params) -> a tree like `params`.

    Returns:
      (key, params) -> a tree like `params`.

    Raises:
      ValueError: without samples; where the draws of one are not like `params`.

    Examples:
      Half of the mutations far, as a model's initialiser draws, half near:

      >>> import jax, jax.numpy as jnp
      >>> from optabs import genetics
      >>> def initial(key, params):
      ...     return jax.random.uniform(key, params.shape, minval=-5, maxval=5)
      >>> sample = genetics.either(initial, genetics.normal_around(0.1))
      >>> draws = sample(jax.random.key(0), jnp.full(1000, 100.0))
      >>> 450 < int((draws > 50).sum()) < 550
      True
    """
    if not samples or not all(callable(sample) for sample in samples):
        raise ValueError(
            f"samples is {short(samples)}; pass functions (key, params) -> a tree like params."
        )

    def sample(key: jax.Array, params: Any) -> Any:
        params = arrays(params)
        which_key, *keys = jax.random.split(key, 1 + len(samples))
        which = jax.tree.map(
            lambda key, leaf: jax.random.randint(key, leaf.shape, 0, len(samples)),
            optax.tree.split_key_like(which_key, params),
            params,
        )
        drawn = [one(key, params) for key, one in zip(keys, samples, strict=True)]
        wanted = "return a tree like params, of the same shapes and dtypes"
        for draws in drawn:
            check_alike("samples", draws, params, wanted)
        return jax.tree.map(jax.lax.select_n, which, *drawn)

    return sample


def is_floating(leaf: Any) -> bool:
    """Whether a leaf mutates."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))
