"""Kernels, bytes and collectives of a step compiled for an H100, a TPU v5e and this CPU.

XLA compiles ahead of time for a device that is only described: nothing runs on it, but the
program is the one that would.
"""

import collections
import functools
import importlib.metadata
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import optabs
from benchmarks.lab import report
from benchmarks.lab.arguments import (
    ArgumentError,
    OutOption,
    QuickOption,
    ReportOption,
    some_of,
)
from benchmarks.lab.hlo import collectives_of, kernels_of
from benchmarks.lab.models import RESNETS, resnet
from benchmarks.lab.records import Key, Records, opened, rounded
from benchmarks.lab.study import Unit, run_units
from benchmarks.lab.timing import tree_bytes

RATE = 1e-3
LARGE = 1e-3  # of all bytes: what moves less is a kernel of a few numbers

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

ROWS: Mapping[str, Callable[[], optax.GradientTransformation]] = {
    "optax.adam": lambda: optax.adam(RATE),
    "optax.lion": lambda: optax.lion(RATE),
    "optax.rmsprop": lambda: optax.rmsprop(RATE),
    "sgd": lambda: optabs.sgd(RATE),
    "adam": lambda: optabs.adam(RATE),
    "rmsprop": lambda: optabs.rmsprop(RATE),
    "dao_e": lambda: optabs.dao_e(RATE),
    "dao_e_bfloat16": lambda: optabs.dao_e(RATE, previous="bfloat16"),
    "dao_e_uniform": lambda: optabs.dao_e(RATE, controller=optabs.Controller.uniform()),
    "steered_adam": lambda: optabs.steered(optabs.adam(RATE)),
}


def _resnet18() -> Any:
    net = resnet(RESNETS["resnet18"], channels=3, classes=10)
    return jax.eval_shape(net.init, jax.random.key(0))[0]


TREES: Mapping[str, Callable[[], Any]] = {  # the parameters' shapes
    "4096x4096": lambda: {"w": jax.ShapeDtypeStruct((4096, 4096), jnp.float32)},
    "resnet18": _resnet18,
}


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


def command(
    rows: Annotated[str, typer.Option(help=f"all, or some of {', '.join(ROWS)}")] = "all",
    devices: Annotated[
        str,
        typer.Option(help=f"all that can be compiled for, or some of {', '.join(DEVICES)}"),
    ] = "all",
    quick: QuickOption = False,
    only_report: ReportOption = False,
    out: OutOption = None,
) -> None:
    """What one step costs, compiled for an H100, a TPU v5e and this CPU, not run on them.

    A step is `update` and `optax.apply_updates` in one program, with donated parameters and
    state. `make accelerators` installs the compilers; without them the CPU is left.
    """
    chosen, trees = some_of(rows, "rows", ROWS), list(TREES)
    chosen, trees = (each[: 1 if quick else None] for each in (chosen, trees))
    found = [] if only_report else devices_of(devices)
    records = opened("accelerators", out, only_report=only_report, quick=quick)
    jax.config.update("jax_platforms", "cpu")  # nothing runs elsewhere
    run_units([unit_of(*each) for each in itertools.product(trees, chosen, found)], records)
    report.write(records.folder, TITLE, list(sections(records)))


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


def unit_of(tree: str, row: str, device: str) -> Unit:
    """One record: a row at a tree of parameters, for a device."""
    key, config = Key(tree, row, device), {"compiler": DEVICES[device].compiler}
    return Unit((key,), config, lambda missing, done: [(key, measure(tree, row, device))])


