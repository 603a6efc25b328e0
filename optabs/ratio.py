"""A numerator over a denominator, and Adadelta's unit correction."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optabs._checks import DECAY, EPS, as_transformation, check
from optabs._numerics import (
    abs_square,
    cast_like,
    clip_to_finite,
    kernel_of,
    new_count,
    real_zeros_like,
    transformation,
    update_moment,
)
from optabs.sizes import SizeState


class ScaleByRatioState(NamedTuple):
    """State of `scale_by_ratio`."""

    numerator: optax.OptState
    denominator: optax.OptState


def scale_by_ratio(
    numerator: optax.GradientTransformation,
    denominator: optax.GradientTransformation,
    *,
    eps: ArrayLike = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    r"""Divides one statistic of the gradient by another.

    .. math:: u_t = \frac{\mathrm{numerator}(g_t)}{\mathrm{denominator}(g_t) + \epsilon}

    Both see the same gradient, in float32 or wider, and the quotient is rounded once, to
    the gradient's dtype. Each may be any transformation, a chain included; extra keyword
    arguments of `update` reach both.

    Args:
      numerator: keeps the gradient's sign: `optax.identity()`, :func:`optabs.ema`,
        :func:`optabs.nesterov`.
      denominator: a size of the gradient, not negative: :func:`optabs.rms`,
        :func:`optabs.mean_abs`, :func:`optabs.root_sum_squares`, :func:`optabs.sum_abs`,
        or one of them chained with :func:`optabs.running_max`.
      eps: added to the denominator, in the gradient's unit.

    Returns:
      A transformation that emits the quotient, without unit, in the gradient's dtype.

    Raises:
      ValueError: for a negative eps, or what is no transformation.

    Examples:
      A new optimizer: a sign-like step from a short mean of sizes.

      >>> import jax.numpy as jnp, optax, optabs
      >>> direction = optabs.scale_by_ratio(optabs.ema(0.9), optabs.mean_abs(0.9))
      >>> optimizer = optax.chain(direction, optax.scale_by_learning_rate(0.1))
      >>> updates, _ = optimizer.update(jnp.array([-5.0]), optimizer.init(jnp.zeros(1)))
      >>> round(float(updates[0]), 4)
      0.1
    """
    check(EPS, eps=eps)
    numerator = kernel_of(as_transformation("numerator", numerator))
    denominator = kernel_of(as_transformation("denominator", denominator))

    def init_fn(params: optax.Params) -> ScaleByRatioState:
        return ScaleByRatioState(
            numerator=numerator.init(params), denominator=denominator.init(params)
        )

    def update_fn(
        updates: optax.Updates,
        state: ScaleByRatioState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByRatioState]:
        direction, numerator_state = numerator.update(
            updates, state.numerator, params, **extra_args
        )
        size, denominator_state = denominator.update(
            updates, state.denominator, params, **extra_args
        )
        ratio = jax.tree.map(lambda n, s: n / (s + cast_like(eps, s)), direction, size)
        return ratio, ScaleByRatioState(numerator_state, denominator_state)

    return transformation(init_fn, update_fn, ScaleByRatioState)


def unit_correction(
    decay: ArrayLike = 0.9,
    *,
    squares: bool = True,
    eps: ArrayLike = 0.0,
    eps_root: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Gives a step without unit the unit of the parameters, as Adadelta does.

    .. math:: \Delta_t = (s_{t-1} + \epsilon)\, u_t, \qquad
              T_t = \rho\, T_{t-1} + (1-\rho)\, |\Delta_t|^p

    with :math:`s = \sqrt{T + \epsilon_{root}}` and p = 2 for squares, else
    :math:`s = T` and p = 1. The size of the steps so far multiplies the next one, so one
    of the two eps must be above 0 or no step is ever taken.

    Args:
      decay: :math:`\rho` in [0, 1), a number or a traced scalar.
      squares: measure past steps by their root mean square, else by their mean size.
      eps: added to the size, in the parameters' unit.
      eps_root: added inside the root, in the parameters' unit squared.

    Returns:
      A transformation of a ratio into a step, in the ratio's dtype.

    Raises:
      ValueError: for a decay outside [0, 1) or a negative eps or eps_root.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> corrected = optabs.unit_correction(0.9, eps_root=1e-6)
      >>> updates, _ = corrected.update(jnp.array([2.0]), corrected.init(jnp.zeros(1)))
      >>> round(float(updates[0]), 6)
      0.002

    Source: survey eqs. 26 to 32; Zeiler, arXiv 1212.5701.
    """
    check(DECAY, decay=decay)
    check(EPS, eps=eps, eps_root=eps_root)

    def size(past: jax.Array) -> jax.Array:
        root = jnp.sqrt(past + cast_like(eps_root, past)) if squares else past
        return root + cast_like(eps, past)

    def init_fn(params: optax.Params) -> SizeState:
        return SizeState(count=new_count(), nu=jax.tree.map(real_zeros_like, params))

    def update_fn(
        updates: optax.Updates,
        state: SizeState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SizeState]:
        del params, extra_args
        measure = abs_square if squares else jnp.abs
        steps = jax.tree.map(lambda u, past: size(past) * u, updates, state.nu)
        nu = jax.tree.map(
            lambda step, past: clip_to_finite(update_moment(past, measure(step), decay)),
            steps,
            state.nu,
        )
        return steps, SizeState(count=optax.safe_increment(state.count), nu=nu)

    return transformation(init_fn, update_fn, SizeState, "nu")
