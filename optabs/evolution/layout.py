"""Where the units are: all on one device, or a share of them on every device of a mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Layout(NamedTuple):
    """The population axis on a mesh; without one, on one device."""

    mesh: Mesh | None = None
    axis: str = "population"

    @property
    def devices(self) -> int:
        """Over how many devices the units are spread."""
        return 1 if self.mesh is None else self.mesh.shape[self.axis]

    def spread(self, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """A function (units, shared) -> (units, shared), run by every device on its units.

        Inside of it, nothing but `everyone`, `unit` and `mean` communicates.
        """
        if self.mesh is None:
            return function
        specs = (PartitionSpec(self.axis), PartitionSpec())
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=specs, out_specs=specs, check_vma=False
        )

    def everyone(self, units: Any) -> Any:
        """The units of all devices, in order, on each of them."""
        if self.mesh is None:
            return units
        return jax.lax.all_gather(units, self.axis, tiled=True)

    def unit(self, units: Any, index: jax.Array) -> Any:
        """One unit of all, on each device."""

        def pick(leaf: jax.Array) -> jax.Array:
            if self.mesh is None:
                return leaf[index]
            size = leaf.shape[0]
            return jax.lax.all_gather(leaf[index % size], self.axis)[index // size]

        return jax.tree.map(pick, units)

    def mine(self, everyone: Any) -> Any:
        """This device's share of an array that all have whole."""
        if self.mesh is None:
            return everyone

        def share(leaf: jax.Array) -> jax.Array:
            size = leaf.shape[0] // self.devices
            first = jax.lax.axis_index(self.axis) * size
            return jax.lax.dynamic_slice_in_dim(leaf, first, size)

        return jax.tree.map(share, everyone)

    def mean(self, units: Any) -> Any:
        """The mean over all units, [1, ...]."""

        def own(leaf: jax.Array) -> jax.Array:
            # XLA:CPU takes 30 times as long for a sum over the first axis.
            ones = jnp.ones(leaf.shape[0], leaf.dtype)
            return jnp.tensordot(ones, leaf, 1, precision="highest")[None] / leaf.shape[0]

        means = jax.tree.map(own, units)
        return means if self.mesh is None else jax.lax.pmean(means, self.axis)

    def replicated(self, tree: Any) -> Any:
        """The arrays, whole on every device of the mesh and of every process."""
        return self._placed(tree, PartitionSpec())

    def stacked(self, tree: Any) -> Any:
        """The arrays, with their rows on the devices of their units."""
        return self._placed(tree, PartitionSpec(self.axis))

    def whole(self, tree: Any) -> Any:
        """What to read a checkpoint like: each array whole on every device.

        So every process reads every file, and finds the same ones damaged.
        """
        if self.mesh is None:
            return tree
        everywhere = NamedSharding(self.mesh, PartitionSpec())

        def shape(leaf: jax.Array) -> Any:
            if not leaf.size or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return leaf
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)

        return jax.tree.map(shape, tree)

    def _placed(self, tree: Any, spec: PartitionSpec) -> Any:
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, spec)

        def place(leaf: Any) -> jax.Array:
            if isinstance(leaf, jax.core.Tracer):
                return leaf
            leaf = leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
            here = leaf.sharding
            there = isinstance(here, NamedSharding) and here.mesh == sharding.mesh
            if there and here.is_equivalent_to(sharding, leaf.ndim):
                return leaf
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                data, impl = jax.random.key_data(leaf), jax.random.key_impl(leaf)
                return jax.random.wrap_key_data(place(data), impl=impl)
            whole = np.asarray(leaf)
            # Every process has the whole array, and gives its devices their parts of it.
            return jax.make_array_from_callback(
                whole.shape, sharding, lambda part: whole[part]
            )

        return jax.tree.map(place, tree)
