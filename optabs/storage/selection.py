"""Which codec a leaf of a state gets: by its field, by a predicate, or none.

A leaf's field and parameter are read from its path in the state.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.tree_util import DictKey, GetAttrKey, KeyEntry, SequenceKey, keystr

from optabs._checks import cut, short
from optabs._tree import axis_names, is_box, unboxed
from optabs.storage.codecs import CODECS, Codec
from optabs.storage.eight_bits import Rows

FULL = "float32"
WIDE = (jnp.float32, jnp.bfloat16, jnp.float16)  # in an update they are float32
SIGNED, SIZE = "signed", "size"
DEFAULTS = {SIGNED: "int8", SIZE: "uint8"}
LEAST_ROW = 2  # entries of a row: with fewer, its range takes what the codes save
_SHORT_ROW = 8  # with fewer, the axis before the last is part of the row, too
_SHARE = 16  # entries that each device has at least where it is not known how many there are

# A field's name does not tell what it holds: `nu` is a denominator in Adam's state and a
# momentum in SM3's. A difference of two fields, as in ScaleByRStdDevState, does not survive
# the rounding of either.
ROLES: Mapping[str, Mapping[str, str]] = {
    # optabs
    "EmaState": {"mu": SIGNED, "ema": SIGNED},  # and optax's class of that name
    # Of dao_e's experts: a trace grows by a hundredth of itself, which 8 bits would round off.
    "ExpertState": {},
    "NagState": {"mu": SIGNED},
    "SizeState": {"nu": SIZE},
    # optax
    "FactoredState": {"v": SIZE},
    "ScaleByAdaDeltaState": {},
    "ScaleByAdamState": {"mu": SIGNED, "nu": SIZE},
    "ScaleByAdanState": {"m": SIGNED, "v": SIGNED, "n": SIZE},
    "ScaleByAdemamixState": {"nu": SIZE},
    "ScaleByAmsgradState": {"mu": SIGNED, "nu": SIZE},
    "ScaleByBeliefState": {"mu": SIGNED, "nu": SIZE},
    "ScaleByLionState": {"mu": SIGNED},
    "ScaleByNovogradState": {"mu": SIGNED},
    "ScaleByRStdDevState": {},
    "ScaleByRStdDevWithCountState": {},
    "ScaleByRmsState": {"nu": SIZE},
    "ScaleByRmsWithCountState": {"nu": SIZE},
    "ScaleByRssState": {"sum_of_squares": SIZE},
    "ScaleBySM3State": {"nu": SIGNED},
    "ScaleBySimplifiedAdEMAMixState": {"m": SIGNED, "n": SIZE},
    "TraceState": {"trace": SIGNED},
    # optax.contrib
    "MechanicState": {},
    "MuonState": {"mu": SIGNED},
    "SophiaState": {"mu": SIGNED},
}
_ROOM = 290  # characters of a message, with its end below 300
_USUAL = frozenset(field for roles in ROLES.values() for field in roles)

Path = tuple[KeyEntry, ...]
Predicate = Callable[[str, Any], str | None]


class Location(NamedTuple):
    """Where a leaf of a state stands, and which parameter it belongs to."""

    path: str  # as jax.tree_util.keystr writes it
    state_class: str | None  # that of the innermost state around it: ScaleByAdamState
    field: str | None  # of that class, such as mu
    parameter: tuple[str, ...]  # the names on the way to the leaf's parameter
    like: Any  # the parameter, where the leaf has its shape; else None


class Parameters:
    """The parameters of a model, or a tree like them, by their paths."""

    def __init__(self, params: Any) -> None:
        leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_box)
        self._leaves: dict[Path, tuple[int, Any]] = {
            path: (number, leaf) for number, (path, leaf) in enumerate(leaves)
        }

    def __len__(self) -> int:
        return len(self._leaves)

    def owner(self, path: Path) -> Path | None:
        """The parameter that a leaf belongs to: the longest end of its path that is one's."""
        ends = (path[start:] for start in range(len(path) + 1))
        return next((end for end in ends if end in self._leaves), None)

    def number(self, path: Path) -> int | None:
        """The number of the parameter that a leaf belongs to."""
        owner = self.owner(path)
        return None if owner is None else self._leaves[owner][0]

    def fields(self, path: Path) -> list[int]:
        """The indices of the keys in a leaf's path that are fields of states."""
        way = path[: len(path) - len(self.owner(path) or ())]
        return [at for at, key in enumerate(way) if isinstance(key, GetAttrKey)]

    def locate(self, path: Path, shape: tuple[int, ...], state: optax.OptState) -> Location:
        """Tells a leaf's field from the names inside of the parameters.

        A moment's path is its field's, and then its parameter's, which is cut off, so that
        a parameter called `mu` is no moment.
        """
        owner = self.owner(path)
        start = len(path) - len(owner or ())
        fields = self.fields(path)
        state_class = _at(state, path[: fields[-1]]) if fields else None
        parameter = None if owner is None else self._leaves[owner][1]
        follows = owner is not None and jnp.shape(unboxed(parameter)) == shape
        return Location(
            keystr(path),
            None if state_class is None else type(state_class).__name__,
            path[fields[-1]].name if fields else None,
            (*map(_name, path[start:]), *_names_inside(parameter)),
            parameter if follows else None,
        )


