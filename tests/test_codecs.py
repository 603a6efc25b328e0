"""Codecs of one array: codes, errors, rounding, and what must stay visible."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optabs.storage.codecs import CODECS, Codec, Float16, Int8, UInt8, is_node
from optabs.storage.rounding import Salt

BLOCK = 32
ALL = pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))
BLOCKED = [codec for codec in CODECS.values() if codec.blocks]
OF_BLOCKS = pytest.mark.parametrize("codec", BLOCKED, ids=[codec.name for codec in BLOCKED])
WORDS = (jnp.uint32(12345), jnp.uint32(67))
SALT = Salt(*WORDS)


def numbers(codec: Codec, spread: float = 1.0, shape: tuple[int, ...] = (8, 128)) -> jax.Array:
    size_key, sign_key = jax.random.split(jax.random.key(3))
    size = jnp.exp(spread * jax.random.normal(size_key, shape))
    return size if codec.sizes else size * jax.random.rademacher(sign_key, shape, jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _coded(codec: Codec, value: jax.Array, words: Any, block: int) -> jax.Array:
    salt = None if words is None else Salt(*words)
    return codec.decode(codec.encode(value, block, salt))


def there_and_back(
    codec: Codec, value: Any, salt: Any = None, block: int = BLOCK
) -> np.ndarray:
    """Compiled: op by op, every shape would cost a compilation of each operation."""
    words = None if salt is None else WORDS
    return np.asarray(_coded(codec, jnp.asarray(value), words, block))


def many(codec: Codec, value: jax.Array, count: int = 4000) -> np.ndarray:
    def rounded(word: jax.Array) -> jax.Array:
        return codec.decode(codec.encode(value, BLOCK, Salt(word, jnp.uint32(0))))

    once = jax.jit(rounded)
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
    # A neighbour at a thousand times the other's distance may not have been drawn.
    slack = 0.002 * (high - low) + (low == high) * 2e-4 * np.abs(value)
    size = np.abs(value)
    assert np.all(np.minimum(np.abs(low), np.abs(high)) <= size + slack)
    assert np.all(size - slack <= np.maximum(np.abs(low), np.abs(high)))
    assert np.all((nearest == low) | (nearest == high))
    assert np.all(np.abs(nearest - value) <= 0.5001 * (high - low) + slack)
    assert np.mean(high > low) > 0.8
    # A mean of draws from two values; 6 standard errors for 256 entries.
    error = 6 * drawn.std(0) / len(drawn) ** 0.5
    assert np.all(np.abs(drawn.mean(0) - value) <= error + slack + 1e-6 * size)


def node_of(codec: Codec, codes: np.ndarray, blocks: int) -> Any:
    """Codes with scales of 3, or with ranges of the coarsest steps from the number 3 on."""
    if codec.node in (Int8, UInt8):
        range_ = np.float32(3.0).view(np.uint32) >> 17
        return codec.node(jnp.asarray(codes), jnp.full((len(codes), blocks), range_, "u2"))
    return codec.node(jnp.asarray(codes), jnp.full((len(codes), blocks), 3.0))


@pytest.mark.slow
@OF_BLOCKS
def test_every_code_is_read_and_written_back(codec: Codec) -> None:
    last = 255 if codec.sizes else 127
    codes = np.arange(last + 1).astype("u1" if codec.sizes else "i1")[None]
    node = node_of(codec, codes, 1)
    value = codec.decode(node)
    assert np.all(np.diff(np.asarray(value)) > 0)
    for salt in (None, SALT):
        np.testing.assert_array_equal(codec.encode(value, last + 1, salt).codes, codes)
        if not codec.sizes:
            np.testing.assert_array_equal(codec.encode(-value, last + 1, salt).codes, -codes)


FLOATS = pytest.mark.parametrize(
    "codec", [CODECS["int8"], CODECS["uint8"]], ids=["int8", "uint8"]
)


@FLOATS
@pytest.mark.parametrize("octaves", [0, 0.5, 2, 4, 8, 16, 30, 60])
def test_blocks_of_any_range_have_steps_as_fine_as_their_codes_allow(
    codec: Codec, octaves: float
) -> None:
    size = 2.0 ** np.linspace(-octaves, 0, 64, dtype="f4")[None]
    found = there_and_back(codec, size, SALT, 64)
    finest, coarsest = (64, 8) if codec.sizes else (32, 4)
    codes = 255 if codec.sizes else 127
    # Steps an octave, a power of two: one code to spare at each end.
    steps = finest
    while steps > coarsest and steps * (octaves + 2 / steps) + 1 > codes:
        steps //= 2
    covered = size >= 2.0 ** -((240 if codec.sizes else 127) / coarsest - 1)
    assert np.all(np.abs(found / size - 1)[covered] <= 1.001 / steps)
    if codec.sizes:
        assert np.all(found >= size * (1 - 1.001 / steps))
        assert np.all(found > 0)


@pytest.mark.slow
@FLOATS
def test_a_number_rounds_up_by_a_cell_at_most(codec: Codec) -> None:
    """What bounds the growth of a step in one encoding: 1.25 for mu, 1 / 1.125 for nu."""
    size = np.exp(np.random.default_rng(0).uniform(-30, 0, (64, 64))).astype("f4")
    share = 1 / 8 if codec.sizes else 1 / 4
    for word in range(20):
        salt = Salt(jnp.uint32(word), jnp.uint32(0))
        node = codec.encode(jnp.asarray(size), 64, salt)
        found = np.asarray(codec.decode(node))
        least = np.min(np.where(found > 0, found, np.inf), axis=1, keepdims=True)
        above = size >= least
        assert np.all(found[above] <= (1 + share) * size[above])
        assert np.all(found[above] * (1 + share) >= size[above])
        low = found[~above]
        assert np.all(np.isin(low, least) | (low == 0))
        assert not (codec.sizes and np.any(low == 0))


@FLOATS
def test_what_is_decoded_is_encoded_without_loss(codec: Codec) -> None:
    for spread in (0.0, 0.3, 1.0, 3.0, 9.0):
        value = numbers(codec, spread)
        once = there_and_back(codec, value, SALT)
        np.testing.assert_array_equal(there_and_back(codec, once, SALT), once)


@FLOATS
def test_numbers_below_the_least_normal_one(codec: Codec) -> None:
    """Denormal numbers, which processors may take for 0: a size does not become 0."""
    tiny = np.array([[1e-45, 1e-40, 1.1e-38, 0.0] * 16], "f4")
    for value in (tiny, np.where(np.arange(64) == 0, 1.0, tiny).astype("f4")):
        for salt in (None, SALT):
            found = there_and_back(codec, value, salt, 64)
            assert np.all(np.isfinite(found))
            assert np.all(found[value == 0] == 0)
            if codec.sizes:
                assert np.all(found[value != 0] > 0)
            else:
                assert np.all(found <= np.maximum(value, found[found > 0].min(initial=1.0)))


@pytest.mark.slow
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
        found = np.asarray(codec.decode(codec.encode(jnp.asarray(value), BLOCK, salt)))
        assert np.all(np.isfinite(found))
        if codec.node not in (Float16, CODECS["float16_size"].node):
            np.testing.assert_allclose(found, value, rtol=2**-5)
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
    codes, others = node
    assert sum(leaf.nbytes for leaf in node) / (16 * 256) == 1 + others.itemsize / 64
    assert others.itemsize == (2 if codec.node in (Int8, UInt8) else 4)
    assert codes.shape == (16, 256)
    assert others.shape == (16, 4)


@pytest.mark.slow
@ALL
def test_a_salt_may_be_used_again_in_another_trace(codec: Codec) -> None:
    for value in (numbers(codec), 2 * numbers(codec)):
        once = jax.jit(lambda x: codec.decode(codec.encode(x, BLOCK, SALT)))(value)
        eager = codec.decode(codec.encode(value, BLOCK, SALT))
        np.testing.assert_array_equal(once, eager)


@ALL
@pytest.mark.parametrize("word", [0x7FFFFFFF, 0xFFFFFFFF, 0x7FF00000, 0x7FE00000, 0x7F800001])
def test_a_nan_of_any_bits_stays_one(codec: Codec, word: int) -> None:
    """A GPU's own NaN is 0x7FFFFFFF."""
    nan = np.array(word, np.uint32).view(np.float32)
    for value in (np.full((2, 64), nan), np.where(np.arange(64) == 5, nan, 1.0)[None]):
        for salt in (None, SALT):
            found = there_and_back(codec, value.astype("f4"), salt)
            assert np.all(np.isnan(found[np.isnan(value)]))
