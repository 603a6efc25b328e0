"""What the controller of `optabs.dao_e` may look at: its features.

A feature is a pair (function, length). The function takes an :class:`Observation` and
returns `length` real numbers, or None where an input that it needs is absent. A number that
is absent or not finite is 0 for the controller, which learns nothing about it in that step
and forgets a little (W decays); the others are standardised by running means and variances
and clipped to ±3, so that the units of a feature do not matter.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optabs._tree import numeric_leaves

_TINY = 1e-30
_LARGEST = 1e12  # its square is finite in float32
_COUNTED = 4096  # entries of an array, in an entropy
_REAL_BINS = 32
_INTEGER_BINS = 128  # the values of integers, modulo this


class Observation(NamedTuple):
    """One step, as a feature sees it; what was not passed to `update` is None."""

    batch: Any | None
    """The mini-batch: a pytree of arrays."""
    value: jax.Array | None = None
    """The loss: float32 []."""
    last_value: jax.Array | None = None
    """The loss of the step before, in the first step that of this one: float32 []."""
    gradient_norm: jax.Array | None = None
    """The gradient's norm over the whole tree: float32 []."""
    gradient_variance: jax.Array | None = None
    """The averaged squared distance from its running mean, 0 in the first step: float32 []."""
    grads: Any = None
    """The gradient, a pytree like the parameters."""
    params: Any = None
    """The parameters."""


Feature = tuple[Callable[[Observation], ArrayLike | None], int]


def batch_mean(observation: Observation) -> jax.Array | None:
    r"""The mean over all entries of all arrays of the batch.

    .. math:: \operatorname{asinh}\Big(\tfrac1N \sum_j x_j\Big)

    A real entry counts as itself, within :math:`\pm 10^{12}`, a complex one as its size, one
    that is not finite not at all. An integer (a token, a label, a bool) counts as
    :math:`p_j`, the share of its value, modulo 128, among the batch's integers: names have
    no size, frequencies do.

    Args:
      observation: its batch is a pytree of arrays of any shapes and dtypes.

    Returns:
      float32 [], or None without a batch.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optabs import features
      >>> seen = features.Observation(batch=jnp.array([1.0, 3.0]))
      >>> round(float(jnp.sinh(features.batch_mean(seen))), 4)
      2.0

    Source: DAO-E, the feature extractor.
    """
    statistics = _batch_statistics(observation.batch)
    return None if statistics is None else jnp.arcsinh(statistics.mean)


def batch_variance(observation: Observation) -> jax.Array | None:
    r"""The variance over all entries of all arrays of the batch, as a logarithm.

    .. math:: \log\Big(\tfrac1N \sum_j (x_j - \bar x)^2 + 10^{-30}\Big)

    with entries as in :func:`optabs.features.batch_mean`.

    Args:
      observation: its batch is a pytree of arrays of any shapes and dtypes.

    Returns:
      float32 [], or None without a batch.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optabs import features
      >>> seen = features.Observation(batch=jnp.array([1.0, 3.0]))
      >>> float(features.batch_variance(seen))
      0.0

    Source: DAO-E, the feature extractor.
    """
    statistics = _batch_statistics(observation.batch)
    return None if statistics is None else jnp.log(statistics.variance + _TINY)


def batch_entropy(observation: Observation) -> jax.Array | None:
    r"""The entropy of the batch's entries, in nats.

    .. math:: -\sum_k p_k \log p_k

    Real entries are counted in 32 bins over four standard deviations on either side of their
    mean, integers by their value modulo 128; where a batch has both, the two entropies are
    averaged by the numbers of entries. Of an array about 4096 entries are counted, evenly
    spaced along all axes but the first.

    Args:
      observation: its batch is a pytree of arrays of any shapes and dtypes.

    Returns:
      float32 [], or None without a batch.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optabs import features
      >>> seen = features.Observation(batch=jnp.array([7, 7, 9, 9]))
      >>> round(float(features.batch_entropy(seen)), 4)  # log 2
      0.6931

    Source: DAO-E, the feature extractor.
    """
    statistics = _batch_statistics(observation.batch)
    return None if statistics is None else statistics.entropy


