"""Narrow states over eight devices: nothing is sent, and every leaf lies as before."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import optabs

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "collective-permute",
    "all-to-all",
    "reduce-scatter",
)
SPECS = {
    "rows": PartitionSpec("x", None),
    "both": PartitionSpec("x", "y"),
    "three": PartitionSpec(None, "y", "x"),
}
SHAPES = {
    "rows": (64, 96), "both": (64, 192), "three": (4, 32, 160),
}  # fmt: skip
HALVES = "bfloat16"
ROWS = {"rows": 96, "both": 96, "three": 40}


def made(kind: AxisType) -> tuple[Mesh, dict[str, jax.Array], dict[str, jax.Array]]:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    random = np.random.default_rng(0)

    def tree() -> dict[str, jax.Array]:
        return {
            name: jax.device_put(
                random.normal(size=SHAPES[name]).astype("f4"), NamedSharding(mesh, spec)
            )
            for name, spec in SPECS.items()
        }

    return mesh, tree(), tree()


def followed(state: Any, mesh: Mesh) -> None:
    for node in (state.inner[0].numerator.mu, state.inner[0].denominator.nu):
        for name, spec in SPECS.items():
            for part in node[name]:
                wanted = NamedSharding(mesh, spec)
                assert part.sharding.is_equivalent_to(wanted, part.ndim), (name, part.sharding)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("codecs", [None, HALVES])
def test_nothing_is_sent_and_leaves_stay_where_they_are(kind: AxisType, codecs: Any) -> None:
    narrow = optabs.narrow_state(optabs.adam_abs(1e-3), codecs)
    mesh, params, grads = made(kind)
    with jax.set_mesh(mesh):
        state = narrow.init(params)
        followed(state, mesh)
        compiled = jax.jit(narrow.update).lower(grads, state, params).compile()
        text = compiled.as_text()
        assert not [name for name in COLLECTIVES if f" {name}" in text]
        updates, state = compiled(grads, state, params)
        followed(state, mesh)
    if codecs is None:
        for name, row in ROWS.items():
            node = state.inner[0].denominator.nu[name]
            assert node.codes.shape[-1] // node.ranges.shape[-1] == row
    local = jax.device_get((grads, params))
    # The rounding is that of one device, and so are first steps, whatever the ranges.
    alone, _ = jax.jit(narrow.update)(local[0], narrow.init(local[1]), local[1])
    for name in SPECS:
        np.testing.assert_allclose(updates[name], alone[name], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_rows_follow_abstract_shardings(kind: AxisType) -> None:
    narrow = optabs.narrow_state(optabs.adam_abs(1e-3))
    mesh, params, _ = made(kind)
    with jax.set_mesh(mesh):
        described = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            params,
        )
        wanted, found = narrow.init(params), narrow.init(described)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), wanted)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), found)


@pytest.mark.slow
def test_shards_of_one_column_stay_float32() -> None:
    mesh = jax.make_mesh((8,), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec(None, "x"))
    params = {"w": jax.device_put(jnp.ones((512, 8)), sharding)}
    narrow = optabs.narrow_state(optabs.adam_abs(1e-3))
    with jax.set_mesh(mesh):
        state = narrow.init(params)
        assert state.inner[0].denominator.nu["w"].dtype == jnp.float32
        _, state = jax.jit(narrow.update)(params, state, params)
    assert state.inner[0].denominator.nu["w"].dtype == jnp.float32
    halves = optabs.narrow_state(optabs.adam_abs(1e-3), {"nu": "bfloat16"})
    assert halves.init(params).inner[0].denominator.nu["w"].values.dtype == jnp.bfloat16
