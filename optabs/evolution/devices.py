"""Where the units are: on one device, or over the mesh of one process or of many."""

import os
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from optabs._checks import short

ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_RETRY_SECONDS = 0.1  # short beside the seconds that a process takes to start


class Layout(NamedTuple):
    """The population axis on a mesh; without one, on one device."""

    mesh: Mesh | None = None
    axis: str = "population"

    @property
    def devices(self) -> int:
        """Over how many devices the units are sharded."""
        return 1 if self.mesh is None else self.mesh.shape[self.axis]

    def shard_map(self, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """A function (units, replicated) -> (units, replicated), run by every device.

        Its units are those of the device. Inside of it, nothing but `all_gather`, `select`
        and `mean` communicates.
        """
        if self.mesh is None:
            return function
        specs = (PartitionSpec(self.axis), PartitionSpec())
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=specs, out_specs=specs, check_vma=False
        )

    def all_gather(self, units: Any) -> Any:
        """The units of all devices, in order, on each of them."""
        if self.mesh is None:
            return units
        return jax.lax.all_gather(units, self.axis, tiled=True)

    def select(self, units: Any, index: jax.Array) -> Any:
        """One unit of all devices, on each of them."""

        def select_leaf(leaf: jax.Array) -> jax.Array:
            if self.mesh is None:
                return leaf[index]
            size = leaf.shape[0]
            return jax.lax.all_gather(leaf[index % size], self.axis)[index // size]

        return jax.tree.map(select_leaf, units)

    def local_shard(self, replicated: Any) -> Any:
        """This device's rows of replicated arrays."""
        if self.mesh is None:
            return replicated

        def shard(leaf: jax.Array) -> jax.Array:
            size = leaf.shape[0] // self.devices
            start = jax.lax.axis_index(self.axis) * size
            return jax.lax.dynamic_slice_in_dim(leaf, start, size)

        return jax.tree.map(shard, replicated)

    def mean(self, units: Any) -> Any:
        """The mean over all units, [1, ...]."""

        def local_mean(leaf: jax.Array) -> jax.Array:
            # XLA:CPU takes 30 times as long for a sum over the first axis.
            ones = jnp.ones(leaf.shape[0], leaf.dtype)
            return jnp.tensordot(ones, leaf, 1, precision="highest")[None] / leaf.shape[0]

        means = jax.tree.map(local_mean, units)
        return means if self.mesh is None else jax.lax.pmean(means, self.axis)

    def replicated(self, tree: Any) -> Any:
        """The arrays, replicated on every device of the mesh and of every process."""
        return self._device_put(tree, PartitionSpec())

    def sharded(self, tree: Any) -> Any:
        """The arrays, with their rows on the devices of their units."""
        return self._device_put(tree, PartitionSpec(self.axis))

    def replicated_like(self, tree: Any) -> Any:
        """Shapes, dtypes and shardings to restore a checkpoint with: all replicated.

        So every process reads every file, and finds the same ones damaged.
        """
        if self.mesh is None:
            return tree
        replicated = NamedSharding(self.mesh, PartitionSpec())

        def shape(leaf: jax.Array) -> Any:
            if not leaf.size or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return leaf
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated)

        return jax.tree.map(shape, tree)

    def _device_put(self, tree: Any, spec: PartitionSpec) -> Any:
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, spec)

        def put(leaf: Any) -> jax.Array:
            if isinstance(leaf, jax.core.Tracer):
                return leaf
            leaf = leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
            present = leaf.sharding
            same_mesh = isinstance(present, NamedSharding) and present.mesh == sharding.mesh
            if same_mesh and present.is_equivalent_to(sharding, leaf.ndim):
                return leaf
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                data, impl = jax.random.key_data(leaf), jax.random.key_impl(leaf)
                return jax.random.wrap_key_data(put(data), impl=impl)
            host = np.asarray(leaf)
            # Every process has all of the array, and gives its devices their shards of it.
            return jax.make_array_from_callback(host.shape, sharding, lambda i: host[i])

        return jax.tree.map(put, tree)


