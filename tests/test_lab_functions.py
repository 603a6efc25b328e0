"""Functions of many minima: their values, their minima, their turns and their noise."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.lab.functions import FUNCTIONS, NOISE, noisy

# As the literature has them, in float64.
LITERATURE: dict[str, Callable[[np.ndarray], float]] = {
    "rastrigin": lambda x: 10 * x.size + np.sum(x**2 - 10 * np.cos(2 * np.pi * x)),
    "ackley": lambda x: (-20 * np.exp(-0.2 * np.sqrt(np.mean(x**2)))
                         - np.exp(np.mean(np.cos(2 * np.pi * x))) + 20 + np.e),
    "griewank": lambda x: (np.sum(x**2) / 4000
                           - np.prod(np.cos(x / np.sqrt(np.arange(1, x.size + 1)))) + 1),
    "schwefel": lambda x: 418.9828872724338 * x.size - np.sum(x * np.sin(np.sqrt(np.abs(x)))),
    "styblinski_tang": lambda x: np.sum((x**4 - 16 * x**2 + 5 * x) / 2 + 39.16616570377142),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dimensions", [2, 30])
def test_values_are_those_of_the_literature(name: str, dimensions: int) -> None:
    function = FUNCTIONS[name]
    for key in jax.random.split(jax.random.key(0), 3):
        x = function.start(key, dimensions)
        assert np.abs(x).max() <= function.half_width
        wanted = LITERATURE[name](np.asarray(x, np.float64))
        np.testing.assert_allclose(function.value(x), wanted, rtol=1e-4)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("rotated", [False, True])
def test_the_minimum_is_0_in_the_box_at_a_place_of_each_key(name: str, rotated: bool) -> None:
    function = FUNCTIONS[name]
    value, place = function.placed(jax.random.key(0), 20, rotated=rotated)
    other, elsewhere = function.placed(jax.random.key(1), 20, rotated=rotated)
    assert np.abs(place).max() < function.half_width
    assert np.abs(place - elsewhere).max() > 0.01 * function.half_width
    assert abs(float(value(place))) < 2e-3
    keys = jax.random.split(jax.random.key(2), 200)
    points = jax.vmap(lambda key: function.start(key, 20))(keys)
    values = jax.vmap(value)(jnp.concatenate([points, place[None] + 1e-2 * points]))
    assert float(values.min()) > float(value(place))
    assert float(other(place)) > 0.01


@pytest.mark.parametrize("name", ["rastrigin", "schwefel", "styblinski_tang"])
def test_a_turn_mixes_the_coordinates_and_keeps_distances(name: str) -> None:
    function, key = FUNCTIONS[name], jax.random.key(3)
    plain, here = function.placed(key, 4, rotated=False)
    turned, there = function.placed(key, 4, rotated=True)
    np.testing.assert_array_equal(here, there)
    away = 0.05 * function.half_width * jax.random.normal(key, (4,))
    straight, mixed = (jax.hessian(value)(here + away) for value in (plain, turned))
    beside = ~np.eye(4, dtype=bool)
    assert np.abs(straight[beside]).max() == 0.0
    assert np.abs(mixed[beside]).max() > 1e-3 * np.abs(mixed).max()
    # Some x maps to the same point under the turn: the inverse of what it does to `away`.
    turn = jax.random.orthogonal(jax.random.split(key)[1], 4)
    values = turned(here + turn.T @ away), plain(here + away)
    np.testing.assert_allclose(*values, rtol=1e-3, atol=1e-3)


def test_schwefel_does_not_fall_beyond_its_box() -> None:
    far = jnp.linspace(501.0, 3000.0, 2000)[:, None]
    assert jax.vmap(FUNCTIONS["schwefel"].value)(jnp.concatenate([far, -far])).min() > 100.0


def test_noise_is_in_the_gradients_alone_and_another_one_at_every_point() -> None:
    function = FUNCTIONS["rastrigin"]
    value, _ = function.placed(jax.random.key(0), 8, rotated=False)
    keys = jax.random.split(jax.random.key(1), 500)
    points = jax.vmap(lambda key: function.start(key, 8))(keys)
    loss = noisy(value, jax.random.key(2), points)
    np.testing.assert_allclose(jax.vmap(loss)(points), jax.vmap(value)(points), rtol=1e-6)
    noises = jax.jit(jax.vmap(lambda x: jax.grad(loss)(x) - jax.grad(value)(x)))
    noise, beside = np.asarray(noises(points)), np.asarray(noises(points + 1e-4))
    size = NOISE * np.sqrt(np.mean(np.square(jax.vmap(jax.grad(value))(points))))
    np.testing.assert_allclose(noise.std(), size, rtol=0.05)
    assert abs(noise.mean()) < 0.1 * size
    assert len(np.unique(noise[:, 0])) == len(points)
    # Independent also of that at a neighbour, and the same at the same point.
    assert abs(np.corrcoef(noise.ravel(), beside.ravel())[0, 1]) < 0.1
    np.testing.assert_array_equal(noises(points), noise)
