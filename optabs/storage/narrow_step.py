"""A whole step with a narrow state: new parameters instead of updates."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import tree_leaves_with_path, tree_map_with_path

from optabs._sharding import explicit_sharding
from optabs.precision import full_precision
from optabs.storage import kernel
from optabs.storage.boxes import is_box
from optabs.storage.codecs import decode, is_node
from optabs.storage.conversion import updated
from optabs.storage.entrywise import program_of
from optabs.storage.fields import Parameters, Path
from optabs.storage.leaf import leaf_of
from optabs.storage.rounding import salted
from optabs.storage.state import NarrowState, check_kind, is_right


def narrow_step(
    transformation: optax.GradientTransformation,
) -> Callable[..., tuple[optax.Params, NarrowState]]:
    r"""The update of `narrow_state` and the new parameters, for a GPU in one kernel a leaf.

    .. math:: (\theta_t, s_t) = \bigl(\theta_{t-1} + u_t,\; \mathrm{encode}(m_t)\bigr),
        \quad (u_t, m_t) = f(g_t, \mathrm{decode}(s_{t-1}), \theta_{t-1})

    `update` hands over a float32 for each parameter, which `optax.apply_updates` reads again,
    and an update in blocks of 8 bits reads its moments twice. This is the same step without:
    a kernel reads gradient, parameter and codes once and writes parameter and codes.

    A leaf has a kernel where the transformation works entry by entry (Adam and its kin,
    momentum, decoupled decay, clipping by value, rates by step), its moments are encoded, and
    powers of two divide its blocks; on CUDA devices, by Pallas and Triton. All else, such as
    norms, factored moments, small leaves and other devices, is done as by `update` and
    `optax.apply_updates`: the result is the same, but for the order of float32 operations.

    Args:
      transformation: what `narrow_state` was given, a whole chain for one.

    Returns:
      A function (gradients, state, parameters, \*\*extra) -> (parameters, state), where
      extra arguments of the update are arrays; to be called inside of jit, with parameters
      and state donated. Arrays that are sharded over devices belong into
      :func:`jax.shard_map`.

    Raises:
      ValueError: in the function, for a state that `narrow_state` has not made.

    Examples:
      >>> import jax, jax.numpy as jnp, optabs
      >>> params = {"w": jnp.ones((64, 128))}
      >>> state = optabs.narrow_state(optabs.adam_abs(1e-3)).init(params)
      >>> step = jax.jit(optabs.narrow_step(optabs.adam_abs(1e-3)), donate_argnums=(1, 2))
      >>> params, state = step({"w": jnp.ones((64, 128))}, state, params)
      >>> round(float(params["w"][0, 0]), 4)
      0.999
    """
    inner = full_precision(transformation)

    def plain(grads: Any, state: NarrowState, params: Any, extra: dict[str, Any]) -> Any:
        updates, new_state = updated(inner, grads, state, params, **extra)
        return optax.apply_updates(params, updates), new_state

    def fused(grads: Any, state: NarrowState, params: Any, extra: dict[str, Any]) -> Any:
        results = plain(grads, state, params, extra)
        if not kernel.is_available():
            return results
        return in_kernels(inner, grads, state, params, extra, results)

    def step(
        grads: optax.Updates, state: NarrowState, params: optax.Params, **extra_args: Any
    ) -> tuple[optax.Params, NarrowState]:
        check_kind(state)
        is_right(state)  # raises outside of jit; a traced format makes wrong moments NaN
        return jax.lax.platform_dependent(
            grads, state, params, extra_args, cuda=fused, default=plain
        )

    return step


def in_kernels(
    inner: optax.GradientTransformationExtraArgs,
    grads: Any,
    state: NarrowState,
    params: Any,
    extra: dict[str, Any],
    results: tuple[Any, NarrowState],
    *,
    interpret: bool = False,
) -> tuple[Any, NarrowState]:
    """The results of a step, from kernels where that can be.

    Args:
      inner: the transformation.
      grads: the gradients.
      state: before the step.
      params: likewise.
      extra: further arguments of the update.
      results: of the step without kernels; what is replaced is not computed inside of jit.
      interpret: whether the kernels run without a GPU.
    """
    factor = jnp.where(is_right(state), jnp.float32(1), jnp.float32(jnp.nan))
    new_params, new_state = results
    params_of: dict[Path, jax.Array] = {}
    entries_of: dict[int, Any] = {}
    parameters = Parameters(params)
    for path, param in tree_leaves_with_path(params, is_leaf=is_box):
        if is_box(param) or explicit_sharding(param) is not None:
            continue
        leaf = leaf_of(path, parameters, inner, grads, state.inner, params, extra)
        layout = leaf and kernel.layout_of(param.size, leaf.blocks)
        if not leaf or not layout:
            continue
        moments = [jax.eval_shape(decode, entry) for entry in leaf.entries.values()]
        program = program_of(leaf.update, [leaf.grad, param, *moments], layout.tile)
        if program is None:
            continue
        words = [
            salted(state.draws, number).word
            for number, entry in leaf.entries.items()
            if is_node(entry)
        ]
        params_of[path], found = kernel.step(
            program, layout, leaf.grad, param, list(leaf.entries.values()),
            words, factor, interpret=interpret,
        )  # fmt: skip
        entries_of |= zip(leaf.entries, found, strict=True)
    leaves, structure = jax.tree.flatten(new_state.inner, is_leaf=is_node)
    entries = [entries_of.get(number, leaf) for number, leaf in enumerate(leaves)]
    return (
        tree_map_with_path(lambda path, leaf: params_of.get(path, leaf), new_params),
        new_state._replace(inner=jax.tree.unflatten(structure, entries)),
    )
