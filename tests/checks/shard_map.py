"""Inside of jax.shard_map, where every device sees its own part alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cases import Case
from jax.sharding import AxisType, PartitionSpec
from trees import assert_close, step, trained

from checks.registry import check

_DEVICES = 4


def _host_params() -> dict[str, np.ndarray]:
    random = np.random.default_rng(60)
    shapes = {"w": (8, 2), "b": (4,)}
    host = {name: random.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    return trained(host)


def _after_two(case: Case, params: Any) -> Any:
    """The parameters and the state after two updates."""
    optimizer = case.make()
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = step(case, optimizer, params, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def _mapped(function: Any, spec: PartitionSpec, check_vma: bool) -> Any:
    mesh = jax.make_mesh((_DEVICES,), ("x",), axis_types=(AxisType.Auto,))
    return jax.jit(
        jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma)
    )


_VMA = {"vma": True, "no_vma": False}  # whether types say over which axes a value varies


@check(variants=tuple(_VMA))
def check_shard_map_of_whole_params(case: Case, vma: str) -> None:
    host = _host_params()
    wanted = jax.jit(lambda params: _after_two(case, params))(host)
    mapped = _mapped(lambda params: _after_two(case, params), PartitionSpec(), _VMA[vma])
    assert_close(mapped(host), wanted, rtol=1e-5, atol=1e-5)


@check(variants=tuple(_VMA))
def check_shard_map_of_shards(case: Case, vma: str) -> None:
    """A device's part steps as it would alone; of an element-wise row, as in the whole."""
    host = _host_params()

    def moved(params):
        return _after_two(case, params)[0]

    outside = jax.jit(moved)
    if case.element_wise:
        wanted = outside(host)
    else:
        split = {name: np.split(array, _DEVICES) for name, array in host.items()}
        parts = [outside({n: a[i] for n, a in split.items()}) for i in range(_DEVICES)]
        wanted = jax.tree.map(lambda *shards: jnp.concatenate(shards), *parts)
    mapped = _mapped(moved, PartitionSpec("x"), _VMA[vma])
    assert_close(mapped(host), wanted, rtol=1e-5, atol=1e-5)
