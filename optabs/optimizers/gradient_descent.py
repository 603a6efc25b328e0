"""Descent along the gradient or its moving average: sgd, momentum, nag."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optabs._checks import DECAY, RATE, check
from optabs._numerics import cast_like, new_count, transformation, update_moment
from optabs._tree import find_state
from optabs.moments import ema
from optabs.optimizers._descent import descend


class NagState(NamedTuple):
    """State of `nag`."""

    count: jax.Array  # type: ignore[assignment]  # int32 []: updates seen
    mu: optax.Updates  # the velocity, like the parameters, at least float32
    offset: jax.Array  # shape=(): decay times the rate of the last look-ahead


def sgd(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
    r"""Gradient descent.

    .. math:: \theta_{t} = \theta_{t-1} - \eta\, g_t

    Vanilla, stochastic and mini-batch descent are this rule on the gradient of the whole
    set, of one instance, or of a batch.

    Args:
      learning_rate: :math:`\eta`, in parameter units per gradient unit; a number, a traced
        scalar or a schedule.

    Returns:
      The optimizer. Updates have the gradient's shape and dtype; no state but a
      schedule's count.

    Raises:
      ValueError: for a negative or non-finite rate.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> optimizer = optabs.sgd(0.5)
      >>> updates, _ = optimizer.update(jnp.array([2.0]), optimizer.init(jnp.zeros(1)))
      >>> float(updates[0])
      -1.0

    Source: survey eqs. 13 to 15, algorithms 1 to 3.
    """
    check(RATE, learning_rate=learning_rate)
    return descend(learning_rate=learning_rate)


def momentum(
    learning_rate: optax.ScalarOrSchedule, decay: ArrayLike = 0.9
) -> optax.GradientTransformationExtraArgs:
    r"""Descent along the moving average of the gradient.

    .. math:: v_t = \rho\, v_{t-1} + (1-\rho)\, g_t, \qquad
              \theta_t = \theta_{t-1} - \eta\, v_t

    optax.sgd's momentum has no factor :math:`1-\rho`: for its steps pass
    :math:`\eta / (1-\rho)`.

    Args:
      learning_rate: :math:`\eta`, in parameter units per gradient unit; a number, a traced
        scalar or a schedule.
      decay: :math:`\rho` in [0, 1).

    Returns:
      The optimizer. Updates have the gradient's shape and dtype; state is one array like
      the parameters, at least float32.

    Raises:
      ValueError: for a negative or non-finite rate, or a decay outside [0, 1).

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> optimizer = optabs.momentum(0.5, decay=0.75)
      >>> updates, _ = optimizer.update(jnp.array([2.0]), optimizer.init(jnp.zeros(1)))
      >>> float(updates[0])
      -0.25

    Source: survey eq. 16, algorithm 4.
    """
    check(RATE, learning_rate=learning_rate)
    check(DECAY, decay=decay)
    return descend(ema(decay), learning_rate=learning_rate)


def nag(
    learning_rate: optax.ScalarOrSchedule, decay: ArrayLike = 0.9
) -> optax.GradientTransformationExtraArgs:
    r"""Nesterov's accelerated gradient, with the gradient at the look-ahead point.

    .. math:: \hat\theta_t = \theta_{t-1} - \eta\rho\, v_{t-1}, \qquad
              v_t = \rho\, v_{t-1} + (1-\rho)\, \nabla L(\hat\theta_t), \qquad
              \theta_t = \theta_{t-1} - \eta\, v_t

    The parameters that are trained are the look-ahead points :math:`\hat\theta`, because
    that is where the training loop takes its gradient; :func:`optabs.nag_eval_params`
    gives :math:`\theta`. With :math:`\eta_t` the rate of this step, :math:`\eta_{t+1}` the
    schedule's next and h the rate of the last look-ahead, the update is
    :math:`h\rho v_{t-1} - \eta_t v_t - \eta_{t+1}\rho v_t`, exact under any schedule. A
    rate that is a number or injected is taken as its own next value. A decay that is
    changed to 0 in mid-run leaves the last look-ahead in the parameters.

    Args:
      learning_rate: :math:`\eta`, in parameter units per gradient unit; a number, a traced
        scalar or a schedule.
      decay: :math:`\rho` in [0, 1).

    Returns:
      The optimizer. Updates have the gradient's shape and dtype; state is one array like
      the parameters, at least float32, and one scalar.

    Raises:
      ValueError: for a negative or non-finite rate, or a decay outside [0, 1).

    Examples:
      >>> import jax.numpy as jnp, optax, optabs
      >>> optimizer = optabs.nag(0.5, decay=0.5)
      >>> ahead = jnp.array([4.0])
      >>> state = optimizer.init(ahead)
      >>> updates, state = optimizer.update(jnp.array([2.0]), state)
      >>> ahead = optax.apply_updates(ahead, updates)
      >>> float(ahead[0]), float(optabs.nag_eval_params(state, ahead)[0])
      (3.25, 3.5)

    Source: survey eq. 21, algorithm 5.
    """
    check(RATE, learning_rate=learning_rate)
    check(DECAY, decay=decay)
    rate_at = learning_rate if callable(learning_rate) else lambda count: learning_rate

    def init_fn(params: optax.Params) -> NagState:
        return NagState(
            count=new_count(),
            mu=jax.tree.map(jnp.zeros_like, params),
            offset=jnp.zeros([], _widest(params)),
        )

    def update_fn(
        updates: optax.Updates,
        state: NagState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, NagState]:
        del params, extra_args
        count = optax.safe_increment(state.count)
        rate = rate_at(state.count)
        offset = cast_like(rate_at(count) * decay, state.offset)
        mu = jax.tree.map(lambda g, v: update_moment(v, g, decay), updates, state.mu)
        # The old velocity is computed from the new one and g: reading it after it was
        # overwritten would cost a copy. With a decay of 0 there is no look-ahead to undo.
        back = state.offset / jnp.where(decay == 0, 1, cast_like(decay, state.offset))
        ahead = back - rate - offset

        def move(g: jax.Array, v: jax.Array) -> jax.Array:
            old = cast_like(back, v) * (1 - cast_like(decay, v))
            return cast_like(ahead, v) * v - old * g

        updates = jax.tree.map(move, updates, mu)
        return updates, NagState(count=count, mu=mu, offset=offset)

    return transformation(init_fn, update_fn, NagState, "mu")


def nag_eval_params(state: optax.OptState, params: optax.Params) -> optax.Params:
    r"""Algorithm 5's :math:`\theta` from the look-ahead point that `nag` trains.

    .. math:: \theta = \hat\theta + h\rho\, v

    Args:
      state: `nag`'s state, or any state that holds it once (chain, masked, MultiSteps,
        inject_hyperparams).
      params: the trained parameters, that is the look-ahead point.

    Returns:
      The parameters to evaluate and to keep, shaped and typed like `params`.

    Raises:
      ValueError: where the state holds no `nag` state, or more than one.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> optimizer = optabs.nag(0.1)
      >>> params = jnp.array([1.0])
      >>> float(optabs.nag_eval_params(optimizer.init(params), params)[0])
      1.0

    Source: survey eq. 21, algorithm 5.
    """
    nag_state = find_state(state, NagState, "nag_eval_params")

    def back(velocity: Any, param: Any) -> Any:
        if isinstance(velocity, optax.MaskedNode):
            return param
        return (param + cast_like(nag_state.offset, velocity) * velocity).astype(
            jnp.result_type(param)
        )

    return jax.tree.map(
        back, nag_state.mu, params, is_leaf=lambda v: isinstance(v, optax.MaskedNode)
    )


def _widest(params: optax.Params) -> jnp.dtype:
    """The real dtype of the widest leaf, at least float32."""
    dtypes = [jnp.finfo(leaf.dtype).dtype for leaf in jax.tree.leaves(params)]
    return jnp.result_type(jnp.float32, *dtypes)
