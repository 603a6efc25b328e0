"""A leaf's step as one kernel of a GPU, which reads and writes every array once."""

import functools
import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optabs.storage.codecs import BY_NODE, Codec, is_node
from optabs.storage.entrywise import Program
from optabs.storage.rounding import Salt

_LARGEST, _FEWEST = 2048, 512  # entries of a tile: some for each of its threads
_WARPS = 4  # of 32 threads
_WIDEST = 128  # entries of a row where no block says how many


class Layout(NamedTuple):
    """A leaf as rows, of which each run of the kernel takes a few; powers of two, as Triton
    asks for.
    """

    rows: int
    width: int  # entries of a row, a block
    taken: int  # rows of a tile

    @property
    def tile(self) -> tuple[int, int]:
        """The shape of a tile."""
        return self.taken, self.width


def is_available() -> bool:
    """Whether this JAX can write kernels for Triton."""
    try:
        importlib.import_module("jax.experimental.pallas.triton")
    except ImportError:
        return False
    return True


def layout_of(size: int, blocks: set[int]) -> Layout | None:
    """How a leaf is cut.

    Args:
      size: its entries.
      blocks: the lengths of the blocks of its moments, without 0.

    Returns:
      None where powers of two leave too small tiles.
    """
    if len(blocks) > 1:
        return None
    width = next(iter(blocks), min(_WIDEST, _power_of_two_in(size)))
    rows = size // width
    taken = min(_LARGEST // width, _power_of_two_in(rows))
    if width & (width - 1) or taken * width < _FEWEST:
        return None
    return Layout(rows, width, taken)


def _power_of_two_in(number: int) -> int:
    """The largest power of two that divides it."""
    return number & -number


def step(
    program: Program,
    layout: Layout,
    grad: jax.Array,
    param: jax.Array,
    entries: Sequence[Any],
    words: Sequence[jax.Array],
    factor: jax.Array,
    *,
    interpret: bool,
) -> tuple[jax.Array, list[Any]]:
    """The new parameter and the new entries of its state.

    Args:
      program: (gradient, parameter, *moments) -> update and new moments.
      layout: of the leaf.
      grad: its gradient.
      param: its parameter.
      entries: of the state: nodes, and arrays like the parameter.
      words: the salt of each node.
      factor: float32 [], that decoded moments are multiplied by: 1, or NaN.
      interpret: whether to run it without a GPU.
    """
    from jax.experimental import pallas
    from jax.experimental.pallas import triton

    flat, structure = jax.tree.flatten((param, list(entries)))
    scalars = [*program.scalars(), *words, factor]
    rows, width, taken = layout
    cut = [array.reshape(rows, -1) for array in flat]
    specs = [pallas.BlockSpec((taken, x.shape[1]), lambda tile: (tile, 0)) for x in cut]
    one = pallas.BlockSpec((1,), lambda tile: (0,))
    found = pallas.pallas_call(
        functools.partial(_kernel, program, structure, layout, len(words)),
        grid=(rows // taken,),
        in_specs=[one] * len(scalars) + specs[:1] + specs,
        out_specs=specs,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in cut],
        # Counted over all inputs: the scalars and the gradient come first.
        input_output_aliases={len(scalars) + 1 + n: n for n in range(len(cut))},
        compiler_params=triton.CompilerParams(num_warps=_WARPS),
        interpret=interpret,
    )(*(_passed(x).reshape(1) for x in scalars), grad.reshape(rows, width), *cut)
    whole = [new.reshape(old.shape) for new, old in zip(found, flat, strict=True)]
    return jax.tree.unflatten(structure, whole)


def _passed(scalar: jax.Array) -> jax.Array:
    """A scalar as a kernel can read it."""
    return scalar.astype(jnp.int32) if scalar.dtype == jnp.bool_ else scalar


def _kernel(program: Program, structure: Any, layout: Layout, words: int, *refs: Any) -> None:
    from jax.experimental import pallas

    outputs = refs[-structure.num_leaves :]
    inputs = list(refs[: -structure.num_leaves])
    wanted = program.scalars()
    read = [ref[0] for ref in inputs[: len(wanted) + words + 1]]
    scalars = [x.astype(own.dtype) for x, own in zip(read[: len(wanted)], wanted, strict=True)]
    salts, factor = iter(read[len(wanted) : -1]), read[-1]
    grad, *arrays = (ref[...] for ref in inputs[len(read) :])
    param, entries = jax.tree.unflatten(structure, arrays)
    first = (pallas.program_id(0) * (layout.taken * layout.width)).astype(jnp.uint32)
    codecs = [BY_NODE[type(entry)] if is_node(entry) else None for entry in entries]
    moments = [
        entry if codec is None else codec.decode(entry) * factor
        for codec, entry in zip(codecs, entries, strict=True)
    ]
    update, *moments = program.run([grad, param, *moments], scalars)
    kept = [
        moment if codec is None else _encoded(codec, moment, layout, Salt(next(salts), first))
        for codec, moment in zip(codecs, moments, strict=True)
    ]
    new = jax.tree.leaves((optax.apply_updates(param, update), kept))
    for ref, array in zip(outputs, new, strict=True):
        ref[...] = array


def _encoded(codec: Codec, moment: jax.Array, layout: Layout, salt: Salt) -> Any:
    return codec.encode(moment, layout.width if codec.blocks else 0, salt)
