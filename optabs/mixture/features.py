"""What the controller of `optabs.dao_e` may look at: its features.

A feature is a pair (function, length). The function takes an :class:`Observation` and
returns `length` real numbers, or None where an input that it needs is absent; those below
return float32 []. A number that is absent or not finite is 0 for the controller, which learns
nothing about it in that step and forgets a little (W decays); the others are standardised by
running means and variances and clipped to ±3, so that the units of a feature do not matter.

Examples:
  >>> from optabs import features
  >>> seen = features.Observation(None, value=0.0, last_value=0.0, gradient_norm=1.0)
  >>> [float(f(seen)) for f in (features.loss, features.loss_decrease, features.gradient_norm)]
  [0.0, 0.0, 0.0]

Source: DAO-E, the feature extractor and the controller's feedback.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optabs._numerics import hash_uint32
from optabs._tree import numeric_leaves

WARM_UP = 3  # steps whose features only feed the running means
MIN_RATE = 0.01  # in the end the means cover about 100 steps
BOUND = 3.0  # standard deviations
LARGEST = 1e15  # its square is finite in float32
_TINY = 1e-30
_LARGEST = 1e12  # its square is finite in float32
_COUNTED = 4096  # entries of an array, in an entropy
_REAL_BINS = 32
_INTEGER_BINS = 128  # the values of integers, modulo this


__all__ = [
    "ALL", "BATCH", "LEARNING", "Feature", "Observation", "batch_entropy", "batch_mean",
    "batch_variance", "gradient_norm", "gradient_variance", "loss", "loss_decrease",
]  # fmt: skip


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
    spaced along all axes but the first.

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


def gradient_variance(observation: Observation) -> jax.Array | None:
    r"""The gradient's averaged squared distance from its running mean, as a logarithm.

    .. math:: \log\big(\overline{\|g - \bar g\|^2} + 10^{-30}\big)

    The distance is estimated without a copy of the gradient, from one number a leaf,
    :math:`s_l = \sum_j r_{lj}\, g_{lj}` with fixed irregular signs :math:`r = \pm 1`: over
    such signs :math:`(s_l - \bar s_l)^2` has the mean :math:`\|g_l - \bar g_l\|^2`. The
    averages move by :math:`\max(1/t, 0.01)`. In the first step it is absent.
    """
    variance = observation.gradient_variance
    return None if variance is None else jnp.log(variance + _TINY)


def loss(observation: Observation) -> jax.Array | None:
    r"""The loss.

    .. math:: \operatorname{asinh}(L_t)
    """
    return None if observation.value is None else jnp.arcsinh(observation.value)


def loss_decrease(observation: Observation) -> jax.Array | None:
    r"""How far the loss fell since the step before.

    .. math:: \operatorname{asinh}(L_{t-1} - L_t)

    In the first step it is absent.
    """
    if observation.value is None or observation.last_value is None:
        return None
    return jnp.arcsinh(observation.last_value - observation.value)


BATCH: tuple[Feature, ...] = ((batch_mean, 1), (batch_variance, 1), (batch_entropy, 1))
"""Of the mini-batch alone."""

LEARNING: tuple[Feature, ...] = tuple(
    (feature, 1) for feature in (gradient_norm, gradient_variance, loss, loss_decrease)
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
    clipped = [jnp.clip(x.astype(jnp.float32), -_LARGEST, _LARGEST) for x in arrays]
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
    """Running statistics of n features and of the projections of the gradient's L leaves."""

    seen: jax.Array  # int32 [n]: steps in which a feature was known
    average: jax.Array  # float32 [n]
    variance: jax.Array  # float32 [n]
    last_value: jax.Array  # float32 []
    value_seen: jax.Array  # bool []
    projections: jax.Array  # float32 [L]: their means
    distance: jax.Array  # float32 []: mean squared distance from these means


def check_features(features: Any) -> tuple[Feature, ...]:
    """The features as a tuple; raises ValueError for what is none."""
    wanted = "pass pairs (function, length), each length a whole number of 1 or more"
    if not isinstance(features, list | tuple):
        raise ValueError(f"features is {features!r}; {wanted}, in a tuple.")
    for feature in features:
        match feature:
            case [function, int(length)] if callable(function) and length is not True:
                if length >= 1:
                    continue
        raise ValueError(f"features holds {feature!r}; {wanted}.")
    return tuple((function, length) for function, length in features)


def init(features: Sequence[Feature], leaves: int) -> ObservingState | tuple[()]:
    """Before the first step; nothing where there are no features."""
    if not features:
        return ()
    number = sum(length for _, length in features)

    def zeros(*shape: int, dtype: Any = jnp.float32) -> jax.Array:
        return jnp.zeros(shape, dtype)

    return ObservingState(
        zeros(number, dtype=jnp.int32), zeros(number), zeros(number), zeros(),
        zeros(dtype=bool), zeros(max(leaves, 1)), zeros(),
    )  # fmt: skip


