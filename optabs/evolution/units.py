"""Units of a population: trees whose arrays have one leading axis, a row per unit."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optabs._checks import as_transformation, cut


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
