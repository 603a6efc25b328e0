"""A population of small networks, for the tests of Gadam.

Started as a program, it runs the population on all devices of all processes:
`python gadam_problem.py FILE [FOLDER] [GENERATIONS] [relearn]` writes the result to FILE.
"""

import functools
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optabs
from optabs.evolution.devices import connect

SIZE, COUNT, INPUTS, HIDDEN = 8, 24, 6, 8


def data(count: int = COUNT, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [count, 6] and targets [count, 1] of a function that is not linear."""
    inputs = np.random.default_rng(seed).normal(size=(count, INPUTS)).astype(np.float32)
    return inputs, np.sin(2 * inputs[:, :1]) * inputs[:, 1:2]


def init_fn(key: jax.Array) -> dict[str, jax.Array]:
    """A network with one hidden layer."""
    first, second = jax.random.split(key)
    return {
        "w": jax.random.normal(first, (INPUTS, HIDDEN)),
        "b": jnp.zeros(HIDDEN),
        "head": jax.random.normal(second, (HIDDEN, 1)),
    }


def loss_fn(params: Any, batch: Any) -> jax.Array:
    """The mean squared error."""
    inputs, targets = batch
    hidden = jnp.tanh(inputs @ params["w"] + params["b"][None, :])
    return jnp.mean((hidden @ params["head"] - targets) ** 2)


# One object, so that tests share its compiled programs.
ADAM = optabs.adam(0.02)


def learner(**changed: Any) -> optabs.Gadam:
    """The population's rules, with some arguments changed."""
    given: dict[str, Any] = {
        "unit": ADAM,
        "population_size": SIZE,
        "mutation_rate": 0.05,
        "epochs": 5,
        "batch_size": 8,
        "validation_batch_size": 12,
        "inheritance": "crossover",
    }
    return optabs.gadam(**given | changed)


def run(*, learns: Any = None, **changed: Any) -> optabs.GadamResult:
    """Two generations, with some arguments of `run` changed, and some of `gadam` in learns."""
    given: dict[str, Any] = {
        "key": jax.random.key(3),
        "init_fn": init_fn,
        "loss_fn": loss_fn,
        "train_data": data(),
        "validation_data": data(16, seed=1),
        "generations": 2,
    }
    return learner(**learns or {}).run(**given | changed)


@functools.cache
def uninterrupted(generations: int = 2) -> optabs.GadamResult:
    """A run on one device, made once for all tests that compare another one with it."""
    return run(generations=generations)


def whole(result: optabs.GadamResult) -> dict[str, np.ndarray]:
    """The best unit and the history."""
    return {**jax.device_get(result.params), **result.history}


def main(
    file: str, folder: str | None = None, generations: str = "2", relearn: str = ""
) -> None:
    """Runs on the devices of all processes; the first one writes the result.

    Without `relearn` the program has one loop of learning and not two, and compiles faster.
    """
    connect(timeout=30)
    mesh = jax.make_mesh((jax.device_count(),), ("population",))
    made = whole(
        run(
            learns={"mesh": mesh},
            checkpoint_dir=folder or None,
            generations=int(generations),
            relearn=bool(relearn),
        )
    )
    if jax.process_index() == 0:
        np.savez(pathlib.Path(file), **made)


if __name__ == "__main__":
    main(*sys.argv[1:])
