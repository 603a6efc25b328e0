"""DAO-E: experts' updates, mixed by the controller's weights; `steered`, for one alone."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optabs._checks import NONNEGATIVE, as_transformation, check
from optabs._numerics import new_count, transformation
from optabs._tree import is_box, tree_where
from optabs.mixture import controller as control
from optabs.mixture import features as observing
from optabs.mixture.controller import Controller, check_controller
from optabs.mixture.experts import Expert, cap_factors, repaired, resolve, updated
from optabs.mixture.features import Feature
from optabs.mixture.state import (
    DaoEState,
    ExpertState,
    MultiplierState,
    Storage,
    barrier,
    check_state,
    check_storage,
    check_trees,
    checked_arguments,
    gradient_norm,
    inner_product,
    product,
    root,
    rounded,
    scaled,
    sum_of,
    thinned_like,
    traced,
    where_finite,
    zeros_stored,
)


def dao_e(
    learning_rate: optax.ScalarOrSchedule | None = None,
    experts: Mapping[str, Expert] | None = None,
    *,
    controller: Controller = Controller(),  # noqa: B008  (an immutable tuple)
    features: Sequence[Feature] = (),
    previous: Storage = "thinned",
) -> optax.GradientTransformationExtraArgs:
    r"""DAO-E: runs several optimizers at once and mixes their updates by learned weights.

    .. math:: \theta_l \leftarrow \theta_l + e^c \sum_k \alpha_{kl}\, U_{kl}, \qquad
              P_k \leftarrow \gamma P_k + U_k

    for the leaves :math:`l` of the parameters and the experts' updates :math:`U_k`, each so
    short that it, times :math:`e^c` where that is above 1, has at most 5 % of the parameters'
    norm, or of 1 where that is less. The next gradients tell what each share did to the loss,
    :math:`\langle g_l, P_{kl}\rangle`, and :math:`\alpha` and :math:`c` learn from it: see
    :class:`optabs.Controller`, and :mod:`optabs.features` for what else they may look at.

    `update(grads, state, params, value=loss, batch=mini_batch)`: the parameters are
    required, for the experts' updates are measured against their norm. The loss and the
    mini-batch are for features and experts that look at them: both, and all other keyword
    arguments, reach the experts. It judges the steps that it proposes: nothing should scale or
    clip them after it.

    A gradient that is not finite gives a step of zero and changes no state at all. Entries of
    an expert's update that are not finite, or whose square is not, count as 0, as under a cap
    does a whole update with such a norm, and entries of its state that are not finite start
    anew. The rule does not depend on the loss's scale; steps of an expert such as SGD do. For
    derivatives through updates the experts must allow them: two of the default ones divide by
    a root that has no finite slope at 0, so pass such as `optabs.adam(1e-3, eps_root=1e-8)`.

    Args:
      learning_rate: the experts' common rate, in parameter units; a number, a traced scalar
        or a schedule. None: 1e-3, or the experts' own.
      experts: names to optax transformations with rates of their own, whose updates are added
        to the parameters, or to functions (learning_rate -> transformation). None: optabs.sgd,
        adam, rmsprop, and optax's lion without weight decay.
      controller: how the weights are formed and learned, an :class:`optabs.Controller`;
        `Controller.paper()` with `optabs.features.ALL` is DAO-E as published,
        `Controller.uniform()` plain equal weights.
      features: pairs (function, length), such as `optabs.features.ALL`; none by default.
        They are not looked at where no weights are learned.
      previous: how the traces are kept: "thinned" (of leaves of 4,096 entries every 2nd, of
        32,768 and more every 16th along the longest axis that one device has whole), or
        whole in "bfloat16" or "float32".

    Returns:
      The optimizer. Updates have the gradient's shape and dtype. State is the experts' own, at
      least float32, of the default four 16 bytes a parameter; beside it 1.25 bytes a parameter
      of leaves of 32,768 entries and more, up to 20 of others, with "bfloat16" 8.25 to 12,
      "float32" 16.25 to 20; and per leaf K(2 + n) + 1 float32 numbers for n features.

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
      ...     updates, state = optimizer.update(grads, state, params)
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
    members = resolve(learning_rate, experts)
    check_controller(controller, len(members))
    chosen = observing.check_features(features)
    # Of the weight of a single expert, 1, there is nothing to learn.
    learns = controller.rate is not None and len(members) > 1
    chosen = chosen if learns else ()
    inputs = 1 + sum(length for _, length in chosen) if learns else 0
    multiplied = controller.multiplier_rate is not None

    def new_state(params: optax.Params, inner: Mapping[str, Any]) -> DaoEState:
        def zeros(storage: Storage) -> Any:
            return jax.tree.map(lambda p: zeros_stored(p, storage), params, is_leaf=is_box)

        def step() -> Any:
            return jax.tree.map(rounded, zeros("thinned"))

        leaves = len(jax.tree.leaves(params))
        sizes = (), 2, 1 + learns * len(members), 3
        log, cosines, means, norms = (jnp.zeros(n, jnp.float32) for n in sizes)
        multiplier = MultiplierState(log, cosines, means, step(), step(), norms)
        return DaoEState(
            count=new_count(),
            experts={
                k: ExpertState(inner[k], zeros(previous) if learns else ()) for k in inner
            },
            controller=control.init(controller, leaves, len(members), inputs),
            multiplier=multiplier if multiplied else (),
            observing=observing.init(chosen),
        )

    def init_fn(params: optax.Params) -> DaoEState:
        return new_state(params, {name: each.init(params) for name, each in members.items()})

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
        check_trees(updates, params)
        leaves: list[jax.Array] = jax.tree.leaves(updates)
        wanted = jax.eval_shape(new_state, params, dict.fromkeys(members, ()))
        check_state(state, wanted, params)
        loss, extra_args = checked_arguments(value, batch, extra_args)
        unit, norm, finite = gradient_norm(leaves)
        learned, multiplier, observed = state[2:]
        y, (inner, whole) = None, jnp.zeros((2, 0), jnp.float32)
        if learns:
            products, norms, inner, whole = _products(leaves, state)
        if multiplied:
            cosines, length, growth = _judged(unit, leaves, multiplier, params)
            long = jnp.append(cosines[1:], _cosine(inner * unit, norm * unit, whole))
            known = multiplier.mean_cosines, long, length, state.count
            means, y, z = control.shares(controller, *known)
        if learns:
            learned = control.learn(controller, learned, products, state.count, norms, y)
            seen = observing.Observation(batch, loss, norm, updates, params)
            *numbers, observed = observing.observe(chosen, observed, seen)
            learned = control.update_weights(controller, learned, *numbers)
        weights = learned.weights
        if multiplied:
            weight, calm, kept = control.weigh_norm(norm, multiplier.norms)
            found = cosines, z, growth, weight, calm, state.count
            log = control.update_multiplier(controller, multiplier.log_multiplier, *found)
            multiplier = multiplier._replace(
                log_multiplier=log, cosines=cosines, mean_cosines=means, norms=kept
            )
            weights = jnp.exp(log) * weights
        # A row of its own for each leaf, so that leaves of one shape share their kernels.
        rows = barrier([weights[index % len(weights)] for index in range(len(leaves))])
        finite = barrier(finite)

        def step() -> tuple[tuple[Any, DaoEState], jax.Array]:
            states = {name: each.inner for name, each in state.experts.items()}
            states = repaired(members, states, params)
            proposed, states = updated(members, updates, states, params, extra_args)
            proposed = jax.tree.map(where_finite, proposed)
            measured = jnp.ones([], bool)
            if controller.cap is not None:
                stretch = jnp.exp(multiplier.log_multiplier) if multiplied else 1.0
                factors = cap_factors(controller.cap, stretch, params, proposed)
                if learns and previous == "thinned":
                    measured = barrier(~(factors[0] < 0))  # True for NaN, too
                proposed = [
                    jax.tree.map(functools.partial(scaled, factors[k]), update)
                    for k, update in enumerate(proposed)
                ]
            mixed = _mixed(rows, proposed)
            traces = {name: each.trace for name, each in state.experts.items()}
            if learns:
                move = functools.partial(
                    traced, gamma=controller.gamma, storage=previous, count=state.count
                )
                traces = {
                    name: jax.tree.map(move, traces[name], update)
                    for name, update in zip(members, proposed, strict=True)
                }
            new = DaoEState(
                count=optax.safe_increment(state.count),
                experts={name: ExpertState(states[name], traces[name]) for name in members},
                controller=learned,
                multiplier=_moved_step(multiplier, mixed, controller.gamma, state.count),
                observing=observed,
            )
            return (mixed, new), measured

        return _if_finite(finite, step, lambda: (jax.tree.map(jnp.zeros_like, updates), state))

    return transformation(init_fn, update_fn)


