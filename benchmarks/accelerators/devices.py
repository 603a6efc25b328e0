"""What is compiled for: an H100 and a TPU v5e that are only described, and this CPU."""

import functools
import importlib.metadata
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import typer
from jax.experimental import topologies

from benchmarks.lab.arguments import ArgumentError, some_of

LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# What XLA's own description of this card states.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_core_limit: 2048 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 7 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Device(NamedTuple):
    """What is compiled for, and the packages that do so, the compiler first."""

    title: str
    platform: str
    packages: tuple[str, ...]
    described: Callable[[], Sequence[Any]]  # as many as the mesh has
    mesh: str = ""
    options: Mapping[str, Any] = {}

    @property
    def compiler(self) -> str:
        """Its name and version."""
        return f"{self.packages[0]} {importlib.metadata.version(self.packages[0])}"

    @property
    def lacks(self) -> list[str]:
        """The packages that are not installed."""
        return [each for each in self.packages if not installed(each)]

    def compile(self, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
        """The program of a step."""
        return lowered.compile(compiler_options=dict(self.options))


def installed(package: str) -> bool:
    """Whether a package is there."""
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


@functools.cache
def _gpus() -> Sequence[Any]:
    described = {"target_config": H100, "topology": "1x8x1"}
    return topologies.get_topology_desc("h100", "cuda", **described).devices


@functools.cache
def _tpus() -> Sequence[Any]:
    # Else libtpu asks the network which machine this is, and lets one process in.
    for name, value in LIBTPU.items():
        os.environ.setdefault(name, value)
    return topologies.get_topology_desc("v5e:2x2", "tpu").devices


DEVICES: Mapping[str, Device] = {
    "h100": Device(
        "an H100 (not run on one)", "cuda", ("jax-cuda13-plugin", "nvidia-cuda-nvcc"), _gpus,
        "1x8x1", {"xla_gpu_autotune_level": 0},  # which would time kernels on the device
    ),
    "v5e": Device("a TPU v5e (not run on one)", "tpu", ("libtpu",), _tpus, "v5e:2x2"),
    "cpu": Device("this CPU (not run)", "cpu", ("jaxlib",), lambda: jax.devices("cpu")[:1]),
}  # fmt: skip


def devices_of(asked: str) -> list[str]:
    """The devices of a list whose compilers are there; one that is named has to be."""
    names = some_of(asked, "devices", DEVICES)
    lacks = {name: device.lacks for name, device in DEVICES.items()}
    if needed := list(itertools.chain(*(lacks[name] for name in names))):
        sentence = (
            f"devices {', '.join(name for name in names if lacks[name])} need "
            f"{', '.join(needed)}; call `make accelerators` or install optabs[accelerators]; "
            f"what is left: {', '.join(name for name in lacks if not lacks[name])}."
        )
        if asked not in ("", "all"):
            raise ArgumentError(sentence)
        typer.echo(sentence)
    return [name for name in names if not lacks[name]]
