"""The numerators: moving averages that keep the gradient's sign."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optabs._checks import DECAY, check
from optabs._numerics import correct_bias, kernel_of, new_count, transformation, update_moment


class EmaState(NamedTuple):
    """State of `ema` and `nesterov`."""

    count: jax.Array  # type: ignore[assignment]  # int32 []: updates seen
    mu: optax.Updates  # like the parameters, at least float32


def ema(
    decay: ArrayLike, *, bias_correction: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Exponential moving average of the gradient.

    .. math:: m_t = \rho\, m_{t-1} + (1-\rho)\, g_t, \qquad
              \hat m_t = m_t / (1 - \rho^t)

    Args:
      decay: :math:`\rho` in [0, 1), a number or a traced scalar.
      bias_correction: emit :math:`\hat m_t` instead of :math:`m_t`.

    Returns:
      A transformation that emits the average, in the gradient's dtype.

    Raises:
      ValueError: for a decay outside [0, 1).

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> average = optabs.ema(0.9, bias_correction=True)
      >>> state = average.init(jnp.zeros(1))
      >>> updates, state = average.update(jnp.array([2.0]), state)
      >>> [round(float(u), 4) for u in (updates[0], state.mu[0])]
      [2.0, 0.2]

    Source: survey eqs. 16 and 33 to 35; Kingma & Ba, arXiv 1412.6980.
    """
    check(DECAY, decay=decay)

    def init_fn(params: optax.Params) -> EmaState:
        return EmaState(count=new_count(), mu=jax.tree.map(jnp.zeros_like, params))

    def update_fn(
        updates: optax.Updates,
        state: EmaState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, EmaState]:
        del params, extra_args
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda g, m: update_moment(m, g, decay), updates, state.mu)
        emitted = mu
        if bias_correction:
            emitted = jax.tree.map(lambda m: correct_bias(m, decay, count), mu)
        return emitted, EmaState(count=count, mu=mu)

    return transformation(init_fn, update_fn, EmaState, "mu")


def nesterov(
    decay: ArrayLike, *, bias_correction: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Nesterov's look-ahead of the moving average.

    .. math:: n_t = \rho\, m_t + (1-\rho)\, g_t, \qquad
              m_t = \rho\, m_{t-1} + (1-\rho)\, g_t

    Args:
      decay: :math:`\rho` in [0, 1), a number or a traced scalar.
      bias_correction: emit :math:`n_t / (1-\rho^t)`, as the survey's eq. 42 does
        (optax.nadam divides the average by :math:`1-\rho^{t+1}` instead).

    Returns:
      A transformation that emits the look-ahead, in the gradient's dtype.

    Raises:
      ValueError: for a decay outside [0, 1).

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> ahead = optabs.nesterov(0.5)
      >>> updates, _ = ahead.update(jnp.array([1.0]), ahead.init(jnp.zeros(1)))
      >>> float(updates[0])
      0.75

    Source: survey eqs. 36 to 42; Dozat, "Incorporating Nesterov Momentum into Adam" (2016).
    """
    average = kernel_of(ema(decay))

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        mu, state = average.update(updates, state, params, **extra_args)
        ahead = jax.tree.map(lambda g, m: update_moment(m, g, decay), updates, mu)
        if bias_correction:
            ahead = jax.tree.map(lambda n: correct_bias(n, decay, state.count), ahead)
        return ahead, state

    return transformation(average.init, update_fn)
