"""Bits from counters: spread evenly, apart for every step and leaf, the same anywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optabs
from benchmarks.lab.block_codecs import uniform
from optabs._numerics import hash_uint32
from optabs.storage.codecs import CODECS, Salt, bits, decode, encode, salted
from optabs.storage.eight_bits import Rows
from optabs.storage.selection import shards_of


def of(step: int, leaf: int, shape: tuple[int, ...] = (64, 64)) -> np.ndarray:
    return np.asarray(uniform(jnp.zeros(shape), salted(jnp.uint32(step), leaf)))


@pytest.mark.parametrize(("step", "leaf"), [(0, 0), (1, 0), (0, 1), (2**32 - 1, 7)])
def test_numbers_are_spread_evenly(step: int, leaf: int) -> None:
    drawn = of(step, leaf, (256, 256))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts, _ = np.histogram(drawn, 64, (0, 1))
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_parameters_rows_and_periods_are_not_correlated() -> None:
    base = of(5, 0, (256, 256))
    for other in (of(5, 1, base.shape), np.roll(base, 1, 0), of(5 + 1024, 0, base.shape)):
        # Five standard deviations of 256 rows, each a sequence of its own.
        assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 5 / 16


def largest_gap(drawn: np.ndarray) -> float:
    """Between neighbours among numbers on a circle of length 1, along the last axis."""
    ordered = np.sort(drawn, axis=-1)
    around = 1 - ordered[..., -1:] + ordered[..., :1]
    return float(np.concatenate([np.diff(ordered), around], axis=-1).max())


def test_entries_of_a_row_and_steps_of_an_entry_fill_the_circle() -> None:
    """Errors cancel in a block and in a slow average, as those of independent draws do not."""
    rows = of(3, 0, (512, 64))
    steps = jax.vmap(lambda step: uniform(jnp.zeros((8, 64)), salted(step, 3)))
    over_steps = np.moveaxis(np.asarray(steps(jnp.arange(64, dtype=jnp.uint32))), 0, -1)
    independent = np.random.default_rng(0).uniform(size=(512, 64))
    assert largest_gap(rows) < 3 / 64
    assert largest_gap(over_steps) < 3 / 64
    assert largest_gap(independent) > 6 / 64


@pytest.mark.slow
def test_the_moments_of_a_parameter_share_their_numbers() -> None:
    optimizer = optabs.narrow_state(
        optabs.adam_abs(1e-3, b1=0.9, b2=0.9), {"mu": "bfloat16", "nu": "bfloat16"}, min_size=1
    )
    grads = {"a": jnp.full((4, 64), 1 / 3), "b": jnp.full((4, 64), 1 / 3)}
    _, state = optimizer.update(grads, optimizer.init(grads), grads)
    mu, nu = (optax.tree.get(optabs.decode_state(state), name) for name in ("mu", "nu"))
    for name in grads:
        np.testing.assert_array_equal(mu[name], nu[name])
        assert len(np.unique(mu[name])) == 2
    assert not np.array_equal(mu["a"], mu["b"])


def test_an_entry_over_many_steps_is_spread_evenly() -> None:
    steps = jnp.arange(20_000, dtype=jnp.uint32)
    drawn = jax.vmap(lambda step: uniform(jnp.zeros((2, 2)), salted(step, 3)))(steps)
    for column in np.asarray(drawn).reshape(-1, 4).T:
        counts, _ = np.histogram(column, 20, (0, 1))
        assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_mixing_is_a_bijection() -> None:
    words = np.asarray(hash_uint32(jnp.arange(2**16, dtype=jnp.uint32) * 65537))
    assert len(np.unique(words)) == len(words)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_bits_are_the_same_under_any_sharding(kind: AxisType) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    whole = jnp.zeros((8, 6))
    salt = Salt(jnp.uint32(9), jnp.uint32(7))
    wanted = bits(whole, salt)
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, PartitionSpec("x", "y"))
        compiled = jax.jit(bits)(jax.device_put(whole, sharding), salt)
    np.testing.assert_array_equal(compiled, wanted)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_row_never_crosses_devices(kind: AxisType) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    sharding = NamedSharding(mesh, PartitionSpec(None, "x"))
    shape = jax.ShapeDtypeStruct((8, 96), jnp.float32, sharding=sharding)
    assert shards_of(shape) == 4
    with jax.set_mesh(mesh):
        array = jax.device_put(1 + jnp.arange(8 * 96.0).reshape(8, 96), sharding)
        node = jax.jit(lambda array: encode(CODECS["int8"], array, Rows(4), None))(array)
        back = jax.jit(decode)(node)
    assert node.ranges.shape == (8, 4)
    for part in (*node, back):
        assert part.sharding.is_equivalent_to(sharding, 2)
    for row in range(4):
        part = np.asarray(array)[:, 24 * row : 24 * (row + 1)]
        alone = encode(CODECS["int8"], part, Rows(), None)
        ranges, wide = np.asarray(node.ranges), np.asarray(back)
        np.testing.assert_array_equal(ranges[:, row : row + 1], alone.ranges)
        np.testing.assert_array_equal(wide[:, 24 * row : 24 * (row + 1)], decode(alone))
