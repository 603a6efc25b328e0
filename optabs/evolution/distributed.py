"""Several processes as one machine: `jax.distributed`, with its refusals in a sentence."""

import os
import socket
import time

import jax

from optabs._checks import short

ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


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
    if isinstance(timeout, bool) or not 0 < timeout < 2**31:
        raise ValueError(f"timeout is {short(timeout)}; pass a number of seconds above 0.")
    address = os.environ.get(ADDRESS) if coordinator_address is None else coordinator_address
    count = _from_environment(COUNT) if num_processes is None else num_processes
    number = _from_environment(NUMBER) if process_id is None else process_id
    if count is None and number is None:
        _from_cluster(address, timeout)
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
        initialization_timeout=max(1, round(timeout)),
    )


def _from_environment(name: str) -> int | None:
    value = os.environ.get(name)
    if value is None:
        return None
    if not value.isdecimal():
        raise ValueError(f"{name} is {short(value)}; set it to a whole number.")
    return int(value)


def _from_cluster(address: str | None, timeout: float) -> None:
    seconds = max(1, round(timeout))
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
            socket.create_connection((host, port), timeout=5),
        ):
            pass
    except OSError as error:
        raise ConnectionError(
            f"coordinator_address is {short(address)}, where process 0 cannot listen "
            f"({error.strerror or error}); pass its own host and a free port."
        ) from None


def _wait_for(address: str | None, host: str, port: int, timeout: float) -> None:
    until = time.monotonic() + timeout
    while True:
        left = until - time.monotonic()
        try:
            socket.create_connection((host, port), timeout=max(left, 0.1)).close()
            return
        except OSError as error:
            if isinstance(error, socket.gaierror) or left <= 0:
                raise ConnectionError(
                    f"coordinator_address is {short(address)}, where nobody answers "
                    f"({error.strerror or error}; timeout is {timeout:g} seconds); start "
                    "process 0 there, or pass the address where it listens."
                ) from None
        time.sleep(0.1)
