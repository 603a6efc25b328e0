"""DAO-E: the experts' updates, mixed by the controller's weights."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optabs._checks import short, where_they_differ
from optabs._numerics import clip_to_finite, new_count, transformation
from optabs._tree import numeric_leaves, tree_where
from optabs.ensemble import controller as control
from optabs.ensemble import experts as ensemble
from optabs.ensemble import observing, scalars
from optabs.ensemble.controller import Feedback
from optabs.ensemble.experts import Expert
from optabs.ensemble.scalars import barrier, stack_scalars
from optabs.ensemble.settings import Controller, check_controller
from optabs.ensemble.state import (
    DaoEState,
    ExpertState,
    Storage,
    check_state,
    check_storage,
    inner_product,
    store,
    stored_by_leaf,
)
from optabs.features import Feature


def dao_e(
    learning_rate: optax.ScalarOrSchedule | None = None,
    experts: Mapping[str, Expert] | None = None,
    *,
    controller: Controller = Controller(),  # noqa: B008  (an immutable tuple)
    features: Sequence[Feature] = (),
    previous: Storage = "bfloat16",
) -> optax.GradientTransformationExtraArgs:
    r"""DAO-E: runs several optimizers at once and mixes their updates by learned weights.

    .. math:: \theta_l \leftarrow \theta_l + e^c \sum_i \alpha_{il}\, U_{il}, \qquad
              \alpha_l = \varphi + (1 - K\varphi)\, \mathrm{softmax}(b_l + W_l f)

    for the leaves :math:`l` of the parameters and the experts' updates :math:`U_i`, each
    shortened to 5 % of the parameters' norm where it is longer. The next gradient tells
    what each share did to the loss, and :math:`b`, :math:`W` and :math:`c` learn from it:
    see :class:`optabs.Controller`. :math:`f` are statistics of the mini-batch and of
    training, where they are asked for: see :mod:`optabs.features`.

    `update(grads, state, params, value=loss, batch=mini_batch)`: the parameters are
    required, for the experts' updates are measured against their norm. The loss and the
    mini-batch are not, by default; without `value` a gated controller has no gate, and
    features of the loss are 0, as without `batch` those of the batch are. Both, and all
    other keyword arguments, max_norm the experts.

    An expert whose update is not finite is shut out of that step, keeps its state and is not
    judged by it; a gradient that is not finite gives a step of zero and changes no state at
    all. Weights and multiplier do not depend on the loss's scale. For derivatives through
    updates the experts must allow them: the default ones divide by a root that has no finite
    slope at 0, so pass such as `optabs.adam(1e-3, eps_root=1e-8)`.

    Args:
      learning_rate: the experts' common rate, in parameter units; a number, a traced scalar
        or a schedule. None: 1e-3, or the experts' own.
      experts: names to optax transformations with rates of their own, or to functions
        (learning_rate -> transformation). None: optabs.sgd, adam, rmsprop, and optax's lion
        without weight decay.
      controller: how the weights are formed and learned, an :class:`optabs.Controller`;
        `Controller.paper()` with `optabs.features.ALL` is DAO-E as published,
        `Controller.uniform()` plain equal weights.
      features: pairs (function, length), such as `optabs.features.ALL`. By default none:
        in the study they hardly gained anything.
      previous: how the last step's updates are kept: "bfloat16", "float32", "int8" (one byte
        a parameter and expert), or "thinned" (every 16th entry of large leaves).

    Returns:
      The optimizer. Updates have the gradient's shape and dtype. State is the experts' own,
      at least float32, one update per expert as kept, and per leaf K(1 + n) float32 numbers
      for K experts and n features.

    Raises:
      ValueError: for no experts, experts with rates of their own beside a learning_rate, a
        setting out of its range; at the first trace for missing params, a value that is not
        one real number, a batch without arrays, a feature of another length than declared,
        gradients unlike the parameters, a state of another optimizer or of other
        parameters, or an expert that changes the tree's structure, shapes or dtypes.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optabs
      >>> optimizer = optabs.dao_e(0.01)
      >>> params = jnp.array([3.0, -2.0])
      >>> state = optimizer.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...     loss, grads = jax.value_and_grad(lambda p: jnp.sum(p**2))(params)
      ...     updates, state = optimizer.update(grads, state, params, value=loss)
      ...     return optax.apply_updates(params, updates), state, loss
      >>> for _ in range(100):
      ...     params, state, loss = step(params, state)
      >>> bool(loss < 0.1)
      True
      >>> sorted(optabs.mixing_weights(state))
      ['adam', 'lion', 'rmsprop', 'sgd']

    Source: Jung, Dataset-Aware Adaptive Optimizer; the controller's rule is this package's.
    """
    check_storage(previous)
    members = ensemble.resolve(learning_rate, experts)
    check_controller(controller, len(members))
    chosen = observing.check_features(features)
    chosen = () if controller.rate is None else chosen
    number = observing.length_of(chosen)
    multiplied = controller.multiplier_rate is not None

    def stored(update: Any) -> Any:
        return jax.tree.map(lambda u: store(u, previous), update)

    def init_fn(params: optax.Params) -> DaoEState:
        leaves = len(jax.tree.leaves(params))

        def zeros() -> Any:
            return stored(jax.tree.map(jnp.zeros_like, params))

        return DaoEState(
            count=new_count(),
            experts={
                name: ExpertState(
                    inner=member.init(params),
                    previous=zeros() if controller.needs_feedback else (),
                )
                for name, member in members.items()
            },
            controller=control.init(controller, leaves, len(members), number),
            observing=observing.init(chosen, leaves),
        )

    def update_fn(
        updates: optax.Updates,
        state: DaoEState,
        params: optax.Params | None = None,
        *,
        value: ArrayLike | None = None,
        batch: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, DaoEState]:
        if params is None:
            raise ValueError(
                "params is None; pass update the parameters as its third argument."
            )
        _check_trees(updates, params)
        previous_like = params if controller.needs_feedback else ()
        rows = max(len(jax.tree.leaves(params)), 1) if controller.per_leaf else 1
        shape = (rows, len(members), 1 + number)
        check_state(state, list(members), jax.tree.structure(previous_like), shape)
        loss, expert_args = _checked(value, batch, extra_args)
        leaves: list[jax.Array]
        leaves, structure = jax.tree.flatten(updates)
        if multiplied or chosen:
            norm, finite = scalars.norm_and_finite(leaves)
        else:
            norm, finite = jnp.zeros([], jnp.float32), scalars.all_finite(leaves)
        learned = state.controller
        if controller.needs_feedback:
            feedback = Feedback(_products(leaves, state), norm, state.count)
            learned = barrier(control.learn(controller, learned, feedback, loss))
        standardized, known, observed = observing.observe(
            chosen,
            state.observing,
            count=state.count,
            batch=batch,
            value=loss,
            norm=norm,
            grads=updates,
            params=params,
        )
        max_norm = _max_norm(controller, params)
        proposals = [
            ensemble.propose(
                name, member, expert.inner, updates, params, max_norm, expert_args
            )
            for (name, member), expert in zip(
                members.items(), state.experts.values(), strict=True
            )
        ]
        usable = barrier(jnp.stack([each.finite for each in proposals]) & finite)
        divisors = jnp.stack([each.divisor for each in proposals])
        weighted = barrier(
            control.update_weights(controller, learned, standardized, known, usable)
        )
        if controller.rule == "relative":
            weighted = weighted._replace(lengths=_lengths(controller, proposals))
        # A row of weights has a sum of 1, or of 0 without a usable expert.
        has_weights = jnp.sum(weighted.mixing, axis=1) > 0.5
        used = barrier(jnp.all(usable[:, None] & has_weights[None, :], axis=1))
        any_used = barrier(jnp.any(used))
        weights = weighted.mixing
        total = jnp.sum(weights, axis=1, keepdims=True)
        if multiplied:
            multiplier = jnp.exp(weighted.log_multiplier)
            weights = multiplier * weights
        proposed = [jax.tree.leaves(each.update) for each in proposals]
        step = _mixed(barrier(weights), barrier(total * divisors[None, :]), proposed)
        if multiplied:
            step_norm = scalars.root(scalars.squared_norm(step)) / multiplier
            weighted = weighted._replace(step_norm=clip_to_finite(step_norm))

        # The next gradient is multiplied with the updates as they were used.
        factors = barrier(used / divisors)
        experts_state = {
            name: ExpertState(
                inner=tree_where(used[k], each.state, old.inner),
                previous=tree_where(
                    any_used, stored(_times(factors[k], each.update)), old.previous
                )
                if controller.needs_feedback
                else (),
            )
            for k, (each, (name, old)) in enumerate(
                zip(proposals, state.experts.items(), strict=True)
            )
        }
        new_state = DaoEState(
            count=tree_where(any_used, optax.safe_increment(state.count), state.count),
            experts=experts_state,
            controller=tree_where(any_used, weighted, state.controller),
            observing=tree_where(any_used, observed, state.observing),
        )
        return jax.tree.unflatten(structure, step), new_state

    return transformation(init_fn, update_fn)


def _checked(
    value: ArrayLike | None, batch: Any, extra_args: Mapping[str, Any]
) -> tuple[jax.Array | None, dict[str, Any]]:
    """The loss in float32, and the keyword arguments of the experts' updates."""
    expert_args = dict(extra_args)
    if batch is not None:
        if not numeric_leaves(batch):
            raise ValueError(
                f"batch is {short(batch)}, without any array of numbers; pass the "
                "mini-batch as a pytree of arrays, or no batch."
            )
        expert_args["batch"] = batch
    if value is None:
        return None, expert_args
    expert_args["value"] = value
    wanted = "pass the loss as one real number, such as its mean over the batch."
    try:
        loss: Any = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"value is {short(value)}; {wanted}") from error
    if loss.shape or jnp.iscomplexobj(loss):
        raise ValueError(f"value is {loss.dtype.name}{list(loss.shape)}; {wanted}")
    return loss.astype(jnp.float32), expert_args


