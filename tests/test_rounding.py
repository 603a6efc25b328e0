"""Bits from counters: spread evenly, apart for every step and leaf, the same anywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optabs.storage.blocks import FEWEST, block_of, joined, split
from optabs.storage.rounding import Salt, bits, mixed, salted, uniform


def of(step: int, leaf: int, shape: tuple[int, ...] = (64, 64)) -> np.ndarray:
    return np.asarray(uniform(jnp.zeros(shape), salted(jnp.uint32(step), leaf)))


@pytest.mark.parametrize(("step", "leaf"), [(0, 0), (1, 0), (0, 1), (2**32 - 1, 7)])
def test_numbers_are_spread_evenly(step: int, leaf: int) -> None:
    drawn = of(step, leaf, (256, 256))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts, _ = np.histogram(drawn, 64, (0, 1))
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_steps_leaves_and_neighbours_are_not_correlated() -> None:
    base = of(5, 0, (256, 256))
    others = [
        of(6, 0, base.shape),
        of(5, 1, base.shape),
        np.roll(base, 1),
        np.roll(base, 1, 0),
    ]
    for other in others:
        # Five standard deviations of 65536 pairs.
        assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 5 / 256


def test_an_entry_over_many_steps_is_spread_evenly() -> None:
    steps = jnp.arange(20_000, dtype=jnp.uint32)
    drawn = jax.vmap(lambda step: uniform(jnp.zeros((2, 2)), salted(step, 3)))(steps)
    for column in np.asarray(drawn).reshape(-1, 4).T:
        counts, _ = np.histogram(column, 20, (0, 1))
        assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_mixing_is_a_bijection() -> None:
    words = np.asarray(mixed(jnp.arange(2**16, dtype=jnp.uint32) * 65537))
    assert len(np.unique(words)) == len(words)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_bits_are_the_same_under_any_sharding(kind: AxisType) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    whole = jnp.zeros((8, 6))
    salt = Salt(jnp.uint32(9))
    wanted = bits(whole, salt)
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, PartitionSpec("x", "y"))
        compiled = jax.jit(bits)(jax.device_put(whole, sharding), salt)
    np.testing.assert_array_equal(compiled, wanted)


@pytest.mark.parametrize(
    ("shape", "largest", "wanted"),
    [
        ((128,), 64, 64),
        ((3, 96), 64, 48),
        ((5, 100), 64, 50),
        ((7, 40), 64, 40),
        ((64, 17), 64, 17),
        ((64, 15), 64, None),
        ((64, 127), 64, None),
        ((64, 15), 8, None),
        ((64, 16), 8, 8),
        ((64, 1), 64, None),
        ((), 64, None),
        ((4, 0), 64, None),
    ],
)
def test_a_block_is_the_largest_divisor(
    shape: tuple[int, ...], largest: int, wanted: int | None
) -> None:
    assert block_of(shape, None, largest) == wanted


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_block_never_crosses_devices(kind: AxisType) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    sharding = NamedSharding(mesh, PartitionSpec(None, "x"))
    assert block_of((8, 96), sharding, 64) == 24
    assert block_of((8, 4 * (FEWEST - 1)), sharding, 64) is None
    with jax.set_mesh(mesh):
        array = jax.device_put(jnp.arange(8 * 96.0).reshape(8, 96), sharding)
        parts = jax.jit(lambda array: split(array, 24))(array)
        assert parts.sharding.is_equivalent_to(
            NamedSharding(mesh, PartitionSpec(None, "x", None)), 3
        )
        back = jax.jit(joined)(parts)
    np.testing.assert_array_equal(parts, np.asarray(array).reshape(8, 4, 24))
    np.testing.assert_array_equal(back, array)
    assert back.sharding.is_equivalent_to(sharding, 2)
