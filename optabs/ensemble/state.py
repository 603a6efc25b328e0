"""The state of DAO-E: the experts' updates as they are kept, and the weights in it."""

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args, overload

import jax
import jax.numpy as jnp
import optax

from optabs._checks import short
from optabs._tree import find_state
from optabs.ensemble.controller import ControllerState

Storage = Literal["bfloat16", "float32", "int8", "thinned"]

STRIDE = 16  # of the entries that "thinned" keeps
SMALL = 4096  # smaller leaves are kept whole: 256 entries estimate a product well enough
_TINY = 1e-30  # no division by 0 where an update is 0


class ScaledInt8(NamedTuple):
    """An array in 8 bits: codes times scale."""

    codes: jax.Array  # int8, like the parameter
    scale: jax.Array  # float32 []


Stored = jax.Array | ScaledInt8


class ExpertState(NamedTuple):
    """One expert: its own state, and its share in the step before."""

    inner: optax.OptState
    previous: Any  # like the parameters, or () where nothing is learned


class DaoEState(NamedTuple):
    """State of `dao_e`."""

    count: jax.Array  # type: ignore[assignment]  # int32 []: steps taken
    experts: dict[str, ExpertState]
    controller: ControllerState
    observing: Any  # an ObservingState, or () without features


def check_storage(storage: object) -> None:
    """Raises ValueError for an unknown storage."""
    if storage not in get_args(Storage):
        known = ", ".join(map(repr, get_args(Storage)))
        raise ValueError(f"previous is {storage!r}; pass one of {known}.")


def is_stored(node: object) -> bool:
    """Whether a node of a tree is one kept array, whatever it consists of."""
    return isinstance(node, jax.Array | ScaledInt8)


def store(update: jax.Array, storage: Storage) -> Stored:
    """An update as it is kept.

    Args:
      update: any shape, float32 or wider.
      storage: `"float32"` as it is; `"bfloat16"` rounded; `"int8"` in 255 even steps of the
        leaf's largest entry; `"thinned"` every 16th entry of leaves of 4096 and more.
    """
    if storage == "float32":
        return update
    if storage == "thinned":
        axis = _thinned_axis(update)
        return update if axis is None else _thinned(update, axis)
    if jnp.iscomplexobj(update):
        # bfloat16 is float32 with 7 of its bits of fraction; there is no complex dtype of it.
        round_part = functools.partial(jax.lax.reduce_precision, exponent_bits=8)
        return jax.lax.complex(
            round_part(update.real, mantissa_bits=7), round_part(update.imag, mantissa_bits=7)
        )
    if storage == "bfloat16":
        return update.astype(jnp.bfloat16)
    largest = jnp.max(jnp.abs(update), initial=0.0).astype(jnp.float32)
    codes = jnp.round(update * (127 / jnp.maximum(largest, _TINY)))
    return ScaledInt8(codes.astype(jnp.int8), largest / 127)


def inner_product(gradient: jax.Array, kept: Stored) -> jax.Array:
    """The inner product of a gradient with a kept update, real: float32 []."""
    if isinstance(kept, ScaledInt8):
        return kept.scale * _inner_product(gradient, kept.codes)
    if kept.shape == gradient.shape:
        return _inner_product(gradient, kept)
    axis = _thinned_axis(gradient)
    thinned = gradient if axis is None else _thinned(gradient, axis)
    if axis is None or thinned.shape != kept.shape:
        raise ValueError(
            f"state keeps an update of shape {kept.shape} where grads hold {gradient.shape}; "
            "pass update the state that this optimizer's init made of these parameters."
        )
    ratio = gradient.shape[axis] / kept.shape[axis]
    return ratio * _inner_product(thinned, kept)


def _inner_product(gradient: jax.Array, update: jax.Array) -> jax.Array:
    # Not jnp.vdot, which refuses sharded leaves under an Explicit mesh.
    terms = jnp.real(jnp.conj(gradient) * update.astype(gradient.dtype))
    return jnp.sum(terms).astype(jnp.float32)


