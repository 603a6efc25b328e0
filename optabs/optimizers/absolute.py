"""OptimABS for one rate per parameter: adagrad_abs, rmsprop_abs, adadelta_abs."""

import optax
from jax.typing import ArrayLike

from optabs._checks import DECAY, EPS, POSITIVE, RATE, check, optional
from optabs.optimizers._descent import bounded_ratio, descend, gradient
from optabs.ratio import scale_by_ratio, unit_correction
from optabs.sizes import mean_abs, rising_abs, sum_abs


def adagrad_abs(
    learning_rate: optax.ScalarOrSchedule, eps: ArrayLike = 1e-8
) -> optax.GradientTransformationExtraArgs:
    r"""Adagrad over the sum of sizes.

    .. math:: D_t = D_{t-1} + |g_t|, \qquad
              \theta_t = \theta_{t-1} - \eta\, \frac{g_t}{D_t + \epsilon}

    The sum of sizes grows like t where Adagrad's root of a sum of squares grows like
    :math:`\sqrt t`, so steps shrink like 1/t: wants a larger rate, and is slow to end.

    Args:
      learning_rate: :math:`\eta`, in parameter units (the largest first step); a number, a
        traced scalar or a schedule.
      eps: added to the sum, in the gradient's unit.

    Returns:
      The optimizer. Updates have the gradient's shape and dtype; state is one real array
      like the parameters, at least float32.

    Raises:
      ValueError: for a negative or non-finite rate or eps.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> optimizer = optabs.adagrad_abs(0.1)
      >>> updates, _ = optimizer.update(jnp.array([4.0]), optimizer.init(jnp.zeros(1)))
      >>> round(float(updates[0]), 4)
      -0.1

    Source: OptimABS eqs. 2 and 4, on Adagrad's sum.
    """
    check(RATE, learning_rate=learning_rate)
    check(EPS, eps=eps)
    return descend(scale_by_ratio(gradient(), sum_abs(), eps=eps), learning_rate=learning_rate)


def rmsprop_abs(
    learning_rate: optax.ScalarOrSchedule,
    decay: ArrayLike = 0.9,
    eps: ArrayLike = 1e-8,
    bias_correction: bool = False,
    *,
    steady: bool = False,
    max_ratio: ArrayLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""RMSPropABS: the gradient over its mean size.

    .. math:: D_t = \rho\, D_{t-1} + (1-\rho)\, |g_t|, \qquad
              \theta_t = \theta_{t-1} - \eta\, \frac{g_t}{D_t + \epsilon}

    The largest step, steady or not, is :math:`\eta / (1-\rho)`, taken by a gradient that
    follows silence.

    Args:
      learning_rate: :math:`\eta`, in parameter units; a number, a traced scalar or a schedule.
      decay: :math:`\rho` in [0, 1).
      eps: added to the mean size, in the gradient's unit.
      bias_correction: divide :math:`D_t` by :math:`1-\rho^t`.
      steady: divide by a mean size that only rises (:func:`optabs.rising_abs`), bias
        correction included; for constant rates, at no cost in memory.
      max_ratio: clip the ratio to [-max_ratio, max_ratio], so that no step exceeds
        max_ratio times :math:`\eta`; None for no bound. Not for complex parameters.

    Returns:
      The optimizer. Updates have the gradient's shape and dtype; state is one real array
      like the parameters, at least float32.

    Raises:
      ValueError: for a negative or non-finite rate or eps, a decay outside [0, 1), or a
        max_ratio that is not above 0.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> optimizer = optabs.rmsprop_abs(0.1, decay=0.75)
      >>> updates, _ = optimizer.update(jnp.array([4.0]), optimizer.init(jnp.zeros(1)))
      >>> round(float(updates[0]), 4)
      -0.4

    Source: OptimABS eqs. 2 and 4.
    """
    check(RATE, learning_rate=learning_rate)
    check(DECAY, decay=decay)
    check(EPS, eps=eps)
    check(optional(POSITIVE), max_ratio=max_ratio)
    ratio = bounded_ratio(
        gradient(),
        rising_abs(decay) if steady else mean_abs(decay, bias_correction=bias_correction),
        eps=eps,
        max_ratio=max_ratio,
    )
    return descend(ratio, learning_rate=learning_rate)


def adadelta_abs(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    decay: ArrayLike = 0.9,
    eps: ArrayLike = 1e-6,
) -> optax.GradientTransformationExtraArgs:
    r"""Adadelta over mean sizes, of gradients and of steps.

    .. math:: D_t = \rho\, D_{t-1} + (1-\rho)\, |g_t|, \qquad
              \Delta_t = -\frac{T_{t-1} + \epsilon}{D_t + \epsilon}\, g_t,
    .. math:: T_t = \rho\, T_{t-1} + (1-\rho)\, |\Delta_t|, \qquad
              \theta_t = \theta_{t-1} + \eta\, \Delta_t

    It starts slowly: steps begin near :math:`\epsilon` (Adadelta's begin near
    :math:`\sqrt\epsilon`) and grow geometrically, so eps is the number to tune.

    Args:
      learning_rate: :math:`\eta`, without unit; a number, a traced scalar or a schedule.
      decay: :math:`\rho` in [0, 1).
      eps: added to both mean sizes, in the gradient's and in the parameters' unit. It sets
        the size of the first steps, so 0 would never move.

    Returns:
      The optimizer. Updates have the gradient's shape and dtype; state is two real arrays
      like the parameters, at least float32.

    Raises:
      ValueError: for a negative or non-finite rate or eps, or a decay outside [0, 1).

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> optimizer = optabs.adadelta_abs(decay=0.75, eps=1e-3)
      >>> updates, _ = optimizer.update(jnp.array([4.0]), optimizer.init(jnp.zeros(1)))
      >>> round(float(updates[0]), 6)
      -0.003996

    Source: OptimABS eqs. 2 and 4, on survey eqs. 26 to 32.
    """
    check(RATE, learning_rate=learning_rate)
    check(DECAY, decay=decay)
    check(EPS, eps=eps)
    return descend(
        scale_by_ratio(gradient(), mean_abs(decay), eps=eps),
        unit_correction(decay, squares=False, eps=eps),
        learning_rate=learning_rate,
    )
