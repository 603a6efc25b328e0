"""One rate per parameter: adagrad, rmsprop, adadelta, each beside its twin by |g|."""

import optax
from jax.typing import ArrayLike

from optabs._checks import DECAY, EPS, POSITIVE, RATE, check, optional
from optabs.optimizers._descent import bounded_ratio, descend, gradient
from optabs.ratio import scale_by_ratio, unit_correction
from optabs.sizes import mean_abs, rising_abs, rising_rms, rms, root_sum_squares, sum_abs


def adagrad(
    learning_rate: optax.ScalarOrSchedule, eps: ArrayLike = 1e-8, eps_root: ArrayLike = 0.0
) -> optax.GradientTransformationExtraArgs:
    r"""Adagrad: the gradient over the root of the sum of its squares.

    .. math:: G_t = G_{t-1} + g_t^2, \qquad \theta_t =
              \theta_{t-1} - \eta\, \frac{g_t}{\sqrt{G_t + \epsilon_{root}} + \epsilon}

    The sum starts at 0 as Duchi et al. have it; optax.adagrad starts it at 0.1. Steps
    shrink like :math:`1/\sqrt t`.

    Args:
      learning_rate: :math:`\eta`, in parameter units (the largest first step); a number, a
        traced scalar or a schedule.
      eps: added outside the root, in the gradient's unit.
      eps_root: added inside the root (the survey's place), in that unit squared. For
        derivatives through updates it has to be above 0: at 0 a root has no finite slope.

    Returns:
      The optimizer. Updates have the gradient's shape and dtype; state is one real array
      like the parameters, at least float32.

    Raises:
      ValueError: for a negative or non-finite rate or eps.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> optimizer = optabs.adagrad(0.1)
      >>> updates, _ = optimizer.update(jnp.array([4.0]), optimizer.init(jnp.zeros(1)))
      >>> round(float(updates[0]), 4)
      -0.1

    Source: survey eq. 22, algorithm 6; Duchi et al., JMLR 12 (2011).
    """
    check(RATE, learning_rate=learning_rate)
    check(EPS, eps=eps, eps_root=eps_root)
    size = root_sum_squares(eps_root=eps_root)
    return descend(scale_by_ratio(gradient(), size, eps=eps), learning_rate=learning_rate)


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


def rmsprop(
    learning_rate: optax.ScalarOrSchedule,
    decay: ArrayLike = 0.9,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    bias_correction: bool = False,
    *,
    steady: bool = False,
    max_ratio: ArrayLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""RMSprop: the gradient over its root mean square.

    .. math:: G_t = \rho\, G_{t-1} + (1-\rho)\, g_t^2, \qquad \theta_t =
              \theta_{t-1} - \eta\, \frac{g_t}{\sqrt{G_t + \epsilon_{root}} + \epsilon}

    optax.rmsprop has its eps inside the root by default; here `eps` is always outside and
    `eps_root` inside. The largest step is :math:`\eta / \sqrt{1-\rho}`.

    Args:
      learning_rate: :math:`\eta`, in parameter units; a number, a traced scalar or a schedule.
      decay: :math:`\rho` in [0, 1).
      eps: added outside the root, in the gradient's unit.
      eps_root: added inside the root (the survey's place), in that unit squared. For
        derivatives through updates it has to be above 0: at 0 a root has no finite slope.
      bias_correction: divide :math:`G_t` by :math:`1-\rho^t`.
      steady: divide by a root mean square that only rises (:func:`optabs.rising_rms`), bias
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
      >>> optimizer = optabs.rmsprop(0.1, decay=0.75)
      >>> updates, _ = optimizer.update(jnp.array([4.0]), optimizer.init(jnp.zeros(1)))
      >>> round(float(updates[0]), 4)
      -0.2

    Source: survey eqs. 23 to 25, algorithm 7; Tieleman & Hinton, lecture 6.5 (2012).
    """
    check(RATE, learning_rate=learning_rate)
    check(DECAY, decay=decay)
    check(EPS, eps=eps, eps_root=eps_root)
    check(optional(POSITIVE), max_ratio=max_ratio)
    size = (
        rising_rms(decay, eps_root=eps_root)
        if steady
        else rms(decay, eps_root=eps_root, bias_correction=bias_correction)
    )
    ratio = bounded_ratio(gradient(), size, eps=eps, max_ratio=max_ratio)
    return descend(ratio, learning_rate=learning_rate)


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

    The largest step, steady or not, is :math:`\eta / (1-\rho)`, taken at the
    first gradient after a long run of zeros.

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


def adadelta(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    decay: ArrayLike = 0.9,
    eps: ArrayLike = 1e-6,
) -> optax.GradientTransformationExtraArgs:
    r"""Adadelta: RMSprop's ratio times the root mean square of the steps so far.

    .. math:: G_t = \rho\, G_{t-1} + (1-\rho)\, g_t^2, \qquad
              \Delta_t = -\frac{\sqrt{\Theta_{t-1} + \epsilon}}{\sqrt{G_t + \epsilon}}\, g_t,
    .. math:: \Theta_t = \rho\, \Theta_{t-1} + (1-\rho)\, \Delta_t^2, \qquad
              \theta_t = \theta_{t-1} + \eta\, \Delta_t

    It needs no learning rate; steps start near :math:`\sqrt\epsilon` and grow.

    Args:
      learning_rate: :math:`\eta`, without unit; a number, a traced scalar or a schedule.
      decay: :math:`\rho` in [0, 1).
      eps: inside both roots, in the gradient's and in the parameters' unit squared. It sets
        the size of the first steps, so 0 would never move.

    Returns:
      The optimizer. Updates have the gradient's shape and dtype; state is two real arrays
      like the parameters, at least float32.

    Raises:
      ValueError: for a negative or non-finite rate or eps, or a decay outside [0, 1).

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> optimizer = optabs.adadelta(decay=0.75)
      >>> updates, _ = optimizer.update(jnp.array([4.0]), optimizer.init(jnp.zeros(1)))
      >>> round(float(updates[0]), 6)
      -0.002

    Source: survey eqs. 26 to 32, algorithm 8; Zeiler, arXiv 1212.5701.
    """
    check(RATE, learning_rate=learning_rate)
    check(DECAY, decay=decay)
    check(EPS, eps=eps)
    return descend(
        scale_by_ratio(gradient(), rms(decay, eps_root=eps), eps=0.0),
        unit_correction(decay, eps_root=eps),
        learning_rate=learning_rate,
    )


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
