"""The losses against literal loops and optax, and at their edges."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from loss_cases import (
    BATCHES,
    CLASSES,
    NAMES,
    K,
    batch_of,
    huber_error,
    looped,
    one_hot,
)

from optabs import losses


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("name", NAMES)
class TestValues:
    def test_numpy_input_gives_the_loop(self, name: str, batch: tuple[int, ...]) -> None:
        first, second = batch_of(name, batch)
        value = getattr(losses, name)(first, second)
        assert isinstance(value, jax.Array)
        assert value.dtype == jnp.float32
        assert value.shape == batch
        np.testing.assert_allclose(value, looped(name, first, second), rtol=1e-5, atol=1e-6)

    def test_jit_and_vmap_give_the_loop(self, name: str, batch: tuple[int, ...]) -> None:
        first, second = batch_of(name, batch)
        function = getattr(losses, name)
        for _ in batch:
            function = jax.vmap(function)
        value = jax.jit(function)(jnp.asarray(first), jnp.asarray(second))
        np.testing.assert_allclose(value, looped(name, first, second), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_differences(name: str) -> None:
    first, second = batch_of(name, (2, 3))
    function = jax.jit(getattr(losses, name))
    with jax.enable_x64(True):
        arguments = jnp.asarray(first), jnp.asarray(second)
        if name in CLASSES:
            rows = jnp.asarray(np.random.default_rng(1).dirichlet(np.ones(K), size=(2, 3)))
            check_grads(lambda s: function(s, arguments[1]), arguments[:1], 1, eps=1e-6)
            arguments = arguments[0], rows
        check_grads(function, arguments, 1, eps=1e-6)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("name", CLASSES)
class TestRows:
    def test_one_hot_is_the_class(self, name: str, batch: tuple[int, ...]) -> None:
        scores, classes = batch_of(name, batch)
        function = getattr(losses, name)
        slope = jax.jit(jax.grad(lambda s, t: function(s, t).sum()))
        for dtype in (np.float64, np.int32):
            rows = one_hot(classes).astype(dtype)
            value = jax.jit(function)(scores, rows)
            np.testing.assert_allclose(value, looped(name, scores, classes), rtol=1e-5)
            np.testing.assert_allclose(
                slope(scores, rows), slope(scores, classes), rtol=1e-5, atol=1e-6
            )

    def test_a_distribution_gives_the_expectation(
        self, name: str, batch: tuple[int, ...]
    ) -> None:
        scores, _ = batch_of(name, batch)
        shares = np.random.default_rng(3).dirichlet(np.ones(K), size=batch)
        each = [looped(name, scores, np.full(batch, c)) for c in range(K)]
        expected = sum(shares[..., c] * each[c] for c in range(K))
        value = jax.jit(getattr(losses, name))(scores, shares)
        np.testing.assert_allclose(value, expected, rtol=1e-5)


class TestDtypes:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
    def test_the_first_argument_decides(self, name: str, dtype: str) -> None:
        first, second = batch_of(name)
        with jax.enable_x64(True):
            narrow = jnp.asarray(first, dtype)
            value = jax.jit(getattr(losses, name))(narrow, second)
            assert value.dtype == jnp.promote_types(dtype, jnp.float32)
            assert not value.weak_type
            wide = looped(name, np.asarray(narrow, np.float64), second)
            tolerance = 1e-12 if dtype == "float64" else 1e-5
            np.testing.assert_allclose(value, wide, rtol=tolerance, atol=tolerance)
            slope = jax.grad(lambda p: getattr(losses, name)(p, second).sum())
            assert jax.eval_shape(slope, narrow).dtype == dtype

    def test_python_numbers_do_not_widen(self) -> None:
        with jax.enable_x64(True):
            x = jnp.ones(2, jnp.float32)
            assert losses.huber(x, x, 0.5).dtype == jnp.float32
            assert losses.huber(x, x, np.float64(0.5)).dtype == jnp.float32
            assert losses.sigmoid_cross_entropy(x[0], 0.5).dtype == jnp.float32
            assert losses.hinge(x, 1).dtype == jnp.float32

    @pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32", "int64", "uint64"])
    @pytest.mark.parametrize("name", CLASSES)
    def test_class_indices_of_any_width(self, name: str, dtype: str) -> None:
        scores = jnp.asarray(np.random.default_rng(0).uniform(0.1, 1.0, (2, 300)))
        classes = np.array([0, 100])
        with jax.enable_x64(True):
            value = getattr(losses, name)(scores, jnp.asarray(classes, dtype))
        np.testing.assert_allclose(
            value, looped(name, np.asarray(scores, np.float64), classes), rtol=1e-5
        )

    def test_a_wide_index_is_not_wrapped_into_range(self) -> None:
        with jax.enable_x64(True):
            classes = jnp.array([1, 2**32 + 1])
            value = losses.hinge(jnp.zeros((2, K), jnp.float32), classes)
        assert np.isnan(value).tolist() == [False, True]


class TestOptax:
    """Where optax has the same loss, its numbers."""

    def test_elementwise(self) -> None:
        first, second = map(jnp.float32, batch_of("huber"))
        huber = optax.huber_loss(first, second, delta=0.5).mean(-1)
        assert (losses.huber(first, second, 0.5) == huber).all()
        assert (losses.mse(first, second) == optax.squared_error(first, second).mean(-1)).all()
        cosine = optax.cosine_distance(first, second)
        np.testing.assert_allclose(losses.cosine_distance(first, second), cosine, rtol=1e-5)

    @pytest.mark.parametrize("size", [1e-30, 1.0, 1e30, 9e37, 3e38])
    def test_a_cosine_does_not_depend_on_sizes(self, size: float) -> None:
        vector = jnp.array([size, -size / 3], jnp.float32)
        np.testing.assert_allclose(losses.cosine_distance(vector, vector), 0.0, atol=1e-6)
        np.testing.assert_allclose(losses.cosine_distance(vector, -vector), 2.0, atol=1e-6)

    @pytest.mark.slow
    def test_cross_entropies(self) -> None:
        logits, classes = map(jnp.asarray, batch_of("softmax_cross_entropy"))
        expected = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
        ours = losses.softmax_cross_entropy(logits, classes)
        np.testing.assert_allclose(ours, expected, rtol=1e-6)
        rows = jnp.asarray(one_hot(classes))
        expected = optax.softmax_cross_entropy(logits, rows)
        assert (losses.softmax_cross_entropy(logits, rows) == expected).all()
        logits, labels = map(jnp.float32, batch_of("sigmoid_cross_entropy"))
        expected = optax.sigmoid_binary_cross_entropy(logits, labels)
        assert (losses.sigmoid_cross_entropy(logits, labels) == expected).all()


def slope_of(name: str, first: Any, second: Any) -> np.ndarray:
    first = jnp.asarray(first, jnp.float32)
    return np.asarray(
        jax.jit(jax.grad(lambda p: getattr(losses, name)(p, second).sum()))(first)
    )


class TestEdges:
    @pytest.mark.parametrize("size", [0.0, 1e-40, 1e-30])
    def test_nothing_from_a_class_of_no_share(self, size: float) -> None:
        rows = np.array([1.0, 0.0, 0.0])
        p = jnp.array([0.5, size, 0.5], jnp.float32)
        assert float(losses.cross_entropy(p, rows)) == pytest.approx(math.log(2))
        np.testing.assert_allclose(slope_of("cross_entropy", p, rows), [-2.0, 0.0, 0.0])
        np.testing.assert_allclose(slope_of("cross_entropy", p, 0), [-2.0, 0.0, 0.0])
        by_rows = jax.grad(losses.cross_entropy, 1)(p, rows)
        assert np.isfinite(by_rows).all()

    def test_a_true_class_of_probability_0_costs_infinity(self) -> None:
        p = np.array([0.0, 1.0])
        assert float(losses.cross_entropy(p, 0)) == math.inf
        assert float(losses.cross_entropy(p, one_hot(0)[:2])) == math.inf

    @pytest.mark.parametrize("name", ["mse", "mae", "huber", "cosine_distance"])
    def test_equal_vectors_have_no_slope(self, name: str) -> None:
        x = np.array([1.0, -2.0, 0.0])
        assert float(getattr(losses, name)(x, x)) == pytest.approx(0.0, abs=1e-6)
        np.testing.assert_allclose(slope_of(name, x, x), np.zeros(3), atol=1e-6)

    def test_large_logits(self) -> None:
        x = np.array([1e4, -1e4])
        for labels in ([0, 1], [1, 0], [0.5, 0.5]):
            value = losses.sigmoid_cross_entropy(x, np.array(labels))
            expected = [1e4 * (1 - labels[0]), 1e4 * labels[1]]
            np.testing.assert_allclose(value, expected)
            expected = [1 - labels[0], -labels[1]]
            slope = slope_of("sigmoid_cross_entropy", x, np.array(labels))
            np.testing.assert_allclose(slope, expected)
        for target in (1, np.array([0.0, 1.0])):
            assert float(losses.softmax_cross_entropy(x, target)) == 2e4
            slope = slope_of("softmax_cross_entropy", x, target)
            np.testing.assert_allclose(slope, [1.0, -1.0])

    @pytest.mark.parametrize("target", [1, np.array([0.0, 1.0, 0.0])], ids=["class", "row"])
    def test_a_class_ruled_out(self, target: Any) -> None:
        x = np.array([-np.inf, 1.0, 1.0])
        value = float(losses.softmax_cross_entropy(x, target))
        assert value == pytest.approx(math.log(2))
        slope = slope_of("softmax_cross_entropy", x, target)
        np.testing.assert_allclose(slope, [0.0, -0.5, 0.5], atol=1e-6)

    def test_a_zero_vector_is_at_distance_1_without_slope(self) -> None:
        zero, other = jnp.zeros(3), jnp.array([1.0, 2.0, 3.0])
        for pair in ((zero, other), (other, zero), (zero, zero)):
            assert float(losses.cosine_distance(*pair)) == 1.0
            for slope in jax.grad(losses.cosine_distance, (0, 1))(*pair):
                assert (slope == 0).all()

    @pytest.mark.parametrize("size", [1e-25, 1e25])
    def test_cosine_of_extreme_sizes(self, size: float) -> None:
        first, second = batch_of("cosine_distance")
        value = losses.cosine_distance(size * first, second)
        expected = looped("cosine_distance", first, second)
        np.testing.assert_allclose(value, expected, rtol=1e-4)
        slope = size * slope_of("cosine_distance", size * first, second)
        np.testing.assert_allclose(
            slope, slope_of("cosine_distance", first, second), rtol=1e-4, atol=1e-6
        )

    def test_a_margin_of_0_has_no_slope(self) -> None:
        assert slope_of("hinge", [1.0, 0.0], 0).tolist() == [0.0, 0.0]

    def test_delta_may_be_traced(self) -> None:
        value = jax.jit(losses.huber)(jnp.array([3.0]), jnp.array([0.0]), 2.0)
        assert float(value) == pytest.approx(huber_error(3.0, 2.0))
