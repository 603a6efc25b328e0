"""The denominators: running statistics of the gradient's size.

By squares (`rms`, `rising_rms`, `root_sum_squares`) or by absolute values (`mean_abs`,
`rising_abs`, `sum_abs`); `running_max` keeps the largest of the sizes it is given.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optabs._checks import DECAY, EPS, check
from optabs._numerics import (
    abs_square,
    cast_like,
    clip_to_finite,
    correct_bias,
    new_count,
    real_zeros_like,
    transformation,
    update_moment,
    update_rising,
)


class SizeState(NamedTuple):
    """State of every statistic of size but `running_max`."""

    count: jax.Array  # type: ignore[assignment]  # int32 []: updates seen
    nu: optax.Updates  # like the parameters, real, at least float32


class RunningMaxState(NamedTuple):
    """State of `running_max`."""

    nu_max: optax.Updates  # like the parameters, real, at least float32


def rms(
    decay: ArrayLike, *, eps_root: ArrayLike = 0.0, bias_correction: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Root of the moving average of squares.

    .. math:: v_t = \rho\, v_{t-1} + (1-\rho)\, |g_t|^2, \qquad
              s_t = \sqrt{\hat v_t + \epsilon_{root}}

    with :math:`\hat v_t = v_t / (1-\rho^t)` under bias correction, else :math:`v_t`.

    Args:
      decay: :math:`\rho` in [0, 1), a number or a traced scalar.
      eps_root: added inside the root, in the gradient's unit squared. For derivatives
        through updates it has to be above 0: at 0 a root has no finite slope.
      bias_correction: divide the average by :math:`1-\rho^t`.

    Returns:
      A transformation that emits the size, real, in the gradient's unit.

    Raises:
      ValueError: for a decay outside [0, 1) or a negative eps_root.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> size = optabs.rms(0.9, bias_correction=True)
      >>> updates, _ = size.update(jnp.array([-3.0]), size.init(jnp.zeros(1)))
      >>> round(float(updates[0]), 4)
      3.0

    Source: survey eqs. 23 to 25 and 33 to 35; OptimABS eq. 1.
    """
    check(DECAY, decay=decay)
    check(EPS, eps_root=eps_root)

    def read(nu: jax.Array, count: jax.Array) -> jax.Array:
        mean = correct_bias(nu, decay, count) if bias_correction else nu
        return _root(mean, eps_root)

    return _size(abs_square, lambda nu, x, count: update_moment(nu, x, decay), read)