def names_in(params: Any) -> set[str]:
    """All names on the way to parameters, also to those that a mask hides."""

    def is_end(node: Any) -> bool:
        return node is None or isinstance(node, optax.MaskedNode) or is_box(node)

    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_end)
    found = {_name(key) for path, _ in leaves for key in path}
    return found.union(*(_names_inside(leaf) for _, leaf in leaves))


def _names_inside(box: Any) -> list[str]:
    """The names from a box to its array, of a module of one array; flax's own have none."""
    if not is_box(box) or hasattr(box, "unbox") or hasattr(box, "get_metadata"):
        return []
    ((path, _),) = jax.tree_util.tree_leaves_with_path(box)
    return [_name(key) for key in path]


def fields_in(state: optax.OptState, params: Any) -> set[str]:
    """The fields of all states that hold numbers that may be rounded."""
    parameters = Parameters(params)
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=is_box)
    return {
        path[at].name
        for path, leaf in leaves
        if jnp.issubdtype(jnp.result_type(unboxed(leaf)), jnp.inexact)
        for at in parameters.fields(path)[-1:]
    }


def _at(state: Any, path: Path) -> Any:
    """The node of a state at the end of a path; None where a key is of no known kind."""
    for key in path:
        if isinstance(key, GetAttrKey):
            state = getattr(state, key.name, None)
        elif isinstance(key, SequenceKey):
            state = state[key.idx]
        elif isinstance(key, DictKey):
            state = state[key.key]
        else:
            return None
    return state


def _name(key: KeyEntry) -> str:
    return keystr((key,), simple=True)


