"""The state of DAO-E: traces as they are kept, norms, weights, and what they show."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args, overload

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optabs._checks import short, where_they_differ
from optabs._numerics import GOLDEN, abs_square, bits_of_upper_half
from optabs._tree import axis_names, boxed, find_state, numeric_leaves, unboxed
from optabs.mixture.controller import ControllerState

Storage = Literal["thinned", "bfloat16", "float32"]

MAX_STRIDE = 16  # of the entries that are kept of a thinned leaf
LEAST = 2048  # entries that are kept of a larger leaf: fewer estimate a product too roughly
_LARGEST = 1.8e19  # the square of a larger number is not finite in float32
SMALLEST_SQUARE = 1e-22  # in a smaller sum, squares that were flushed to 0 may matter
HUGE = 2.0**80  # a power of two, so that scaling by it is exact
_WANTED = "pass update the state that this optimizer's init made of these parameters"


class ExpertState(NamedTuple):
    """One expert."""

    inner: optax.OptState
    trace: Any  # P, like the parameters, or () where no weights are learned


class MultiplierState(NamedTuple):
    """The multiplier of the step, and what it learns from."""

    log_multiplier: jax.Array  # float32 []: c
    cosines: jax.Array  # float32 [2]: of the last gradient with `step` and with `step_trace`
    mean_cosines: jax.Array  # float32 [1 + K]: v, of the second and of experts' traces, or [1]
    step: Any  # s, bfloat16, like the parameters, thinned
    step_trace: Any  # S, likewise
    norms: jax.Array  # float32 [3]: M, the gradients' running median, n, and of how many


class DaoEState(NamedTuple):
    """State of `dao_e` and `steered`."""

    count: jax.Array  # type: ignore[assignment]  # int32 []: steps taken
    experts: dict[str, ExpertState]
    controller: ControllerState
    multiplier: Any  # a MultiplierState, or () without a multiplier
    observing: Any  # an ObservingState, or () without features


def check_storage(storage: object) -> None:
    """Raises ValueError for an unknown storage."""
    known = ", ".join(map(repr, get_args(Storage)))
    if isinstance(storage, str) and storage == "int8":
        raise ValueError(
            "previous is 'int8', which is gone: a step adds less to a trace than half a step "
            f"of int8; pass one of {known}."
        )
    if not isinstance(storage, str) or storage not in get_args(Storage):
        raise ValueError(f"previous is {short(storage)}; pass one of {known}.")


def rounded(array: jax.Array) -> jax.Array:
    """In bfloat16; complex numbers, of which there are none that narrow, in its precision."""
    if jnp.iscomplexobj(array):
        parts = (jax.lax.reduce_precision(x, 8, 7) for x in (array.real, array.imag))
        return jax.lax.complex(*parts)
    return array.astype(jnp.bfloat16)


def stored(array: jax.Array, storage: Storage, names: Sequence[Any] = ()) -> jax.Array:
    """An array as it is kept: as it is, in bfloat16, or thinned along an axis without name."""
    if storage == "float32":
        return array
    return rounded(array) if storage == "bfloat16" else thinned(array, names)


def zeros_stored(param: Any, storage: Storage) -> Any:
    """Zeros like a parameter as they are kept, in its box, whose names of axes stay right."""
    zeros = jnp.zeros_like(unboxed(param))
    return boxed(stored(zeros, storage, axis_names(param)), like=param)


def traced(
    trace: jax.Array, update: jax.Array, gamma: Any, storage: Storage, count: jax.Array
) -> jax.Array:
    """gamma P + U, of P as it is kept; `count`, int32 [], are the steps taken."""
    update = thinned_like(update, trace)
    moved = trace.astype(update.dtype) * jnp.asarray(gamma, update.real.dtype) + update
    if storage == "bfloat16" and jnp.iscomplexobj(moved):
        moved = jax.lax.complex(*(_up_or_down(x, count) for x in (moved.real, moved.imag)))
    elif storage == "bfloat16":
        moved = _up_or_down(moved, count)
    return moved.astype(trace.dtype)


def _up_or_down(array: jax.Array, count: jax.Array) -> jax.Array:
    """To a bfloat16 beside it, in float32: over the steps as often up as it is near that one.

    To the nearest one a trace would be stuck: a step takes a five-hundredth of it, and half a
    step of bfloat16 is as much.
    """
    wide = array.astype(jnp.float32)
    offset = (count.astype(jnp.uint32) * jnp.uint32(GOLDEN)) >> 16
    kept = jax.lax.bitcast_convert_type(bits_of_upper_half(wide, offset), jnp.float32)
    return wide + jax.lax.stop_gradient(kept - wide)


def _stride(array: Any) -> int:
    return min(MAX_STRIDE, math.prod(array.shape) // LEAST)


def thinned(array: jax.Array, names: Sequence[Any] = ()) -> jax.Array:
    """Every n-th entry along the longest axis on one device; of a small array all.

    Axes that have a name, which a mesh may divide, count as divided.
    """
    stride = _stride(array)
    taken = [*jax.typeof(array).sharding.spec], [*names]
    free = [
        axis
        for axis in range(array.ndim)
        if array.shape[axis] >= stride
        and not any(axis < len(each) and each[axis] is not None for each in taken)
    ]
    if stride < 2 or not free:
        return array
    axis = max(free, key=lambda axis: array.shape[axis])
    return jax.lax.slice_in_dim(array, 0, array.shape[axis], stride, axis)


def _thinned_axes(array: Any, kept: Any) -> list[int] | None:
    """The axis along which it was thinned, or none; None where it cannot have been."""
    if len(array.shape) != len(kept.shape):
        return None
    stride, pairs = max(_stride(array), 1), zip(array.shape, kept.shape, strict=True)
    apart = {axis: pair for axis, pair in enumerate(pairs) if pair[0] != pair[1]}
    right = all(part == -(-whole // stride) for whole, part in apart.values())
    return [*apart] if right and len(apart) < 2 else None


def thinned_like(array: jax.Array, kept: jax.Array) -> jax.Array:
    """The entries of an array that are kept of it, by the shape of what is kept."""
    for axis in _thinned_axes(array, kept) or ():
        return jax.lax.slice_in_dim(array, 0, array.shape[axis], _stride(array), axis)
    return array


def inner_product(gradient: jax.Array, kept: jax.Array) -> jax.Array:
    """The inner product of a gradient with a kept array, real: float32 []."""
    small = thinned_like(gradient, kept)
    return product(small, kept) * (max(gradient.size, 1) / max(small.size, 1))


def product(gradient: jax.Array, kept: jax.Array) -> jax.Array:
    """The sum of the entries' products, real, in the gradient's precision: float32 []."""
    # Not jnp.vdot, which refuses sharded leaves under an Explicit mesh.
    return jnp.sum(jnp.real(jnp.conj(gradient) * kept.astype(gradient.dtype))).astype(
        jnp.float32
    )


def square_of(leaves: Sequence[jax.Array]) -> jax.Array:
    """The sum of all squares: float32 []."""
    return sum_of([product(leaf, leaf) for leaf in leaves])


def sum_of(numbers: Sequence[jax.Array]) -> jax.Array:
    """Of scalars, which do not become a part of their leaves' kernels: float32 []."""
    return barrier(jnp.sum(jnp.stack(barrier(numbers)))) if numbers else jnp.float32(0)


