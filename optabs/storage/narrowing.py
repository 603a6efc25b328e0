"""An optimizer's moments in 16 or 8 bits between its steps."""

import functools
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optabs._checks import cut
from optabs._numerics import full_precision, hash_uint32
from optabs._tree import is_box, unboxed
from optabs.storage import selection
from optabs.storage.codecs import BY_NODE, encode, is_node
from optabs.storage.rounding import Salt, salted
from optabs.storage.selection import Choice, Parameters
from optabs.storage.state import NarrowState, check_kind, decode_state, format_of


def narrow_state(
    transformation: optax.GradientTransformation,
    codecs: Mapping[str, str] | Callable[[str, Any], str | None] | None = None,
    *,
    keep: Sequence[str] = (),
    block_size: int = 64,
    min_size: int = 4096,
    seed: ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps an optimizer's moments in 8 or 16 bits; inside of a step they are float32.

    Each update decodes the moments, runs the transformation in full precision and encodes
    its new moments,

    .. math:: s_t = \mathrm{encode}\bigl(f(g_t, \mathrm{decode}(s_{t-1}))\bigr)

    so a step computes what it always does, from moments that are rounded once a step. It
    encodes the moments of the states that it knows, those of optabs, optax and
    optax.contrib; what is called `mu`, `nu` or alike in any other state stays float32, with a
    warning, unless `codecs` names it. Counts, copies of weights, sums of gradients and
    moments whose difference is taken stay as they are.

    ==================  =====  =======================================================
    codec               bytes  an entry
    ==================  =====  =======================================================
    `"bfloat16"`        2      its upper 16 bits
    `"float16"`         2      in float16; a denominator above 0 stays above 0
    `"int8"`            1      the default for signed moments: floating-point, in 4 to
                               32 steps an octave, as fine as its block allows, and 0
    `"uint8"`           1      the default for denominators: likewise, in 8 to 64 steps
                               an octave; what is above 0 stays above 0
    `"int8_linear"`     1      a share of its block's largest size, in equal steps
    `"int8_square"`     1      in equal steps of the share's root; the former default,
                               which does not bound a step
    `"int8_float"`      1      the share in 16 steps an octave, and 0
    `"uint8_linear"`    1      like `"int8_linear"`, without a code for 0
    `"uint8_square"`    1      like `"int8_square"`, without a code for 0
    `"uint8_fourth"`    1      in equal steps of the share's fourth root; the former
                               default, which does not bound a step
    `"uint8_float"`     1      the share in 16 steps an octave, without a code for 0
    `"float32"`         4      as it is
    ==================  =====  =======================================================

    With `"int8"` and `"uint8"` one encoding makes :math:`|\mu| / \nu` at most 1.41 times as
    large, :math:`|\mu| / \sqrt\nu` 1.33 times; a :math:`\mu` below the least code of its block
    may be raised to it, to at most 1.54 times the block's largest ratio. That is certain; for
    many steps there are only measurements: see the page on narrow states.

    These two add a uint16 for each block, the other codecs of 8 bits a float32. A block runs
    along the last axis and never crosses from one device to another: its length is the
    largest divisor of a shard's extent up to `block_size`. Encoding sends nothing. Where
    the sharding of the parameters is not known to `init`, as inside of jit on a mesh of Auto
    axes, flax's names of axes tell; plain arrays get the blocks of one device there. A block
    of zeros stays one. A NaN or an infinity leaves no finite number in its block.

    Rounding is stochastic: up or down with the probabilities that keep the mean, since a
    slow average that is rounded to nearest never moves. The numbers that decide are a
    golden-ratio sequence in time that starts from a hash of the parameter and of the entry's
    index, one number for all moments of the entry. So a run repeats, under any sharding as
    long as the blocks are the same.

    Codes have no derivative: what differentiates through several updates, as meta-learning
    does, sees each update's own gradient left_alone, and nothing by way of the moments.

    Args:
      transformation: an optax transformation; chains and wrappers may be inside or around.
      codecs: names of codecs by the fields of the state, of any class, added to the
        defaults; or a function (path, shape) -> name or None, which decides for every
        leaf, where path is the leaf's place in the state as
        :func:`jax.tree_util.keystr` writes it and shape a :class:`jax.ShapeDtypeStruct`.
      keep: names of parameters, or of parts of a model, whose moments stay float32.
      block_size: entries that share a range or a scale, 2 or more. Leaves whose shards allow
        no block of 16 (or of `block_size`, if that is less) stay float32.
      min_size: leaves with fewer entries stay float32.
      seed: of the rounding, a whole number; it may be traced.

    Returns:
      The same transformation. Its state is a pytree of arrays: `inner` is the
      transformation's, where an encoded leaf is a NamedTuple, of its codes and ranges in
      `"int8"` and `"uint8"`. Moments that are complex, whole numbers or float64 stay as they
      are, with a warning.

    Raises:
      ValueError: for an unknown codec, one that cannot hold the field, a block size below
        2; in `init` for names in `keep` or `codecs` that match nothing; in an update for a
        state that another choice of codecs has made. Where the
        state's values cannot be read, inside of jit, wrongly restored ones become NaN.

    Examples:
      >>> import jax.numpy as jnp, optax, optabs
      >>> optimizer = optabs.narrow_state(optabs.adam_abs(1e-3))
      >>> params = {"w": jnp.zeros((64, 128)), "b": jnp.zeros(128)}
      >>> state = optimizer.init(params)
      >>> grads = {"w": jnp.ones((64, 128)), "b": jnp.ones(128)}
      >>> updates, state = optimizer.update(grads, state, params)
      >>> moment = optax.tree.get(state, "nu")
      >>> [part.dtype.name for part in moment["w"]], moment["b"].dtype.name
      (['uint8', 'uint16'], 'float32')

    Source: blocks of Dettmers et al., arXiv 2110.02861, whose codes are shares of a block's
    largest; companded groups of 32, as in the codes by roots, in FlashOptim, arXiv
    2602.23349; stochastic rounding of averages, measured in benchmarks/results/codecs. The
    default codes are this package's.
    """
    choice = selection.make_choice(codecs, keep, block_size, min_size)
    selection.check_seed(seed)
    inner = full_precision(transformation)

    def init_fn(params: optax.Params) -> NarrowState:
        state = _encode_new(inner.init(params), params, choice)
        draws = hash_uint32(jnp.asarray(seed).astype(jnp.uint32))
        return NarrowState(jnp.uint32(format_of(state)), draws, state)

    def update_fn(
        updates: optax.Updates,
        state: NarrowState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, NarrowState]:
        _check_state(state, updates, choice)
        wide = decode_state(state)
        new_updates, new_inner = inner.update(updates, wide, params, **extra_args)
        encoded = _encode_like(new_inner, state, Parameters(updates))
        draws = state.draws + jnp.uint32(1)
        return new_updates, NarrowState(state.format, draws, encoded)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _encode_new(state: optax.OptState, params: Any, choice: Choice) -> optax.OptState:
    """Encodes the leaves of a new state that the choice names."""
    choice.check_names(state, params)
    parameters = Parameters(params)
    left_alone: list[str] = []

    def encoded(path: Any, value: Any) -> Any:
        leaf = _describe(unboxed(value))
        location = parameters.locate(path, leaf.shape, state)
        if why := choice.left_alone(location, leaf):
            left_alone.append(f"{cut(location.path)} ({why})")
        codec = choice.wanted(location, leaf)
        block = None if codec is None else choice.block(codec, location, leaf)
        if codec is None or block is None:
            return value
        encode_leaf = functools.partial(encode, codec, block=block, salt=None)
        if isinstance(unboxed(value), jax.ShapeDtypeStruct):
            return jax.eval_shape(encode_leaf, value)
        # New moments are constants, which XLA would fold through the codec while compiling.
        return encode_leaf(jax.tree.map(jax.lax.optimization_barrier, value))

    narrow = jax.tree_util.tree_map_with_path(encoded, state, is_leaf=is_box)
    if left_alone:
        more = f" and {len(left_alone) - 1} more" if len(left_alone) > 1 else ""
        warnings.warn(
            f"narrow_state leaves {left_alone[0]}{more} as it is: codecs are for real numbers "
            "of 32 bits or fewer, in known fields; to have this said no more, name the "
            "parameter in keep, or the field in codecs.",
            stacklevel=4,
        )
    return narrow


def _encode_like(
    state: optax.OptState, before: NarrowState, parameters: Parameters
) -> optax.OptState:
    """Encodes a state as the one before it, with the same bits for a parameter's moments."""
    others = itertools.count(len(parameters))
    salts: dict[int, Salt] = {}

    def encoded(path: Any, node: Any, value: Any) -> Any:
        if not is_node(node):
            return value
        number = parameters.number(path)
        number = next(others) if number is None else number
        if number not in salts:
            salts[number] = salted(before.draws, number)._replace(cache={})
        codec = BY_NODE[type(node)]
        return encode(codec, value, codec.block(node), salts[number])

    return jax.tree_util.tree_map_with_path(encoded, before.inner, state, is_leaf=is_node)


def _check_state(state: NarrowState, updates: Any, choice: Choice) -> None:
    """Raises where the state was made by another choice of codecs."""
    check_kind(state)
    parameters = Parameters(updates)
    leaves = jax.tree_util.tree_leaves_with_path(
        state.inner, is_leaf=lambda node: is_node(node) or is_box(node)
    )
    for path, node in leaves:
        leaf = _describe(unboxed(node[0] if is_node(node) else node))
        location = parameters.locate(path, leaf.shape, state.inner)
        dtype = jnp.float32 if is_node(node) else leaf.dtype
        wanted = choice.wanted(location, jax.ShapeDtypeStruct(leaf.shape, dtype))
        kept = BY_NODE[type(node)] if is_node(node) else None
        narrower = kept is None and wanted is not None and wanted.blocks  # no block fits
        if kept != wanted and not narrower:
            raise ValueError(
                f"state keeps {cut(location.path)} as {_name(kept)}, but codecs gives it "
                f"{_name(wanted)}; convert it with optabs.encode_state("
                "optabs.decode_state(state), like=optimizer.init(params))."
            )


def _describe(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array, of a description of one, or of a number."""
    return jax.ShapeDtypeStruct(getattr(leaf, "shape", ()), jnp.result_type(leaf))


def _name(codec: Any) -> str:
    return "float32" if codec is None else str(codec.name)