def _check_trees(updates: Any, params: Any) -> None:
    wanted = "pass update gradients like the parameters"
    structures: Any = jax.tree.structure(params), jax.tree.structure(updates)
    if structures[0] != structures[1]:
        ours, theirs = where_they_differ(*structures)
        raise ValueError(f"grads are {theirs} where params are {ours}; {wanted}.")
    for g, p in zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True):
        if g.shape != p.shape:
            raise ValueError(
                f"grads hold {g.dtype.name}{list(g.shape)} where params hold "
                f"{p.dtype.name}{list(p.shape)}; {wanted}."
            )


def _max_norm(controller: Controller, params: Any) -> jax.Array | None:
    if controller.cap is None:
        return None
    square = scalars.squared_norm(jax.tree.leaves(params))
    max_norm = jnp.asarray(controller.cap) * jnp.sqrt(jnp.maximum(square, 1.0))
    # The square of a longer norm overflows, so no finite update is longer.
    return barrier(jnp.minimum(max_norm, 1e20))


def _products(leaves: list[jax.Array], state: DaoEState) -> jax.Array:
    """The gradient's inner products with the updates before: float32 [L, K]."""
    products = [
        inner_product(g, k)
        for g, kept in zip(leaves, stored_by_leaf(state), strict=True)
        for k in kept
    ]
    return stack_scalars(products, jnp.float32).reshape(len(leaves), len(state.experts))


