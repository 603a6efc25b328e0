"""What the text of a compiled program says: its kernels, their bytes, and what is sent."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Kernel(NamedTuple):
    """An instruction of a compiled program that is a pass over arrays."""

    name: str
    opcode: str
    moved: int  # bytes of its operands and results


_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \([^\n]*\{\n(.*?)^\}", re.M | re.S)
_INSTRUCTION = re.compile(
    r"^ +(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*?)\)(, .*)?$", re.M
)
_NAME = re.compile(r"%([\w.-]+)")
# The last group: it is kept on the chip of a TPU.
_ARRAY = re.compile(r"\b(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\](\{[^}]*S\()?")
_COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|all-to-all|collective-broadcast|collective-permute|"
    r"ragged-all-to-all|reduce-scatter)(?:-done)?\("
)
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all")
_CALLS = ("conditional", "call", "while")
_PARTIAL = ("copy-done", "slice-done", "slice", "dynamic-slice")  # reads what it writes
_NUMBER = 8  # bytes


def kernels_of(program: str) -> list[Kernel]:
    """The kernels of a compiled program; of a conditional, those of its larger branch.

    What is started and done counts where it is done. A loop's body counts once, and what a
    kernel reads through a slice counts as the slice.
    """
    found = _COMPUTATION.findall(program)
    bodies = {name: _INSTRUCTION.findall(body) for _, name, body in found}
    return _kernels(bodies, next(name for entry, name, _ in found if entry))


def _kernels(bodies: Mapping[str, Sequence[Sequence[str]]], computation: str) -> list[Kernel]:
    sizes: dict[str, tuple[int, int]] = {}
    started: dict[str, list[str]] = {}
    found: list[Kernel] = []
    for name, shape, code, operands, attributes in bodies[computation]:
        sizes[name], given = _sizes(shape), _NAME.findall(operands)
        if code.endswith("-start"):
            started[name] = given
        elif code in _CALLS:
            called = [_kernels(bodies, x) for x in _NAME.findall(attributes) if x in bodies]
            larger = max(called, key=lambda each: (sum(x.moved for x in each), len(each)))
            found += larger
        elif code not in _FREE:
            given = started[given[0]] if code.endswith("-done") else given
            (whole, written), reads = sizes[name], [sizes[each][1] for each in given]
            if code == "fusion":
                (body,) = [bodies[x] for x in _NAME.findall(attributes) if x in bodies] or [()]
                shares = _shares(body, len(reads))
                reads = [round(x * share) for x, share in zip(reads, shares, strict=True)]
            read = sum(reads)
            if code in _PARTIAL:
                read = whole if read else 0
            # A TPU computes with single numbers beside its kernels.
            if code == "fusion" or max(sizes[each][0] for each in [name, *given]) > _NUMBER:
                found.append(Kernel(name, code, read + written))
    return found


def _shares(body: Sequence[Sequence[str]], number: int) -> list[float]:
    """What share of each operand a fused computation reads, less than 1 through slices."""
    shares = [1.0] * number
    entries = {name: _entries(shape) for name, shape, *_ in body}
    needed: dict[str, int] = {}  # entries that those read after it need of a result
    for name, _, code, operands, _ in reversed(body):
        own = needed.get(name, entries[name])
        if code == "parameter":
            shares[int(operands)] = own / max(entries[name], 1)
        for given in _NAME.findall(operands):
            one_to_one = entries[given] == entries[name] and code not in ("tuple", "reduce")
            wanted = own if one_to_one or code == "slice" else entries[given]
            needed[given] = max(needed.get(given, 0), wanted)
    return shares


def _entries(shape: str) -> int:
    """Those of the largest array of a shape."""
    return max((_product(each[2]) for each in _ARRAY.findall(shape)), default=1)


def _product(extents: str) -> int:
    return math.prod(int(extent) for extent in extents.split(",") if extent)


def _sizes(shape: str) -> tuple[int, int]:
    """The bytes of all arrays of a shape, and of those in the device's memory."""
    whole = held = 0
    for _, bits, extents, on_chip in _ARRAY.findall(shape):
        size = -(-_product(extents) * int(bits or 8) // 8)
        whole, held = whole + size, held + (0 if on_chip else size)
    return whole, held


def collectives_of(program: str) -> dict[str, tuple[int, int]]:
    """What is sent between devices: a kind -> how often, and bytes that each one receives."""
    found: dict[str, tuple[int, int]] = {}
    for shape, kind in _COLLECTIVE.findall(program):
        count, size = found.get(kind, (0, 0))
        found[kind] = count + 1, size + _sizes(shape)[0]
    return found
