"""Narrow states on meshes: what they hold is that of one device, and no row is cut."""

import itertools
from typing import Any

import flax.linen as nn
import gadam_problem
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optabs
from optabs.storage.codecs import is_node

SHAPE = (64, 1024)
WIDTHS = (1024, 256, 1200)
NARROW = optabs.narrow_state(optabs.adam_abs(1e-3))
HALVES = optabs.narrow_state(optabs.adam_abs(1e-3), "bfloat16")
KINDS = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)


def mesh_of(kind: AxisType, name: str = "data") -> Mesh:
    return jax.make_mesh((8,), (name,), axis_types=(kind,))


def values(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE).astype("f4")


def two_steps(optimizer: Any, put: Any) -> tuple[Any, Any]:
    params = {"w": put(values(0))}
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for seed in (1, 2):
        updates, state = update({"w": put(values(seed))}, state, params)
    return jax.device_get((updates, state))


@pytest.fixture(scope="module")
def on_one_device() -> dict[str, Any]:
    return {
        "8 bits": two_steps(NARROW, jnp.asarray),
        "16 bits": two_steps(HALVES, jnp.asarray),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "context",
    [pytest.param(False, id="no context"), pytest.param(True, id="set_mesh")],
)
@pytest.mark.parametrize(
    ("kind", "bits", "spec"),
    list(
        itertools.product(
            (AxisType.Auto, AxisType.Explicit),
            ("8 bits", "16 bits"),
            (P(), P("data"), P(None, "data")),
        )
    ),
    ids=str,
)
def test_replicated_and_sharded_as_on_one_device(
    kind: AxisType, bits: str, spec: P, context: bool, on_one_device: Any
) -> None:
    mesh = mesh_of(kind)
    sharding = NamedSharding(mesh, spec)
    optimizer = NARROW if bits == "8 bits" else HALVES
    if context:
        with jax.set_mesh(mesh):
            updates, state = two_steps(optimizer, lambda x: jax.device_put(x, sharding))
    else:
        updates, state = two_steps(optimizer, lambda x: jax.device_put(x, sharding))
    wanted, wanted_state = on_one_device[bits]
    if bits == "8 bits" and spec == P(None, "data"):
        # Each device's part of a row has a range of its own.
        apart = np.sqrt(np.mean((updates["w"] - wanted["w"]) ** 2) / np.mean(wanted["w"] ** 2))
        assert apart < 0.2
        assert optax.tree.get(state, "nu")["w"].ranges.shape == (64, 8)
        return
    np.testing.assert_allclose(updates["w"], wanted["w"], rtol=1e-5)
    assert jax.tree.structure(state) == jax.tree.structure(wanted_state)
    for leaf, other in zip(jax.tree.leaves(state), jax.tree.leaves(wanted_state), strict=True):
        assert leaf.dtype == other.dtype
        # A number next to a boundary may be rounded to the other side.
        assert np.mean(leaf != other) < 1e-3


def partitioned(width: int) -> Any:
    return {"w": nn.Partitioned(jnp.ones((256, width)), (None, "tp"))}


class Layer(nnx.Module):
    """One kernel, its columns over all devices."""

    def __init__(self, width: int) -> None:
        self.w = nnx.Param(jnp.ones((256, width)), out_sharding=(None, "tp"))


def of_nnx(width: int) -> Any:
    return nnx.state(Layer(width), nnx.Param)


def shardings_of(state: Any, mesh: Mesh) -> Any:
    """What linen's nn.get_sharding gives, or nnx.get_named_sharding."""
    nnx_boxes = any(
        isinstance(leaf, nnx.Variable)
        for leaf in jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    )
    return nnx.get_named_sharding(state, mesh) if nnx_boxes else nn.get_sharding(state, mesh)


def rows(state: Any) -> dict[str, int]:
    def length(node: Any) -> int:
        codes, ranges = (jax.tree.leaves(part)[0] for part in node)
        return codes.shape[-1] // ranges.shape[-1]

    adam = state.inner[0]
    boxes = {"mu": adam.numerator.mu["w"], "nu": adam.denominator.nu["w"]}
    return {name: length(node) for name, node in boxes.items() if is_node(node)}


