"""Units stacked along a leading axis: how each learns, and how its fitness is measured."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optabs._checks import as_transformation, cut
from optabs.evolution.state import Losses, Plan, Unit
from optabs.training import batches
from optabs.training.program import update_with_extra_args


def vmapped(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    r"""A transformation of stacked parameters, each unit with a state of its own.

    .. math:: (u_i, s_i) \leftarrow \mathrm{update}(g_i, s_i, \theta_i), \qquad i = 1..g

    for arrays with a leading axis of g units, all at once. What `update` is given by keyword
    (such as `value`, an array [g] here) is split over the units, too.

    Args:
      transformation: any optax transformation.

    Returns:
      A transformation whose parameters, gradients, updates and state are stacked: the state
      of `transformation` with one more axis in front of every array.

    Raises:
      ValueError: for what is no transformation; where the arrays' leading axes have not one
        length.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> optimizer = optabs.vmapped(optabs.adam(0.1))
      >>> params = jnp.zeros([8, 3])
      >>> updates, state = optimizer.update(params + 1, optimizer.init(params), params)
      >>> updates.shape, state[0][1].count.shape
      ((8, 3), (8,))
    """
    transformation = optax.with_extra_args_support(
        as_transformation("transformation", transformation)
    )

    def init_fn(params: optax.Params) -> optax.OptState:
        population_size(params, "params")
        return jax.vmap(transformation.init)(params)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        population_size(updates, "updates")

        def update(g: Any, s: Any, p: Any, extra: Any) -> Any:
            return transformation.update(g, s, p, **extra)

        return jax.vmap(update)(updates, state, params, extra_args)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def population_size(tree: Any, name: str) -> int:
    """The number of units; raises ValueError where the arrays do not agree on it."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise ValueError(f"{name} has no arrays; pass arrays with a leading axis of units.")
    sizes = {shape[0] for shape in (jnp.shape(leaf) for _, leaf in leaves) if shape}
    if len(sizes) > 1 or not all(jnp.shape(leaf) for _, leaf in leaves):
        shapes = ", ".join(
            f"{jax.tree_util.keystr(path) or 'array'} {list(jnp.shape(leaf))}"
            for path, leaf in leaves
        )
        raise ValueError(
            f"{name} has {cut(shapes)}; pass arrays whose leading axes have one length, that "
            "of the population."
        )
    return int(sizes.pop())


def map_units(function: Callable[..., Any], *stacked: Any, chunk_size: int | None) -> Any:
    """A function of one unit for all of them, or for `chunk_size` of them at a time."""
    if chunk_size is None:
        return jax.vmap(function)(*stacked)
    return jax.lax.map(lambda unit: function(*unit), stacked, batch_size=chunk_size)


def learn(
    plan: Plan, losses: Losses, units: Unit, keys: jax.Array, data: Any
) -> tuple[Unit, jax.Array]:
    """All units after some epochs, each on batches of its own, and their losses [g].

    A loss is the mean over the steps of the last epoch, as the parameters moved.
    """
    loss_fn = standardize_loss(plan, "loss_fn", losses.loss_fn, "data")

    def train(unit: Unit, key: jax.Array) -> tuple[Unit, jax.Array]:
        return _train(plan, loss_fn, unit, key, data)

    return map_units(train, units, keys, chunk_size=plan.chunk_size)


def fitness(plan: Plan, losses: Losses, units: Unit, batch: Any) -> jax.Array:
    """The loss of every unit on one batch: float32 [g]."""
    name = fitness_name(losses)
    fitness_fn = standardize_loss(plan, name, losses.fitness_fn, "validation_data")

    def evaluate(unit: Unit) -> jax.Array:
        return fitness_fn(unit.params, unit.model_state, batch)[0].astype(jnp.float32)

    return map_units(evaluate, units, chunk_size=plan.chunk_size)