def measure(tree: str, row: str, device: str) -> dict[str, Any]:
    """What the compiled step costs, bytes for each parameter."""
    params, optimizer, target = TREES[tree](), ROWS[row](), DEVICES[device]
    entries = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    least = 3 * tree_bytes(params) + 2 * tree_bytes(jax.eval_shape(optimizer.init, params))
    lowered = lower(optimizer, params, target, 1)
    started = time.perf_counter()
    compiled = target.compile(lowered)
    seconds, memory = time.perf_counter() - started, compiled.memory_analysis()
    assert memory is not None
    found = kernels_of(compiled.as_text() or "")
    moved = sum(each.moved for each in found)
    result = {
        "kernels": dict(collections.Counter(each.opcode for each in found)),
        "large_kernels": sum(each.moved >= LARGE * moved for each in found),
        "bytes": rounded(moved / entries),
        "least_bytes": rounded(least / entries),
        "temporary_bytes": rounded(memory.temp_size_in_bytes / entries),
        "seconds": rounded(seconds),
    }
    if target.mesh:
        spread = lower(optimizer, params, target, len(target.described()))
        result["collectives"] = collectives_of(target.compile(spread).as_text() or "")
    return result


def lower(
    optimizer: optax.GradientTransformation, params: Any, target: Device, count: int
) -> jax.stages.Lowered:
    """A step on so many devices, each with its share of every array that can be divided."""
    devices = np.array(target.described()[:count])
    # Explicit axes tell `init` how the parameters lie, so that the state lies like them.
    mesh = Mesh(devices, ("data",), axis_types=(AxisType.Explicit,))
    update = optax.with_extra_args_support(optimizer).update

    def step(grads: Any, params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def placed(leaf: Any) -> Any:
        # Along the first axis of which every device can have eight entries.
        shared = [n % count == 0 and n >= 8 * count > 8 for n in leaf.shape]
        spec = [None] * shared.index(True) + ["data"] if any(shared) else []
        own = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=own)

    with jax.set_mesh(mesh):
        given = jax.tree.map(placed, params)
        state = jax.eval_shape(optimizer.init, given)
        # Results in the order of what is donated, or XLA copies to repair it.
        traced = jax.jit(step, donate_argnums=(1, 2)).trace(given, given, state)
        return traced.lower(lowering_platforms=(target.platform,))


TITLE = "A step, compiled for accelerators and not run on them"
NOTE = f"""\
**Compiled for, not run on.** XLA compiled one step, `update` and `optax.apply_updates` in one
program with donated parameters and state, for an H100 and a TPU v5e, which are described and
not there, and for a CPU.

- Kernels: fusions, copies, reductions, custom calls and what else passes over arrays; of a
  conditional, those of its larger branch. Large ones move at least {LARGE:g} of all bytes.
- Bytes a parameter: of the kernels' operands and results in the device's memory; the least
  there is, of state and parameters, read and written, and of the gradient; temporary memory.
- Seconds to compile, on the record's machine, which may have had other work.
- Collectives, on a mesh whose devices each have a share of every larger array, and the bytes
  that each of them receives.
"""


def _number(result: Mapping[str, Any]) -> str:
    copies = sum(count for code, count in result["kernels"].items() if "copy" in code)
    return f"{sum(result['kernels'].values())} ({copies})"


def _sent(result: Mapping[str, Any]) -> str:
    if "collectives" not in result:
        return "-"
    found = result["collectives"].items()
    return ", ".join(f"{count} {kind} ({size} B)" for kind, (count, size) in found) or "none"


COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "kernels (copies)": _number,
    "large": lambda result: str(result["large_kernels"]),
    "bytes": lambda result: f"{result['bytes']:.1f}",
    "least": lambda result: f"{result['least_bytes']:.1f}",
    "temporary": lambda result: f"{result['temporary_bytes']:.1f}",
    "seconds": lambda result: f"{result['seconds']:.1f}",
    "collectives": _sent,
}


def sections(records: Records) -> Iterator[report.Table | str]:
    """A note, and a table for each tree of parameters and device."""
    yield NOTE
    for tree, (name, device) in itertools.product(TREES, DEVICES.items()):
        found = {row: each for row in ROWS if (each := records.get(Key(tree, row, name)))}
        if found:
            compilers = sorted({each.config["compiler"] for each in found.values()})
            title = f"{tree}, compiled for {device.title} by {', '.join(compilers)}: "
            title += "kernels, bytes a parameter and seconds to compile"
            title += f"; collectives on {device.mesh}" if device.mesh else ""
            results = {row: each.result for row, each in found.items()}
            yield report.grid(title, "step", results, COLUMNS, lambda own, cell: cell(own))
