"""Parameters in bfloat16, and in the optimizer's state the 8 bits that they lack."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optabs._checks import check_kind, check_shapes, cut
from optabs._numerics import INFINITY, full_precision

_SIZE = 0x7FFFFFFF  # the bits of a float32 but its sign
_LARGEST = 0x7F7F7F  # of 24 bits: rounds to bfloat16's largest number


class NarrowParamsState(NamedTuple):
    """State of `narrow_params`."""

    bits: Any  # int8, like the parameters; MaskedNode where a leaf is left alone
    inner: optax.OptState  # the transformation's own


def narrow_params(
    transformation: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    r"""Trains parameters in bfloat16 as if they had 24 bits: 8 more are kept in the state.

    A step of training is often shorter than bfloat16 can show: next to 1 its numbers are
    :math:`2^{-7}` apart, and what is less than half of that is rounded off, step after step.
    Here a parameter is a float32 without its last 8 bits,

    .. math:: \theta_t = \mathrm{round}_{24}\bigl(\theta_{t-1} + u_t\bigr), \qquad
              p_t = \mathrm{round}_{16}(\theta_t), \qquad
              c_t = \mathrm{word}(\theta_t) - \mathrm{word}(p_t)

    with :math:`u_t` the update of the transformation, p in bfloat16 what the model computes
    with, word the 24 bits of a number read as a whole number, and c from -128 to 127 in int8.
    The transformation sees :math:`\theta_{t-1}` as its float32 parameters, as weight decay
    needs, and float32 gradients; its moments are float32, or what
    ``narrow_params(narrow_state(...))`` makes of them.

    Updates of these leaves are float32, whatever the gradient's dtype, and are
    :math:`p_t - p_{t-1}`. So :func:`optax.apply_updates` arrives exactly at :math:`p_t` unless
    a parameter becomes :math:`2^{16}` times smaller in one step; then, too, the kept bits are
    of the bfloat16 that is reached, and the nearest to :math:`\theta_t` that they can be.
    Where updates are changed afterwards the bits are those of other parameters, an error of at
    most half a step of bfloat16: let `narrow_params` be the last of a chain. Steps below
    :math:`2^{-17}` of the parameter are rounded off, as those below :math:`2^{-25}` are in
    float32.

    Args:
      transformation: any optax transformation, with all that belongs to the step.
        :func:`optabs.narrow_state` and :func:`optabs.full_precision` go inside; around it they
        would widen the parameters, which is refused.

    Returns:
      The transformation for bfloat16 parameters. `init` takes them, or float32 ones (or
      descriptions of either), of which it keeps the 8 bits after those that a cast to bfloat16
      keeps; `update` takes the bfloat16 ones. Leaves of another dtype are left alone, with one
      warning: their updates have the gradient's dtype. To train some in float32, use
      :func:`optax.partition`. State is one int8 a parameter, `bits`, beside the
      transformation's own. Parameters that are not finite stay so; after an update that is not
      finite the bits are those from before it. A derivative of an update is that of the
      transformation's.

    Raises:
      ValueError: in `update`, without parameters, or where they are not of the dtypes and
        shapes that the state was made for.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, optabs
      >>> optimizer = optabs.narrow_params(optabs.sgd(2.0**-10))
      >>> params = {"w": jnp.ones(3)}  # float32
      >>> state = optimizer.init(params)
      >>> params = optax.tree.cast(params, jnp.bfloat16)
      >>> grads = {"w": jnp.ones(3, jnp.bfloat16)}
      >>> for _ in range(3):  # the next bfloat16 below 1 is four such steps away
      ...     updates, state = optimizer.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> float(params["w"][0]), float(1024 * optabs.exact_params(params, state)["w"][0])
      (0.99609375, 1021.0)

    Source: FlashOptim, arXiv 2602.23349: bfloat16 parameters, and what they lack in 8 bits.
    The difference of the bits themselves, which is exact, is this package's.
    """
    inner = full_precision(transformation)

    def init_fn(params: optax.Params) -> NarrowParamsState:
        _warn_of_others(params)
        return NarrowParamsState(jax.tree.map(_bits_of_new, params), inner.init(params))

    def update_fn(
        updates: optax.Updates,
        state: NarrowParamsState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, NarrowParamsState]:
        check_kind(state, NarrowParamsState)
        if params is None:
            raise ValueError(
                "params is None, but narrow_params adds to them; pass the bfloat16 parameters "
                "as update(grads, state, params)."
            )
        check_shapes("updates", updates, "params", params)
        structure, bits, leaves = _matched(state, params, all_kept=True)
        exact = list(map(_exact, leaves, bits))
        wide = list(map(_widened, structure.flatten_up_to(updates), bits))
        steps, new_inner = inner.update(
            structure.unflatten(wide), state.inner, structure.unflatten(exact), **extra_args
        )
        moved = list(map(_move, leaves, bits, exact, structure.flatten_up_to(steps)))
        new_updates, new_bits = (
            structure.unflatten([pair[at] for pair in moved]) for at in (0, 1)
        )
        return new_updates, NarrowParamsState(new_bits, new_inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def exact_params(params: optax.Params, state: optax.OptState) -> optax.Params:
    """The 24 bits of parameters that `narrow_params` trains, to evaluate and to keep.

    A checkpoint to go on from has `params` and `state` themselves: a cast of the exact
    parameters to bfloat16 is `params` but for those halfway between two numbers of bfloat16,
    one in some hundreds, which it may round to the other one.

    Args:
      params: the trained parameters, as they are when `state` is.
      state: that of `narrow_params`, or one that holds it (chain, masked, MultiSteps); of a
        partition, as many as there are.

    Returns:
      The parameters in float32, of which the last 8 bits are 0; leaves that `narrow_params`
      leaves alone, and masked ones, as they are.

    Raises:
      ValueError: where the state has no bits, or for parameters of other dtypes or shapes.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> params = {"w": jnp.array([0.1])}
      >>> state = optabs.narrow_params(optabs.adam(1e-3)).init(params)
      >>> narrow = params["w"].astype(jnp.bfloat16)
      >>> exact = optabs.exact_params({"w": narrow}, state)["w"]
      >>> [f"{float(number[0]):.6f}" for number in (params["w"], narrow, exact)]
      ['0.100000', '0.100098', '0.100000']

    Source: FlashOptim, arXiv 2602.23349.
    """
    leaves = jax.tree.leaves(state, is_leaf=_is_own)
    found = [node for node in leaves if _is_own(node)]
    if not found:
        raise ValueError(
            "state holds no NarrowParamsState; pass exact_params the state of an optimizer "
            "that narrow_params is around."
        )
    for each in found:
        structure, bits, leaves = _matched(each, params, all_kept=False)
        params = structure.unflatten(list(map(_exact, leaves, bits)))
    return params


def _is_own(node: Any) -> bool:
    return isinstance(node, NarrowParamsState)


def _keeps_bits(leaf: Any) -> bool:
    return jnp.result_type(leaf) in (jnp.bfloat16, jnp.float32)


def _warn_of_others(params: optax.Params) -> None:
    """Says which leaves are left alone, in one sentence for all."""
    others = [
        f"{cut(jax.tree_util.keystr(path))} ({jnp.result_type(leaf)})"
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if not _keeps_bits(leaf)
    ]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        warnings.warn(
            f"narrow_params leaves {others[0]}{more} as it is: it keeps bits of bfloat16 and "
            "float32 alone; to have this said no more, give other leaves an optimizer of "
            "their own by optax.partition.",
            stacklevel=3,
        )


def _bits_of_new(param: Any) -> Any:
    """Those after what a cast to bfloat16 keeps."""
    if not _keeps_bits(param):
        return optax.MaskedNode()
    if isinstance(param, jax.ShapeDtypeStruct) or jnp.result_type(param) == jnp.bfloat16:
        return jnp.zeros_like(param, jnp.int8)
    return _lost(jnp.asarray(param))


def _matched(
    state: NarrowParamsState, params: optax.Params, all_kept: bool
) -> tuple[Any, list[Any], list[Any]]:
    """The structure of the state's bits, its leaves, and what of the parameters is there.

    Raises ValueError where they do not go together; with `all_kept` also where there is a
    bfloat16 without bits.
    """
    found = jax.tree_util.tree_leaves_with_path(state.bits, is_leaf=_is_masked)
    structure: Any = jax.tree.structure(state.bits, is_leaf=_is_masked)
    try:
        leaves = structure.flatten_up_to(params)
    except ValueError as error:
        raise ValueError(
            "params are another tree than the state's bits; pass the parameters that init was "
            "given, and flax's nnx parameters and state by nnx.as_pure."
        ) from error
    for (path, bits), leaf in zip(found, leaves, strict=True):
        where = f"params{cut(jax.tree_util.keystr(path))}"
        if _is_masked(bits):
            if all_kept and getattr(leaf, "dtype", None) == jnp.bfloat16:
                raise ValueError(
                    f"{where} came as bfloat16, but the state keeps no bits of it; give init "
                    "these parameters in bfloat16 or float32."
                )
        elif (dtype := jnp.result_type(leaf)) != jnp.bfloat16:
            raise ValueError(
                f"{where} came as {dtype}, but narrow_params has to be given bfloat16; cast "
                "after init by optax.tree.cast(params, jnp.bfloat16), or give it an optimizer "
                "of its own (optax.partition), and put narrow_state inside of narrow_params."
            )
        elif jnp.shape(leaf) != jnp.shape(bits):
            raise ValueError(
                f"{where} have shape {jnp.shape(leaf)} where the state's bits have "
                f"{jnp.shape(bits)}; pass the parameters that init was given."
            )
    return structure, [bits for _, bits in found], leaves


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _widened(gradient: Any, bits: Any) -> Any:
    return gradient if _is_masked(bits) else jnp.asarray(gradient, jnp.float32)


def _exact(param: Any, bits: Any) -> Any:
    """The float32 of a bfloat16 and its bits; a leaf without bits as it is."""
    if _is_masked(bits):
        return param
    word = _word(_plain(param))
    size = word & _SIZE
    # Next to 0 and to infinity there is nothing to correct, and a sum would leave the range.
    usual = (size > 0) & (size < INFINITY)
    word = word + jnp.where(usual, bits.astype(jnp.int32) << 8, 0)
    return _differentiated_as(_float(word), jnp.asarray(param, jnp.float32))


def _move(param: Any, bits: Any, exact: Any, step: Any) -> tuple[Any, Any]:
    """The update to the bfloat16 nearest to exact + step, and the bits that it lacks."""
    if _is_masked(bits):
        return step, bits
    word = _word(exact + step)
    size, sign = word & _SIZE, word & ~_SIZE
    finite = size < INFINITY
    kept = jnp.minimum((size + 0x80) >> 8, _LARGEST)
    # Halves go up: to even, as in a cast, some would lack 128, which int8 does not hold, and a
    # half that cannot be kept stops the shortest steps.
    nearest = _float(sign | (((kept + 0x80) >> 8) << 16))
    update = jnp.where(finite, nearest - _plain(param), step)
    # The user's own next operation, which XLA does once for both: on a TPU it is one pass
    # over the arrays then, else two.
    reached = _word(_plain(optax.apply_updates(param, update))) & _SIZE
    lost = jnp.clip(kept - (reached >> 8), -128, 127).astype(jnp.int8)
    return _differentiated_as(update, step), jnp.where(finite, lost, bits)


@jax.jit
def _lost(param: jax.Array) -> jax.Array:
    """What a cast to bfloat16 takes from a float32, in 8 bits."""
    size = _word(param) & _SIZE
    cast = _word(jax.lax.reduce_precision(param, 8, 7)) & _SIZE
    lost = jnp.clip(((size + 0x80) >> 8) - (cast >> 8), -128, 127)
    return jnp.where(cast < INFINITY, lost, 0).astype(jnp.int8)


def _plain(param: Any) -> jax.Array:
    """A bfloat16 as float32.

    By its bits: XLA may take a float32 for the bfloat16 that it was rounded to.
    """
    word = jax.lax.bitcast_convert_type(jnp.asarray(param), jnp.uint16)
    return _float(word.astype(jnp.int32) << 16)


def _word(number: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(number, jnp.int32)


def _float(word: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(word, jnp.float32)


@jax.custom_jvp
def _differentiated_as(number: jax.Array, other: jax.Array) -> jax.Array:
    """The first number; bits have no derivative, so it has that of the second."""
    del other
    return number


@_differentiated_as.defjvp
def _differentiated_as_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return _differentiated_as(*primals), tangents[1]