def steered(
    transformation: optax.GradientTransformation,
    *,
    cap: ArrayLike | None = 0.05,
    multiplier_rate: ArrayLike = 1.0,
    gamma: ArrayLike = 0.998,
) -> optax.GradientTransformationExtraArgs:
    r"""Caps the updates of one optimizer, and learns how long its steps should be.

    .. math:: \theta \leftarrow \theta + e^c\, U \min\Big(1, \frac{\mathrm{cap}\,
              \max(\|\theta\|, 1)}{\max(e^c, 1)\,\|U\|}\Big)

    for the optimizer's update :math:`U`. :math:`c` starts at 0 and learns, within [-7, 3],
    from the gradient's cosines with the last step and with a trace of the steps: it rises
    where they point down the hill, and falls where they went too far, or where gradients are
    small by now and the steps mostly enlarge the parameters. This is
    :func:`optabs.dao_e` with one expert, whose :class:`optabs.Controller` has the equations;
    what it says of updates that are not finite and of derivatives holds here.

    Args:
      transformation: any optax transformation with a rate of its own.
      cap: above 0, of the update, in units of max(norm of the parameters, 1); None: no cap.
      multiplier_rate: of c, 0 or more.
      gamma: in [0, 1), of the trace.

    Returns:
      The optimizer; `update` needs the parameters. Updates have the gradient's shape and
      dtype. State is the optimizer's, and of leaves of 32,768 entries and more 0.25 bytes a
      parameter, up to 4 of small ones.

    Raises:
      ValueError: for what is no transformation, or a setting out of its range; at the first
        trace as `dao_e`.

    Examples:
      >>> import jax.numpy as jnp, optax, optabs
      >>> optimizer = optabs.steered(optabs.sgd(1e-3))  # far too small a rate
      >>> params = jnp.array([3.0, -2.0])
      >>> state = optimizer.init(params)
      >>> for _ in range(100):
      ...     updates, state = optimizer.update(2 * params, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(jnp.abs(params).max() < 1.0)
      True

    Source: hypergradient descent, Baydin et al., arXiv 1703.04782.
    """
    inner = as_transformation("transformation", transformation)
    check(NONNEGATIVE, multiplier_rate=multiplier_rate)
    controller = Controller(cap=cap, gamma=gamma, multiplier_rate=multiplier_rate)
    return dao_e(experts={"steered": inner}, controller=controller)


