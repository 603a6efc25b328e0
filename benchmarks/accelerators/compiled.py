"""Kernels, bytes and collectives of a step that is compiled for a device, and not run."""

import collections
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import optabs
from benchmarks.accelerators.devices import DEVICES, Device
from benchmarks.accelerators.rows import ROWS, TREES, Stepper, in_halves
from benchmarks.lab import report
from benchmarks.lab.hlo import collectives_of, kernels_of
from benchmarks.lab.records import Key, Records, rounded
from benchmarks.lab.study import Unit
from benchmarks.lab.tasks import Split
from benchmarks.lab.timing import tree_bytes, tree_size
from benchmarks.timing.programs import ADAM, learned

LARGE = 1e-3  # of all bytes: what moves less is a kernel of a few numbers
SHARDED, DATA_PARALLEL = "collectives", "collectives_data_parallel"

# A population that learns, as those that are timed: MLP 784-64-10.
GADAM, POPULATION = "gadam", "population"
PIXELS, HIDDEN, IMAGES, UNITS_EACH = 784, 64, 4096, 4
PHASES = {"learn": "learning", "evolve": "an evolution"}


def lacking_of(rows: list[str]) -> dict[str, str]:
    """The rows of libraries that are not there, each with the package to install."""
    own = [row for row in rows if row in ROWS]
    return {row: lacks for row in own if (lacks := ROWS[row].lacks)}


def units_of(trees: list[str], rows: list[str], devices: list[str]) -> Iterator[Unit]:
    """One record each: a row at a tree for a device, and the population on its mesh."""
    for tree, row, name in itertools.product(trees, rows, devices):
        device = DEVICES[name]
        config = {"compiler": device.compiler}
        if row == GADAM:
            if device.mesh and tree == trees[0]:
                key = Key(POPULATION, GADAM, name)
                yield Unit((key,), config, lambda keys, _: [(keys[0], sent_by(keys[0]))])
        elif ROWS[row].device in ("", name) and (
            not ROWS[row].halves or in_halves(TREES[tree]())
        ):
            key = Key(tree, row, name)
            yield Unit((key,), config, lambda keys, _: [(keys[0], measure(keys[0]))])


def measure(key: Key) -> dict[str, Any]:
    """What a row costs at a tree for a device, bytes for each parameter."""
    params, row, device = TREES[key.task](), ROWS[key.arm], DEVICES[key.setting]
    entries = tree_size(params)
    least = 3 * tree_bytes(params) + 2 * tree_bytes(jax.eval_shape(row.make().init, params))
    compiled, seconds = _alone(key)
    memory, found = compiled.memory_analysis(), kernels_of(compiled.as_text() or "")
    assert memory is not None
    moved = sum(each.moved for each in found)
    result = {
        "kernels": dict(collections.Counter(each.opcode for each in found)),
        "large_kernels": sum(each.moved >= LARGE * moved for each in found),
        "bytes": rounded(moved / entries),
        "least_bytes": rounded(least / entries),
        "temporary_bytes": rounded(memory.temp_size_in_bytes / entries),
        "seconds": rounded(seconds),
    }
    if device.mesh and row.meshes:
        for name in (SHARDED, DATA_PARALLEL):
            count = len(device.described())
            lowered = lower(row.make(), params, device, count, shared=name == DATA_PARALLEL)
            result[name] = collectives_of(device.compile(lowered).as_text() or "")
    return result


def bytes_of(key: Key) -> float:
    """What the kernels of a row move for each parameter: of `measure`, the bytes alone."""
    found = kernels_of(_alone(key)[0].as_text() or "")
    return sum(each.moved for each in found) / tree_size(TREES[key.task]())


def _alone(key: Key) -> tuple[jax.stages.Compiled, float]:
    """A row's step on one device, and the seconds in which it was compiled."""
    device = DEVICES[key.setting]
    lowered = lower(ROWS[key.arm].make(), TREES[key.task](), device, 1)
    started = time.perf_counter()
    compiled = device.compile(lowered)
    return compiled, time.perf_counter() - started


def lower(
    optimizer: Any, params: Any, device: Device, count: int, *, shared: bool = False
) -> jax.stages.Lowered:
    """A step on so many devices, whose arrays lie on them fully sharded.

    Each device then has its share of every array that can be divided. Where the parameters
    are `shared`, each has all of them and of the state, and a gradient of its own batch, of
    which the step takes the mean.
    """
    # Explicit axes tell `init` how the parameters lie, so that the state lies like them.
    devices = np.array(device.described()[:count])
    mesh = Mesh(devices, ("data",), axis_types=(AxisType.Explicit,))

    def step(grads: Any, params: Any, state: Any) -> tuple[Any, Any]:
        if shared:
            grads = jax.tree.map(lambda each: jnp.mean(each, 0), grads)
        if isinstance(optimizer, Stepper):
            return optimizer.step(params, state, grads)
        update = optax.with_extra_args_support(optimizer).update
        updates, state = update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def placed(leaf: Any) -> Any:
        # Along the first axis of which every device can have eight entries.
        divides = [n % count == 0 and n >= 8 * count > 8 for n in leaf.shape]
        spec = [None] * divides.index(True) + ["data"] if any(divides) and not shared else []
        return _struct(leaf, mesh, PartitionSpec(*spec))

    def own(leaf: Any) -> Any:
        whole = jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype)
        return _struct(whole, mesh, PartitionSpec("data"))

    with jax.set_mesh(mesh):
        given = jax.tree.map(placed, params)
        grads = jax.tree.map(own, params) if shared else given
        state = jax.eval_shape(optimizer.init, given)
        # Results in the order of what is donated, or XLA copies to repair it.
        traced = jax.jit(step, donate_argnums=(1, 2)).trace(grads, given, state)
        return traced.lower(lowering_platforms=(device.platform,))


