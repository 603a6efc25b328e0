"""Gadam's operators: selection, crossover, mutation and survival, each for one individual.

All of them are pure functions of a key and arrays, to be mapped over a population by
`jax.vmap` and compiled with what surrounds them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optabs._checks import NONNEGATIVE, check, check_alike, short
from optabs._numerics import arrays, widen

Sample = Callable[[jax.Array, Any], Any]  # (key, params) -> a tree like params


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
    # Of +-the largest float32, high - low would be infinite, and after a division by less
    # than 16 its reciprocal is a subnormal number, which XLA flushes to 0.
    scaled = jnp.where(finite, losses, 0) / 16
    low = jnp.min(scaled, where=finite, initial=jnp.inf)
    high = jnp.max(scaled, where=finite, initial=-jnp.inf)
    spread = jnp.where(high > low, high - low, 1)
    return jnp.where(finite, (scaled - low) / spread, jnp.inf)


def selection_probabilities(losses: ArrayLike, pressure: ArrayLike = 1.0) -> jax.Array:
    r"""How probably each individual is drawn as a parent.

    .. math:: P_i = \frac{\exp(-s \hat L_i)}{\sum_j \exp(-s \hat L_j)}

    with the losses normalised into [0, 1] by :func:`normalize_losses`. An individual whose
    loss is not finite has a probability of 0; if there is no other, all are equal.

    Args:
      losses: real [g].
      pressure: :math:`s`, 0 or more; 1 is the survey's.

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
    weights = jnp.exp(-jnp.asarray(pressure) * jnp.where(finite, normalized, 0))
    weights = jnp.where(finite | ~jnp.any(finite), weights, 0)
    return weights / jnp.sum(weights)


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
    weights = widen(probabilities)
    zero = weights == 0
    # `categorical` adds Gumbel noise of at most some hundreds, so the lowest finite logit
    # excludes an individual as minus infinity would.
    lowest = jnp.finfo(weights.dtype).min
    logits = jnp.where(zero, lowest, jnp.log(jnp.where(zero, 1, weights)))
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


def uniform_like(key: jax.Array, params: Any) -> Any:
    r"""Entries drawn from :math:`U(0, 1)`, the draw of the survey's mutation.

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
    return _map_floating(
        lambda key, leaf: jax.random.uniform(key, leaf.shape, leaf.dtype), key, params
    )


def normal_around(stddev: ArrayLike) -> Sample:
    r"""_Draws from a normal distribution around the entries that are there.

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
        def draw(key: jax.Array, leaf: jax.Array) -> jax.Array:
            noise = jax.random.normal(key, leaf.shape, leaf.dtype)
            return leaf + jnp.asarray(stddev).astype(leaf.dtype) * noise

        return _map_floating(draw, key, params)

    return sample


def either(*samples: Sample) -> Sample:
    r"""_Draws from one of several distributions, another one for every entry.

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
        index_key, *keys = jax.random.split(key, 1 + len(samples))
        index = _map_with_keys(
            lambda key, leaf: jax.random.randint(key, leaf.shape, 0, len(samples)),
            index_key,
            params,
        )
        draws = [each(key, params) for key, each in zip(keys, samples, strict=True)]
        for each in draws:
            check_alike("samples", each, params, _WANTED_OF_SAMPLE)
        return jax.tree.map(jax.lax.select_n, index, *draws)

    return sample


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
    losses = jnp.asarray(loss_a), jnp.asarray(loss_b)
    loss_a, loss_b = (jnp.where(jnp.isnan(loss), jnp.inf, loss) for loss in losses)
    difference = jnp.where(loss_a == loss_b, 0, loss_b - loss_a)  # inf - inf is NaN
    return _bernoulli_like(key, params, jax.nn.sigmoid(difference))


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
    remainder = 1 - jnp.asarray(probability_a) - jnp.asarray(probability_b)
    return jnp.asarray(base) * jnp.maximum(remainder, 0)


def mutate(
    key: jax.Array,
    params: Any,
    rate: ArrayLike,
    sample: Sample = uniform_like,
) -> Any:
    r"""An individual some of whose entries are drawn anew.

    .. math:: \theta'_m = d_m \text{ where } u_m < p_q, \text{ else } \theta_m, \qquad
              u_m \sim U(0, 1)

    Args:
      key: a `jax.random.key`.
      params: a pytree of arrays; only floating-point leaves mutate.
      rate: :math:`p_q` in [0, 1].
      sample: (key, params) -> a tree like `params`, the draws :math:`d`. The survey's are
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
    mask_key, draw_key = jax.random.split(key)
    draws = sample(draw_key, params)
    check_alike("sample", draws, params, _WANTED_OF_SAMPLE)
    mask = _bernoulli_like(mask_key, params, rate)

    def select(mutates: jax.Array, draw: jax.Array, leaf: jax.Array) -> jax.Array:
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.where(mutates, draw, leaf) if floating else leaf

    return jax.tree.map(select, mask, draws, params)


_WANTED_OF_SAMPLE = "return a tree like params, of the same shapes and dtypes"


def _map_with_keys(draw: Callable[..., jax.Array], key: jax.Array, tree: Any) -> Any:
    """draw(key, leaf) for every leaf, each with a key of its own."""
    return jax.tree.map(draw, optax.tree.split_key_like(key, tree), tree)


def _map_floating(draw: Callable[..., jax.Array], key: jax.Array, params: Any) -> Any:
    def draw_floating(key: jax.Array, leaf: jax.Array) -> jax.Array:
        return draw(key, leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return _map_with_keys(draw_floating, key, arrays(params))


def _bernoulli_like(key: jax.Array, tree: Any, probability: ArrayLike) -> Any:
    """A tree of bool like the given one; each entry is True with that probability."""
    return _map_with_keys(
        lambda key, leaf: jax.random.uniform(key, leaf.shape) < probability, key, arrays(tree)
    )