class Choice(NamedTuple):
    """What the user asked for."""

    codecs: Mapping[str, str] | Predicate  # by field
    of_roles: Mapping[str, str]  # of fields that have none there
    keep: frozenset[str]
    min_size: int

    def wanted(self, location: Location, leaf: jax.ShapeDtypeStruct) -> Codec | None:
        """The codec for a leaf of this shape, however long its rows are; None for float32."""
        return self._codec(location, leaf) if leaf.dtype in WIDE else None

    def left_alone(self, location: Location, leaf: jax.ShapeDtypeStruct) -> str | None:
        """Why a leaf stays as it is that would else be encoded; None for all others."""
        if self._is_small(location, leaf):
            return None
        if leaf.dtype not in WIDE:
            return f"{leaf.dtype}" if self._codec(location, leaf) else None
        known = callable(self.codecs) or location.field in self.codecs
        if known or location.field not in _USUAL or location.state_class in ROLES:
            return None
        return f"of the unknown {location.state_class}"

    def _is_small(self, location: Location, leaf: jax.ShapeDtypeStruct) -> bool:
        return leaf.size < self.min_size or not self.keep.isdisjoint(location.parameter)

    def _codec(self, location: Location, leaf: jax.ShapeDtypeStruct) -> Codec | None:
        if self._is_small(location, leaf):
            return None
        role = ROLES.get(location.state_class or "", {}).get(location.field or "")
        if callable(self.codecs):
            name = self.codecs(location.path, jax.ShapeDtypeStruct(leaf.shape, jnp.float32))
        else:
            name = self.codecs.get(location.field or "") or self.of_roles.get(role or "")
        return codec_of(FULL if name is None else name, location.field, role)

    def rows(
        self, codec: Codec, location: Location, leaf: jax.ShapeDtypeStruct
    ) -> Rows | None:
        """The rows of a leaf; None where they are too short, and it stays float32."""
        if not codec.has_ranges:
            return Rows()

        def shards(axis: int) -> int:
            return 1 if location.like is None else shards_of(location.like, axis)

        found, entries = Rows(shards(-1)), leaf.shape[-1] if leaf.shape else 0
        while (
            found.shards == 1
            and entries < _SHORT_ROW
            and found.axes < len(leaf.shape)
            and shards(-1 - found.axes) == 1
        ):
            entries *= leaf.shape[-1 - found.axes]
            found = Rows(1, found.axes + 1)
        return found if entries // found.shards >= LEAST_ROW else None

    def may_be_too_short(self, codec: Codec, leaf: jax.ShapeDtypeStruct) -> bool:
        """Whether a leaf may have stayed float32 by its rows, whatever its sharding."""
        shortest = leaf.shape[-1] // jax.device_count() if leaf.shape else 0
        return codec.has_ranges and shortest < LEAST_ROW

    def is_unused(self, location: Location, leaf: jax.ShapeDtypeStruct) -> bool:
        """Whether a leaf might be a moment that codecs could name, and that they do not."""
        return (
            location.field is not None
            and location.like is not None
            and not self._is_small(location, leaf)
            and leaf.dtype in WIDE
        )

    @property
    def is_default(self) -> bool:
        """Whether the user left it to the states what is encoded."""
        return (
            not callable(self.codecs)
            and not self.codecs
            and FULL not in self.of_roles.values()
        )

    def check_names(self, state: optax.OptState, params: Any) -> None:
        """Raises ValueError for names in keep and fields in codecs that match nothing."""
        if not jax.tree.leaves(params):
            return
        for argument, names, found, what in (
            ("keep", self.keep, names_in(params), "parameter"),
            ("codecs", self._named(), fields_in(state, params), "field of this state"),
        ):
            for name in sorted(names - found, key=str):
                problem = f"{argument} has {short(name)}, the name of no {what}"
                raise ValueError(_choosing(problem, sorted(found)))

    def _named(self) -> frozenset[str]:
        return frozenset() if callable(self.codecs) else frozenset(self.codecs)


def make_choice(
    codecs: Mapping[str, str] | Predicate | str | None,
    keep: Sequence[str],
    min_size: int,
) -> Choice:
    """The choice of these arguments; raises ValueError for one that is not usable."""
    if isinstance(keep, str):
        raise ValueError(f"keep is {short(keep)}, one string; pass a sequence of names.")
    if not isinstance(keep, Iterable):
        raise ValueError(f"keep is {short(keep)}; pass a sequence of names.")
    keep = tuple(keep)
    for name in keep:
        if not isinstance(name, str):
            raise ValueError(f"keep has {short(name)}, which is no name; pass strings.")
    whole = isinstance(min_size, int | np.integer) and not isinstance(min_size, bool)
    if not whole or min_size < 0:
        raise ValueError(f"min_size is {short(min_size)}; pass a whole number, 0 or more.")
    of_roles = DEFAULTS
    if isinstance(codecs, str):
        if codecs not in (FULL, *CODECS):
            raise ValueError(_choosing(f"codecs is {short(codecs)}", (FULL, *CODECS)))
        if codecs not in DEFAULTS.values():  # either name of these two stands for both
            of_roles = dict.fromkeys(DEFAULTS, codecs)
        codecs = {}
    elif codecs is None or isinstance(codecs, Mapping):
        codecs = dict(codecs or {})
        for field, name in codecs.items():
            codec_of(name, field, None)
    elif isinstance(codecs, type) or not callable(codecs):  # a class of numbers is callable
        raise ValueError(
            f"codecs is {short(codecs)}, a {type(codecs).__name__}; pass a codec's name, a "
            "mapping (field -> codec) or a function (path, shape -> codec)."
        )
    return Choice(codecs, of_roles, frozenset(keep), int(min_size))