def _thinned(array: jax.Array, axis: int) -> jax.Array:
    return jax.lax.slice_in_dim(array, 0, array.shape[axis], STRIDE, axis)


def _thinned_axis(array: jax.Array) -> int | None:
    """The longest axis that lies on one device, if thinning it is worth while."""
    spec = jax.typeof(array).sharding.spec
    free = [
        axis
        for axis in range(array.ndim)
        if array.shape[axis] >= STRIDE and (axis >= len(spec) or spec[axis] is None)
    ]
    if array.size < SMALL or not free:
        return None
    return max(free, key=lambda axis: array.shape[axis])


def stored_by_leaf(state: DaoEState) -> list[tuple[Any, ...]]:
    """The kept updates of all experts, for each leaf of the parameters."""
    stored = [
        jax.tree.leaves(expert.previous, is_leaf=is_stored)
        for expert in state.experts.values()
    ]
    return list(zip(*stored, strict=True))


def check_state(
    state: Any, names: Sequence[str], structure: Any, weights: tuple[int, ...]
) -> None:
    """Refuses a state of another optimizer, or of other parameters.

    Args:
      state: what was given.
      names: the experts'.
      structure: that of what is kept of the step before.
      weights: the shape of the controller's matrix.
    """
    wanted = "pass update the state that this optimizer's init made of these parameters"
    if not isinstance(state, DaoEState):
        raise ValueError(f"state is a {type(state).__name__}; {wanted}.")
    if sorted(state.experts) != list(names):
        found, ours = map(short, (sorted(state.experts), list(names)))
        raise ValueError(f"state is of the experts {found}, not {ours}; {wanted}.")
    kept = [jax.tree.structure(x.previous, is_leaf=is_stored) for x in state.experts.values()]
    if set(kept) != {structure} or state.controller.matrix.shape != weights:
        raise ValueError(f"state is of other parameters or settings; {wanted}.")


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

    .. math:: \bar\alpha_i = \tfrac1L \sum_l \alpha_{il}

    Args:
      state: a state that holds one of :func:`optabs.dao_e`, inside any nesting of optax's
        wrappers.
      per_leaf: return the weights of each leaf, not their mean.

    Returns:
      By the experts' names, float32 [] each, with a sum of 1 (uniform before the first step);
      per leaf, trees like the parameters of such numbers.

    Raises:
      ValueError: for a state that does not hold exactly one of dao_e; per leaf, for one whose
        controller learns nothing or has one set of weights for all leaves.

    Examples:
      >>> import jax.numpy as jnp, optax, optabs
      >>> optimizer = optax.chain(optax.clip(1.0), optabs.dao_e(1e-3))
      >>> weights = optabs.mixing_weights(optimizer.init({"w": jnp.zeros(3)}))
      >>> {name: float(weight) for name, weight in weights.items()}
      {'adam': 0.25, 'lion': 0.25, 'rmsprop': 0.25, 'sgd': 0.25}
    """
    found = find_state(state, DaoEState, "mixing_weights")
    mixing = found.controller.mixing
    names = sorted(found.experts)
    if not per_leaf:
        return {name: jnp.mean(mixing[..., :, k], axis=-1) for k, name in enumerate(names)}
    previous = found.experts[names[0]].previous
    if isinstance(previous, tuple) and not previous:
        raise ValueError(
            "per_leaf is True, but this controller learns nothing of the leaves; pass "
            "per_leaf=False."
        )
    structure: Any = jax.tree.structure(previous, is_leaf=is_stored)
    rows = mixing.shape[-2]
    if structure.num_leaves != rows:
        raise ValueError(
            "per_leaf is True, but this controller has one set of weights for all leaves; "
            "pass per_leaf=False."
        )
    return {
        name: jax.tree.unflatten(structure, [mixing[..., row, k] for row in range(rows)])
        for k, name in enumerate(names)
    }