def _lengths(controller: Controller, proposals: list[ensemble.Proposal]) -> jax.Array:
    """How long each expert's update is, of each leaf or of all: float32 [R, K]."""
    lengths = jnp.stack([each.lengths for each in proposals], axis=1)
    if controller.per_leaf and lengths.size:
        return lengths
    square = jnp.sum(jnp.square(lengths), axis=0, keepdims=True)
    return jnp.where(square > 0, scalars.root(square), 0)


def _times(factor: jax.Array, update: Any) -> Any:
    """An update times a number; 0 where that is 0, whatever the update is."""
    return jax.tree.map(lambda u: jnp.where(factor > 0, scalars.scaled(factor, u), 0), update)


def _mixed(
    weights: jax.Array, by: jax.Array, updates: list[list[jax.Array]]
) -> list[jax.Array]:
    """The experts' updates, by weights / by, leaf by leaf."""
    # A row that ends in its own division is an operand of its leaf's kernels, so leaves of
    # one shape share kernels, which are compiled once.
    rows = [scalars.divided(*row) for row in zip(weights, by, strict=True)]
    step = []
    for index, shares in enumerate(zip(*updates, strict=True)):
        row = rows[index if len(rows) > 1 else 0]
        parts = [_times(row[k], share) for k, share in enumerate(shares)]
        step.append(functools.reduce(jnp.add, parts))
    return step
