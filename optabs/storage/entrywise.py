"""Functions that work entry by entry, taken apart so that a kernel can run them on tiles."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

# Each entry of the result depends on the same entry of the operands, and on no other.
_ENTRYWISE = """
abs add add_any and broadcast_in_dim cbrt ceil clamp convert_element_type copy copy_p cos div
eq erf exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul
ne neg not or pow reduce_precision rem round rsqrt select_n sign sin sqrt square sub tanh xor
"""
_CALLS = "jit pjit closed_call custom_jvp_call custom_vjp_call remat checkpoint"


class Tile(NamedTuple):
    """A value that has an entry for each of the parameter's."""

    number: int


class Operation(NamedTuple):
    """A primitive on tiles and scalars."""

    primitive: Any
    params: dict[str, Any]
    inputs: list[Any]  # tiles, scalars that are known before the kernel runs, and literals
    output: Tile


class Program(NamedTuple):
    """A function of tiles; scalars of it that need no tile are computed already."""

    operations: list[Operation]
    outputs: list[Tile]
    done: list[Any]  # the operations on scalars alone

    def scalars(self) -> list[jax.Array]:
        """What the operations read besides tiles and literals, each once."""
        inputs = itertools.chain.from_iterable(each.inputs for each in self.operations)
        return list({id(x): x for x in inputs if isinstance(x, jax.Array)}.values())

    def run(self, tiles: Sequence[jax.Array], scalars: Sequence[jax.Array]) -> list[jax.Array]:
        """The outputs for such tiles, and for the numbers that stand for the scalars."""
        values: dict[Any, jax.Array] = {Tile(n): tile for n, tile in enumerate(tiles)}
        values |= zip(map(id, self.scalars()), scalars, strict=True)

        def read(value: Any) -> Any:
            if isinstance(value, Tile):
                return values[value]
            return values[id(value)] if isinstance(value, jax.Array) else value

        for primitive, params, inputs, output in self.operations:
            values[output] = primitive.bind(*map(read, inputs), **params)
        return list(map(read, self.outputs))


class _NotEntrywiseError(Exception):
    """Some operation looks at other entries."""


def program_of(
    function: Callable[..., Sequence[jax.Array]],
    arrays: Sequence[jax.Array],
    shape: tuple[int, ...],
) -> Program | None:
    """Takes a function of arrays of one shape apart.

    Args:
      function: from such arrays to others of their shape.
      arrays: of a whole leaf.
      shape: of a tile of them.

    Returns:
      The program; None if the function does not work entry by entry, or does not do the same
      to a tile as to the whole, as a mask by the number of axes.
    """
    try:
        of_tile, of_whole = (
            _recorded(function, [jax.ShapeDtypeStruct(size, x.dtype) for x in arrays])
            for size in (shape, arrays[0].shape)
        )
    except _NotEntrywiseError:
        return None
    return of_tile if _outline(of_tile) == _outline(of_whole) else None


def _outline(program: Program) -> list[str | None]:
    """What a program does, whatever the shapes are."""
    steps = [(each.primitive.name, each.output, *each.inputs) for each in program.operations]
    values = itertools.chain.from_iterable([*steps, program.outputs, program.done])
    return [None if isinstance(value, jax.Array) else repr(value) for value in values]


def _recorded(
    function: Callable[..., Sequence[jax.Array]], tiles: Sequence[jax.ShapeDtypeStruct]
) -> Program:
    closed = jax.make_jaxpr(function)(*tiles)
    operations: list[Operation] = []
    done: list[Any] = []
    numbers = itertools.count(len(tiles))

    def walk(closed: core.ClosedJaxpr, inputs: Sequence[Any]) -> list[Any]:
        jaxpr = closed.jaxpr
        if any(map(jnp.ndim, closed.consts)):
            raise _NotEntrywiseError
        values: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        values |= zip(jaxpr.invars, inputs, strict=True)

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, core.Literal) else values[atom]

        for equation in jaxpr.eqns:
            outputs = results(equation, list(map(read, equation.invars)))
            values |= zip(equation.outvars, outputs, strict=True)
        return list(map(read, jaxpr.outvars))

    def results(equation: core.JaxprEqn, given: list[Any]) -> list[Any]:
        primitive, params = equation.primitive, equation.params
        if primitive.name in _CALLS.split():
            (inner,) = filter(_is_jaxpr, params.values())
            whole = isinstance(inner, core.ClosedJaxpr)
            return walk(inner if whole else core.ClosedJaxpr(inner, ()), given)
        shapes = [jnp.shape(variable.aval) for variable in equation.outvars]  # type: ignore[arg-type]
        if not any(shapes) and not any(isinstance(value, Tile) for value in given):
            done.extend([primitive.name, *given])
            found = primitive.bind(*given, **params)
            return list(found) if primitive.multiple_results else [found]
        moves = primitive.name == "broadcast_in_dim" and isinstance(given[0], Tile)
        if primitive.name not in _ENTRYWISE.split() or moves or shapes != [tiles[0].shape]:
            raise _NotEntrywiseError
        output = Tile(next(numbers))
        operations.append(Operation(primitive, params, given, output))
        return [output]

    outputs = walk(closed, [Tile(number) for number in range(len(tiles))])
    if not all(isinstance(output, Tile) for output in outputs):
        raise _NotEntrywiseError
    return Program(operations, outputs, done)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, core.ClosedJaxpr | core.Jaxpr)
