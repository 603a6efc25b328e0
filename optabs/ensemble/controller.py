"""The meta-controller: weights by a softmax that learns from the delayed hypergradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optabs._numerics import correct_bias, update_moment
from optabs.ensemble.scalars import divided
from optabs.ensemble.settings import Controller

SLOW_DECAY, FAST_DECAY = 0.98, 0.8  # of the loss's means: about 50 and 5 steps
FALLING = 0.01  # the share by which the fast mean is below the slow one where the loss falls
MIN_VARIANCE_RATE = 0.02  # the variance of the advantages covers about 50 steps
B1, B2 = 0.9, 0.999  # Adam's usual decays
MAX_SIGNAL = 10.0  # standard deviations; bounds what one step can change
ANNEALING_STEPS = 100.0  # after so many the rates fall like 1 / sqrt(steps)
MIN_LOG, MAX_LOG = -7.0, 3.0  # of the multiplier: 1/1000 to 20
ROUNDING = 1e-6  # of float32, relative, with room for a sum of several terms
_MASKED = -1e15  # a score without a share, finite so that the softmax has a slope
_TINY = 1e-30  # weights with a smaller sum have been rounded to 0
_SHORTEST = 1e-15  # a mean length to divide by; its square is not flushed to 0
_LEAST = 1e-37  # smaller numbers are flushed to 0 where they divide


class LossMeans(NamedTuple):
    """Two running means of the loss: it falls where the fast one is below the slow one."""

    slow: jax.Array  # float32 []
    fast: jax.Array  # float32 []
    seen: jax.Array  # int32 []: finite losses


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
    loss_means: Any  # LossMeans, or () without a gate


class Feedback(NamedTuple):
    """What the gradient tells about the step before."""

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
        loss_means=LossMeans(zeros(), zeros(), jnp.zeros([], jnp.int32))
        if controller.gated
        else (),
    )


def update_weights(
    controller: Controller,
    state: ControllerState,
    features: jax.Array,
    known: jax.Array,
    usable: jax.Array,
) -> ControllerState:
    """The state with the weights of the next step, each row of them with a sum of 1.

    Args:
      controller: the settings.
      state: what was learned so far.
      features: float32 [n].
      known: bool [n], the features to learn from.
      usable: bool [K], the experts that may have a share; without any the weights are 0.
    """
    inputs = jnp.concatenate([jnp.ones(1, jnp.float32), features])
    scores, usable = state.matrix @ inputs, usable[None, :]
    shares = jax.nn.softmax(scores, axis=1)
    # Written so that it is exactly 1 for a single expert, and 1/K where the shares are.
    mixing = (shares + controller.floor * (1 - shares.shape[1] * shares)) * usable
    total = jnp.sum(mixing, axis=1, keepdims=True)
    # The weights that are left may have been rounded to 0 beside one that was shut out.
    others = jax.nn.softmax(jnp.where(usable, scores, _MASKED), axis=1) * usable
    nonzero = total > _TINY
    mixing = divided(jnp.where(nonzero, mixing, others), jnp.where(nonzero, total, 1))
    known = jnp.concatenate([jnp.ones(1, bool), known])
    return state._replace(mixing=mixing, inputs=inputs, known=known)


def learn(
    controller: Controller, state: ControllerState, feedback: Feedback, value: jax.Array | None
) -> ControllerState:
    """The state after the next gradient; `value` is the loss, float32 [], where given."""
    falling = None
    if controller.gated and value is not None:
        means = _update_loss_means(state.loss_means, value)
        state = state._replace(loss_means=means)
        falling = means.fast < means.slow - FALLING * jnp.abs(means.slow)
    products = feedback.products
    if not controller.per_leaf:
        products = jnp.sum(products, axis=0, keepdims=True)
    valid = jnp.all(jnp.isfinite(products)) & (feedback.steps > 0)
    products = jnp.where(valid, products, 0.0)
    if controller.multiplier_rate is not None:
        state = _update_multiplier(controller, state, feedback, products, falling)
    if controller.rate is None or not feedback.products.size:
        return state
    rule = _relative_rule if controller.rule == "relative" else _adam_rule
    learned = rule(controller, state, products, feedback.steps)
    return jax.tree.map(lambda new, old: jnp.where(valid, new, old), learned, state)


def _relative_rule(
    controller: Controller, state: ControllerState, products: jax.Array, steps: jax.Array
) -> ControllerState:
    # The stored update of an expert that was shut out is 0, and so is its product.
    present = state.lengths > 0
    advantage = jnp.sum(state.mixing * products, axis=1, keepdims=True) - products
    largest = jnp.max(jnp.abs(products), axis=1)
    unit = _safe_scale(jnp.maximum(largest, state.deviation))
    advantage = jnp.where(present, advantage / unit[:, None], 0)
    rate = jnp.maximum(1 / jnp.maximum(steps, 1).astype(jnp.float32), MIN_VARIANCE_RATE)
    variance = jnp.square(state.deviation / unit)
    squares = _mean_of_present(jnp.square(advantage), present)[:, 0]
    variance = variance + rate * (squares - variance)
    # An advantage of a millionth of the products is their rounding error.
    scale = _safe_sqrt(variance + jnp.square(ROUNDING * largest / unit))
    signal = advantage / jnp.where(scale > 0, scale, 1)[:, None]
    signal = _discount_shortening(
        controller, state, jnp.clip(signal, -MAX_SIGNAL, MAX_SIGNAL), present
    )
    return state._replace(
        matrix=_updated_matrix(
            controller, state, signal[:, :, None] * _per_input(state.inputs), steps
        ),
        deviation=unit * _safe_sqrt(variance),
    )


def _safe_scale(size: jax.Array) -> jax.Array:
    """What to divide by before squaring: the loss may have any scale that float32 has."""
    return jax.lax.stop_gradient(jnp.where(size > _LEAST, size, 1))


def _safe_sqrt(square: jax.Array) -> jax.Array:
    """Its square root, with a slope of 0 at 0."""
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _mean_of_present(numbers: jax.Array, present: jax.Array) -> jax.Array:
    """Over the experts that are present; the numbers of the others are 0."""
    count = jnp.maximum(jnp.sum(present, axis=1, keepdims=True), 1)
    return jnp.sum(numbers, axis=1, keepdims=True) / count


def _discount_shortening(
    controller: Controller, state: ControllerState, signal: jax.Array, present: jax.Array
) -> jax.Array:
    """The signal with a mean of 0, and less of what shortens the step.

    The next loss alone prefers shorter steps than those that train best.
    """

    def mean(numbers: jax.Array) -> jax.Array:
        return jnp.sum(state.mixing * numbers, axis=1, keepdims=True)

    excess_length = state.lengths / jnp.maximum(mean(state.lengths), _SHORTEST) - 1
    excess_length = jnp.where(present, excess_length, 0)
    # With the 1e-6, lengths that differ by less than a thousandth hardly count.
    slope = jnp.minimum(
        mean(signal * excess_length) / (mean(jnp.square(excess_length)) + 1e-6), 0
    )
    signal = signal - (1 - jnp.asarray(controller.shorten)) * slope * excess_length
    signal = jnp.clip(signal, -MAX_SIGNAL, MAX_SIGNAL)
    return jnp.where(present, signal - _mean_of_present(signal, present), 0)


def _adam_rule(
    controller: Controller, state: ControllerState, products: jax.Array, steps: jax.Array
) -> ControllerState:
    mean = jnp.sum(state.mixing * products, axis=1, keepdims=True)
    slope = state.mixing * (mean - products)
    ascent = slope[:, :, None] * _per_input(state.inputs)
    # An expert that was shut out had no weight, and its stored update is 0.
    known = _per_input(state.known) & (state.mixing > 0)[:, :, None]
    first, second = state.moments
    unit = _safe_scale(jnp.maximum(jnp.abs(ascent), second))
    square = update_moment(jnp.square(second / unit), jnp.square(ascent / unit), B2)
    first = jnp.where(known, update_moment(first, ascent, B1), first)
    second = jnp.where(known, unit * _safe_sqrt(square), second)
    steps = jnp.maximum(steps, 1)
    size = second * jnp.sqrt(correct_bias(jnp.ones([], jnp.float32), B2, steps))
    nonzero = known & (size > _LEAST)
    mean = correct_bias(first, B1, steps)
    step = jnp.where(nonzero, mean / jnp.where(nonzero, size, 1), 0)
    return state._replace(
        matrix=_updated_matrix(controller, state, step, steps), moments=(first, second)
    )


def _updated_matrix(
    controller: Controller, state: ControllerState, step: jax.Array, steps: jax.Array
) -> jax.Array:
    """b and W after a step, with a mean of b of 0 over the experts."""
    is_bias = jnp.arange(state.inputs.shape[0]) == 0
    rates = jnp.where(is_bias, jnp.asarray(controller.rate), controller.feature_rate)
    rates = rates * _annealing(controller, steps)
    matrix = (1 - jnp.asarray(controller.decay)) * state.matrix
    matrix = matrix + _per_input(rates * state.known) * step
    bias = matrix[:, :, :1]
    bias = bias - jnp.mean(bias, axis=1, keepdims=True)
    return jnp.concatenate([bias, matrix[:, :, 1:]], axis=2)


def _per_input(numbers: jax.Array) -> jax.Array:
    return numbers[None, None, :]


def _annealing(controller: Controller, steps: jax.Array) -> jax.Array:
    """The share of the rates that is left after so many steps."""
    share = jax.lax.rsqrt(1 + steps.astype(jnp.float32) / ANNEALING_STEPS)
    return jnp.maximum(share, controller.rate_floor)


def _update_loss_means(means: LossMeans, value: jax.Array) -> LossMeans:
    first, finite = means.seen == 0, jnp.isfinite(value)

    def mean(old: jax.Array, decay: float) -> jax.Array:
        updated = jnp.where(first, value, update_moment(old, value, decay))
        return jnp.where(finite, updated, old)

    return LossMeans(
        mean(means.slow, SLOW_DECAY), mean(means.fast, FAST_DECAY), means.seen + finite
    )


def _update_multiplier(
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
    unit = _safe_scale(jnp.where(largest > _LEAST, largest, gradient_norm))
    cosine = jnp.sum(state.mixing * (products / unit)) / step_norm * (unit / gradient_norm)
    cosine = jnp.where(measurable, jnp.clip(cosine, -1, 1), 0.0)
    old = state.log_multiplier
    # The next loss alone prefers a shorter step than the one that trains best.
    share = jnp.where((cosine > 0) & (old < 0), controller.shrink, 1.0)
    rate = jnp.asarray(controller.multiplier_rate) * _annealing(controller, feedback.steps)
    new = old - rate * share * cosine
    if falling is not None:
        held = jnp.maximum(new, jnp.minimum(old, 0.0))
        new = jnp.where(falling & (new < old), held, new)
    return state._replace(log_multiplier=jnp.clip(new, MIN_LOG, MAX_LOG))
