"""On eight devices: state lies where its parameters lie, and nothing is sent around."""

from typing import Any

import jax
import numpy as np
from cases import Case
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from trees import assert_close, step, trained

from checks.registry import check

# Shapes that differ, so that a leaf of the state is known by its shape.
SPECS = {"w": PartitionSpec("x", "y"), "b": PartitionSpec("y"), "whole": PartitionSpec()}
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "collective-permute",
    "all-to-all",
    "reduce-scatter",
)


def _mesh(kind: AxisType) -> Mesh:
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))


def _host_params() -> dict[str, np.ndarray]:
    random = np.random.default_rng(50)
    shapes = {"w": (8, 4), "b": (12,), "whole": (3,)}
    host = {name: random.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    return trained(host)


def _sharded(mesh: Mesh) -> dict[str, jax.Array]:
    return {
        name: jax.device_put(array, NamedSharding(mesh, SPECS[name]))
        for name, array in _host_params().items()
    }


def _follows(tree: Any, like: dict[str, Any]) -> None:
    wanted = {leaf.shape: leaf.sharding for leaf in like.values()}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if leaf.shape in wanted:
            target, sharding = wanted[leaf.shape], leaf.sharding
            if isinstance(leaf, jax.ShapeDtypeStruct):  # its mesh is abstract
                sharding = NamedSharding(target.mesh, sharding.spec)
            same = sharding.is_equivalent_to(target, leaf.ndim)
            assert same, f"{jax.tree_util.keystr(path)} lies at {sharding}"


def _abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


def _update(case: Case, optimizer: Any) -> Any:
    return lambda grads, state, params: step(case, optimizer, grads, state, params)


_MODES = ("compiled", "eager")


@check(variants=_MODES)
def check_state_follows_auto_mesh(case: Case, mode: str) -> None:
    optimizer = case.make_eager()
    update = _update(case, optimizer)
    mesh = _mesh(AxisType.Auto)
    with jax.set_mesh(mesh):
        params = _sharded(mesh)
        state = optimizer.init(params)
        _follows(state, params)
        _follows(optimizer.init(_abstract(params)), params)
        if mode == "eager":
            _follows(update(params, state, params), params)
            return
        compiled = jax.jit(update)
        _follows(compiled(params, state, params), params)
        # A traced value has no place under an Auto mesh, so zeros made inside of jit
        # have none either; the first compiled update brings them to their parameters.
        _follows(compiled(params, jax.jit(optimizer.init)(params), params), params)


@check(variants=_MODES)
def check_state_follows_explicit_mesh(case: Case, mode: str) -> None:
    optimizer = case.make_eager()
    update = _update(case, optimizer)
    if mode == "compiled":
        update = jax.jit(update)
    mesh = _mesh(AxisType.Explicit)
    with jax.set_mesh(mesh):
        params = _sharded(mesh)
        state = optimizer.init(params)
        _follows(state, params)
        _follows(optimizer.init(_abstract(params)), params)
        _follows(jax.jit(optimizer.init)(params), params)
        _follows(jax.eval_shape(optimizer.init, _abstract(params)), params)
        updated = update(params, state, params)
        _follows(updated, params)
        before, after = (jax.tree.map(jax.typeof, each) for each in (state, updated[1]))
        assert before == after


@check()
def check_sharded_equals_single_device(case: Case) -> None:
    optimizer = case.make()
    init, update = jax.jit(optimizer.init), jax.jit(_update(case, optimizer))
    host = _host_params()
    wanted = jax.device_get(update(host, init(host), host))
    mesh = _mesh(AxisType.Explicit)
    with jax.set_mesh(mesh):
        params = _sharded(mesh)
        actual = jax.device_get(update(params, init(params), params))
    assert_close(actual, wanted)


def _init_shapes(optimizer: Any, mesh: Mesh) -> Any:
    """Shapes of the state, each where init puts it: types under an Explicit mesh tell."""
    explicit = _mesh(AxisType.Explicit)
    with jax.set_mesh(explicit):
        state = jax.eval_shape(optimizer.init, _abstract(_sharded(explicit)))

    def on_mesh(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        if leaf.sharding is None:  # a counter, which goes where it is used
            return leaf
        place = NamedSharding(mesh, leaf.sharding.spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return jax.tree.map(on_mesh, state)


def _collectives(case: Case) -> list[str]:
    optimizer = case.make()
    mesh = _mesh(AxisType.Auto)
    state = _init_shapes(optimizer, mesh)
    with jax.set_mesh(mesh):
        params = _sharded(mesh)
        lowered = jax.jit(_update(case, optimizer)).lower(params, state, params)
        program = lowered.compile().as_text()
    return [name for name in _COLLECTIVES if name in program]


@check(where="element_wise")
def check_update_sends_nothing(case: Case) -> None:
    assert _collectives(case) == []


@check(instead_of=check_update_sends_nothing)
def check_update_only_reduces(case: Case) -> None:
    """A row that is not element-wise sums over devices; it gathers no parameters."""
    assert set(_collectives(case)) == {"all-reduce"}