def observe(
    features: Sequence[Feature],
    state: Any,
    *,
    count: jax.Array,
    batch: Any,
    value: jax.Array | None,
    norm: jax.Array,
    grads: Any,
    params: Any,
) -> tuple[jax.Array, jax.Array, Any]:
    """The standardised features of a step, which of them are known, and the new state.

    `count` is that of the steps before this one, `norm` the gradient's. Returns float32 [n]
    within ±3, 0 where it is not known, bool [n], and the state.
    """
    if not features:
        return jnp.zeros(0, jnp.float32), jnp.zeros(0, bool), state
    earlier, state = state, _with_gradient(state, count, grads)
    last_value = state.last_value
    if value is not None:
        last_value = jnp.where(state.value_seen, last_value, value)
        finite = jnp.isfinite(value)
        state = state._replace(
            last_value=jnp.where(finite, value, state.last_value),
            value_seen=state.value_seen | finite,
        )
    observation = Observation(batch, value, last_value, norm, state.distance, grads, params)
    # Differences from earlier steps are absent in the first one.
    since = ((loss_decrease, earlier.value_seen), (gradient_variance, count > 0))
    numbers, known = [], []
    for function, length in features:
        raw = _numbers(function, length, observation)
        numbers.append(jnp.zeros(length, jnp.float32) if raw is None else raw)
        present = jnp.isfinite(numbers[-1]) & (raw is not None)
        for other, has_previous in since:
            present = present & has_previous if function is other else present
        known.append(present)
    return _standardize(jnp.concatenate(numbers), jnp.concatenate(known), state)


def _standardize(
    raw: jax.Array, present: jax.Array, state: ObservingState
) -> tuple[jax.Array, jax.Array, ObservingState]:
    raw = jnp.where(present, jnp.clip(raw, -LARGEST, LARGEST), state.average)
    seen = state.seen + present
    rate = _rate(seen) * present
    difference = raw - state.average
    average = state.average + rate * difference
    variance = state.variance + rate * (difference * (raw - average) - state.variance)
    # Changes below a thousandth of a feature's size may be rounding errors.
    scale = jnp.sqrt(variance + 1e-6 * (1 + jnp.square(average)))
    known = present & (seen > WARM_UP)
    standard = jnp.where(known, jnp.clip((raw - average) / scale, -BOUND, BOUND), 0.0)
    return standard, known, state._replace(seen=seen, average=average, variance=variance)


def _rate(seen: jax.Array) -> jax.Array:
    """Of a mean over the numbers seen: 1/t, then MIN_RATE."""
    return jnp.maximum(1 / jnp.maximum(seen, 1).astype(jnp.float32), MIN_RATE)


def _numbers(
    function: Callable[[Observation], ArrayLike | None], length: int, observation: Observation
) -> jax.Array | None:
    """The numbers of one feature, float32 [length], or None where it is absent."""
    if (numbers := function(observation)) is None:
        return None
    array = jnp.atleast_1d(jnp.asarray(numbers))
    if array.shape != (length,) or jnp.iscomplexobj(array):
        name = getattr(function, "__name__", repr(function))
        raise ValueError(
            f"features: {name} returned {array.dtype.name}{list(array.shape)}; return "
            f"{length} real numbers, the length it was given with."
        )
    return array.astype(jnp.float32)


def _with_gradient(state: ObservingState, count: jax.Array, grads: Any) -> ObservingState:
    leaves = jax.tree.leaves(grads)
    if not leaves:
        return state
    projections = jnp.stack([_projection(leaf) for leaf in leaves])
    # The squares of float32 numbers up to LARGEST are finite.
    projections = jnp.clip(jnp.nan_to_num(projections), -LARGEST, LARGEST)
    difference = projections - state.projections
    squares = jnp.where(count > 0, jnp.sum(jnp.square(difference)), 0)
    return state._replace(
        projections=state.projections + _rate(count + 1) * difference,
        distance=state.distance + _rate(count) * (squares - state.distance),
    )


def _projection(leaf: jax.Array) -> jax.Array:
    """The sum of a leaf's entries under fixed irregular signs: float32 []."""
    for axis, extent in enumerate(leaf.shape):
        # One sign a row times one a column do: any two of these products are uncorrelated,
        # as the signs of single entries would be.
        shape = [1] * leaf.ndim
        shape[axis] = extent
        leaf = leaf * _signs(extent, axis).astype(leaf.real.dtype).reshape(shape)
    return jnp.sum(jnp.real(leaf)).astype(jnp.float32)


def _signs(extent: int, axis: int) -> jax.Array:
    """Plus or minus one by a hash of the index, the same on every device: int32 [extent]."""
    index = jax.lax.iota(jnp.uint32, extent) + jnp.uint32((axis + 1) * 0x9E3779B9 % 2**32)
    return 1 - 2 * (hash_uint32(index) >> 31).astype(jnp.int32)