@pytest.mark.parametrize("make", [partitioned, of_nnx])
@pytest.mark.parametrize("width", WIDTHS)
def test_rows_are_divided_before_the_arrays_are_laid_out(make: Any, width: int) -> None:
    mesh = mesh_of(AxisType.Auto, "tp")
    with jax.set_mesh(mesh):

        def init() -> Any:
            return NARROW.init(make(width))

        described = jax.eval_shape(init)
        state = jax.jit(init, out_shardings=shardings_of(described, mesh))()
    assert rows(state) == {"mu": width // 8, "nu": width // 8}
    for node in (state.inner[0].numerator.mu["w"], state.inner[0].denominator.nu["w"]):
        for part in node:
            (array,) = jax.tree.leaves(part)
            assert array.sharding.shard_shape(array.shape)[-1] == array.shape[-1] // 8


@pytest.mark.parametrize("width", WIDTHS)
def test_no_mesh_is_set_when_the_rows_are_divided(width: int) -> None:
    """All devices may then share the axis, and the rows are made for that."""
    mesh = mesh_of(AxisType.Auto, "tp")

    def init() -> Any:
        return NARROW.init(partitioned(width))

    shardings = nn.get_sharding(jax.eval_shape(init), mesh)
    found = rows(jax.jit(init, out_shardings=shardings)())
    assert all(width // 8 % row == 0 for row in found.values())


@pytest.mark.parametrize("names", [(None, "embed"), ("vocab", ("embed", "model"))])
def test_names_of_axes_that_no_mesh_knows(names: Any) -> None:
    params = {"w": nn.Partitioned(jnp.ones((256, 1024)), names)}
    for state in (jax.jit(NARROW.init)(params), jax.eval_shape(NARROW.init, params)):
        assert rows(state) == {"mu": 128, "nu": 128}
    for mesh in (mesh_of(AxisType.Auto, "other"), mesh_of(AxisType.Explicit, "other")):
        with jax.set_mesh(mesh):
            assert rows(jax.eval_shape(NARROW.init, params)) == {"mu": 128, "nu": 128}
    few = {"w": nn.Partitioned(jnp.ones((256, 24)), names)}  # no share for eight devices
    assert rows(jax.eval_shape(NARROW.init, few)) == {"mu": 24, "nu": 24}


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("spec", [P(), P("data"), P(None, "data")], ids=str)
@KINDS
def test_inside_shard_map(kind: AxisType, spec: P, check: bool) -> None:
    mesh = mesh_of(kind)

    def own(params: jax.Array, grads: jax.Array) -> jax.Array:
        state = NARROW.init(params)
        for _ in range(2):
            updates, state = NARROW.update(grads, state, params)
        return updates

    sharded = jax.shard_map(
        own, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=check
    )
    put = NamedSharding(mesh, spec)
    given = [jax.device_put(values(seed), put) for seed in (0, 1)]
    found = np.asarray(jax.jit(sharded)(*given))
    wanted, _ = optabs.adam_abs(1e-3).update(
        values(1), optabs.adam_abs(1e-3).init(values(0)), values(0)
    )
    error = np.sqrt(np.mean(np.square(found - wanted)) / np.mean(np.square(wanted)))
    assert error < 0.1


def test_a_state_made_outside_of_shard_map_may_be_updated_inside() -> None:
    """A shard has fewer entries than min_size, which is of the whole."""
    mesh = mesh_of(AxisType.Auto)
    put = NamedSharding(mesh, P("data"))
    params = {"w": jax.device_put(jnp.ones((64, 128)), put)}
    state = NARROW.init(params)
    specs = jax.tree.map(lambda leaf: P("data") if leaf.ndim else P(), state)
    inside = jax.shard_map(
        NARROW.update, mesh=mesh, in_specs=(P("data"), specs, P("data")),
        out_specs=(P("data"), specs),
    )  # fmt: skip
    _, found = jax.jit(inside)(params, state, params)
    _, wanted = jax.jit(NARROW.update)(params, state, params)
    for leaf, other in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        assert leaf.dtype == other.dtype
    ranges = [optax.tree.get(each, "nu")["w"].ranges for each in (found, wanted)]
    np.testing.assert_array_equal(*ranges)


def test_rows_of_short_axes_end_where_an_axis_is_divided() -> None:
    mesh = mesh_of(AxisType.Auto)
    for shape, spec, ranges in (
        ((1024, 4, 1), P(), (1, 1, 1)),
        ((1024, 4, 1), P("data"), (1024, 1, 1)),
        ((512, 8, 1), P(None, "data"), None),
    ):
        params = {"w": jax.device_put(jnp.ones(shape), NamedSharding(mesh, spec))}
        node = optax.tree.get(NARROW.init(params), "mu")["w"]
        assert is_node(node) == (ranges is not None)
        if ranges is not None:
            assert node.ranges.shape == ranges


@pytest.mark.slow
@KINDS
def test_a_population_of_narrow_units(kind: AxisType) -> None:
    """Ranges and codes lie over the devices as their units do."""
    unit = optabs.narrow_state(optabs.adam(0.02), min_size=1)
    mesh = mesh_of(kind, "population")
    found = gadam_problem.run(learns={"mesh": mesh, "unit": unit})
    wanted = gadam_problem.run(learns={"unit": unit})
    np.testing.assert_allclose(
        found.history["losses"], wanted.history["losses"], rtol=0, atol=1e-3
    )
    states = found.state.opt_state
    nodes = [node for node in jax.tree.leaves(states, is_leaf=is_node) if is_node(node)]
    assert len(nodes) >= 2
    for leaf in jax.tree.leaves(states):
        assert {part.data.shape[0] for part in leaf.addressable_shards} == {1}


@pytest.mark.slow
def test_a_population_of_narrow_units_learns() -> None:
    unit = optabs.narrow_state(optax.adamw(0.02), min_size=1)
    learner = gadam_problem.learner(unit=unit, mesh=mesh_of(AxisType.Auto, "population"))
    state = learner.init(jax.random.key(0), gadam_problem.init_fn)
    state, losses = learner.learn(state, gadam_problem.loss_fn, gadam_problem.data())
    assert np.all(np.isfinite(losses))