def seed_of(seed: Any) -> jax.Array | np.uint32:
    """A seed as uint32; raises ValueError for what is no whole number of 32 bits."""
    if isinstance(seed, jax.Array):
        if jnp.issubdtype(seed.dtype, jnp.integer) and seed.shape == ():
            return seed.astype(jnp.uint32)
    elif isinstance(seed, int | np.integer | np.ndarray) and not isinstance(seed, bool):
        array = np.asarray(seed)
        whole = np.issubdtype(array.dtype, np.integer) and array.shape == ()
        if whole and -(2**31) <= array < 2**32:
            return np.uint32(int(array) % 2**32)  # no array yet: that would start the backend
    raise ValueError(f"seed is {short(seed)}; pass a whole number of 32 bits.")


def codec_of(name: object, field: str | None, role: str | None) -> Codec | None:
    """A codec by its name; raises ValueError where it is none, or none for the field."""
    if name == FULL:
        return None
    codec = CODECS.get(name) if isinstance(name, str) else None
    if codec is None:
        problem = f"codecs gives {cut(str(field))} {short(name)}"
        raise ValueError(_choosing(problem, (FULL, *CODECS)))
    if codec.sizes and role == SIGNED:
        raise ValueError(
            f"codecs gives {field} {name!r}, which has nothing below 0; pass a signed one."
        )
    if codec.has_ranges and not codec.sizes and role == SIZE:
        raise ValueError(
            f"codecs gives {field} {name!r}, which rounds small denominators to 0; pass "
            "'uint8'."
        )
    return codec


def _choosing(problem: str, names: Sequence[str]) -> str:
    """A message about a wrong name, with as many of the right ones as fit."""
    start = f"{problem}; choose from "
    shown = [short(name) for name in names[:32]]
    while len(start) + len(", ".join(shown)) > _ROOM:
        shown.pop()
    if not names:
        return f"{problem}; there is none to choose from."
    return start + ", ".join(shown) + ("." if len(shown) == len(names) else ", ....")


def shards_of(parameter: Any, axis: int = -1) -> int:
    """Over how many devices an axis of a parameter is, or will be, divided.

    Args:
      parameter: an array or a description of one, or a box around either. Where its sharding
        is not known, as inside of jit on an Auto mesh, the box's names of axes tell: by the
        box's mesh or the one that is set, else over all devices.
      axis: counted from the end, -1 for the last.
    """
    array = unboxed(parameter)
    shape = jnp.shape(array)
    if not shape:
        return 1
    traced = isinstance(array, jax.core.Tracer)
    sharding = jax.typeof(array).sharding if traced else getattr(array, "sharding", None)
    if isinstance(sharding, NamedSharding):
        spec = tuple(sharding.spec)
        known = _size(_meshed(spec, len(shape) + axis), sharding.mesh)
    elif sharding is None or not shape[axis]:
        known = 1
    else:
        known = shape[axis] // sharding.shard_shape(shape)[axis]
    if known > 1:
        return known
    names = _meshed(axis_names(parameter), len(shape) + axis)
    for mesh in (getattr(parameter, "mesh", None), jax.sharding.get_abstract_mesh()):
        if mesh is not None and set(names) <= set(mesh.shape):
            return math.gcd(shape[axis], _size(names, mesh))
    # No mesh has these names: as many devices as have a share each.
    shards = math.gcd(shape[axis], jax.device_count())
    while shards > 1 and shape[axis] // shards < _SHARE:
        shards = next(n for n in range(shards - 1, 0, -1) if shards % n == 0)
    return shards


def _meshed(spec: tuple[Any, ...], axis: int) -> tuple[str, ...]:
    """The mesh axes that an axis of an array is divided over."""
    entry = spec[axis] if len(spec) > axis else None
    entries = entry if isinstance(entry, tuple) else (entry,)
    return tuple(name for name in entries if isinstance(name, str))


def _size(names: tuple[str, ...], mesh: Any) -> int:
    return math.prod(mesh.shape[name] for name in names)
