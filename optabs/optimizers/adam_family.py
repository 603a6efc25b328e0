"""Momentum over a size, as a root mean square or, in the _abs twins, as a mean of |g|."""

from typing import Any

import optax
from jax.typing import ArrayLike

from optabs._checks import DECAY, EPS, MASK, NONNEGATIVE, POSITIVE, RATE, check, optional
from optabs.moments import ema, nesterov
from optabs.optimizers._descent import bounded_ratio, decayed_weights, descend
from optabs.sizes import mean_abs, rising_abs, rising_rms, rms


def adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    *,
    steady: bool = False,
    max_ratio: ArrayLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam: the moving average of the gradient over its root mean square.

    .. math:: m_t = \beta_1 m_{t-1} + (1-\beta_1)\, g_t, \qquad
              v_t = \beta_2 v_{t-1} + (1-\beta_2)\, g_t^2,
    .. math:: \theta_t = \theta_{t-1} - \eta\,
              \frac{m_t / (1-\beta_1^t)}
                   {\sqrt{v_t / (1-\beta_2^t) + \epsilon_{root}} + \epsilon}

    The largest step is :math:`\eta\,(1-\beta_1)/\sqrt{1-\beta_2}`, 3.2 rates at the
    defaults.

    Args:
      learning_rate: :math:`\eta`, in parameter units; a number, a traced scalar or a schedule.
      b1: :math:`\beta_1` in [0, 1).
      b2: :math:`\beta_2` in [0, 1).
      eps: added outside the root, in the gradient's unit.
      eps_root: added inside the root (the survey's place), in that unit squared. For
        derivatives through updates it has to be above 0: at 0 a root has no finite slope.
      steady: divide by a root mean square that only rises (:func:`optabs.rising_rms`), bias
        correction included; for constant rates, at no cost in memory.
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
      >>> optimizer = optabs.adam(0.1)
      >>> updates, _ = optimizer.update(jnp.array([4.0]), optimizer.init(jnp.zeros(1)))
      >>> round(float(updates[0]), 4)
      -0.1

    Source: survey eqs. 33 to 35, algorithm 9; Kingma & Ba, arXiv 1412.6980.
    """
    check(RATE, learning_rate=learning_rate)
    check(DECAY, b1=b1, b2=b2)
    check(EPS, eps=eps, eps_root=eps_root)
    check(optional(POSITIVE), max_ratio=max_ratio)
    ratio = _rms_ratio(ema(b1, bias_correction=True), b2, eps, eps_root, steady, max_ratio)
    return descend(ratio, learning_rate=learning_rate)


def adam_abs(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    steady: bool = False,
    max_ratio: ArrayLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamABS: the moving average of the gradient over its mean size.

    .. math:: m_t = \beta_1 m_{t-1} + (1-\beta_1)\, g_t, \qquad
              v_t = \beta_2 v_{t-1} + (1-\beta_2)\, |g_t|,
    .. math:: \theta_t = \theta_{t-1} - \eta\,
              \frac{m_t / (1-\beta_1^t)}{v_t / (1-\beta_2^t) + \epsilon}

    The largest step, steady or not, is :math:`\eta\,(1-\beta_1)/(1-\beta_2)` where
    :math:`\beta_1 \le \beta_2`: 100 rates at the defaults, taken at the first
    gradient after a long run of zeros, where Adam's is 3.2. With b1 = b2 it is 1 rate.

    Args:
      learning_rate: :math:`\eta`, in parameter units; a number, a traced scalar or a schedule.
      b1: :math:`\beta_1` in [0, 1).
      b2: :math:`\beta_2` in [0, 1).
      eps: added to the mean size, in the gradient's unit.
      steady: divide by a mean size that only rises (:func:`optabs.rising_abs`), bias
        correction included; for constant rates, at no cost in memory.
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
    check(RATE, learning_rate=learning_rate)
    check(DECAY, b1=b1, b2=b2)
    check(EPS, eps=eps)
    check(optional(POSITIVE), max_ratio=max_ratio)
    ratio = _abs_ratio(ema(b1, bias_correction=True), b2, eps, steady, max_ratio)
    return descend(ratio, learning_rate=learning_rate)


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    weight_decay: ArrayLike = 1e-4,
    mask: Any = None,
    *,
    steady: bool = False,
    max_ratio: ArrayLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AdamW: Adam with decoupled weight decay.

    .. math:: \theta_t = \theta_{t-1} - \eta\,(u_t + \lambda\, \theta_{t-1})

    with :math:`u_t` the ratio of :func:`optabs.adam`. `update` needs the parameters.

    Args:
      learning_rate: :math:`\eta`, in parameter units; a number, a traced scalar or a schedule.
      b1: :math:`\beta_1` in [0, 1).
      b2: :math:`\beta_2` in [0, 1).
      eps: added outside the root, in the gradient's unit.
      eps_root: as in :func:`optabs.adam`.
      weight_decay: :math:`\lambda`, per parameter unit; the share of a parameter that a step
        removes is :math:`\eta\lambda`.
      mask: which leaves decay: None for all, a pytree of bools, or a function from the
        parameters to one. Name it in `static_args` under optax.inject_hyperparams.
      steady: as in :func:`optabs.adam`.
      max_ratio: as in :func:`optabs.adam`; it bounds the ratio, not the decay.

    Returns:
      The optimizer. Updates have the gradient's shape and dtype; state as Adam's.

    Raises:
      ValueError: for a number out of its range, or a mask that is a bare bool or number.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> optimizer = optabs.adamw(0.1, weight_decay=0.5)
      >>> params = jnp.array([2.0])
      >>> updates, _ = optimizer.update(jnp.array([4.0]), optimizer.init(params), params)
      >>> round(float(updates[0]), 4)
      -0.2

    Source: Loshchilov & Hutter, arXiv 1711.05101.
    """
    check(RATE, learning_rate=learning_rate)
    check(DECAY, b1=b1, b2=b2)
    check(EPS, eps=eps, eps_root=eps_root)
    check(NONNEGATIVE, weight_decay=weight_decay)
    check(MASK, mask=mask)
    check(optional(POSITIVE), max_ratio=max_ratio)
    ratio = _rms_ratio(ema(b1, bias_correction=True), b2, eps, eps_root, steady, max_ratio)
    return descend(
        ratio,
        decayed_weights(weight_decay, mask),
        learning_rate=learning_rate,
    )


def adamw_abs(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 1e-4,
    mask: Any = None,
    *,
    steady: bool = False,
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
      steady: as in :func:`optabs.adam_abs`.
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
    check(RATE, learning_rate=learning_rate)
    check(DECAY, b1=b1, b2=b2)
    check(EPS, eps=eps)
    check(optional(POSITIVE), max_ratio=max_ratio)
    check(NONNEGATIVE, weight_decay=weight_decay)
    check(MASK, mask=mask)
    ratio = _abs_ratio(ema(b1, bias_correction=True), b2, eps, steady, max_ratio)
    return descend(
        ratio,
        decayed_weights(weight_decay, mask),
        learning_rate=learning_rate,
    )


def nadam(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    *,
    steady: bool = False,
    max_ratio: ArrayLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Nadam: Adam with Nesterov's look-ahead in its numerator.

    .. math:: \theta_t = \theta_{t-1} - \eta\,
              \frac{(\beta_1 m_t + (1-\beta_1)\, g_t) / (1-\beta_1^t)}
                   {\sqrt{v_t / (1-\beta_2^t) + \epsilon_{root}} + \epsilon}

    with :math:`m_t` and :math:`v_t` of :func:`optabs.adam`. optax.nadam divides its
    :math:`m_t` by :math:`1-\beta_1^{t+1}`; this is the survey's eq. 42.

    Args:
      learning_rate: :math:`\eta`, in parameter units; a number, a traced scalar or a schedule.
      b1: :math:`\beta_1` in [0, 1).
      b2: :math:`\beta_2` in [0, 1).
      eps: added outside the root, in the gradient's unit.
      eps_root: added inside the root (the survey's place), in that unit squared. For
        derivatives through updates it has to be above 0: at 0 a root has no finite slope.
      steady: as in :func:`optabs.adam`.
      max_ratio: as in :func:`optabs.adam`.

    Returns:
      The optimizer. Updates have the gradient's shape and dtype; state as Adam's.

    Raises:
      ValueError: for a number out of its range.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> optimizer = optabs.nadam(0.1)
      >>> updates, _ = optimizer.update(jnp.array([4.0]), optimizer.init(jnp.zeros(1)))
      >>> round(float(updates[0]), 4)
      -0.19

    Source: survey eqs. 36 to 42, algorithm 10; Dozat (2016).
    """
    check(RATE, learning_rate=learning_rate)
    check(DECAY, b1=b1, b2=b2)
    check(EPS, eps=eps, eps_root=eps_root)
    check(optional(POSITIVE), max_ratio=max_ratio)
    ratio = _rms_ratio(
        nesterov(b1, bias_correction=True), b2, eps, eps_root, steady, max_ratio
    )
    return descend(ratio, learning_rate=learning_rate)


def nadam_abs(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    steady: bool = False,
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
      steady: as in :func:`optabs.adam_abs`.
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
    check(RATE, learning_rate=learning_rate)
    check(DECAY, b1=b1, b2=b2)
    check(EPS, eps=eps)
    check(optional(POSITIVE), max_ratio=max_ratio)
    ratio = _abs_ratio(nesterov(b1, bias_correction=True), b2, eps, steady, max_ratio)
    return descend(ratio, learning_rate=learning_rate)


def _rms_ratio(
    numerator: optax.GradientTransformation,
    b2: ArrayLike,
    eps: ArrayLike,
    eps_root: ArrayLike,
    steady: bool,
    max_ratio: ArrayLike | None,
) -> optax.GradientTransformationExtraArgs:
    if steady:
        size = rising_rms(b2, eps_root=eps_root)
    else:
        size = rms(b2, eps_root=eps_root, bias_correction=True)
    return bounded_ratio(numerator, size, eps=eps, max_ratio=max_ratio)


def _abs_ratio(
    numerator: optax.GradientTransformation,
    b2: ArrayLike,
    eps: ArrayLike,
    steady: bool,
    max_ratio: ArrayLike | None,
) -> optax.GradientTransformationExtraArgs:
    size = rising_abs(b2) if steady else mean_abs(b2, bias_correction=True)
    return bounded_ratio(numerator, size, eps=eps, max_ratio=max_ratio)
