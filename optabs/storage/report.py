"""What an optimizer's state takes, and what it would take in float32."""

import collections
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import GetAttrKey, KeyEntry, keystr

from optabs._tree import described, is_box, unboxed
from optabs.storage.codecs import is_node
from optabs.storage.params import NarrowParamsState

_FLOAT32 = 4  # bytes


class Stored(NamedTuple):
    """One array of a state."""

    field: str  # of the state around it, such as mu; with its path where two have that name
    leaf: str  # the path from there on, which is the parameter's
    shape: tuple[int, ...]
    kept: str  # the dtypes that it is kept in
    before: int  # bytes in float32
    after: int  # bytes as it is


class NarrowReport(NamedTuple):
    """The bytes of a state; printed, it is a table."""

    rows: tuple[Stored, ...]

    @property
    def before(self) -> int:
        """Bytes in float32."""
        return sum(row.before for row in self.rows)

    @property
    def after(self) -> int:
        """Bytes as it is."""
        return sum(row.after for row in self.rows)

    @property
    def fields(self) -> dict[str, tuple[int, int]]:
        """A field -> bytes in float32, and as it is."""
        names = dict.fromkeys(row.field for row in self.rows)
        parts = {
            name: NarrowReport(tuple(row for row in self.rows if row.field == name))
            for name in names
        }
        return {name: (part.before, part.after) for name, part in parts.items()}

    def __str__(self) -> str:
        lines = [("field and leaf", "shape", "kept in", "in float32", "now", "")]
        for name, sums in self.fields.items():
            own = [row for row in self.rows if row.field == name]
            if len(own) == 1 and not own[0].leaf:
                lines.append((name, _text(own[0].shape), own[0].kept, *_numbers(*sums)))
                continue
            lines.append((name, "", "", *_numbers(*sums)))
            lines += [
                (f"  {row.leaf}", _text(row.shape), row.kept, *_numbers(row.before, row.after))
                for row in own
            ]
        lines.append(("all", "", "", *_numbers(self.before, self.after)))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = (str.ljust, str.ljust, str.ljust, str.rjust, str.rjust, str.rjust)
        return "\n".join(
            "  ".join(
                align(cell, width)
                for align, cell, width in zip(aligned, line, widths, strict=True)
            ).rstrip()
            for line in lines
        )

    def __repr__(self) -> str:
        return str(self)


def narrow_report(state: optax.OptState) -> NarrowReport:
    """The bytes of a state, by field and leaf, before and after it was made narrow.

    Before is float32: 4 bytes for every real number that is kept in fewer, and for 8 bits of
    :func:`optabs.narrow_params` the float32 copy of a parameter that they stand for. Whole
    numbers, and what is wider, count as they are.

    Args:
      state: any optax state, of arrays or of descriptions
        (``jax.eval_shape(optimizer.init, params)`` costs no memory). An array that is spread
        over devices counts as a whole.

    Returns:
      A report: `rows` with `field`, `leaf`, `shape`, `kept`, `before` and `after` for every
      array, `fields` with the sums by field, and `before` and `after` of all, in bytes.
      Printed, it is a table.

    Examples:
      >>> import jax.numpy as jnp, optabs
      >>> optimizer = optabs.narrow_params(optabs.narrow_state(optabs.momentum(1e-3)))
      >>> params = {"w": jnp.ones((64, 128), jnp.bfloat16), "b": jnp.ones(128, jnp.bfloat16)}
      >>> report = optabs.narrow_report(optimizer.init(params))
      >>> report.fields["bits"]
      (33280, 8320)
      >>> report.after < 0.3 * report.before
      True
    """
    leaves = jax.tree_util.tree_leaves_with_path(
        state, is_leaf=lambda node: is_node(node) or is_box(node)
    )
    split = [_split(state, path) for path, _ in leaves]
    places = collections.defaultdict(set)
    for way, _, _ in split:
        places[_name(way)].add(way)
    rows = []
    for (way, leaf, is_copy), (_, value) in zip(split, leaves, strict=True):
        field = _name(way) if len(places[_name(way)]) == 1 else keystr(way)
        rows.append(_stored(field, keystr(leaf), value, is_copy))
    return NarrowReport(tuple(rows))


_Path = tuple[KeyEntry, ...]


def _split(state: Any, path: _Path) -> tuple[_Path, _Path, bool]:
    """The way to a field of the innermost state, the rest, and whether it is `bits`."""
    node, at, is_copy = state, 0, False
    for depth, key in enumerate(path):
        if hasattr(node, "_fields") and type(node).__name__.endswith("State"):
            at = depth + 1
            is_copy = isinstance(node, NarrowParamsState) and _name((key,)) == "bits"
        node = _child(node, key)
    return path[:at], path[at:], is_copy


def _child(node: Any, key: KeyEntry) -> Any:
    if isinstance(key, GetAttrKey):
        return getattr(node, key.name, None)
    try:
        return node[getattr(key, "idx", getattr(key, "key", None))]
    except (TypeError, LookupError):  # a pytree of another kind
        return None


def _name(way: _Path) -> str:
    return keystr(way[-1:], simple=True)


def _stored(field: str, leaf: str, value: Any, is_copy: bool) -> Stored:
    if is_node(value):
        parts = [described(unboxed(part)) for part in value]
        whole = jax.ShapeDtypeStruct(parts[0].shape, jnp.float32)
    else:
        parts = [whole := described(unboxed(value))]
    narrow = jnp.issubdtype(whole.dtype, jnp.floating) and whole.dtype.itemsize < _FLOAT32
    width = _FLOAT32 if is_copy or narrow else whole.dtype.itemsize
    return Stored(
        field,
        leaf,
        whole.shape,
        " + ".join(str(part.dtype) for part in parts),
        math.prod(whole.shape) * width,
        sum(math.prod(part.shape) * part.dtype.itemsize for part in parts),
    )


def _text(shape: tuple[int, ...]) -> str:
    return str(list(shape)) if shape else ""


def _numbers(before: int, after: int) -> tuple[str, str, str]:
    """Cells of a table: bytes in float32, as they are, and the share that is left."""
    return f"{before:,}", f"{after:,}", f"{after / before:.0%}" if before else ""
