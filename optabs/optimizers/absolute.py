"""OptimABS: the classics with |g| where they track g^2 and take the root again."""

from typing import Any

import optax
from jax.typing import ArrayLike

from optabs._checks import check
from optabs.moments import ema, nesterov
from optabs.optimizers._descent import descend, steadied_ratio
from optabs.ratio import scale_by_ratio, unit_correction
from optabs.sizes import mean_abs, sum_abs


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
    check(learning_rate=learning_rate, eps=eps)
    return descend(
        scale_by_ratio(optax.identity(), sum_abs(), eps=eps), learning_rate=learning_rate
    )


def rmsprop_abs(
    learning_rate: optax.ScalarOrSchedule,
    decay: ArrayLike = 0.9,
    eps: ArrayLike = 1e-8,
    bias_correction: bool = False,
    *,
    keep_max: bool = False,
    max_ratio: ArrayLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""RMSPropABS: the gradient over its mean size.

    .. math:: D_t = \rho\, D_{t-1} + (1-\rho)\, |g_t|, \qquad
              \theta_t = \theta_{t-1} - \eta\, \frac{g_t}{D_t + \epsilon}

    The largest step is :math:`\eta / (1-\rho)`, taken by a gradient that follows zeros.

    Args:
      learning_rate: :math:`\eta`, in parameter units; a number, a traced scalar or a schedule.
      decay: :math:`\rho` in [0, 1).
      eps: added to the mean size, in the gradient's unit.
      bias_correction: divide :math:`D_t` by :math:`1-\rho^t`.
      keep_max: divide by the largest mean size so far, which steadies the step at the price
        of one more array of state; pass bias_correction=True with it.
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
    check(learning_rate=learning_rate, decay=decay, eps=eps, max_ratio=max_ratio)
    ratio = steadied_ratio(
        optax.identity(),
        mean_abs(decay, bias_correction=bias_correction),
        eps=eps,
        keep_max=keep_max,
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
    check(learning_rate=learning_rate, decay=decay, eps=eps)
    return descend(
        scale_by_ratio(optax.identity(), mean_abs(decay), eps=eps),
        unit_correction(decay, squares=False, eps=eps),
        learning_rate=learning_rate,
    )


def adam_abs(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    keep_max: bool = False,
    max_ratio: ArrayLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamABS: the moving average of the gradient over its mean size.

    .. math:: m_t = \beta_1 m_{t-1} + (1-\beta_1)\, g_t, \qquad
              v_t = \beta_2 v_{t-1} + (1-\beta_2)\, |g_t|,
    .. math:: \theta_t = \theta_{t-1} - \eta\,
              \frac{m_t / (1-\beta_1^t)}{v_t / (1-\beta_2^t) + \epsilon}

    The largest step is :math:`\eta\,(1-\beta_1)/(1-\beta_2)`, 100 rates at the defaults
    where Adam's is 3.2. With b1 = b2 it is 1 rate by itself.

    Args:
      learning_rate: :math:`\eta`, in parameter units; a number, a traced scalar or a schedule.
      b1: :math:`\beta_1` in [0, 1).
      b2: :math:`\beta_2` in [0, 1).
      eps: added to the mean size, in the gradient's unit.
      keep_max: divide by the largest corrected mean size so far, which steadies the step at
        the price of one more array of state.
      max_ratio: clip the ratio to [-max_ratio, max_ratio], so that no step exceeds
        max_ratio times :math:`\eta`; None for no bound. Not for complex parameters.

    Returns:
      The optimizer. Updates have the gradient's shape and dtype; state is two arrays like
      the parameters, at least float32, the second one real.

    Raises:
      ValueError: for a negative or non-finite rate or eps, a decay outside [0, 1), or a
        max_ratio that is not above 0.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> optimizer = optabs.adam_abs(0.1)
      >>> updates, _ = optimizer.update(jnp.array([4.0]), optimizer.init(jnp.zeros(1)))
      >>> round(float(updates[0]), 4)
      -0.1

    Source: OptimABS eqs. 2 and 4 with Adam's first moment and corrections.
    """
    check(learning_rate=learning_rate, b1=b1, b2=b2, eps=eps, max_ratio=max_ratio)
    ratio = steadied_ratio(
        ema(b1, bias_correction=True),
        mean_abs(b2, bias_correction=True),
        eps=eps,
        keep_max=keep_max,
        max_ratio=max_ratio,
    )
    return descend(ratio, learning_rate=learning_rate)


def adamw_abs(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 1e-4,
    mask: Any = None,
    *,
    keep_max: bool = False,
    max_ratio: ArrayLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamABS with decoupled weight decay.

    .. math:: \theta_t = \theta_{t-1} - \eta\,(u_t + \lambda\, \theta_{t-1})

    with :math:`u_t` the ratio of :func:`optabs.adam_abs`. `update` needs the parameters.

    Args:
      learning_rate: :math:`\eta`, in parameter units; a number, a traced scalar or a schedule.
      b1: :math:`\beta_1` in [0, 1).
      b2: :math:`\beta_2` in [0, 1).
      eps: added to the mean size, in the gradient's unit.
      weight_decay: :math:`\lambda`, per parameter unit; the share of a parameter that a step
        removes is :math:`\eta\lambda`.
      mask: which leaves decay: None for all, a pytree of bools, or a function from the
        parameters to one. Name it in `static_args` under optax.inject_hyperparams.
      keep_max: as in :func:`optabs.adam_abs`.
      max_ratio: as in :func:`optabs.adam_abs`; it bounds the ratio, not the decay.

    Returns:
      The optimizer. Updates have the gradient's shape and dtype; state as AdamABS's.

    Raises:
      ValueError: for a number out of its range, or a mask that is a bare bool or number.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> optimizer = optabs.adamw_abs(0.1, weight_decay=0.5)
      >>> params = jnp.array([2.0])
      >>> updates, _ = optimizer.update(jnp.array([4.0]), optimizer.init(params), params)
      >>> round(float(updates[0]), 4)
      -0.2

    Source: OptimABS eqs. 2 and 4; Loshchilov & Hutter, arXiv 1711.05101.
    """
    check(learning_rate=learning_rate, b1=b1, b2=b2, eps=eps, max_ratio=max_ratio)
    check(weight_decay=weight_decay, mask=mask)
    ratio = steadied_ratio(
        ema(b1, bias_correction=True),
        mean_abs(b2, bias_correction=True),
        eps=eps,
        keep_max=keep_max,
        max_ratio=max_ratio,
    )
    return descend(
        ratio,
        optax.add_decayed_weights(weight_decay, mask),
        learning_rate=learning_rate,
    )


def nadam_abs(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    keep_max: bool = False,
    max_ratio: ArrayLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""NadamABS: AdamABS with Nesterov's look-ahead in its numerator.

    .. math:: \theta_t = \theta_{t-1} - \eta\,
              \frac{(\beta_1 m_t + (1-\beta_1)\, g_t) / (1-\beta_1^t)}
                   {v_t / (1-\beta_2^t) + \epsilon}

    with :math:`m_t` and :math:`v_t` of :func:`optabs.adam_abs`.

    Args:
      learning_rate: :math:`\eta`, in parameter units; a number, a traced scalar or a schedule.
      b1: :math:`\beta_1` in [0, 1).
      b2: :math:`\beta_2` in [0, 1).
      eps: added to the mean size, in the gradient's unit.
      keep_max: as in :func:`optabs.adam_abs`.
      max_ratio: as in :func:`optabs.adam_abs`.

    Returns:
      The optimizer. Updates have the gradient's shape and dtype; state as AdamABS's.

    Raises:
      ValueError: for a number out of its range.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> optimizer = optabs.nadam_abs(0.1)
      >>> updates, _ = optimizer.update(jnp.array([4.0]), optimizer.init(jnp.zeros(1)))
      >>> round(float(updates[0]), 4)
      -0.19

    Source: OptimABS eqs. 2 and 4, on survey eqs. 36 to 42.
    """
    check(learning_rate=learning_rate, b1=b1, b2=b2, eps=eps, max_ratio=max_ratio)
    ratio = steadied_ratio(
        nesterov(b1, bias_correction=True),
        mean_abs(b2, bias_correction=True),
        eps=eps,
        keep_max=keep_max,
        max_ratio=max_ratio,
    )
    return descend(ratio, learning_rate=learning_rate)
