"""Codecs of one array: codes, errors, rounding, and what must stay visible."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optabs.storage.codecs import ALIASES, CODECS, Codec, Float16, is_node
from optabs.storage.rounding import Salt

BLOCK = 32
ALL = pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))
BLOCKED = [codec for codec in CODECS.values() if codec.blocks]
OF_BLOCKS = pytest.mark.parametrize("codec", BLOCKED, ids=[codec.name for codec in BLOCKED])
SALT = Salt(jnp.uint32(12345))


def numbers(codec: Codec, spread: float = 1.0, shape: tuple[int, ...] = (8, 128)) -> jax.Array:
    size_key, sign_key = jax.random.split(jax.random.key(3))
    size = jnp.exp(spread * jax.random.normal(size_key, shape))
    return size if codec.sizes else size * jax.random.rademacher(sign_key, shape, jnp.float32)


def there_and_back(codec: Codec, value: Any, salt: Any = None) -> np.ndarray:
    return np.asarray(codec.decode(codec.encode(jnp.asarray(value), BLOCK, salt)))


def many(codec: Codec, value: jax.Array, count: int = 4000) -> np.ndarray:
    once = jax.jit(lambda word: codec.decode(codec.encode(value, BLOCK, Salt(word))))
    drawn = jax.lax.map(once, jnp.arange(count, dtype=jnp.uint32) * 7919)
    return np.asarray(drawn, np.float64)


@ALL
def test_rounding_is_to_one_of_two_neighbours_and_keeps_the_mean(codec: Codec) -> None:
    # Half an octave and an octave: every codec has steps of less than a tenth there.
    value = numbers(codec, 0.2, (4, 64))
    drawn = many(codec, value)
    low, high = drawn.min(0), drawn.max(0)
    nearest = there_and_back(codec, value)
    for row in drawn:
        assert np.all((row == low) | (row == high))
    assert np.all((low <= value) & (value <= high))
    assert np.all((nearest == low) | (nearest == high))
    assert np.all(np.abs(nearest - value) <= 0.5001 * (high - low))
    assert np.mean(high > low) > 0.8
    # A mean of draws from two values; 6 standard errors for 256 entries.
    error = 6 * drawn.std(0) / len(drawn) ** 0.5
    assert np.all(np.abs(drawn.mean(0) - value) <= error + 1e-6 * np.abs(value))


@OF_BLOCKS
def test_every_code_is_read_and_written_back(codec: Codec) -> None:
    last = 255 if codec.sizes else 127
    codes = np.arange(last + 1).reshape(-1, 32).astype("u1" if codec.sizes else "i1")
    codes[:, -1] = last  # every block has its largest entry
    scales = np.full((len(codes), 1), 3.0, "f4")
    node = codec.node(jnp.asarray(codes), jnp.asarray(scales))
    value = codec.decode(node)
    assert np.all(np.diff(np.asarray(value)) > 0)
    for salt in (None, SALT):
        np.testing.assert_array_equal(codec.encode(value, 32, salt).codes, codes)
        if not codec.sizes:
            np.testing.assert_array_equal(codec.encode(-value, 32, salt).codes, -codes)


@ALL
def test_only_zeros_become_zeros(codec: Codec) -> None:
    value = numbers(codec, 3.0)
    value = value.at[2].set(0.0).at[3, 5].set(0.0)
    for salt in (None, SALT):
        found = there_and_back(codec, value, salt)
        assert np.all(found[2] == 0)
        if codec.sizes and not codec.blocks:
            assert found[3, 5] == 0
        if codec.sizes:
            assert np.all(found[np.asarray(value) > 0] > 0)
        else:
            assert found[3, 5] == 0
            assert np.all((found == 0) | (np.sign(found) == np.sign(value)))


@ALL
def test_what_is_not_finite_stays_visible(codec: Codec) -> None:
    bad = np.array([np.nan, -np.nan, np.inf, -np.inf])
    value = numbers(codec).at[jnp.arange(4), 5].set(bad)
    for salt in (None, SALT):
        found = there_and_back(codec, value, salt)
        wanted = [np.nan, np.nan, np.inf, np.nan if codec.sizes else -np.inf]
        np.testing.assert_equal(found[:4, 5], np.array(wanted, "f4"))
        rest = np.ones(found.shape, bool)
        rest[:4, : BLOCK if codec.blocks else 6] = False
        assert np.all(np.isfinite(found[rest]))


@OF_BLOCKS
def test_a_size_below_zero_has_no_code(codec: Codec) -> None:
    if not codec.sizes:
        return
    found = there_and_back(codec, numbers(codec).at[0, 0].set(-1.0))
    assert np.all(np.isnan(found[0, :BLOCK]))
    assert np.all(np.isfinite(found[0, BLOCK:]))


@ALL
def test_the_whole_range_of_float32_is_finite(codec: Codec) -> None:
    sizes = np.array([[3.4028235e38], [1e38], [1e30], [1e-30], [2e-38]], "f4")
    value = np.broadcast_to(sizes, (5, 64))
    for salt in (None, SALT):
        found = there_and_back(codec, value, salt)
        assert np.all(np.isfinite(found))
        if codec.node not in (Float16, CODECS["float16_size"].node):
            np.testing.assert_allclose(found, value, rtol=2**-7)
        elif codec.sizes:
            assert np.all(found > 0)
        else:
            assert np.all(found[:3] > 0)


def test_float16_rounds_as_numpy_does() -> None:
    codec = CODECS["float16"]
    value = np.ravel(numbers(codec, 6.0))
    value = value[np.abs(value) < 60000]
    np.testing.assert_allclose(there_and_back(codec, value), value.astype("f2"), rtol=1e-3)
    subnormal = np.float32([3e-7, -4e-6, 5.96e-8])
    np.testing.assert_array_equal(there_and_back(codec, subnormal), subnormal.astype("f2"))


@OF_BLOCKS
def test_bytes_of_an_entry(codec: Codec) -> None:
    node = codec.encode(numbers(codec, shape=(16, 256)), 64, None)
    assert is_node(node)
    assert sum(leaf.nbytes for leaf in node) / (16 * 256) == 1 + 4 / 64
    assert node.codes.shape == (16, 256)
    assert node.scales.shape == (16, 4)


def test_aliases_are_codecs() -> None:
    assert set(ALIASES.values()) <= set(CODECS)