def validation_batch(plan: Plan, key: jax.Array, data: Any) -> Any:
    """Instances drawn without replacement, or all of them."""
    size = plan.validation_batch_size
    if size is None:
        return data
    return batches.take(data, jax.random.permutation(key, batches.num_instances(data))[:size])


def fitness_name(losses: Losses) -> str:
    """The argument that the units' fitness came from, for messages."""
    return "loss_fn" if losses.fitness_fn is losses.loss_fn else "fitness_fn"


def standardize_loss(
    plan: Plan, name: str, function: Callable[..., Any], data_name: str
) -> Callable[[Any, Any, Any], tuple[jax.Array, Any]]:
    """(params, model_state, batch) -> (loss, model_state), whatever the user's takes.

    Args:
      plan: how the units learn.
      name: of the function, for messages.
      function: the user's.
      data_name: of what its batches are taken from, for messages.
    """

    def call(*args: Any) -> Any:
        try:
            return function(*args)
        except (AttributeError, TypeError) as error:
            if args[-1] is not None:
                raise
            raise ValueError(
                f"{data_name} is None, and {name} fails on it ({cut(str(error))}); pass "
                f"{data_name}, or a {name} that needs no batch."
            ) from error

    def standardized(params: Any, model_state: Any, batch: Any) -> tuple[jax.Array, Any]:
        if plan.stateful:
            output = call(params, model_state, batch)
            if not isinstance(output, tuple) or len(output) != 2:
                what = "an array" if isinstance(output, jax.Array) else type(output).__name__
                raise ValueError(
                    f"{name} returns {what}; with stateful=True return the pair (loss, "
                    "model_state)."
                )
            loss, model_state = output
        else:
            loss = call(params, batch)
        if isinstance(loss, tuple):
            raise ValueError(
                f"{name} returns a tuple; return one number, or with stateful=True the pair "
                "(loss, model_state)."
            )
        loss = jnp.asarray(loss)
        if loss.shape or not jnp.issubdtype(loss.dtype, jnp.floating):
            raise ValueError(
                f"{name} returns {loss.dtype.name}{list(loss.shape)}; return one "
                "floating-point number for a batch, such as the mean over its instances."
            )
        return loss, model_state

    return standardized


def _train(
    plan: Plan,
    loss_fn: Callable[[Any, Any, Any], tuple[jax.Array, Any]],
    unit: Unit,
    key: jax.Array,
    data: Any,
) -> tuple[Unit, jax.Array]:
    def step(unit: Unit, batch: Any) -> tuple[Unit, jax.Array]:
        def value_fn(params: Any, batch: Any) -> jax.Array:
            return loss_fn(params, unit.model_state, batch)[0]

        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, model_state), grads = value_and_grad(unit.params, unit.model_state, batch)
        updates, opt_state = update_with_extra_args(
            plan.optimizer, grads, unit.opt_state, unit.params, loss, value_fn, batch
        )
        params = optax.apply_updates(unit.params, updates)
        return Unit(params, opt_state, model_state), loss.astype(jnp.float32)

    size = plan.batch_size
    if size is None:
        unit, losses = jax.lax.scan(lambda unit, _: step(unit, data), unit, length=plan.epochs)
        return unit, losses[-1]
    count = batches.num_instances(data)
    full, short = batches.split_epoch(count, size, "shuffle")

    def epoch(unit: Unit, number: jax.Array) -> tuple[Unit, jax.Array]:
        rows = batches.rows_of_epoch(key, number, count, size, "shuffle")
        unit, losses = jax.lax.scan(
            lambda unit, batch_rows: step(unit, batches.take(data, batch_rows)),
            unit,
            rows[: full * size].reshape(full, size),
        )
        total = jnp.sum(losses)
        if short:
            unit, last = step(unit, batches.take(data, rows[full * size :]))
            total = total + last
        return unit, total / (full + (short > 0))

    unit, losses = jax.lax.scan(epoch, unit, jnp.arange(plan.epochs))
    return unit, losses[-1]
