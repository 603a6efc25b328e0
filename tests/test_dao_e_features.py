"""DAO-E's features against their formulas in NumPy."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dao_e_reference import batch_entries
from optabs.features import Observation

from optabs import features

RANDOM = np.random.default_rng(5)
IMAGES = RANDOM.gamma(2.0, size=(6, 5, 5, 3)).astype(np.float32)
TOKENS = RANDOM.integers(0, 50, (7, 9)).astype(np.int32)
BATCHES = {
    "images": IMAGES,
    "images and labels": (IMAGES, np.arange(6, dtype=np.int32) % 4),
    "several arrays": {"a": IMAGES - 9, "b": [RANDOM.normal(size=4).astype(np.float32)]},
    "tokens": TOKENS,
    "tokens beyond 128": 1000 * TOKENS,
    "negative integers": -TOKENS,
    "one token": np.full((3, 4), 7, np.int32),
    "bools": RANDOM.random((4, 8)) < 0.3,
    "bytes": RANDOM.integers(0, 256, (4, 30)).astype(np.uint8),
    "complex": (RANDOM.normal(size=30) + 2j * RANDOM.normal(size=30)).astype(np.complex64),
    "float16": RANDOM.normal(size=50).astype(np.float16),
    "not finite": np.array([1.0, np.nan, 3.0, np.inf, -np.inf, 4.5], np.float32),
    "huge": np.array([1e30, -1e30, 1e30, 5.0], np.float32),
    "constant": np.full(9, 2.5, np.float32),
    "zeros": np.zeros((2, 2), np.float32),
    "one number": np.float32(-3.0),
    "an empty array beside others": (np.zeros((0, 3), np.float32), IMAGES[:2]),
    "text beside arrays": {"x": IMAGES[:2], "id": "train"},
    "text beside arrays, a dtype": {"x": IMAGES[:2], "id": "float32"},
}


@functools.partial(jax.jit, static_argnames="text")
def statistics(batch: Any, text: str | None = None) -> list[Any]:
    """Mean, variance and entropy of a batch that may hold a text, too."""
    seen = Observation(batch=batch if text is None else {**batch, "id": text})
    return [function(seen) for function, _ in features.ALL[:3]]


class TestOfTheBatch:
    @pytest.mark.parametrize("name", BATCHES)
    def test_formulas(self, name: str) -> None:
        batch, text = BATCHES[name], None
        if "text" in name:
            batch, text = {"x": batch["x"]}, batch["id"]
        entries, entropy = batch_entries(batch)
        mean, variance, actual = map(float, statistics(batch, text))
        assert mean == pytest.approx(np.arcsinh(entries.mean()), rel=1e-5, abs=1e-6)
        assert variance == pytest.approx(np.log(entries.var() + 1e-30), rel=1e-4, abs=1e-4)
        assert actual == pytest.approx(entropy, rel=1e-5, abs=1e-6)

    @pytest.mark.parametrize("batch", [None, np.zeros((0, 3)), (np.zeros(0), [])], ids=repr)
    def test_a_batch_without_entries_has_none(self, batch: Any) -> None:
        for function, _ in features.ALL[:3]:
            assert function(Observation(batch=batch)) is None

    def test_only_numbers_that_are_not_finite(self) -> None:
        assert np.isfinite(statistics(np.full(4, np.nan, np.float32))).all()

    def test_the_entropy_of_a_large_array_is_that_of_its_thinned_entries(self) -> None:
        large = np.random.default_rng(6).normal(size=(64, 40, 50)).astype(np.float32)
        _, entropy = batch_entries(large)
        actual = float(statistics(large)[2])
        assert actual == pytest.approx(entropy, abs=0.02)
        assert actual != pytest.approx(entropy, abs=1e-6)

    @pytest.mark.parametrize("dtype", [np.float64, np.int64, np.uint64])
    def test_wide_numbers(self, dtype: Any) -> None:
        with jax.enable_x64(True):
            batch = np.array([3, 4, 4, 2**40], dtype)
            entries, entropy = batch_entries(batch)
            mean, _, actual = map(float, statistics(batch))
        assert mean == pytest.approx(np.arcsinh(entries.mean()), rel=1e-5)
        assert actual == pytest.approx(entropy, rel=1e-5)


def test_the_gradients_norm() -> None:
    seen = Observation(batch=None, gradient_norm=jnp.float32(0.3))
    assert float(features.gradient_norm(seen)) == pytest.approx(math.log(0.3), rel=1e-6)


def test_what_was_not_passed_is_absent() -> None:
    assert [function(Observation(batch=None)) for function, _ in features.ALL] == [None] * 4