def _struct(leaf: Any, mesh: Mesh, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
    sharding = NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def sent_by(key: Key) -> dict[str, Any]:
    """What a population sends on a device's mesh, while it learns and by an evolution."""
    device = DEVICES[key.setting]
    mesh = Mesh(np.array(device.described()), ("population",), axis_types=(AxisType.Auto,))
    image = Split(jnp.zeros((1, PIXELS)), jnp.zeros(1, jnp.int32))
    _, init_fn, loss_fn = learned(image, HIDDEN)
    settings: Any = {"epochs": 1, "batch_size": 64, "mesh": mesh}
    learner = optabs.gadam(ADAM, UNITS_EACH * mesh.size, **settings)
    found = jax.eval_shape(lambda key: learner.init(key, init_fn), jax.random.key(0))
    units, whole = PartitionSpec("population"), PartitionSpec()
    state = jax.tree.map(lambda leaf: _struct(leaf, mesh, whole), found)
    state = state._replace(
        **{
            name: jax.tree.map(lambda leaf: _struct(leaf, mesh, units), part)
            for name, part in found.units._asdict().items()
        }
    )
    data = jax.tree.map(
        lambda leaf: _struct(
            jax.ShapeDtypeStruct((IMAGES, *leaf.shape[1:]), leaf.dtype), mesh, whole
        ),
        image,
    )
    programs: Mapping[str, Callable[..., Any]] = {
        "learn": lambda state, data: learner.learn(state, loss_fn, data),
        "evolve": lambda state, data: learner.evolve(state, loss_fn, data, data),
    }
    sent = {}
    for name, program in programs.items():
        traced = jax.jit(program).trace(state, data)
        lowered = traced.lower(lowering_platforms=(device.platform,))
        sent[name] = collectives_of(device.compile(lowered).as_text() or "")
    return sent


TITLE = "A step, compiled for accelerators and not run on them"
NOTE = f"""\
**Compiled for, not run on.** XLA compiled one step, `update` and `optax.apply_updates` in one
program with donated parameters and state, for an H100 and a TPU v5e, which are described and
not there, and for a CPU.

- Kernels: fusions, copies, reductions, custom calls and what else passes over arrays; of a
  conditional, those of its larger branch; those of a loop, such as Muon's, once. Large ones
  move at least {LARGE:g} of all bytes.
- Bytes a parameter: moved, of the kernels' operands and results in the device's memory; the
  least there is, of state and parameters, read and written, and of the gradient; and what lies
  in memory, parameters, state, gradient and, as XLA counts it, what is temporary.
- Seconds to compile, on the record's machine, which may have had other work.
- Collectives, and the bytes that each device receives: fully sharded, on a mesh whose devices
  each have a share of every larger array; and data-parallel, where each has all parameters,
  all of the state, and a gradient of its own batch, of which the step takes the mean in
  float32: 4 bytes a parameter are the least there is.
"""


def _number(result: Mapping[str, Any]) -> str:
    copies = sum(count for code, count in result["kernels"].items() if "copy" in code)
    return f"{sum(result['kernels'].values())} ({copies})"


def _memory(result: Mapping[str, Any]) -> str:
    # The least moves the gradient once, parameters and state twice.
    kept = (result["least_bytes"] + result["param_bytes"]) / 2
    temporary = result["temporary_bytes"]
    return f"{kept + temporary:.1f} ({temporary:.1f})"


def _sent(result: Mapping[str, Any], name: str) -> str:
    if name not in result:
        return "-"
    found = result[name].items()
    return ", ".join(f"{count} {kind} ({size} B)" for kind, (count, size) in found) or "none"


COLUMNS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "kernels (copies)": _number,
    "large": lambda result: str(result["large_kernels"]),
    "bytes": lambda result: f"{result['bytes']:.1f}",
    "least": lambda result: f"{result['least_bytes']:.1f}",
    "memory (temporary)": _memory,
    "seconds": lambda result: f"{result['seconds']:.1f}",
    "fully sharded": lambda result: _sent(result, SHARDED),
    "data-parallel": lambda result: _sent(result, DATA_PARALLEL),
}


def sections(records: Records) -> Iterator[report.Table | str]:
    """A note, a table for each tree of parameters and device, and one of the population."""
    yield NOTE
    for tree, (name, device) in itertools.product(TREES, DEVICES.items()):
        params = TREES[tree]()
        size = {"param_bytes": tree_bytes(params) / tree_size(params)}
        found = {row: each for row in ROWS if (each := records.get(Key(tree, row, name)))}
        if found:
            compilers = sorted({each.config["compiler"] for each in found.values()})
            title = f"{tree}, compiled for {device.title} by {', '.join(compilers)}: "
            title += "kernels, bytes a parameter and seconds to compile"
            title += f"; collectives on {device.mesh}" if device.mesh else ""
            results = {row: {**each.result, **size} for row, each in found.items()}
            yield report.grid(title, "step", results, COLUMNS, lambda own, cell: cell(own))
    sent = {
        f"{title} on {device.mesh}": {**each.result, "phase": phase}
        for name, device in DEVICES.items()
        if (each := records.get(Key(POPULATION, GADAM, name)))
        for phase, title in PHASES.items()
    }
    if sent:
        title = (
            f"Gadam, {UNITS_EACH} units a device (MLP {PIXELS}-{HIDDEN}-10), compiled and not "
            "run: what is sent"
        )
        columns = {"collectives": lambda own: _sent(own, own["phase"])}
        yield report.grid(title, "", sent, columns, lambda own, cell: cell(own))
