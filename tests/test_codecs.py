"""Codecs of one array: codes, errors, rounding, and what must stay visible."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optabs.storage.codecs import (
    BY_NODE,
    CODECS,
    Codec,
    Salt,
    decode,
    encode,
    is_node,
    ready,
)
from optabs.storage.eight_bits import MEANS, SIZES, Rows

ALL = pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))
FORMS = {"int8": MEANS, "uint8": SIZES}
FLOATS = pytest.mark.parametrize(
    "codec", [CODECS["int8"], CODECS["uint8"]], ids=["int8", "uint8"]
)
WORDS = (jnp.uint32(12345), jnp.uint32(67))
SALT = Salt(*WORDS)


def numbers(codec: Codec, spread: float = 1.0, shape: tuple[int, ...] = (8, 128)) -> jax.Array:
    size_key, sign_key = jax.random.split(jax.random.key(3))
    size = jnp.exp(spread * jax.random.normal(size_key, shape))
    return size if codec.sizes else size * jax.random.rademacher(sign_key, shape, jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _coded(codec: Codec, value: jax.Array, words: Any) -> jax.Array:
    salt = None if words is None else Salt(*words)
    return codec.decode(codec.encode(value, Rows(), salt))


def there_and_back(codec: Codec, value: Any, salt: Any = None) -> np.ndarray:
    """Compiled: op by op, every shape would cost a compilation of each operation."""
    return np.asarray(_coded(codec, jnp.asarray(value), None if salt is None else WORDS))


def many(codec: Codec, value: jax.Array, count: int = 4000) -> np.ndarray:
    def rounded(word: jax.Array) -> jax.Array:
        return codec.decode(codec.encode(value, Rows(), Salt(word, jnp.uint32(0))))

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


def range_of(octave: Any, k: Any, spare: Any = 0) -> np.ndarray:
    """As it is kept: the octave of a row's least number, as float32 has it, and 2^k steps.

    `spare` octaves lie between the largest number of late and the end of the range.
    """
    kept = np.asarray(spare) << 11 | np.asarray(octave) << 3 | np.asarray(k)
    return np.asarray(kept, np.uint16)


@pytest.mark.slow
@FLOATS
@pytest.mark.parametrize("k", [1, 3])
def test_every_code_is_read_and_written_back(codec: Codec, k: int) -> None:
    form = FORMS[codec.name]
    codes = np.arange(form.first, form.last + 1).astype("u1" if codec.sizes else "i1")[None]
    ranges = jnp.asarray(range_of([[100]], k))
    value = codec.decode(codec.node(jnp.asarray(codes), ranges))
    assert np.all(np.isfinite(value))
    below_the_largest = np.asarray(value[0]) < np.finfo("f4").max
    assert np.all(np.diff(np.asarray(value)[0, below_the_largest]) > 0)
    kept = codes[0, below_the_largest]
    for salt in (None, SALT):
        found = codec.encode(value, ranges, salt).codes[0]
        np.testing.assert_array_equal(found[below_the_largest], kept)
        if not codec.sizes:
            found = codec.encode(-value, ranges, salt).codes[0]
            np.testing.assert_array_equal(found[below_the_largest], -kept)


@FLOATS
@pytest.mark.parametrize("octaves", [0, 0.5, 2, 5, 8, 13, 25, 60])
def test_rows_of_any_range_have_steps_as_fine_as_their_codes_allow(
    codec: Codec, octaves: float
) -> None:
    size = 2.0 ** np.linspace(-octaves, 0, 64, dtype="f4")[None]
    found = there_and_back(codec, size, SALT)
    form = FORMS[codec.name]
    steps = 2**form.finest
    # The range begins at a power of two, so less than an octave below the least number.
    while steps > 2**form.coarsest and steps * np.ceil(octaves) > form.exact:
        steps //= 2
    covered = size >= 2.0 ** -(form.exact // 2**form.coarsest - 1)
    assert np.all(np.abs(found / size - 1)[covered] <= 1.001 / steps)
    if codec.sizes:
        assert np.all(found >= size * (1 - 1.001 / steps))
    else:
        assert np.all(found[~covered] <= (1 + 1 / steps) * size[~covered])


@functools.partial(jax.jit, static_argnums=0)
def _in_ranges(codec: Codec, value: Any, ranges: Any, word: Any) -> jax.Array:
    salt = Salt(word, jnp.uint32(0))
    return codec.decode(codec.encode(value, ranges, salt))


def growth(codec: Codec, form: Any, draws: int = 10) -> tuple[float, float]:
    """The most that numbers of any size grow and fall by in ranges of any kind, in cells."""
    rng = np.random.default_rng(0)
    bits = rng.integers(1, 0x7F800000, (512, 64), dtype=np.int32)
    # Rows of one octave too, where the end of a range is hit.
    narrow = rng.integers(1, 0x7F000000, (512, 1)) + rng.integers(0, 0x00800000, (512, 64))
    size = np.concatenate([bits, narrow.astype(np.int32)]).view(np.float32)
    octave = rng.integers(1, 255, (1024, 1))
    near = np.clip(
        (size.view(np.int32)[:, :1] >> 23) - rng.integers(-3, 32, (1024, 1)), 1, 254
    )
    octave = np.where(rng.random((1024, 1)) < 0.5, octave, near)
    k = rng.choice([1, *range(form.coarsest, form.finest + 1)], (1024, 1))
    up = down = 0.0
    for word in range(draws):
        found = np.asarray(
            _in_ranges(codec, jnp.asarray(size), range_of(octave, k), jnp.uint32(word))
        )
        assert np.all(np.isfinite(found))
        ratio = found.astype("f8") / size
        cells = 2.0**k
        up = max(up, float(np.max((ratio - 1) * cells)))
        down = max(down, float(np.max((1 / np.maximum(ratio, 1e-300) - 1) * cells)))
    return up, down


def test_no_encoding_makes_a_ratio_much_larger() -> None:
    """1.25 for mu, 1 / 1.125 for nu, whatever came before, whatever is drawn."""
    assert growth(CODECS["int8"], MEANS)[0] <= 1.0001
    assert growth(CODECS["uint8"], SIZES)[1] <= 1.0001


def test_the_other_codec_would_make_it_larger() -> None:
    """A control."""
    assert growth(CODECS["uint8"], SIZES, 2)[0] > 2
    assert growth(CODECS["int8"], MEANS, 2)[1] > 2


def stepped(node: Any, value: Any, word: int = 0) -> Any:
    """The node of another value, one step later."""
    _, ranges = ready(node, jnp.uint32(1))
    return encode(BY_NODE[type(node)], value, ranges, Salt(jnp.uint32(word), jnp.uint32(0)))


def test_a_size_grows_by_84_octaves_in_a_step_and_is_soon_fine_again() -> None:
    value = numbers(CODECS["uint8"], 0.1)
    node = stepped(encode(CODECS["uint8"], value, Rows(), SALT), value)
    large = value * 2.0**84
    node = stepped(node, large)
    assert np.all(decode(node) >= large)
    assert np.all(decode(node) <= large * 2.0**16)
    for _ in range(8):
        node = stepped(node, large)
    np.testing.assert_allclose(decode(node), large, rtol=1 / 8)


@FLOATS
def test_a_small_growth_is_hardly_seen(codec: Codec) -> None:
    """A row has an octave of room above its largest number, and two below its least."""
    value = numbers(codec, 0.5)
    node = stepped(encode(codec, value, Rows(), SALT), value)
    for factor in (2.0, 0.25):
        np.testing.assert_allclose(decode(stepped(node, factor * value)), factor * value, 0.26)


@pytest.mark.parametrize(
    ("falls", "first", "steps"), [(1e-3, 0, 6), (1e-30, 0, 6), (1e-3, 1, 6), (1e-6, 1, 12)]
)
def test_a_signed_number_below_its_range_is_found_again(
    falls: float, first: int, steps: int
) -> None:
    """It reads as 0 until then, in a row without larger numbers as in one with one."""
    codec = CODECS["int8"]
    value = numbers(codec, 0.2)
    node = stepped(encode(codec, value, Rows(), SALT), value)
    kept = value.at[:, first:].multiply(falls)
    for step in range(steps):
        node = stepped(node, kept, step)
        assert np.all(np.abs(decode(node)) <= 1.5 * np.abs(kept))
    assert np.all(decode(node) != 0)
    assert np.all(decode(stepped(node, 0 * kept)) == 0)


@pytest.mark.parametrize("n", [2, 15, 16, 33, 100, 128, 4096])
@FLOATS
def test_ranges_are_those_of_numpy(codec: Codec, n: int) -> None:
    """XLA:CPU compiles the least of differences of bytes wrongly; here there are none."""
    form, rng = FORMS[codec.name], np.random.default_rng(n)
    whole = np.iinfo("u1" if codec.sizes else "i1")
    codes = rng.integers(whole.min, whole.max + 1, (64, n)).astype(whole.dtype)
    share = np.array([0.0, 0.1, 0.5, 1.0])[np.arange(64) % 4][:, None]
    codes = np.where(rng.random((64, n)) < share, codes, 0).astype(whole.dtype)
    spare = rng.integers(0, 16, (64, 1))
    given = range_of(np.full((64, 1), 100), 3, spare)
    node = codec.node(jnp.asarray(codes), jnp.asarray(given))
    size = np.abs(codes.astype(int))
    known = (size > 0) & (size <= form.last)
    finite = np.abs(np.asarray(decode(node), np.float64))
    for counter in (1, 256):
        _, found = jax.jit(ready)(node, jnp.uint32(counter))
        for row, (own, got) in enumerate(zip(known, np.ravel(found), strict=True)):
            late = 100 + form.exact // 8 - spare[row, 0] - (counter == 256)
            read = finite[row][own & (size[row] >= form.first)]
            below = bool(np.any(own & (size[row] < form.first)))
            if not own.any():
                assert got == range_of(form.new, 1)
            elif not len(read):
                octave = 100 - form.exact // 2**form.coarsest
                assert got == range_of(octave, form.coarsest, 15)
            else:
                least = 2.0 ** (100 - 127) if below else read.min()
                assert got == fitting(form, least, read.max(), late)


def fitting(form: Any, least: float, largest: float, late: int) -> np.ndarray:
    """The range of a row's numbers, of which the largest of late had that octave."""
    late = max(late, octave_of(largest))
    top = 2 * max(largest, 2.0 ** (late - 127))
    must = 2 * largest if form.sizes else top
    octave = max(1, octave_of(least) - 2)
    while must > top_of(form, octave, form.coarsest):
        octave += 1
    fits = [
        k
        for k in range(form.coarsest, form.finest + 1)
        if top <= top_of(form, octave, k) or k == form.coarsest
    ]
    spare = octave + form.exact // 2 ** max(fits) - late
    return range_of(octave, max(fits), np.clip(spare, 0, 15))


