"""What the controller of `optabs.dao_e` may look at: its features.

A feature is a pair (function, length). The function takes an :class:`Observation` and
returns `length` real numbers, or None where an input that it needs is absent; those below
return float32 []. A number that is absent or not finite is 0 for the controller, which learns
nothing about it in that step and forgets a little (W decays); the others are standardised by
running means and variances and clipped to ±3, so that units matter only to a feature that
varies by less than a thousandth of the larger of 1 and its mean, which is taken for rounding.

Examples:
  >>> from optabs import features
  >>> seen = features.Observation(None, gradient_norm=1.0)
  >>> float(features.gradient_norm(seen))
  0.0

Source: DAO-E, the feature extractor and the controller's feedback.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optabs._checks import cut, short
from optabs._tree import numeric_leaves

WARM_UP = 3  # steps whose features only feed the running means
MIN_RATE = 0.01  # in the end the means cover about 100 steps
BOUND = 3.0  # standard deviations
LARGEST = 1e12  # its square is finite in float32
_TINY = 1e-30
_COUNTED = 4096  # entries of an array, in an entropy
_REAL_BINS = 32
_INTEGER_BINS = 128  # the values of integers, modulo this


__all__ = [
    "ALL", "Feature", "Observation", "batch_entropy", "batch_mean", "batch_variance",
    "gradient_norm",
]  # fmt: skip


class Observation(NamedTuple):
    """One step, as a feature sees it; what was not passed to `update` is None."""

    batch: Any | None
    """The mini-batch: a pytree of arrays."""
    value: jax.Array | None = None
    """The loss: float32 []."""
    gradient_norm: jax.Array | None = None
    """The gradient's norm over the whole tree: float32 []."""
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

    Examples:
      >>> import jax.numpy as jnp
      >>> from optabs import features
      >>> float(features.batch_mean(features.Observation(jnp.zeros(3))))
      0.0
    """
    statistics = _batch_statistics(observation.batch)
    return None if statistics is None else jnp.arcsinh(statistics.mean)


def batch_variance(observation: Observation) -> jax.Array | None:
    r"""The variance over all entries of all arrays of the batch, as a logarithm.

    .. math:: \log\Big(\tfrac1N \sum_j (x_j - \bar x)^2 + 10^{-30}\Big)

    with entries as in :func:`optabs.features.batch_mean`.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optabs import features
      >>> float(features.batch_variance(features.Observation(jnp.array([1.0, 3.0]))))
      0.0
    """
    statistics = _batch_statistics(observation.batch)
    return None if statistics is None else jnp.log(statistics.variance + _TINY)


def batch_entropy(observation: Observation) -> jax.Array | None:
    r"""The entropy of the batch's entries, in nats.

    .. math:: -\sum_k p_k \log p_k

    Real entries are counted in 32 bins over four standard deviations on either side of their
    mean, integers by their value modulo 128; where a batch has both, the two entropies are
    averaged by the numbers of entries. Of an array about 4096 entries are counted, evenly
    spaced along all axes but the first, which stays whole; an integer's share is of these.

    Examples:
      >>> import jax.numpy as jnp
      >>> from optabs import features
      >>> seen = features.Observation(batch=jnp.array([7, 7, 9, 9]))
      >>> round(float(features.batch_entropy(seen)), 4)  # log 2
      0.6931
    """
    statistics = _batch_statistics(observation.batch)
    return None if statistics is None else statistics.entropy


def gradient_norm(observation: Observation) -> jax.Array | None:
    r"""The gradient's norm over the whole tree, as a logarithm.

    .. math:: \log(\|g\| + 10^{-30})
    """
    norm = observation.gradient_norm
    return None if norm is None else jnp.log(norm + _TINY)


ALL: tuple[Feature, ...] = (
    (batch_mean, 1), (batch_variance, 1), (batch_entropy, 1), (gradient_norm, 1),
)  # fmt: skip
"""Those of the publication."""


class _BatchStatistics(NamedTuple):
    """Statistics of all entries: float32 [] each, finite for any batch."""

    entries: jax.Array
    mean: jax.Array
    variance: jax.Array
    entropy: jax.Array  # nats


def _batch_statistics(batch: Any) -> _BatchStatistics | None:
    """The statistics of a batch, or None where it has no entry."""
    arrays = [jnp.asarray(leaf) for leaf in numeric_leaves(batch)]
    arrays = [jnp.abs(x) if jnp.iscomplexobj(x) else x for x in arrays if x.size]
    real = [x for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)]
    integers = [x for x in arrays if not jnp.issubdtype(x.dtype, jnp.floating)]
    parts = [_statistics_of_reals(real)] if real else []
    parts += [_statistics_of_integers(integers)] if integers else []
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
    clipped = [jnp.clip(x.astype(jnp.float32), -LARGEST, LARGEST) for x in arrays]
    values = [jnp.where(ok, x, 0) for x, ok in zip(clipped, finite, strict=True)]
    entries = _total(finite)
    mean = _total(values) / jnp.maximum(entries, 1)
    pairs = list(zip(values, finite, strict=True))
    variance = _total([jnp.where(ok, jnp.square(x - mean), 0) for x, ok in pairs])
    variance = variance / jnp.maximum(entries, 1)
    # The bins cover four standard deviations on either side; the outer ones hold the tails.
    scale = _REAL_BINS / 8 / jnp.sqrt(variance + 1e-30)

    def bins(x: jax.Array, ok: jax.Array) -> jax.Array:
        place = jnp.floor((_subsample(x) - mean) * scale) + _REAL_BINS // 2
        return jnp.where(_subsample(ok), jnp.clip(place, 0, _REAL_BINS - 1), -1)

    counted = [bins(*pair) for pair in pairs]
    return _BatchStatistics(entries, mean, variance, _entropy(_shares(counted, _REAL_BINS)))


def _statistics_of_integers(arrays: Sequence[jax.Array]) -> _BatchStatistics:
    entries = jnp.asarray(float(sum(x.size for x in arrays)), jnp.float32)
    names = [_subsample(x).astype(jnp.int32) % _INTEGER_BINS for x in arrays]
    shares = _shares(names, _INTEGER_BINS)
    # Each entry counts as the share p of its bin, and a share p of the entries is in it.
    mean = jnp.sum(jnp.square(shares))
    variance = jnp.sum(shares * jnp.square(shares - mean))
    return _BatchStatistics(entries, mean, variance, _entropy(shares))


def _total(terms: Sequence[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, (jnp.sum(term, dtype=jnp.float32) for term in terms))


def _shares(bins: Sequence[jax.Array], number: int) -> jax.Array:
    """How often each bin occurs: float32 [number], with a sum of 1 (or 0)."""

    def counted(x: jax.Array) -> jax.Array:
        numbers = jnp.arange(number, dtype=x.dtype).reshape([1] * x.ndim + [number])
        axes = tuple(range(x.ndim))
        return jnp.sum(x[..., None] == numbers, axis=axes, dtype=jnp.float32)

    counts = functools.reduce(jnp.add, map(counted, bins))
    return counts / jnp.maximum(jnp.sum(counts), 1)


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


class ObservingState(NamedTuple):
    """Running statistics of n features."""

    seen: jax.Array  # int32 [n]: steps in which a feature was known
    average: jax.Array  # float32 [n]
    variance: jax.Array  # float32 [n]


def check_features(features: Any) -> tuple[Feature, ...]:
    """The features as a tuple; raises ValueError for what is none."""
    wanted = "pass a sequence of pairs, ((function, length), ...), whole lengths of 1 or more"
    if not isinstance(features, list | tuple):
        raise ValueError(f"features is {short(features)}; {wanted}.")
    for feature in features:
        match feature:
            case [function, int(length)] if callable(function) and length is not True:
                if length >= 1:
                    continue
        raise ValueError(f"features holds {short(feature)}; {wanted}.")
    return tuple((function, length) for function, length in features)


def init(features: Sequence[Feature]) -> ObservingState | tuple[()]:
    """Before the first step; nothing where there are no features."""
    if not features:
        return ()
    zeros = functools.partial(jnp.zeros, sum(length for _, length in features))
    return ObservingState(zeros(jnp.int32), zeros(jnp.float32), zeros(jnp.float32))


def observe(
    features: Sequence[Feature], state: Any, observation: Observation
) -> tuple[jax.Array, jax.Array, Any]:
    """The standardised features of a step, which of them are known, and the new state.

    float32 [n] within ±3, 0 where it is not known, bool [n], and the state.
    """
    if not features:
        return jnp.zeros(0, jnp.float32), jnp.zeros(0, bool), state
    numbers, present = [], []
    for function, length in features:
        raw = _numbers(function, length, observation)
        numbers.append(jnp.zeros(length, jnp.float32) if raw is None else raw)
        present.append(jnp.isfinite(numbers[-1]) & (raw is not None))
    return _standardized(jnp.concatenate(numbers), jnp.concatenate(present), state)


def _standardized(
    raw: jax.Array, present: jax.Array, state: ObservingState
) -> tuple[jax.Array, jax.Array, ObservingState]:
    raw = jnp.where(present, jnp.clip(raw, -LARGEST, LARGEST), state.average)
    seen = state.seen + present
    rate = jnp.maximum(1 / jnp.maximum(seen, 1).astype(jnp.float32), MIN_RATE) * present
    difference = raw - state.average
    average = state.average + rate * difference
    variance = state.variance + rate * (difference * (raw - average) - state.variance)
    # Changes below a thousandth of a feature's size, or of 1, may be rounding errors.
    scale = jnp.sqrt(variance + 1e-6 * (1 + jnp.square(average)))
    known = present & (seen > WARM_UP)
    standard = jnp.where(known, jnp.clip((raw - average) / scale, -BOUND, BOUND), 0.0)
    return standard, known, ObservingState(seen, average, variance)


def _numbers(
    function: Callable[[Observation], ArrayLike | None], length: int, observation: Observation
) -> jax.Array | None:
    """The numbers of one feature, float32 [length], or None where it is absent."""
    if (numbers := function(observation)) is None:
        return None
    name = cut(getattr(function, "__name__", repr(function)))
    wanted = f"return {length} real number{'s' * (length > 1)}, the length it was given with"
    try:
        array = jnp.atleast_1d(jnp.asarray(numbers))
    except (TypeError, ValueError) as error:
        raise ValueError(f"features: {name} returned {short(numbers)}; {wanted}.") from error
    if array.shape != (length,) or jnp.iscomplexobj(array):
        what = f"{array.dtype.name}{list(array.shape)}"
        raise ValueError(f"features: {name} returned {what}; {wanted}.")
    return array.astype(jnp.float32)