def gradient_norm(observation: Observation) -> jax.Array | None:
    r"""The gradient's norm over the whole tree, as a logarithm.

    .. math:: \log(\|g\| + 10^{-30})

    Args:
      observation: its gradient_norm is used.

    Returns:
      float32 [].

    Examples:
      >>> import jax.numpy as jnp
      >>> from optabs import features
      >>> seen = features.Observation(batch=None, gradient_norm=jnp.float32(1.0))
      >>> float(features.gradient_norm(seen))
      0.0

    Source: DAO-E, the feature extractor.
    """
    norm = observation.gradient_norm
    return None if norm is None else jnp.log(norm + _TINY)


def gradient_variance(observation: Observation) -> jax.Array | None:
    r"""The gradient's averaged squared distance from its running mean, as a logarithm.

    .. math:: \log\big(\overline{\|g - \bar g\|^2} + 10^{-30}\big)

    The distance is estimated without a copy of the gradient, from one number a leaf,
    :math:`s_l = \sum_j r_{lj}\, g_{lj}` with fixed irregular signs :math:`r = \pm 1`: over
    such signs :math:`(s_l - \bar s_l)^2` has the mean :math:`\|g_l - \bar g_l\|^2`. The
    averages move by :math:`\max(1/t, 0.01)`. In the first step it is absent.

    Args:
      observation: its gradient_variance is used.

    Returns:
      float32 [].

    Examples:
      >>> import jax.numpy as jnp
      >>> from optabs import features
      >>> seen = features.Observation(batch=None, gradient_variance=jnp.float32(1.0))
      >>> float(features.gradient_variance(seen))
      0.0

    Source: DAO-E, the controller's feedback.
    """
    variance = observation.gradient_variance
    return None if variance is None else jnp.log(variance + _TINY)


def loss(observation: Observation) -> jax.Array | None:
    r"""The loss.

    .. math:: \operatorname{asinh}(L_t)

    Args:
      observation: its value is used.

    Returns:
      float32 [], or None without `value=`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optabs import features
      >>> seen = features.Observation(batch=None, value=jnp.float32(0.0))
      >>> float(features.loss(seen))
      0.0

    Source: DAO-E, the state of learning.
    """
    return None if observation.value is None else jnp.arcsinh(observation.value)


def loss_decrease(observation: Observation) -> jax.Array | None:
    r"""How far the loss fell since the step before.

    .. math:: \operatorname{asinh}(L_{t-1} - L_t)

    Args:
      observation: its value and last_value are used.

    Returns:
      float32 [], or None without `value=`. In the first step it is absent.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optabs import features
      >>> now, before = jnp.float32(1.0), jnp.float32(3.0)
      >>> seen = features.Observation(batch=None, value=now, last_value=before)
      >>> round(float(jnp.sinh(features.loss_decrease(seen))), 4)
      2.0

    Source: DAO-E, the controller's feedback.
    """
    if observation.value is None or observation.last_value is None:
        return None
    return jnp.arcsinh(observation.last_value - observation.value)


BATCH: tuple[Feature, ...] = ((batch_mean, 1), (batch_variance, 1), (batch_entropy, 1))
"""Of the mini-batch alone."""

LEARNING: tuple[Feature, ...] = (
    (gradient_norm, 1),
    (gradient_variance, 1),
    (loss, 1),
    (loss_decrease, 1),
)
"""Of the course of training."""

ALL: tuple[Feature, ...] = BATCH + LEARNING
"""All seven."""


class _BatchStatistics(NamedTuple):
    """Statistics of all entries: float32 [] each, finite for any batch."""

    entries: jax.Array
    mean: jax.Array
    variance: jax.Array
    entropy: jax.Array  # nats


def _batch_statistics(batch: Any) -> _BatchStatistics | None:
    """The statistics of a batch, or None where it has no entry.

    Real entries count as themselves within ±_LARGEST, and not at all where they are not
    finite. Integers and bools count as the share of their own value, modulo _INTEGER_BINS,
    among the batch's integers.
    """
    arrays = [jnp.asarray(leaf) for leaf in numeric_leaves(batch)]
    arrays = [jnp.abs(x) if jnp.iscomplexobj(x) else x for x in arrays if x.size]
    real = [x for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)]
    integers = [x for x in arrays if not jnp.issubdtype(x.dtype, jnp.floating)]
    parts = [
        of(kind)
        for of, kind in ((_statistics_of_reals, real), (_statistics_of_integers, integers))
        if kind
    ]
    return functools.reduce(_merge, parts) if parts else None


