"""A data set on the device, and the batches that an epoch takes from it."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from optabs._checks import cut, short
from optabs._numerics import explicit_sharding

Sampling = Literal["shuffle", "random"]
SAMPLINGS = get_args(Sampling)


def to_device(data: Any, name: str) -> Any:
    """The data with every array on the device, checked to have one row per instance."""
    arrays = jax.tree.map(lambda leaf: _to_array(leaf, name), data)
    check_rows(arrays, name)
    return arrays


def check_rows(arrays: Any, name: str) -> None:
    """Raises ValueError unless every array has one row per instance."""
    leaves = jax.tree.leaves(arrays)
    if not leaves:
        raise ValueError(
            f"{name} has no arrays; pass a pytree of arrays, such as (inputs, labels)."
        )
    lengths = [leaf.shape[0] if leaf.ndim else None for leaf in leaves]
    if None in lengths or len(set(lengths)) > 1:
        shapes = ", ".join(str(leaf.shape) for leaf in leaves)
        raise ValueError(
            f"{name} has arrays of shapes {cut(shapes)}; pass arrays whose first axes have "
            "one length, that of the instances (a list is a tree of its entries)."
        )
    if lengths[0] == 0:
        raise ValueError(f"{name} has 0 instances; pass at least one.")


def _to_array(leaf: Any, name: str) -> jax.Array:
    refuse_tracer(leaf)
    try:
        array = jnp.asarray(leaf)
    except TypeError:
        raise ValueError(
            f"{name} holds a {type(leaf).__name__} that is no array of numbers; pass a "
            "pytree of arrays, such as (inputs, labels)."
        ) from None
    integers = isinstance(leaf, np.ndarray) and leaf.dtype.kind in "iu" and leaf.size
    if integers and leaf.dtype != array.dtype:
        limits = np.iinfo(array.dtype)
        for value in (leaf.min(), leaf.max()):
            if not limits.min <= value <= limits.max:
                raise ValueError(
                    f"{name} holds {value}, which {array.dtype} cannot; pass smaller "
                    "numbers, or turn on jax_enable_x64."
                )
    return array


def refuse_tracer(leaf: Any) -> None:
    """Raises for a tracer: `fit` reads a clock, and compiles by itself."""
    if isinstance(leaf, jax.core.Tracer):
        raise ValueError(
            "fit is called inside a jax transformation (jit, grad, vmap or scan); call it "
            "outside of them."
        )


def num_instances(data: Any) -> int:
    """The number of instances, the length of every first axis."""
    return jax.tree.leaves(data)[0].shape[0]


def check_batch_size(batch_size: int | None, count: int, name: str = "batch_size") -> None:
    """Raises ValueError unless a batch can be taken from `count` instances."""
    whole = isinstance(batch_size, int | np.integer) and not isinstance(batch_size, bool)
    if batch_size is not None and not (whole and 1 <= batch_size <= count):
        raise ValueError(
            f"{name} is {short(batch_size)}; pass None for the whole set, or a whole number "
            f"from 1 to its {count} instances."
        )


def split_epoch(count: int, batch_size: int | None, sampling: Sampling) -> tuple[int, int]:
    """How many full batches an epoch has, and the instances of its short one (0 for none).

    A random epoch has as many batches as a shuffled one, all of them full.
    """
    size = count if batch_size is None else batch_size
    full, short = divmod(count, size)
    if sampling == "random" and short:
        return full + 1, 0
    return full, short


def rows_of_epoch(
    key: jax.Array, epoch: jax.Array, count: int, size: int, sampling: Sampling
) -> jax.Array:
    """The instances that an epoch visits, in order, int32 [rows].

    Shuffled, each of the `count` instances once; random, draws with replacement.
    """
    key = jax.random.fold_in(key, epoch)
    if sampling == "shuffle":
        return jax.random.permutation(key, count)
    full, _ = split_epoch(count, size, sampling)
    return jax.random.randint(key, (full * size,), 0, count)


def batch_struct(data: Any, batch_size: int | None) -> Any:
    """Shapes, dtypes and shardings of a full batch."""

    def struct(leaf: jax.Array) -> jax.ShapeDtypeStruct:
        size = leaf.shape[0] if batch_size is None else batch_size
        shape = (size, *leaf.shape[1:])
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=_sharding(leaf, size))

    return jax.tree.map(struct, data)


def take(data: Any, rows: jax.Array) -> Any:
    """The instances of a batch; on an explicit mesh they keep the sharding of the set."""
    return jax.tree.map(lambda leaf: _take(leaf, rows), data)


def _take(leaf: jax.Array, rows: jax.Array) -> jax.Array:
    return leaf.at[rows].get(
        mode="promise_in_bounds", out_sharding=_sharding(leaf, rows.shape[0])
    )


def _sharding(leaf: jax.Array, size: int) -> NamedSharding | None:
    sharding = explicit_sharding(leaf)
    if sharding is None:
        return None
    first, *others = sharding.spec
    axes = (first,) if isinstance(first, str) else tuple(first or ())
    parts = int(np.prod([sharding.mesh.shape[axis] for axis in axes]))
    kept = first if size % parts == 0 else None
    return NamedSharding(sharding.mesh, PartitionSpec(kept, *others))