def connect(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = 60.0,
) -> None:
    """Joins this process with others, so that `jax.devices()` has those of all of them.

    It is `jax.distributed.initialize`, which ends the process where the coordinator cannot be
    reached; here that is an exception. To be called by every process, before anything else of
    jax. Without arguments it reads the environment: JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID where they are set; elsewhere jax asks the cluster
    (a TPU pod, SLURM, Open MPI, Kubernetes), so one script starts everywhere::

        optabs.connect()
        mesh = jax.make_mesh((jax.device_count(),), ("population",))
        learner = optabs.gadam(optabs.adam(1e-3), population_size=64, mesh=mesh)

    as `srun python train.py` on a cluster, or on a TPU pod `gcloud compute tpus tpu-vm ssh
    NAME --worker=all --command="python train.py"`. All processes make the same calls with
    the same arguments, and get the same result. Where one of them dies, the others wait for
    it in the next evolution, and jax ends them after 100 seconds: whoever started them does
    better to stop them, and to start all again with the same `checkpoint_dir`.

    Args:
      coordinator_address: "host:port" of process 0, reachable by all.
      num_processes: how many there are.
      process_id: this one's number, from 0.
      timeout: in seconds, how long to wait for the coordinator and for the others.

    Raises:
      ValueError: for an argument that cannot be used, or none where jax finds no cluster.
      ConnectionError: where nobody answers at the address in time; in process 0, where it
        cannot listen there.
    """
    # jax takes whole seconds, at least 1, as an int of 32 bits.
    if isinstance(timeout, bool) or not 0 < timeout < 2**31:
        raise ValueError(f"timeout is {short(timeout)}; pass a number of seconds above 0.")
    address = os.environ.get(ADDRESS) if coordinator_address is None else coordinator_address
    seconds = max(1, round(timeout))
    count = _from_environment(COUNT) if num_processes is None else num_processes
    number = _from_environment(NUMBER) if process_id is None else process_id
    if count is None and number is None:
        _from_cluster(address, seconds)
        return
    host, port = _split(address)
    _check_numbers(count, number)
    if number == 0:
        _check_free(address, host, port)
    else:
        _wait_for(address, host, port, timeout)
    jax.distributed.initialize(
        address,
        count,
        number,
        cluster_detection_method="deactivate",
        initialization_timeout=seconds,
    )


def _from_environment(name: str) -> int | None:
    value = os.environ.get(name)
    if value is None:
        return None
    if not value.isdecimal():
        raise ValueError(f"{name} is {short(value)}; set it to a whole number.")
    return int(value)


def _from_cluster(address: str | None, seconds: int) -> None:
    try:
        jax.distributed.initialize(address, initialization_timeout=seconds)
    except ValueError as error:
        raise ValueError(
            "num_processes and process_id are None, and jax finds no cluster here; pass "
            "coordinator_address, num_processes and process_id."
        ) from error


def _split(address: str | None) -> tuple[str, int]:
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(
            f"coordinator_address is {short(address)}; pass the host and port of process 0, "
            "such as '10.0.0.1:1234'."
        )
    return host.strip("[]"), int(port)


def _check_numbers(count: int | None, number: int | None) -> None:
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (count, number))
    if not whole or not 0 <= number < count:  # type: ignore[operator]
        raise ValueError(
            f"num_processes is {short(count)} and process_id is {short(number)}; pass whole "
            "numbers, process_id from 0 to num_processes - 1."
        )


def _check_free(address: str | None, host: str, port: int) -> None:
    try:
        with (
            socket.create_server(("", port)),
            # It answers at once: the 5 seconds are for a host that drops what is sent to it.
            socket.create_connection((host, port), timeout=5),
        ):
            pass
    except OSError as error:
        raise ConnectionError(
            f"coordinator_address is {short(address)}, where process 0 cannot listen "
            f"({error.strerror or error}); pass its own host and a free port."
        ) from None


def _wait_for(address: str | None, host: str, port: int, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        left = deadline - time.monotonic()
        try:
            # A timeout of 0 would make the socket one that does not block.
            left_positive = max(left, _RETRY_SECONDS)
            socket.create_connection((host, port), timeout=left_positive).close()
            return
        except OSError as error:
            if isinstance(error, socket.gaierror) or left <= 0:
                raise ConnectionError(
                    f"coordinator_address is {short(address)}, where nobody answers "
                    f"({error.strerror or error}; timeout is {timeout:g} seconds); start "
                    "process 0 there, or pass the address where it listens."
                ) from None
        time.sleep(_RETRY_SECONDS)