def octave_of(number: float) -> int:
    return int(np.floor(np.log2(number))) + 127


def top_of(form: Any, octave: int, k: int) -> float:
    """The number at the end of a range."""
    steps = form.exact / 2**k
    return float(2.0 ** (octave - 127 + steps // 1) * (1 + steps % 1))


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
            found = there_and_back(codec, value, salt)
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
        assert found[3, 5] == 0
        if codec.sizes:
            assert np.all(found[np.asarray(value) > 0] > 0)
        else:
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
        rest[:4, 5] = False
        assert np.all(np.isfinite(found[rest]))
        np.testing.assert_allclose(found[rest], np.asarray(value)[rest], rtol=0.26)


@FLOATS
def test_what_is_not_finite_does_not_move_the_range(codec: Codec) -> None:
    value = numbers(codec)
    bad = value.at[:2, 5].set(jnp.nan).at[2:4, 7].set(jnp.inf)
    found, wanted = (stepped(encode(codec, each, Rows(), SALT), each) for each in (bad, value))
    rest = np.isfinite(np.asarray(bad))
    np.testing.assert_allclose(decode(found)[rest], decode(wanted)[rest], rtol=0.3)
    np.testing.assert_array_equal(np.isnan(decode(found)), np.isnan(bad))


@ALL
def test_a_size_below_zero_has_no_code(codec: Codec) -> None:
    if codec.sizes:
        found = there_and_back(codec, numbers(codec).at[0, 0].set(-1.0))
        assert np.isnan(found[0, 0])
        assert np.isfinite(found).sum() == found.size - 1


@ALL
def test_the_whole_range_of_float32_is_finite(codec: Codec) -> None:
    sizes = np.array([[3.4028235e38], [1e38], [1e30], [1e-30], [2e-38]], "f4")
    value = np.broadcast_to(sizes, (5, 64))
    for salt in (None, SALT):
        found = there_and_back(codec, value, salt)
        assert np.all(np.isfinite(found))
        np.testing.assert_allclose(found, value, rtol=2**-4)


@FLOATS
@pytest.mark.parametrize("shards", [1, 4])
def test_bytes_of_an_entry(codec: Codec, shards: int) -> None:
    node = encode(codec, numbers(codec, shape=(16, 256)), Rows(shards), None)
    assert is_node(node)
    assert node.codes.shape == (16, 256)
    assert node.ranges.shape == (16, shards)
    assert sum(leaf.nbytes for leaf in node) / (16 * 256) == 1 + 2 * shards / 256
    assert ready(node, jnp.uint32(1))[1].shape == (16, shards)


@pytest.mark.slow
@ALL
def test_a_salt_may_be_used_again_in_another_trace(codec: Codec) -> None:
    for value in (numbers(codec), 2 * numbers(codec)):
        once = jax.jit(lambda x: codec.decode(codec.encode(x, Rows(), SALT)))(value)
        eager = codec.decode(codec.encode(value, Rows(), SALT))
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
