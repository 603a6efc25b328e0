"""From one step to the controller's standardised features, with their running statistics."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from optabs._numerics import hash_uint32
from optabs.ensemble.scalars import barrier, stack_scalars
from optabs.features import Feature, Observation, gradient_variance, loss_decrease

WARM_UP = 3  # steps whose features only feed the running means
MIN_RATE = 0.01  # in the end the means cover about 100 steps
BOUND = 3.0  # standard deviations
LARGEST = 1e15  # its square is finite in float32


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
        if not (isinstance(feature, list | tuple) and len(feature) == 2):
            raise ValueError(f"features holds {feature!r}; {wanted}.")
        function, length = feature
        whole = isinstance(length, int) and not isinstance(length, bool)
        if not callable(function) or not whole or length < 1:
            raise ValueError(f"features holds {feature!r}; {wanted}.")
    return tuple((function, length) for function, length in features)


def length_of(features: Sequence[Feature]) -> int:
    """How many numbers they are together, n."""
    return sum(length for _, length in features)


def init(features: Sequence[Feature], leaves: int) -> ObservingState | tuple[()]:
    """Before the first step; nothing where there are no features."""
    if not features:
        return ()
    number = length_of(features)
    return ObservingState(
        seen=jnp.zeros(number, jnp.int32),
        average=jnp.zeros(number, jnp.float32),
        variance=jnp.zeros(number, jnp.float32),
        last_value=jnp.zeros([], jnp.float32),
        value_seen=jnp.zeros([], bool),
        projections=jnp.zeros(max(leaves, 1), jnp.float32),
        distance=jnp.zeros([], jnp.float32),
    )


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

    Args:
      features: pairs (function, length).
      state: the running statistics.
      count: int32 [], steps before this one.
      batch: a pytree of arrays, or None.
      value: float32 [], or None.
      norm: the gradient's norm, float32 [].
      grads: the gradient.
      params: the parameters.

    Returns:
      float32 [n] within ±3, bool [n], and the state; an entry that is not known is 0.
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
    observation = Observation(
        batch=batch,
        value=value,
        last_value=last_value,
        gradient_norm=norm,
        gradient_variance=state.distance,
        grads=grads,
        params=params,
    )
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
    return barrier(_standardize(jnp.concatenate(numbers), jnp.concatenate(known), state))


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
    numbers = function(observation)
    if numbers is None:
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
    projections = stack_scalars([_projection(leaf) for leaf in leaves], jnp.float32)
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
