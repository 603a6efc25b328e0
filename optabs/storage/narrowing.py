"""An optimizer's moments in 16 or 8 bits between its steps, and in full precision again."""

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from optabs._checks import check_kind, cut
from optabs._numerics import full_precision, hash_uint32
from optabs._tree import described, is_box, unboxed
from optabs.storage import selection
from optabs.storage.codecs import (
    BY_NODE,
    Codec,
    Salt,
    encode,
    first,
    is_node,
    ready,
    salted,
)
from optabs.storage.conversion import (
    NarrowState,
    decoded,
    format_of,
    has_right_format,
    holds,
    nodes_of,
)
from optabs.storage.eight_bits import Rows
from optabs.storage.params import NarrowParamsState
from optabs.storage.selection import Choice, Parameters


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
    warning, unless `codecs` names it. Counts, copies of weights, sums of gradients, moments
    whose difference is taken (those of a centered RMSProp), AMSGrad's maximum and AdEMAMix's
    two means stay as they are.

    =============  =====  ============================================================
    codec          bytes  an entry
    =============  =====  ============================================================
    `"int8"`       1      the default for signed moments: floating-point, in 4 to 16
                          steps an octave, as fine as its row allows, and 0
    `"uint8"`      1      the default for denominators: likewise, in 8 to 32 steps an
                          octave; what is above 0 stays above 0
    `"bfloat16"`   2      its upper 16 bits
    `"float32"`    4      as it is
    =============  =====  ============================================================

    With `"int8"` and `"uint8"` one encoding makes :math:`|\mu| / \nu` at most 1.41 times as
    large, :math:`|\mu| / \sqrt\nu` 1.33 times (in the first step of a row, whose codes are
    coarser, 2.25 and 1.84 times). That is certain; for many steps there are only measurements:
    see the page on narrow states.

    These two add a uint16 for each row: the last axis as far as it is on one device, or, where
    that has fewer than 8 entries, the last axes that have 8. It is the range of the row's
    codes, which is known before the step: the codes of the step before choose it, with room at
    both ends, so that a step encodes in one pass. It remembers the row's largest number, and
    forgets an octave of it in 256 steps, so that a row without gradients for a while finds its
    range as it was. A denominator that outgrows it is rounded up to one of few larger numbers,
    a signed moment down; a signed one :math:`2^{29}` below the largest of late is read as 0.

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
      codecs: the name of a codec, for all known fields (`"int8"` and `"uint8"` both mean 8
        bits, of each field its own kind); or names by the fields of the state, of any class,
        added to the defaults; or a function (path, shape) -> name or None for float32, which
        is asked for every leaf of `min_size` or more, where path is the leaf's place in the
        state as :func:`jax.tree_util.keystr` writes it, such as `"[0].mu['w']"`, and shape a
        :class:`jax.ShapeDtypeStruct`.
      keep: names of parameters, or of parts of a model, whose moments stay float32.
      min_size: leaves with fewer entries stay float32, and in 8 bits those of which a device
        has fewer than 2 in a row.
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
    first_draws = selection.seed_of(seed)
    inner = full_precision(transformation)

    def init_fn(params: optax.Params) -> NarrowState:
        state = inner.init(params)
        _check_inner(state)
        state = _encode_new(state, params, choice)
        draws = hash_uint32(jnp.asarray(first_draws))
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
        known = [
            ready(leaf, state.draws) if is_node(leaf) else (leaf, None) for leaf in leaves
        ]
        before = jax.tree.unflatten(structure, [leaf for leaf, _ in known])
        state = state._replace(inner=before)
        wide = decoded(state.inner, right)
        new_updates, new_inner = inner.update(updates, wide, params, **extra_args)
        ranges = iter([each for leaf, each in known if is_node(leaf)])
        encoded = _encode_like(new_inner, state, ranges, Parameters(updates))
        draws = state.draws + jnp.uint32(1)
        return new_updates, NarrowState(state.format, draws, encoded)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_inner(state: optax.OptState) -> None:
    """Raises where the state inside is narrow itself."""
    if holds(NarrowState, state):
        raise ValueError(
            "transformation holds a narrow_state already; pass it an optimizer without one, "
            "or have it around parts alone."
        )
    if holds(NarrowParamsState, state):
        raise ValueError(
            "transformation holds a narrow_params, which narrow_state has to be inside of; "
            "pass narrow_state what is in it, as in narrow_params(narrow_state(...))."
        )


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
        rows = None if codec is None else choice.rows(codec, location, leaf)
        if codec is None or rows is None:
            if codec is None and choice.is_unused(location, leaf):
                unused.append(cut(location.path))
            return value
        if isinstance(unboxed(value), jax.ShapeDtypeStruct):
            return jax.eval_shape(lambda value: _encode_first(codec, value, rows), value)
        return _encode_first(codec, value, rows)

    narrow = jax.tree_util.tree_map_with_path(encoded, state, is_leaf=is_box)
    if left_alone:
        more = f" and {len(left_alone) - 1} more" if len(left_alone) > 1 else ""
        _warn(
            f"narrow_state leaves {left_alone[0]}{more} as it is: codecs are for real numbers "
            "of 32 bits or fewer, in known fields; to have this said no more, name the "
            "parameter in keep, or the field in codecs."
        )
    elif unused and choice.is_default and not any(map(is_node, nodes_of(narrow))):
        _warn(
            f"narrow_state knows no moment of this state and leaves it as it is, {unused[0]} "
            "among it; use the optimizer alone, or name in codecs the fields to be rounded."
        )
    return narrow


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=4)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _encode_first(codec: Codec, value: Any, rows: Rows) -> Any:
    """One program a shape, where each operation alone would be compiled by itself."""
    # New moments are constants, which XLA would fold through the codec while compiling.
    return first(encode(codec, jax.tree.map(jax.lax.optimization_barrier, value), rows, None))


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
    check_kind(state, NarrowState)
    parameters = Parameters(updates)
    leaves = jax.tree_util.tree_leaves_with_path(
        state.inner, is_leaf=lambda node: is_node(node) or is_box(node)
    )
    for path, node in leaves:
        leaf = described(unboxed(node[0] if is_node(node) else node))
        location = parameters.locate(path, leaf.shape, state.inner)
        kept = BY_NODE[type(node)] if is_node(node) else None
        if kept is not None:  # as part of a larger array, perhaps, of which this is a shard
            whole = jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
            wanted = choice._replace(min_size=0).wanted(location, whole)
        else:
            wanted = choice.wanted(location, leaf)
        if kept is None and wanted is not None and choice.may_be_too_short(wanted, leaf):
            continue
        if kept != wanted:
            raise ValueError(
                f"state keeps {cut(location.path)} as {_name(kept)}, but codecs gives it "
                f"{_name(wanted)}; convert it with optabs.encode_state("
                "optabs.decode_state(state), like=optimizer.init(params))."
            )


def _name(codec: Any) -> str:
    return "float32" if codec is None else str(codec.name)
