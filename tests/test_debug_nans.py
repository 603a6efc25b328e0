"""jax_debug_nans and jax_debug_infs have no complaint about healthy code."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import NAMED, OPTIONS, PARTS, Case
from loss_cases import CLASSES, NAMES, batch_of, one_hot

import optabs
from optabs import genetics, losses

DATA = np.ones((5, 1), np.float32)
KEY = 0


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    with jax.debug_nans(True), jax.debug_infs(True):
        yield


def squared(params: jax.Array, batch: jax.Array) -> jax.Array:
    return jnp.sum((params - batch.mean()) ** 2)


def init_fn(key: jax.Array) -> jax.Array:
    return jax.random.normal(key, (3,))


def eager(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@pytest.mark.parametrize("dividend", [0.0, 1.0], ids=["nan", "inf"])
def test_a_true_fault_is_found(dividend: float) -> None:
    with pytest.raises(FloatingPointError, match="nan" if dividend == 0 else "inf"):
        jnp.full(2, dividend) / jnp.zeros(2)


@pytest.mark.parametrize("compiled", [eager, jax.jit])
@pytest.mark.parametrize("case", [*NAMED, *OPTIONS, *PARTS], ids=str)
def test_optimizers(case: Case, compiled: Any) -> None:
    """From a gradient of zero on."""
    optimizer = case.make()
    for dtype in (jnp.float32, jnp.float16):
        params = {"w": jnp.ones((2, 2), dtype), "none": jnp.zeros((0, 2), dtype)}
        state = optimizer.init(params)
        update = compiled(lambda g, s, p: optimizer.update(g, s, p))
        for size in (0.0, 1.0, 0.0):
            grads = jax.tree.map(lambda leaf, size=size: jnp.full_like(leaf, size), params)
            _, state = update(grads, state, params)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [eager, jax.jit])
@pytest.mark.parametrize("name", NAMES)
def test_losses(name: str, compiled: Any) -> None:
    first, second = batch_of(name)
    targets = [second, jnp.asarray(second)]
    if name in CLASSES:
        targets.append(one_hot(second))
    for target in targets:

        def loss(x: jax.Array, target: Any = target) -> jax.Array:
            return getattr(losses, name)(x, target).sum()

        for function in (loss, jax.grad(loss), jax.jacfwd(loss)):
            compiled(function)(jnp.asarray(first, jnp.float32))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 2, "tolerance": 1e-3},
        {"batch_size": 2, "max_steps": 4, "params_tolerance": 1e-3},
        {"batch_size": 2, "sampling": "random", "validation_data": DATA},
        {"validation_data": DATA, "metrics": {"again": squared}},
    ],
    ids=["whole", "tolerance", "params", "validation", "metrics"],
)
def test_fit(options: dict[str, Any]) -> None:
    result = optabs.fit(squared, jnp.zeros(3), optabs.sgd(0.1), DATA, epochs=3, **options)
    assert all(np.isfinite(column).all() for column in result.history.values())


@pytest.mark.slow
def test_fit_with_checkpoints(tmp_path: pathlib.Path) -> None:
    for epochs in (2, 4):
        optabs.fit(
            squared,
            jnp.zeros(3),
            optabs.adam(0.1),
            DATA,
            batch_size=2,
            epochs=epochs,
            checkpoint_dir=tmp_path,
        )


@pytest.mark.slow
def test_gadam_runs(tmp_path: pathlib.Path) -> None:
    learner = optabs.gadam(population_size=4, batch_size=2, validation_batch_size=3)
    for generations in (2, 3):
        learner.run(
            jax.random.key(KEY),
            init_fn,
            squared,
            DATA,
            DATA,
            generations=generations,
            tolerance=1e-9,
            checkpoint_dir=tmp_path,
        )


@pytest.mark.slow
def test_gadam_step_by_step() -> None:
    learner = optabs.gadam(population_size=2, inheritance="crossover")
    state = learner.init(jax.random.key(KEY), init_fn)
    learner.best(state)
    state, _ = learner.learn(state, squared, DATA)
    state, _ = learner.evolve(state, squared, DATA, DATA)
    learner.best(state)


@pytest.mark.parametrize("compiled", [eager, jax.jit])
@pytest.mark.parametrize("judged", [[3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [3e38, -3e38, 0.0]])
def test_genetics(judged: list[float], compiled: Any) -> None:
    key, values = jax.random.key(KEY), jnp.array(judged)
    normalized = compiled(genetics.normalize_losses)(values)
    # A pressure under which the worst has no chance at all.
    chances = compiled(genetics.selection_probabilities)(values, 1000.0)
    compiled(lambda p: genetics.select_parents(key, p, 4))(chances)
    compiled(lambda losses: genetics.survivors(losses, 2))(values)
    a, b = jnp.zeros(4), jnp.ones(4)
    child = compiled(lambda a, b, x, y: genetics.crossover(key, a, b, x, y))(
        a, b, normalized[0], normalized[1]
    )
    compiled(lambda x, rate: genetics.mutate(key, x, rate))(child, chances[0])


def test_a_chance_of_0_is_never_drawn() -> None:
    chances = jnp.array([0.0, 1e-30, 0.0])
    drawn = genetics.select_parents(jax.random.key(KEY), chances, 1000)
    assert (drawn == 1).all()