def _if_finite(finite: jax.Array, step: Callable[[], Any], stay: Callable[[], Any]) -> Any:
    """What a step makes of a finite gradient; of another one what stays.

    A step's second result is always True. For thinned traces it depends on the updates'
    norms, so that XLA measures before it writes; else it writes the new states for a GPU in
    the pass that measures, and copies the old ones. (Whole traces and a single expert move
    fewer bytes so; theirs is a constant.)
    """
    if not isinstance(finite, jax.core.Tracer):
        return step()[0] if finite else stay()

    def branch() -> Any:
        return jax.lax.cond(finite, lambda: step()[0], stay)

    def select() -> Any:
        new, measured = step()
        return tree_where(finite & measured, new, stay())

    # The results of a branch are copied into a GPU's donated arrays, where a select is a part
    # of the one kernel that makes them; for a CPU it is a kernel of its own. Under shard_map
    # branches may vary over other axes, which cond refuses.
    if jax.sharding.get_abstract_mesh().manual_axes:
        return select()
    return jax.lax.platform_dependent(cpu=branch, default=select)


def _products(
    leaves: list[jax.Array], state: DaoEState
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The gradient's inner products with the traces, and the traces' norms: float32 [L, K],
    and of the whole traces: [K]."""
    traces = [jax.tree.leaves(each.trace) for _, each in sorted(state.experts.items())]
    pairs = [(g, t) for g, *row in zip(leaves, *traces, strict=True) for t in row]

    def table(numbers: list[jax.Array]) -> jax.Array:
        if not numbers:
            return jnp.zeros((0, len(traces)), jnp.float32)
        return barrier(jnp.stack(barrier(numbers))).reshape(len(leaves), len(traces))

    products = table([inner_product(g, trace) for g, trace in pairs])
    squares = table([product(trace, trace) for _, trace in pairs])
    by_leaf = jnp.array(_stand_for(leaves, traces[0]), jnp.float32)[:, None]
    whole = root(jnp.sum(by_leaf * squares, axis=0))
    return products, root(squares), jnp.sum(products, axis=0), whole


def _stand_for(leaves: Sequence[jax.Array], kept: Sequence[jax.Array]) -> list[float]:
    """How many of a leaf's entries one that is kept of them stands for."""
    return [max(x.size, 1) / max(k.size, 1) for x, k in zip(leaves, kept, strict=True)]


def _cosine(inner: jax.Array, one: jax.Array, other: jax.Array) -> jax.Array:
    """Of an inner product and two norms as `root` has them, 1e-15 at least; 0 if unknown."""
    known = (jnp.minimum(one, other) > 2e-15) & jnp.isfinite(inner + one + other)
    inner, one, other = (jnp.where(known, x, 1) for x in (inner, one, other))
    return jnp.where(known, jnp.clip(inner / one / other, -1, 1), 0)


def _judged(
    unit: jax.Array, grads: list[jax.Array], multiplier: MultiplierState, params: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradient's cosines with the last mixed step and its trace, float32 [2], the step's
    length, multiplied, in norms of the parameters, and the cosine of its trace with them."""
    kept = jax.tree.leaves(multiplier.step)
    thin = [scaled(unit, thinned_like(*pair)) for pair in zip(grads, kept, strict=True)]

    def total(*trees: list[jax.Array]) -> jax.Array:
        each = zip(_stand_for(grads, kept), *trees, strict=True)
        return sum_of([number * product(one, other) for number, one, other in each])

    def like(tree: Any) -> list[jax.Array]:
        return [k.astype(t.dtype) for k, t in zip(jax.tree.leaves(tree), thin, strict=True)]

    own = jax.tree.map(thinned_like, params, multiplier.step)
    trees = own, multiplier.step, multiplier.step_trace
    g, theta, step, trace = ((x, root(total(x, x))) for x in (thin, *map(like, trees)))

    def cosine(one: Any, other: Any) -> jax.Array:
        return _cosine(total(one[0], other[0]), one[1], other[1])

    length = jnp.exp(multiplier.log_multiplier) * step[1] / jnp.maximum(theta[1], 1.0)
    cosines = jnp.stack([cosine(g, step), cosine(g, trace)])
    return barrier((cosines, length, cosine(trace, theta)))


def _mixed(rows: list[jax.Array], proposed: list[Any]) -> Any:
    """The sum of the experts' updates, by each leaf's row of weights."""
    leaves = zip(*map(jax.tree.leaves, proposed), strict=True)
    mixed = [
        functools.reduce(jnp.add, [scaled(row[k], u) for k, u in enumerate(updates)])
        for row, updates in zip(rows, leaves, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(proposed[0]), mixed)


def _moved_step(multiplier: Any, mixed: Any, gamma: Any, count: jax.Array) -> Any:
    """The mixed step before the multiplier, and its trace; () without a multiplier."""
    if not multiplier:
        return multiplier
    by = jnp.exp(-multiplier.log_multiplier)
    thin = jax.tree.map(thinned_like, mixed, multiplier.step)
    thin = jax.tree.map(lambda leaf: scaled(by, leaf), thin)
    step = jax.tree.map(lambda new, old: rounded(new).astype(old.dtype), thin, multiplier.step)
    move = functools.partial(traced, gamma=gamma, storage="bfloat16", count=count)
    trace = jax.tree.map(move, multiplier.step_trace, thin)
    return multiplier._replace(step=step, step_trace=trace)
