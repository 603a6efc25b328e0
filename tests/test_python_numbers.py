"""Python numbers as leaves of the parameters work as optax has them work."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import NAMED, OPTIONS, PARTS, Case
from trees import avals

import optabs
from optabs import genetics, losses

PLAIN = {"w": jnp.ones((3, 2)), "temperature": 1.0}
ARRAYS = {"w": jnp.ones((3, 2)), "temperature": jnp.float32(1.0)}
DATA = np.ones((4, 1), np.float32)
ALONE = {
    "ema": optabs.ema(0.9),
    "nesterov": optabs.nesterov(0.9),
    "rms": optabs.rms(0.9),
    "mean_abs": optabs.mean_abs(0.9),
    "root_sum_squares": optabs.root_sum_squares(),
    "sum_abs": optabs.sum_abs(),
    "rising_rms": optabs.rising_rms(0.9),
    "rising_abs": optabs.rising_abs(0.9),
    "running_max": optabs.running_max(),
    "unit_correction": optabs.unit_correction(eps=1e-3),
}


def squared(params: Any, batch: jax.Array) -> jax.Array:
    return jnp.sum((params["w"] - batch.mean()) ** 2) + params["temperature"] ** 2


def init_fn(key: jax.Array) -> dict[str, Any]:
    return {"w": jax.random.normal(key, (3, 2)), "temperature": 1.0}


@pytest.mark.parametrize("case", [*NAMED, *OPTIONS, *PARTS], ids=str)
def test_optimizers(case: Case) -> None:
    optimizer = case.make()
    state, wanted = optimizer.init(PLAIN), optimizer.init(ARRAYS)
    assert avals(state) == avals(wanted)
    for grads in (PLAIN, jax.grad(squared)(PLAIN, DATA)):
        updates, state = optimizer.update(grads, state, PLAIN)
        alike, wanted = optimizer.update(grads, wanted, ARRAYS)
        chex.assert_trees_all_equal((updates, state), (alike, wanted), strict=True)
    optax.apply_updates(PLAIN, updates)


@pytest.mark.parametrize("name", ALONE)
def test_parts(name: str) -> None:
    part = ALONE[name]
    outcomes = [part.update(tree, part.init(tree), tree) for tree in (PLAIN, ARRAYS)]
    chex.assert_trees_all_equal(*outcomes, strict=True)


def test_the_point_of_nag() -> None:
    state = optabs.nag(0.1).init(PLAIN)
    chex.assert_trees_all_equal(optabs.nag_eval_params(state, PLAIN), ARRAYS, strict=True)


@pytest.mark.parametrize("name", ["nag", "adam_abs"])
def test_fit(name: str) -> None:
    optimizer = getattr(optabs, name)(0.1)
    found, wanted = (
        optabs.fit(squared, start, optimizer, DATA, epochs=3, params_tolerance=1e-9)
        for start in (PLAIN, ARRAYS)
    )
    chex.assert_trees_all_equal(found.params, wanted.params, strict=True)
    optabs.fit(squared, PLAIN, optimizer, DATA, epochs=1, opt_state=found.opt_state)


@pytest.mark.slow
@pytest.mark.parametrize("inheritance", ["fresh", "crossover"])
def test_gadam(inheritance: Any) -> None:
    learner = optabs.gadam(population_size=4, inheritance=inheritance)
    result = learner.run(jax.random.key(0), init_fn, squared, DATA, DATA, generations=2)
    assert result.population["temperature"].shape == (4,)


@pytest.mark.parametrize(
    "draw",
    [
        optabs.normal_like,
        genetics.uniform_like,
        genetics.normal_around(0.1),
        genetics.either(genetics.uniform_like, genetics.normal_around(0.1)),
        lambda key, tree: genetics.mutate(key, tree, 0.5),
        lambda key, tree: genetics.mutate(key, tree, 0.5, optabs.normal_like),
        lambda key, tree: genetics.crossover(key, tree, tree, 0.0, 1.0),
        lambda key, tree: genetics.crossover_mask(key, tree, 0.0, 1.0),
    ],
)
def test_draws(draw: Any) -> None:
    key = jax.random.key(0)
    chex.assert_trees_all_equal(draw(key, PLAIN), draw(key, ARRAYS), strict=True)


def test_numbers_that_do_not_mutate() -> None:
    child = genetics.mutate(jax.random.key(0), {"w": jnp.ones(3), "steps": 3}, 1.0)
    assert child["steps"] == 3


@pytest.mark.slow
def test_losses() -> None:
    for name in ("mse", "mae", "huber", "cosine_distance"):
        function = getattr(losses, name)
        chex.assert_trees_all_close(
            function([1.0, 2.0], [3, 4]), function(jnp.array([1.0, 2.0]), [3, 4])
        )
    for name in ("hinge", "cross_entropy", "softmax_cross_entropy"):
        function = getattr(losses, name)
        chex.assert_trees_all_close(
            function([0.25, 0.75], 1), function(jnp.array([0.25, 0.75]), 1)
        )
    chex.assert_trees_all_close(losses.sigmoid_cross_entropy(0.0, 1), jnp.log(2.0))