def root(square: jax.Array) -> jax.Array:
    """The norm of that square, with a finite slope at 0: float32, like it."""
    return jnp.sqrt(jnp.maximum(square, 1e-30))  # any normal number: the slope stays finite


def gradient_norm(leaves: list[jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A scale at which squares are finite, the norm at any scale, and whether it is finite."""
    square = square_of(leaves)
    measured = jnp.isfinite(square) & (square > SMALLEST_SQUARE)
    unit = jnp.where(measured, 1.0, jnp.where(square > 1, 1 / HUGE, HUGE))

    def rescaled() -> tuple[jax.Array, jax.Array]:
        again = square_of([scaled(unit, leaf) for leaf in leaves])
        # The squares of wider numbers may be infinite even so.
        wide = [jnp.all(jnp.isfinite(x)) for x in leaves if jnp.finfo(x.dtype).bits > 32]
        return again, jnp.all(jnp.stack(wide)) if wide else jnp.isfinite(again)

    if leaves:
        # Squares of finite numbers may be infinite, or 0; only then another pass is needed.
        square, finite = jax.lax.cond(measured, lambda: (square, measured), rescaled)
    else:
        finite = jnp.isfinite(square)
    return unit, root(square) / unit, finite


def scaled(factor: ArrayLike, leaf: jax.Array) -> jax.Array:
    """A leaf times a real number, in the leaf's dtype."""
    return leaf * jnp.asarray(factor).astype(leaf.real.dtype)


def where_finite(update: jax.Array) -> jax.Array:
    """An update, and 0 where it, or its square, is not finite."""
    if jnp.iscomplexobj(update):
        return jnp.where(jnp.isfinite(abs_square(update)), update, 0)
    return jnp.where(jnp.abs(update) < _LARGEST, update, 0)


def barrier(tree: Any) -> Any:
    """The same numbers, which XLA's passes up to fusion do not merge with their readers."""
    # One array at a time: under shard_map not all of them vary over the same axes.
    return jax.tree.map(_barred, tree)


@jax.custom_jvp
def _barred(array: jax.Array) -> jax.Array:
    return jax.lax.optimization_barrier(array)


@_barred.defjvp
def _barred_slope(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    # JAX's own rule does not take the tangents of integers and bools.
    return _barred(*primals), tangents[0]


def check_state(state: Any, wanted: DaoEState, params: Any) -> None:
    """Refuses a state of another optimizer, or of other parameters.

    But for the experts' own, looked at later, it should have the shapes and dtypes that are
    wanted; traces may be thinned along other axes, as on another mesh.
    """
    if not isinstance(state, DaoEState):
        raise ValueError(f"state is of type {type(state).__name__}; {_WANTED}.")
    experts = state.experts if isinstance(state.experts, Mapping) else {}
    if experts.keys() != wanted.experts.keys():
        found, ours = (short(sorted(each, key=str)) for each in (experts, wanted.experts))
        raise ValueError(f"state is of the experts {found}, not {ours}; {_WANTED}.")
    try:
        both: Any = [jax.tree.flatten(_whole(each, params)) for each in (state, wanted)]
        # Leaf by leaf: a container of parameters may know no equality.
        kept, new = ((s, [(x.shape, x.dtype) for x in leaves]) for leaves, s in both)
        alike = kept == new
    except (AttributeError, TypeError, ValueError):  # of other trees
        alike = False
    if not alike:
        raise ValueError(f"state is of other parameters or settings, or older; {_WANTED}.")


def _whole(state: DaoEState, params: Any) -> DaoEState:
    """Without the experts' own states, and the same for what is thinned along any axis."""

    def mark(param: Any, kept: Any) -> Any:
        thin = jax.ShapeDtypeStruct((*param.shape, 0), kept.dtype)
        return thin if _thinned_axes(param, kept) else kept

    def like(kept: Any) -> Any:
        empty = isinstance(kept, tuple) and not kept
        return kept if empty else jax.tree.map(mark, params, kept)

    experts = {n: ExpertState((), like(each.trace)) for n, each in state.experts.items()}
    kept = state.multiplier
    if isinstance(kept, MultiplierState):
        kept = kept._replace(step=like(kept.step), step_trace=like(kept.step_trace))
    return state._replace(experts=experts, multiplier=kept)


def checked_arguments(
    value: ArrayLike | None, batch: Any, extra_args: Mapping[str, Any]
) -> tuple[jax.Array | None, dict[str, Any]]:
    """The loss in float32, and the keyword arguments of the experts' updates."""
    extra_args = dict(extra_args)
    if batch is not None:
        if not numeric_leaves(batch):
            raise ValueError(
                f"batch is {short(batch)}, without any array of numbers; pass the "
                "mini-batch as a pytree of arrays, or no batch."
            )
        extra_args["batch"] = batch
    if value is None:
        return None, extra_args
    extra_args["value"] = value
    wanted = "pass the loss as one real number, such as its mean over the batch."
    try:
        loss: Any = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"value is {short(value)}; {wanted}") from error
    if loss.shape or jnp.iscomplexobj(loss):
        raise ValueError(f"value is {loss.dtype.name}{list(loss.shape)}; {wanted}")
    return loss.astype(jnp.float32), extra_args


def check_trees(updates: Any, params: Any) -> None:
    """Raises ValueError for gradients that are not like the parameters."""
    wanted = "pass update gradients like the parameters"
    structures: Any = jax.tree.structure(params), jax.tree.structure(updates)
    if structures[0] != structures[1]:
        ours, theirs = where_they_differ(*structures)
        raise ValueError(f"grads are {theirs} where params are {ours}; {wanted}.")
    for g, p in zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True):
        if g.shape != p.shape or jnp.iscomplexobj(g) != jnp.iscomplexobj(p):
            raise ValueError(
                f"grads hold {g.dtype.name}{list(g.shape)} where params hold "
                f"{p.dtype.name}{list(p.shape)}; {wanted}."
            )


class Diagnostics(NamedTuple):
    """What the controller did in the last step."""

    weights: dict[str, jax.Array]  # by expert, float32 []: means over the leaves
    multiplier: jax.Array  # float32 []: e^c
    cosine: jax.Array  # float32 []: of the last gradient with the mixed step before it
    trace_cosine: jax.Array  # float32 []: of it with that step's trace


def diagnostics(state: optax.OptState, caller: str = "diagnostics") -> Diagnostics:
    """Weights, multiplier and cosines of the one mixture in a state.

    Without a multiplier it is 1, and its cosines are 0.
    """
    found = find_state(state, DaoEState, caller)
    weights, kept = found.controller.weights, found.multiplier
    zero = jnp.zeros(weights.shape[:-2], jnp.float32)
    return Diagnostics(
        {
            k: jnp.mean(weights[..., :, i], axis=-1)
            for i, k in enumerate(sorted(found.experts))
        },
        jnp.exp(kept.log_multiplier) if kept else zero + 1,
        kept.cosines[..., 0] if kept else zero,
        kept.cosines[..., 1] if kept else zero,
    )


@overload
def mixing_weights(
    state: optax.OptState, *, per_leaf: Literal[False] = False
) -> dict[str, jax.Array]: ...


@overload
def mixing_weights(
    state: optax.OptState, *, per_leaf: Literal[True]
) -> dict[str, optax.Params]: ...


def mixing_weights(state: optax.OptState, *, per_leaf: bool = False) -> dict[str, Any]:
    r"""The weights by which DAO-E mixed its experts in the last step.

    .. math:: \bar\alpha_k = \tfrac1L \sum_l \alpha_{kl}

    Args:
      state: a state that holds one of :func:`optabs.dao_e`, inside any nesting of optax's
        wrappers.
      per_leaf: return the weights of each leaf, not their mean.

    Returns:
      By the experts' names, float32 [] each, with a sum of 1 (uniform before the first step);
      per leaf, trees like the parameters of such numbers.

    Raises:
      ValueError: for a state that does not hold exactly one of dao_e; per leaf, for one that
        keeps nothing of the leaves, as with `Controller.uniform()`, or has one set of weights
        for all of them, as with `Controller.paper()`.

    Examples:
      >>> import jax.numpy as jnp, optax, optabs
      >>> optimizer = optax.chain(optax.clip(1.0), optabs.dao_e(1e-3))
      >>> weights = optabs.mixing_weights(optimizer.init({"w": jnp.zeros(3)}))
      >>> {name: float(weight) for name, weight in weights.items()}
      {'adam': 0.25, 'lion': 0.25, 'rmsprop': 0.25, 'sgd': 0.25}
    """
    if not per_leaf:
        return diagnostics(state, "mixing_weights").weights
    found = find_state(state, DaoEState, "mixing_weights")
    weights, names = found.controller.weights, sorted(found.experts)
    kept = [found.experts[names[0]].trace, found.multiplier and found.multiplier.step]
    trees = [tree for tree in kept if not (isinstance(tree, tuple) and not tree)]
    if not trees:
        raise ValueError(
            "per_leaf is True, but this controller learns nothing of the leaves; pass "
            "per_leaf=False."
        )
    structure: Any = jax.tree.structure(trees[0])
    rows = weights.shape[-2]
    if structure.num_leaves != rows:
        raise ValueError(
            "per_leaf is True, but this controller has one set of weights for all leaves; "
            "pass per_leaf=False."
        )
    return {
        name: jax.tree.unflatten(structure, [weights[..., row, k] for row in range(rows)])
        for k, name in enumerate(names)
    }
