"""What a child is made of: entries of its parents, and some that are drawn anew."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optabs._checks import check_alike
from optabs._numerics import arrays
from optabs.genetics.draws import is_floating, uniform_like


def crossover_mask(key: jax.Array, params: Any, loss_a: ArrayLike, loss_b: ArrayLike) -> Any:
    r"""Which entries a child takes from its first parent.

    .. math:: m \sim \mathrm{Bernoulli}(p_{ab}), \qquad
              p_{ab} = \frac{\exp(-\hat L_a)}{\exp(-\hat L_a) + \exp(-\hat L_b)}

    entry by entry. A loss that is NaN counts as infinite; equal losses give 1/2.

    Args:
      key: a `jax.random.key`; each leaf has a stream of its own.
      params: a pytree of arrays or ShapeDtypeStructs, of which the shapes are used.
      loss_a: the first parent's normalised loss, a real number.
      loss_b: the second's.

    Returns:
      A tree like `params`, of bool.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from optabs import genetics
      >>> key, params = jax.random.key(0), jnp.zeros(4)
      >>> genetics.crossover_mask(key, params, 0.0, jnp.nan).tolist()
      [True, True, True, True]

    Source: survey equations 46 and 47.
    """
    loss_a, loss_b = (_infinite_if_nan(loss) for loss in (loss_a, loss_b))
    behind = jnp.where(loss_a == loss_b, 0, loss_b - loss_a)
    return _chosen(key, params, jax.nn.sigmoid(behind))


def crossover(key: jax.Array, a: Any, b: Any, loss_a: ArrayLike, loss_b: ArrayLike) -> Any:
    r"""A child of two parents, which takes each entry from one of them.

    .. math:: \theta_{ab} = m\,\theta_a + (1 - m)\,\theta_b

    with the mask :math:`m` of :func:`crossover_mask`: the better parent gives more. What is
    not finite in the entry that is not taken does not reach the child.

    Args:
      key: a `jax.random.key`.
      a: the first parent, a pytree of arrays.
      b: the second, a tree like it.
      loss_a: the first parent's normalised loss, a real number.
      loss_b: the second's.

    Returns:
      A tree like `a`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from optabs import genetics
      >>> a, b = jnp.zeros(1000), jnp.ones(1000)
      >>> child = genetics.crossover(jax.random.key(0), a, b, 0.0, 1.0)
      >>> 0.2 < float(child.mean()) < 0.33  # 0.27 of them from b
      True

    Source: survey equations 46 and 47.
    """
    a, b = arrays((a, b))
    mask = crossover_mask(key, a, loss_a, loss_b)
    return jax.tree.map(jnp.where, mask, a, b)


def mutation_rate(
    base: ArrayLike, probability_a: ArrayLike, probability_b: ArrayLike
) -> jax.Array:
    r"""The rate at which the child of two parents mutates.

    .. math:: p_q = p\,\max(1 - P_a - P_b, 0)

    Args:
      base: :math:`p` in [0, 1].
      probability_a: the first parent's selection probability.
      probability_b: the second's. Both may be one individual with more than 1/2.

    Returns:
      float [].

    Examples:
      >>> from optabs import genetics
      >>> round(float(genetics.mutation_rate(0.01, 0.3, 0.2)), 4)
      0.005

    Source: survey equation 49.
    """
    rest = 1 - jnp.asarray(probability_a) - jnp.asarray(probability_b)
    return jnp.asarray(base) * jnp.maximum(rest, 0)


def mutate(
    key: jax.Array,
    params: Any,
    rate: ArrayLike,
    sample: Callable[[jax.Array, Any], Any] = uniform_like,
) -> Any:
    r"""An individual some of whose entries are drawn anew.

    .. math:: \theta'_m = d_m \text{ where } u_m < p_q, \text{ else } \theta_m, \qquad
              u_m \sim U(0, 1)

    Args:
      key: a `jax.random.key`.
      params: a pytree of arrays; only floating-point leaves mutate.
      rate: :math:`p_q` in [0, 1].
      sample: (key, params) -> a tree like `params`, the draws :math:`d`. The paper's are
        uniform in (0, 1); :func:`normal_around`, :func:`either`, :func:`optabs.normal_like`
        or a model's own initialiser are others.

    Returns:
      A tree like `params`.

    Raises:
      ValueError: where the draws have another structure, other shapes or dtypes.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from optabs import genetics
      >>> child = genetics.mutate(jax.random.key(0), jnp.full(1000, 5.0), rate=0.1)
      >>> 60 < int((child != 5.0).sum()) < 140
      True

    Source: survey equation 48.
    """
    params = arrays(params)
    where_key, draw_key = jax.random.split(key)
    draws = sample(draw_key, params)
    check_alike(
        "sample", draws, params, "return a tree like params, of the same shapes and dtypes"
    )
    mask = _chosen(where_key, params, rate)

    def renewed(changes: jax.Array, draw: jax.Array, leaf: jax.Array) -> jax.Array:
        return jnp.where(changes, draw, leaf) if is_floating(leaf) else leaf

    return jax.tree.map(renewed, mask, draws, params)


def _infinite_if_nan(loss: ArrayLike) -> jax.Array:
    loss = jnp.asarray(loss)
    return jnp.where(jnp.isnan(loss), jnp.inf, loss)


def _chosen(key: jax.Array, tree: Any, probability: ArrayLike) -> Any:
    """A tree like the given one, of bool: each entry true with that probability."""
    tree = arrays(tree)
    return jax.tree.map(
        lambda key, leaf: jax.random.uniform(key, leaf.shape) < probability,
        optax.tree.split_key_like(key, tree),
        tree,
    )
