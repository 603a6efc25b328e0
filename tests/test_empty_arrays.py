"""Arrays without entries, as adapters of rank 0 have, train and are kept like any other."""

import pathlib
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optabs
from optabs.training.checkpoints import digest

NOTHING = np.zeros((3, 0), np.float32)
DATA = (np.ones((8, 4), np.float32), np.ones((8, 2), np.float32), np.zeros((8, 0), np.int32))


def params() -> dict[str, jax.Array]:
    return {"w": jnp.zeros((4, 2)), "A": jnp.zeros((4, 0)), "B": jnp.zeros((0, 2))}


def init_fn(key: jax.Array) -> dict[str, jax.Array]:
    return params() | {"w": jax.random.normal(key, (4, 2))}


def loss_fn(params: Any, batch: Any) -> jax.Array:
    x, y, _ = batch
    predictions = x @ params["w"] + x @ params["A"] @ params["B"]
    return optabs.losses.mse(predictions, y).mean() + jnp.sum(jnp.asarray(NOTHING))


@pytest.mark.slow
def test_fit_keeps_and_goes_on(tmp_path: pathlib.Path) -> None:
    def train(epochs: int, folder: pathlib.Path | None = None) -> Any:
        return optabs.fit(
            loss_fn,
            params(),
            optabs.adam(0.1),
            DATA,
            validation_data=DATA,
            batch_size=4,
            epochs=epochs,
            checkpoint_dir=folder,
        )

    train(2, tmp_path)
    chex.assert_trees_all_equal(train(4, tmp_path).params, train(4).params, strict=True)


@pytest.mark.slow
def test_gadam_keeps_and_goes_on(tmp_path: pathlib.Path) -> None:
    learner = optabs.gadam(population_size=2, batch_size=4)

    def train(generations: int, folder: pathlib.Path | None = None) -> Any:
        return learner.run(
            jax.random.key(0),
            init_fn,
            loss_fn,
            DATA,
            DATA,
            generations=generations,
            checkpoint_dir=folder,
        )

    train(1, tmp_path)
    chex.assert_trees_all_equal(
        train(2, tmp_path).population, train(2).population, strict=True
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool", "complex64"])
def test_a_digest_reads_every_dtype_and_shape(dtype: str) -> None:
    ones = jnp.ones(3, dtype)
    empty = [jnp.zeros(shape, dtype) for shape in ((0,), (4, 0), (0, 2), (2, 0, 3))]
    assert digest([ones, *empty]) == digest([ones, *empty])
    assert digest([ones, *empty]) != digest([jnp.zeros_like(ones), *empty])
    assert digest(jnp.ones([], dtype)) != digest(jnp.zeros([], dtype))