def mean_abs(
    decay: ArrayLike, *, bias_correction: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Moving average of absolute values, OptimABS's statistic of size.

    .. math:: v_t = \rho\, v_{t-1} + (1-\rho)\, |g_t|, \qquad \hat v_t = v_t / (1-\rho^t)

    Args:
      decay: :math:`\rho` in [0, 1), a number or a traced scalar.
      bias_correction: emit :math:`\hat v_t` instead of :math:`v_t`.

    Returns:
      A transformation that emits the size, real, in the gradient's unit.

    Raises:
      ValueError: for a decay outside [0, 1).

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> size = optabs.mean_abs(0.5)
      >>> updates, _ = size.update(jnp.array([-3.0]), size.init(jnp.zeros(1)))
      >>> float(updates[0])
      1.5

    Source: Lee et al., "OptimABS", eq. 2.
    """
    check(DECAY, decay=decay)

    def read(nu: jax.Array, count: jax.Array) -> jax.Array:
        return correct_bias(nu, decay, count) if bias_correction else nu

    return _size(jnp.abs, lambda nu, x, count: update_moment(nu, x, decay), read)


def root_sum_squares(*, eps_root: ArrayLike = 0.0) -> optax.GradientTransformationExtraArgs:
    r"""Root of the sum of all squares so far.

    .. math:: v_t = v_{t-1} + |g_t|^2, \qquad s_t = \sqrt{v_t + \epsilon_{root}}

    Args:
      eps_root: added inside the root, in the gradient's unit squared. For derivatives
        through updates it has to be above 0: at 0 a root has no finite slope.

    Returns:
      A transformation that emits the size, real, in the gradient's unit.

    Raises:
      ValueError: for a negative eps_root.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> size = optabs.root_sum_squares()
      >>> _, state = size.update(jnp.array([3.0]), size.init(jnp.zeros(1)))
      >>> updates, _ = size.update(jnp.array([4.0]), state)
      >>> float(updates[0])
      5.0

    Source: survey eq. 22; Duchi et al., JMLR 12 (2011).
    """
    check(EPS, eps_root=eps_root)
    return _size(
        abs_square, lambda nu, x, count: nu + x, lambda nu, count: _root(nu, eps_root)
    )


def sum_abs() -> optax.GradientTransformationExtraArgs:
    r"""Sum of all absolute values so far.

    .. math:: v_t = v_{t-1} + |g_t|

    Returns:
      A transformation that emits the size, real, in the gradient's unit.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> size = optabs.sum_abs()
      >>> _, state = size.update(jnp.array([3.0]), size.init(jnp.zeros(1)))
      >>> updates, _ = size.update(jnp.array([-4.0]), state)
      >>> float(updates[0])
      7.0

    Source: OptimABS eq. 2, applied to Adagrad's sum.
    """
    return _size(jnp.abs, lambda nu, x, count: nu + x, lambda nu, count: nu)


def rising_rms(
    decay: ArrayLike, *, eps_root: ArrayLike = 0.0
) -> optax.GradientTransformationExtraArgs:
    r"""Root of a mean square that only rises.

    .. math:: v_t = v_{t-1} + w_t \max(|g_t|^2 - v_{t-1}, 0), \qquad
              w_t = \frac{1-\rho}{1-\rho^t}, \qquad s_t = \sqrt{v_t + \epsilon_{root}}

    Args:
      decay: :math:`\rho` in [0, 1), a number or a traced scalar.
      eps_root: added inside the root, in the gradient's unit squared. For derivatives
        through updates it has to be above 0: at 0 a root has no finite slope.

    Returns:
      A transformation that emits the size, real, in the gradient's unit.

    Raises:
      ValueError: for a decay outside [0, 1) or a negative eps_root.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> size = optabs.rising_rms(0.9)
      >>> _, state = size.update(jnp.array([-3.0]), size.init(jnp.zeros(1)))
      >>> updates, _ = size.update(jnp.array([1.0]), state)
      >>> round(float(updates[0]), 4)
      3.0

    Source: this package; the same cure for squares as `rising_abs` for sizes.
    """
    check(DECAY, decay=decay)
    check(EPS, eps_root=eps_root)
    return _size(
        abs_square,
        lambda nu, x, count: update_rising(nu, x, decay, count),
        lambda nu, count: _root(nu, eps_root),
    )


def rising_abs(decay: ArrayLike) -> optax.GradientTransformationExtraArgs:
    r"""Mean size that only rises: the steady denominator of OptimABS.

    .. math:: v_t = v_{t-1} + w_t \max(|g_t| - v_{t-1}, 0), \qquad
              w_t = \frac{1-\rho}{1-\rho^t}

    The bias-corrected mean size is this without the max: here a gradient below the mean
    leaves it as it is. It does in one array of state what a mean and its running maximum
    do in two. It never forgets, so a gradient that shrinks for good leaves steps shorter
    than they need be.

    Args:
      decay: :math:`\rho` in [0, 1), a number or a traced scalar.

    Returns:
      A transformation that emits the size, real, in the gradient's unit.

    Raises:
      ValueError: for a decay outside [0, 1).

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> size = optabs.rising_abs(0.9)
      >>> _, state = size.update(jnp.array([-3.0]), size.init(jnp.zeros(1)))
      >>> updates, _ = size.update(jnp.array([1.0]), state)
      >>> round(float(updates[0]), 4)
      3.0

    Source: this package, from OptimABS eq. 2 and AMSGrad's maximum (Reddi et al., 2018).
    """
    check(DECAY, decay=decay)
    return _size(
        jnp.abs,
        lambda nu, x, count: update_rising(nu, x, decay, count),
        lambda nu, count: nu,
    )


def running_max() -> optax.GradientTransformationExtraArgs:
    r"""Largest value so far of the sizes it is given, entry by entry.

    .. math:: \bar s_t = \max(\bar s_{t-1}, s_t)

    Chain it behind a statistic of size: `optax.chain(rms(b2), running_max())` is
    AMSGrad's denominator. Like `rising_abs`, it never forgets.

    Returns:
      A transformation that emits the maximum, real, in the unit it was given.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> peak = optabs.running_max()
      >>> _, state = peak.update(jnp.array([5.0]), peak.init(jnp.zeros(1)))
      >>> updates, _ = peak.update(jnp.array([2.0]), state)
      >>> float(updates[0])
      5.0

    Source: Reddi et al., "On the Convergence of Adam and Beyond", ICLR 2018.
    """

    def init_fn(params: optax.Params) -> RunningMaxState:
        return RunningMaxState(nu_max=jax.tree.map(real_zeros_like, params))

    def update_fn(
        updates: optax.Updates,
        state: RunningMaxState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, RunningMaxState]:
        del params, extra_args
        nu_max = jax.tree.map(
            lambda s, peak: jnp.maximum(peak, clip_to_finite(s.astype(peak.dtype))),
            updates,
            state.nu_max,
        )
        return nu_max, RunningMaxState(nu_max=nu_max)

    return transformation(init_fn, update_fn, RunningMaxState, "nu_max")


def _root(square: jax.Array, eps_root: ArrayLike) -> jax.Array:
    return jnp.sqrt(square + cast_like(eps_root, square))


def _size(
    measure: Callable[[jax.Array], jax.Array],
    fold: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    read: Callable[[jax.Array, jax.Array], jax.Array],
) -> optax.GradientTransformationExtraArgs:
    """A statistic of size: nu <- fold(nu, measure(g), count), emitted as read(nu, count)."""

    def init_fn(params: optax.Params) -> SizeState:
        return SizeState(count=new_count(), nu=jax.tree.map(real_zeros_like, params))

    def update_fn(
        updates: optax.Updates,
        state: SizeState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SizeState]:
        del params, extra_args
        count = optax.safe_increment(state.count)
        nu = jax.tree.map(
            lambda g, v: clip_to_finite(fold(v, measure(g).astype(v.dtype), count)),
            updates,
            state.nu,
        )
        size = jax.tree.map(lambda v: read(v, count), nu)
        return size, SizeState(count=count, nu=nu)

    return transformation(init_fn, update_fn, SizeState, "nu")
