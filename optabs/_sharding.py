"""Where an array lies, as far as the program has to say it."""

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def explicit_sharding(array: jax.Array) -> NamedSharding | None:
    """The sharding of an array on an Explicit mesh; None where the compiler sees to it."""
    sharding: NamedSharding = jax.typeof(array).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def leading_sharding(array: jax.Array, axes: int) -> NamedSharding | None:
    """That of an array with the same first axes, and others that are not sharded."""
    sharding = explicit_sharding(array)
    if sharding is None:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:axes]))
