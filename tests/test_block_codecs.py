"""The codecs of blocks in the laboratory: what studies compare with."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optabs
from benchmarks.lab.block_codecs import BLOCK_CODECS, BlockCodec, block_length, kept_in_blocks
from optabs.storage.codecs import Salt

BLOCK = 32
ALL = pytest.mark.parametrize("codec", BLOCK_CODECS.values(), ids=list(BLOCK_CODECS))


def numbers(codec: BlockCodec) -> jax.Array:
    size_key, sign_key = jax.random.split(jax.random.key(3))
    size = jnp.exp(0.2 * jax.random.normal(size_key, (4, 64)))
    sign = jax.random.rademacher(sign_key, size.shape, jnp.float32)
    return size if codec.sizes else size * sign


@ALL
def test_rounding_is_close_and_keeps_the_mean(codec: BlockCodec) -> None:
    value = numbers(codec)

    def rounded(word: jax.Array) -> jax.Array:
        return codec.decode(codec.encode(value, BLOCK, Salt(word, jnp.uint32(0))))

    words = jnp.arange(2000, dtype=jnp.uint32) * 7919
    drawn = np.asarray(jax.jit(lambda words: jax.lax.map(rounded, words))(words), np.float64)
    np.testing.assert_allclose(drawn[0], value, rtol=0.1)
    error = 6 * drawn.std(0) / len(drawn) ** 0.5
    assert np.all(np.abs(drawn.mean(0) - value) <= error + 2e-4 * np.abs(value))


@ALL
def test_blocks_and_zeros(codec: BlockCodec) -> None:
    value = numbers(codec).at[0, 3].set(0.0).at[1].set(0.0)
    kept = codec.encode(value, BLOCK, None)
    assert kept.codes.dtype.itemsize == 1
    assert kept.scales.shape == (4, 2)
    assert block_length(kept) == BLOCK
    assert np.all(np.asarray(codec.decode(kept))[1] == 0)


def test_an_optimizer_is_kept_in_blocks() -> None:
    """Between the steps its moments are numbers of the codec."""
    optimizer = kept_in_blocks(
        optabs.adam(1e-3), {"mu": "int8_linear", "nu": "uint8_linear"}, BLOCK
    )
    params = jnp.zeros((4, 64))
    _, state = optimizer.update(numbers(BLOCK_CODECS["int8"]), optimizer.init(params), params)
    mu = np.asarray(optax.tree.get(state.inner, "mu"))
    shares = mu / np.abs(mu).reshape(4, 2, BLOCK).max(-1).repeat(BLOCK, -1)
    np.testing.assert_allclose(127 * shares, np.round(127 * shares), atol=1e-3)
