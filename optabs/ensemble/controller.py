"""The meta-controller: weights by a softmax that learns from the delayed hypergradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optabs._numerics import correct_bias, update_moment
from optabs.ensemble.scalars import divided
from optabs.ensemble.settings import Controller

SLOW, FAST = 0.98, 0.8
QUIETEST = 0.02
B1, B2 = 0.9, 0.999
LONGEST = 10.0
UNANNEALED = 100.0
LOWEST, HIGHEST = -7.0, 3.0
LARGEST = 1e15
_TINY = 1e-30
_SHORTEST = 1e-15
# Smaller numbers are flushed to 0 where they divide.
_LEAST = 1e-37


class Pace(NamedTuple):
    """Two running means of the loss, whose order tells whether it falls."""

    slow: jax.Array  # float32 []
    fast: jax.Array  # float32 []
    seen: jax.Array  # int32 []: losses


class ControllerState(NamedTuple):
    """What the controller knows, for R sets of weights, K experts and n features."""

    matrix: jax.Array  # float32 [R, K, 1 + n]: b, W
    deviation: Any  # float32 [R]: sigma; under "adam" ()
    moments: Any  # under "adam" two arrays like matrix, the second a root; else ()
    mixing: jax.Array  # float32 [R, K]: the weights of the last step
    inputs: jax.Array  # float32 [1 + n]: 1 and the features that made them
    known: jax.Array  # bool [1 + n]: which of these were there
    lengths: Any  # float32 [R, K]: of the last updates, 0 if shut out; under "adam" ()
    step_norm: jax.Array  # float32 []: of the last step before the multiplier
    log_multiplier: jax.Array  # float32 []: c
    pace: Any  # a Pace, or () without a gate


class Feedback(NamedTuple):
    """What the gradient says about the step before."""

    products: jax.Array  # float32 [L, K]: <g, U> for each leaf and expert
    gradient_norm: jax.Array  # float32 []
    steps: jax.Array  # int32 []: taken before this one


def init(controller: Controller, leaves: int, experts: int, features: int) -> ControllerState:
    """Uniform weights."""
    rows = max(leaves, 1) if controller.per_leaf else 1
    relative = controller.rule == "relative"

    def zeros(*shape: int) -> jax.Array:
        return jnp.zeros(shape, jnp.float32)

    def matrix() -> jax.Array:
        return zeros(rows, experts, 1 + features)

    return ControllerState(
        matrix=matrix(),
        deviation=zeros(rows) if relative else (),
        moments=() if relative else (matrix(), matrix()),
        mixing=jnp.full((rows, experts), 1 / experts, jnp.float32),
        inputs=zeros(1 + features),
        known=jnp.zeros(1 + features, bool),
        lengths=zeros(rows, experts) if relative else (),
        step_norm=zeros(),
        log_multiplier=zeros(),
        pace=Pace(zeros(), zeros(), jnp.zeros([], jnp.int32)) if controller.gated else (),
    )


def weigh(
    controller: Controller,
    state: ControllerState,
    features: jax.Array,
    known: jax.Array,
    sound: jax.Array,
) -> ControllerState:
    """The state with the weights of the next step, each row of them with a sum of 1.

    Args:
      controller: the settings.
      state: what was learned so far.
      features: float32 [n].
      known: bool [n], the features to learn from.
      sound: bool [K], the experts that may have a share; without any the weights are 0.
    """
    inputs = jnp.concatenate([jnp.ones(1, jnp.float32), features])
    scores, sound = state.matrix @ inputs, sound[None, :]
    shares = jax.nn.softmax(scores, axis=1)
    # Exactly 1 for a single expert, and 1/K where the shares are.
    mixing = (shares + controller.floor * (1 - shares.shape[1] * shares)) * sound
    total = jnp.sum(mixing, axis=1, keepdims=True)
    # Those that are left may have been rounded to 0 beside the one that was shut out.
    others = jax.nn.softmax(jnp.where(sound, scores, -LARGEST), axis=1) * sound
    some = total > _TINY
    mixing = divided(jnp.where(some, mixing, others), jnp.where(some, total, 1))
    known = jnp.concatenate([jnp.ones(1, bool), known])
    return state._replace(mixing=mixing, inputs=inputs, known=known)


def learn(
    controller: Controller, state: ControllerState, feedback: Feedback, value: jax.Array | None
) -> ControllerState:
    """The state after the next gradient; `value` is the loss, float32 [], where given."""
    falling = None
    if controller.gated and value is not None:
        state = state._replace(pace=_moved_pace(state.pace, value))
        falling = state.pace.fast < state.pace.slow - 0.01 * jnp.abs(state.pace.slow)
    products = feedback.products
    if not controller.per_leaf:
        products = jnp.sum(products, axis=0, keepdims=True)
    sums = jnp.all(jnp.isfinite(products)) & (feedback.steps > 0)
    products = jnp.where(sums, products, 0.0)
    if controller.multiplier_rate is not None:
        state = _with_multiplier(controller, state, feedback, products, falling)
    if controller.rate is None or not feedback.products.size:
        return state  # there is nothing to learn, or from
    rule = _relative if controller.rule == "relative" else _adam
    learned = rule(controller, state, products, feedback.steps)
    return jax.tree.map(lambda new, old: jnp.where(sums, new, old), learned, state)


def _relative(
    controller: Controller, state: ControllerState, products: jax.Array, steps: jax.Array
) -> ControllerState:
    # The product of an expert that was shut out tells nothing.
    present = state.lengths > 0
    advantage = jnp.sum(state.mixing * products, axis=1, keepdims=True) - products
    largest = jnp.max(jnp.abs(products), axis=1)
    unit = _unit(jnp.maximum(largest, state.deviation))
    advantage = jnp.where(present, advantage / unit[:, None], 0)
    quickness = jnp.maximum(1 / jnp.maximum(steps, 1).astype(jnp.float32), QUIETEST)
    variance = jnp.square(state.deviation / unit)
    squares = _mean(jnp.square(advantage), present)[:, 0]
    variance = variance + quickness * (squares - variance)
    # An advantage of a millionth of the products is their rounding.
    scale = _root(variance + jnp.square(1e-6 * largest / unit))
    signal = advantage / jnp.where(scale > 0, scale, 1)[:, None]
    signal = _lengthwise(controller, state, jnp.clip(signal, -LONGEST, LONGEST), present)
    return state._replace(
        matrix=_moved(controller, state, signal[:, :, None] * _row(state.inputs), steps),
        deviation=unit * _root(variance),
    )


def _unit(size: jax.Array) -> jax.Array:
    """What to divide by before squaring: the loss may have any scale that float32 has."""
    return jax.lax.stop_gradient(jnp.where(size > _LEAST, size, 1))


def _root(square: jax.Array) -> jax.Array:
    """Its square root, with a slope of 0 at 0."""
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _mean(numbers: jax.Array, present: jax.Array) -> jax.Array:
    """Over the experts that are present; the numbers of the others are 0."""
    count = jnp.maximum(jnp.sum(present, axis=1, keepdims=True), 1)
    return jnp.sum(numbers, axis=1, keepdims=True) / count


def _lengthwise(
    controller: Controller, state: ControllerState, signal: jax.Array, present: jax.Array
) -> jax.Array:
    """The signal with a mean of 0, and less of what shortens the step.

    What is best for the next loss alone are shorter steps than train best.
    """

    def mean(numbers: jax.Array) -> jax.Array:
        return jnp.sum(state.mixing * numbers, axis=1, keepdims=True)

    longer = state.lengths / jnp.maximum(mean(state.lengths), _SHORTEST) - 1
    longer = jnp.where(present, longer, 0)
    # Lengths that differ by a thousandth are equal.
    slope = jnp.minimum(mean(signal * longer) / (mean(jnp.square(longer)) + 1e-6), 0)
    signal = signal - (1 - jnp.asarray(controller.shorten)) * slope * longer
    signal = jnp.clip(signal, -LONGEST, LONGEST)
    return jnp.where(present, signal - _mean(signal, present), 0)


def _adam(
    controller: Controller, state: ControllerState, products: jax.Array, steps: jax.Array
) -> ControllerState:
    mean = jnp.sum(state.mixing * products, axis=1, keepdims=True)
    slope = state.mixing * (mean - products)
    rise = slope[:, :, None] * _row(state.inputs)
    # An expert that was shut out had no share, and its product tells nothing.
    known = _row(state.known) & (state.mixing > 0)[:, :, None]
    first, second = state.moments
    unit = _unit(jnp.maximum(jnp.abs(rise), second))
    square = update_moment(jnp.square(second / unit), jnp.square(rise / unit), B2)
    first = jnp.where(known, update_moment(first, rise, B1), first)
    second = jnp.where(known, unit * _root(square), second)
    steps = jnp.maximum(steps, 1)
    size = second * jnp.sqrt(correct_bias(jnp.ones([]), B2, steps))
    some = known & (size > _LEAST)
    step = jnp.where(some, correct_bias(first, B1, steps) / jnp.where(some, size, 1), 0)
    return state._replace(
        matrix=_moved(controller, state, step, steps), moments=(first, second)
    )


def _moved(
    controller: Controller, state: ControllerState, step: jax.Array, steps: jax.Array
) -> jax.Array:
    """b and W after a step, with a mean of b of 0 over the experts."""
    is_bias = jnp.arange(state.inputs.shape[0]) == 0
    rates = jnp.where(is_bias, jnp.asarray(controller.rate), controller.feature_rate)
    rates = rates * _fall(controller, steps)
    matrix = (1 - jnp.asarray(controller.decay)) * state.matrix
    matrix = matrix + _row(rates * state.known) * step
    bias = matrix[:, :, :1]
    bias = bias - jnp.mean(bias, axis=1, keepdims=True)
    return jnp.concatenate([bias, matrix[:, :, 1:]], axis=2)


def _row(numbers: jax.Array) -> jax.Array:
    return numbers[None, None, :]


def _fall(controller: Controller, steps: jax.Array) -> jax.Array:
    """What is left of the rates: as the evidence grows each new piece counts for less."""
    fall = jax.lax.rsqrt(1 + steps.astype(jnp.float32) / UNANNEALED)
    return jnp.maximum(fall, controller.rate_floor)


def _moved_pace(pace: Pace, value: jax.Array) -> Pace:
    first, finite = pace.seen == 0, jnp.isfinite(value)

    def mean(old: jax.Array, decay: float) -> jax.Array:
        moved = jnp.where(first, value, update_moment(old, value, decay))
        return jnp.where(finite, moved, old)

    return Pace(mean(pace.slow, SLOW), mean(pace.fast, FAST), pace.seen + finite)


def _with_multiplier(
    controller: Controller,
    state: ControllerState,
    feedback: Feedback,
    products: jax.Array,
    falling: jax.Array | None,
) -> ControllerState:
    norms = jnp.stack([feedback.gradient_norm, state.step_norm])
    measurable = jnp.all((norms > _LEAST) & jnp.isfinite(norms))
    gradient_norm, step_norm = jnp.where(measurable, norms, 1.0)
    largest = jnp.max(jnp.abs(products), initial=0.0)
    unit = _unit(jnp.where(largest > _LEAST, largest, gradient_norm))
    cosine = jnp.sum(state.mixing * (products / unit)) / step_norm * (unit / gradient_norm)
    cosine = jnp.where(measurable, jnp.clip(cosine, -1, 1), 0.0)
    old = state.log_multiplier
    # The step that is best for the next loss alone is shorter than the one that trains best.
    share = jnp.where((cosine > 0) & (old < 0), controller.shrink, 1.0)
    rate = jnp.asarray(controller.multiplier_rate) * _fall(controller, feedback.steps)
    new = old - rate * share * cosine
    if falling is not None:
        held = jnp.maximum(new, jnp.minimum(old, 0.0))
        new = jnp.where(falling & (new < old), held, new)
    return state._replace(log_multiplier=jnp.clip(new, LOWEST, HIGHEST))
