"""An optimizer's moments in 16 or 8 bits between its steps, and in full precision again."""

import functools
import itertools
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from optabs._checks import cut
from optabs._numerics import full_precision, hash_uint32
from optabs._tree import described, is_box, unboxed
from optabs.storage import selection
from optabs.storage.codecs import BY_NODE, Codec, decode, encode, first, is_node, ready
from optabs.storage.rounding import Salt, salted
from optabs.storage.selection import Choice, Parameters

VERSION = "2"  # changes where the codes' meaning does


class NarrowState(NamedTuple):
    """State of `narrow_state`."""

    format: jax.Array  # uint32 []: a sum over VERSION and the leaves' codecs
    draws: jax.Array  # uint32 []: what the next rounding depends on
    inner: optax.OptState  # the transformation's own; encoded leaves are NamedTuples


def narrow_state(
    transformation: optax.GradientTransformation,
    codecs: str | Mapping[str, str] | Callable[[str, Any], str | None] | None = None,
    *,
    keep: Sequence[str] = (),
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

    =============  =====  ============================================================
    codec          bytes  an entry
    =============  =====  ============================================================
    `"int8"`       1      the default for signed moments: floating-point, in 4 to 16
                          steps an octave, as fine as its row allows, and 0
    `"uint8"`      1      the default for denominators: likewise, in 8 to 32 steps an
                          octave; what is above 0 stays above 0
    `"bfloat16"`   2      its upper 16 bits
    `"float16"`    2      in float16; a denominator above 0 stays above 0
    `"float32"`    4      as it is
    =============  =====  ============================================================

    With `"int8"` and `"uint8"` one encoding makes :math:`|\mu| / \nu` at most 1.41 times as
    large, :math:`|\mu| / \sqrt\nu` 1.33 times (in the first step of a row, whose codes are
    coarser, 2.25 and 1.84 times). That is certain; for many steps there are only measurements:
    see the page on narrow states.

    These two add a uint16 for each row, of the last axis on one device. It is the range of the
    row's codes, which is known before the step: the codes of the step before choose it, with
    room at both ends, so that a step encodes in one pass. A denominator that outgrows it is
    rounded up to one of few larger numbers, a signed moment down; a signed one below it is
    read as 0 until the range has followed, by 2 octaves or more a step.

    Encoding sends nothing. Where the sharding of the parameters is not known to `init`, as
    inside of jit on a mesh of Auto axes, flax's names of axes tell; plain arrays get the rows
    of one device there. A zero stays one. A NaN or an infinity stays one, and changes no other
    entry.

    Rounding is stochastic: up or down with the probabilities that keep the mean, since a
    slow average that is rounded to nearest never moves. The numbers that decide are a
    golden-ratio sequence in time that starts from a hash of the parameter and of the entry's
    index, one number for all moments of the entry, the same under any sharding. So a run
    repeats, and in 16 bits it does so on any mesh.

    Codes have no derivative: what differentiates through several updates, as meta-learning
    does, sees each update's own gradient alone, and nothing by way of the moments.

    Args:
      transformation: an optax transformation; chains and wrappers may be inside or around.
      codecs: the name of a codec, for all known fields; or names by the fields of the
        state, of any class, added to the defaults; or a function (path, shape) -> name or
        None, which decides for every leaf, where path is the leaf's place in the state as
        :func:`jax.tree_util.keystr` writes it and shape a :class:`jax.ShapeDtypeStruct`.
      keep: names of parameters, or of parts of a model, whose moments stay float32.
      min_size: leaves with fewer entries stay float32, and in 8 bits those with fewer than 2
        in a row.
      seed: of the rounding, a whole number; it may be traced.

    Returns:
      The same transformation. Its state is a pytree of arrays: `inner` is the
      transformation's, where an encoded leaf is a NamedTuple, of its codes and ranges in
      `"int8"` and `"uint8"`. Moments that are complex, whole numbers or float64 stay as they
      are, with a warning, and so does a state of which no moment is known.

    Raises:
      ValueError: for an unknown codec or one that cannot hold the field; in `init` for
        names in `keep` or `codecs` that match nothing; in an update for a state that
        another choice of codecs has made. Where the state's values cannot be read, inside
        of jit, wrongly restored ones become NaN.

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

    Source: 8-bit states of Dettmers et al., arXiv 2110.02861, whose codes are shares of a
    block's largest; ranges from the step before, as in the delayed scaling of training in 8
    bits (NVIDIA's Transformer Engine); stochastic rounding of averages, measured in
    benchmarks/results/codecs. The codes are this package's.
    """
    choice = selection.make_choice(codecs, keep, min_size)
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
        right = has_right_format(state)
        leaves, structure = jax.tree.flatten(state.inner, is_leaf=is_node)
        known = [ready(leaf) if is_node(leaf) else (leaf, None) for leaf in leaves]
        before = jax.tree.unflatten(structure, [leaf for leaf, _ in known])
        state = state._replace(inner=before)
        wide = _decoded(state.inner, right)
        new_updates, new_inner = inner.update(updates, wide, params, **extra_args)
        ranges = iter([each for leaf, each in known if is_node(leaf)])
        encoded = _encode_like(new_inner, state, ranges, Parameters(updates))
        draws = state.draws + jnp.uint32(1)
        return new_updates, NarrowState(state.format, draws, encoded)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _encode_new(state: optax.OptState, params: Any, choice: Choice) -> optax.OptState:
    """Encodes the leaves of a new state that the choice names."""
    choice.check_names(state, params)
    parameters = Parameters(params)
    left_alone: list[str] = []
    unused: list[str] = []

    def encoded(path: Any, value: Any) -> Any:
        leaf = described(unboxed(value))
        location = parameters.locate(path, leaf.shape, state)
        if why := choice.left_alone(location, leaf):
            left_alone.append(f"{cut(location.path)} ({why})")
        codec = choice.wanted(location, leaf)
        shards = None if codec is None else choice.shards(codec, location, leaf)
        if codec is None or shards is None:
            if codec is None and choice.is_unused(location, leaf):
                unused.append(cut(location.path))
            return value
        if isinstance(unboxed(value), jax.ShapeDtypeStruct):
            return jax.eval_shape(lambda value: _encode_first(codec, value, shards), value)
        return _encode_first(codec, value, shards)

    narrow = jax.tree_util.tree_map_with_path(encoded, state, is_leaf=is_box)
    if left_alone:
        more = f" and {len(left_alone) - 1} more" if len(left_alone) > 1 else ""
        _warn(
            f"narrow_state leaves {left_alone[0]}{more} as it is: codecs are for real numbers "
            "of 32 bits or fewer, in known fields; to have this said no more, name the "
            "parameter in keep, or the field in codecs."
        )
    elif unused and choice.is_default and not any(map(is_node, _nodes_of(narrow))):
        _warn(
            f"narrow_state knows no moment of this state and leaves it as it is, {unused[0]} "
            "among it; use the optimizer alone, or name in codecs the fields to be rounded."
        )
    return narrow


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=5)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _encode_first(codec: Codec, value: Any, shards: int) -> Any:
    """One program a shape, where each operation alone would be compiled by itself."""
    # New moments are constants, which XLA would fold through the codec while compiling.
    return first(
        encode(codec, jax.tree.map(jax.lax.optimization_barrier, value), shards, None)
    )


def _encode_like(
    state: optax.OptState, before: NarrowState, ranges: Iterator[Any], parameters: Parameters
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
        return encode(BY_NODE[type(node)], value, next(ranges), salts[number])

    return jax.tree_util.tree_map_with_path(encoded, before.inner, state, is_leaf=is_node)


def _check_state(state: NarrowState, updates: Any, choice: Choice) -> None:
    """Raises where the state was made by another choice of codecs."""
    check_kind(state)
    parameters = Parameters(updates)
    leaves = jax.tree_util.tree_leaves_with_path(
        state.inner, is_leaf=lambda node: is_node(node) or is_box(node)
    )
    for path, node in leaves:
        leaf = described(unboxed(node[0] if is_node(node) else node))
        location = parameters.locate(path, leaf.shape, state.inner)
        dtype = jnp.float32 if is_node(node) else leaf.dtype
        wanted = choice.wanted(location, jax.ShapeDtypeStruct(leaf.shape, dtype))
        kept = BY_NODE[type(node)] if is_node(node) else None
        narrower = kept is None and wanted is not None and wanted.rows  # these are too short
        if kept != wanted and not narrower:
            raise ValueError(
                f"state keeps {cut(location.path)} as {_name(kept)}, but codecs gives it "
                f"{_name(wanted)}; convert it with optabs.encode_state("
                "optabs.decode_state(state), like=optimizer.init(params))."
            )


def _name(codec: Any) -> str:
    return "float32" if codec is None else str(codec.name)


def _nodes_of(state: optax.OptState) -> list[Any]:
    """Its leaves, an encoded one as one."""
    return jax.tree.leaves(state, is_leaf=is_node)


def format_of(state: optax.OptState) -> int:
    """A sum over the version and the codecs of all leaves."""
    nodes = _nodes_of(state)
    names = [BY_NODE[type(node)].name if is_node(node) else "-" for node in nodes]
    return zlib.crc32(" ".join([VERSION, *names]).encode())


def check_kind(state: Any) -> None:
    """Raises ValueError unless it is a state of narrow_state."""
    if not isinstance(state, NarrowState):
        raise ValueError(
            f"state is a {type(state).__name__}, which narrow_state has not made; pass the "
            "state of its init, or encode one with optabs.encode_state."
        )


def has_right_format(state: NarrowState) -> Any:
    """Whether the arrays have the format that their state names: bool, perhaps traced."""
    wanted, given = format_of(state.inner), state.format
    if isinstance(given, jax.core.Tracer) or not getattr(given, "is_fully_addressable", True):
        return given == jnp.uint32(wanted)
    for each in np.unique(np.asarray(given)):  # several where states are stacked
        if each != wanted:
            raise ValueError(
                f"state has the format {each:#x}, but its codecs are those of {wanted:#x}; "
                "restore a checkpoint into the state of the same narrow_state that wrote it, "
                "and then convert it with optabs.decode_state and optabs.encode_state."
            )
    return True


def decode_state(state: optax.OptState) -> optax.OptState:
    """The state without `narrow_state`: every NarrowState in it becomes its inner state.

    Args:
      state: of any nesting of transformations.

    Returns:
      The same state as the transformations without `narrow_state` have, moments in float32.

    Raises:
      ValueError: if arrays of another format stand in a state.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> narrow = optabs.narrow_state(optabs.adam(1e-3), min_size=16)
      >>> state = narrow.init(jnp.ones(32))
      >>> wide = optabs.decode_state(state)  # continues with optabs.adam(1e-3)
      >>> _ = optabs.adam(1e-3).update(jnp.ones(32), wide)
    """

    def of_node(node: Any) -> Any:
        if not isinstance(node, NarrowState):
            return node
        return _decoded(node.inner, has_right_format(node))

    return jax.tree.map(of_node, state, is_leaf=_is_narrow)


def _decoded(state: optax.OptState, right: Any) -> optax.OptState:
    """The state in float32; NaN where its format is wrong."""
    return jax.tree.map(
        lambda leaf: _nan_unless(decode(leaf), right) if is_node(leaf) else leaf,
        state,
        is_leaf=is_node,
    )


def encode_state(state: optax.OptState, like: optax.OptState) -> optax.OptState:
    """A state of full precision, encoded as another one is; the way to change codecs.

    Args:
      state: of the transformations without `narrow_state`, as `decode_state` gives it.
      like: a state with the wanted codecs and rows, such as that of a new `init`; for
        another mesh, of one with the parameters on that mesh.

    Returns:
      The numbers of `state`, rounded once to the nearest code, in the form of `like`; its
      arrays lie where those of `state` do, and its rounding goes on as that of `like`.

    Examples:
      >>> import jax.numpy as jnp, optax, optabs
      >>> old = optabs.narrow_state(optabs.adam_abs(1e-3), min_size=16)
      >>> new = optabs.narrow_state(optabs.adam_abs(1e-3), {"nu": "bfloat16"}, min_size=16)
      >>> params = jnp.ones(32)
      >>> _, state = old.update(jnp.ones(32), old.init(params))
      >>> state = optabs.encode_state(optabs.decode_state(state), new.init(params))
      >>> optax.tree.get(state, "nu").values.dtype.name
      'bfloat16'
    """

    def of_node(node: Any, own: Any) -> Any:
        if not isinstance(node, NarrowState):
            return own
        return node._replace(inner=_encoded_like(own, node.inner))

    try:
        return jax.tree.map(of_node, like, state, is_leaf=_is_narrow)
    except ValueError as error:
        raise ValueError(
            "state and like are not of one optimizer and one tree of parameters; pass what "
            "optabs.decode_state gave, and a state of the narrow_state it goes on with."
        ) from error


def _encoded_like(state: optax.OptState, like: optax.OptState) -> Any:
    """Encodes a state as another one is, to the nearest codes."""

    def encoded(node: Any, value: Any) -> Any:
        if not is_node(node):
            return value
        codec = BY_NODE[type(node)]
        return encode(codec, value, codec.shards(node), None)

    return jax.tree.map(encoded, like, state, is_leaf=is_node)


def _is_narrow(node: Any) -> bool:
    return isinstance(node, NarrowState)


def _nan_unless(value: Any, right: Any) -> Any:
    """An array, in its box; all NaN where its format is wrong."""
    if right is True:
        return value
    return jax.tree.map(lambda array: jnp.where(right, array, jnp.nan), value)