def _merge(one: _BatchStatistics, other: _BatchStatistics) -> _BatchStatistics:
    entries = one.entries + other.entries
    share = other.entries / jnp.maximum(entries, 1)

    def between(a: jax.Array, b: jax.Array) -> jax.Array:
        return a + share * (b - a)

    mean = between(one.mean, other.mean)
    between_means = share * (1 - share) * jnp.square(other.mean - one.mean)
    variance = between(one.variance, other.variance) + between_means
    return _BatchStatistics(entries, mean, variance, between(one.entropy, other.entropy))


def _statistics_of_reals(arrays: Sequence[jax.Array]) -> _BatchStatistics:
    finite = [jnp.isfinite(x) for x in arrays]
    values = [
        jnp.where(ok, jnp.clip(x.astype(jnp.float32), -_LARGEST, _LARGEST), 0)
        for x, ok in zip(arrays, finite, strict=True)
    ]
    entries = _total(finite)
    mean = _total(values) / jnp.maximum(entries, 1)
    squares = [
        jnp.where(ok, jnp.square(x - mean), 0) for x, ok in zip(values, finite, strict=True)
    ]
    variance = _total(squares) / jnp.maximum(entries, 1)
    # The bins cover four standard deviations on either side; the outer ones hold the tails.
    scale = _REAL_BINS / 8 / jnp.sqrt(variance + 1e-30)

    def bins(x: jax.Array, ok: jax.Array) -> jax.Array:
        place = jnp.floor((_subsample(x) - mean) * scale) + _REAL_BINS // 2
        return jnp.where(_subsample(ok), jnp.clip(place, 0, _REAL_BINS - 1), -1)

    counted = [bins(x, ok) for x, ok in zip(values, finite, strict=True)]
    return _BatchStatistics(entries, mean, variance, _entropy(_shares(counted, _REAL_BINS)))


def _statistics_of_integers(arrays: Sequence[jax.Array]) -> _BatchStatistics:
    entries = jnp.asarray(float(sum(x.size for x in arrays)), jnp.float32)
    shares = _shares(
        [_subsample(x).astype(jnp.int32) % _INTEGER_BINS for x in arrays], _INTEGER_BINS
    )
    # Each entry counts as the share p of its bin, and a share p of the entries is in it.
    mean = jnp.sum(jnp.square(shares))
    variance = jnp.sum(shares * jnp.square(shares - mean))
    return _BatchStatistics(entries, mean, variance, _entropy(shares))


def _total(terms: Sequence[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, [jnp.sum(term, dtype=jnp.float32) for term in terms])


def _shares(bins: Sequence[jax.Array], number: int) -> jax.Array:
    """How often each bin occurs: float32 [number], with a sum of 1 (or 0)."""
    counts = functools.reduce(
        jnp.add,
        [
            jnp.sum(
                x[..., None] == _bin_numbers(number, x),
                axis=tuple(range(x.ndim)),
                dtype=jnp.float32,
            )
            for x in bins
        ],
    )
    return counts / jnp.maximum(jnp.sum(counts), 1)


def _bin_numbers(number: int, like: jax.Array) -> jax.Array:
    return jnp.arange(number, dtype=like.dtype).reshape([1] * like.ndim + [number])


def _entropy(shares: jax.Array) -> jax.Array:
    return -jnp.sum(shares * jnp.log(jnp.where(shares > 0, shares, 1)))


def _subsample(array: jax.Array) -> jax.Array:
    """About _COUNTED entries, evenly spaced; the first axis may be sharded and stays."""
    spec = jax.typeof(array).sharding.spec
    for axis in sorted(range(1, array.ndim), key=lambda axis: -array.shape[axis]):
        stride = min(array.size // _COUNTED, array.shape[axis])
        if stride > 1 and (axis >= len(spec) or spec[axis] is None):
            array = jax.lax.slice_in_dim(array, 0, array.shape[axis], stride, axis)
    return array
