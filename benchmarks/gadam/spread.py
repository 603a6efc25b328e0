"""A population on digits over the devices of all processes.

`python -m benchmarks gadam --processes 2` starts it twice on this machine. On a cluster or a
TPU pod start this module itself on every host, as `optabs.connect` describes.
"""

import pathlib
from collections.abc import Callable
from typing import Annotated, Any

import jax
import typer

import optabs
from benchmarks import store
from benchmarks.gadam.tasks import network_task, spread_like
from benchmarks.gadam.traffic import received, size_of
from optabs import GadamState
from optabs.evolution.devices import connect

RATE, LEARNING, GENERATIONS = 1e-2, 2, 5
UNITS_A_DEVICE = 2


def spread(
    out: Annotated[pathlib.Path, typer.Argument(help="the record to write")],
    generations: Annotated[int, typer.Option()] = GENERATIONS,
) -> None:
    """Joins the other processes, runs Gadam with them, and writes what happened."""
    connect()
    results = evolved(generations)
    if jax.process_index() == 0:
        for number, loss in enumerate(results["best"], start=1):
            typer.echo(f"generation {number}: best validation loss {loss:.4f}")
        typer.echo(
            f"{results['units']} units on {results['devices']} devices of "
            f"{results['processes']} processes; learning sends "
            f"{results['learning_receives']} bytes, and after an evolution each device has "
            f"received {results['evolution_receives']:,} bytes, "
            f"{results['share']:.2f} times the population with its optimizers' states"
        )
        store.write_json(out, {"results": results, "environment": store.environment()})


def evolved(generations: int) -> dict[str, Any]:
    """A run over all devices: its losses, and the bytes that each device receives."""
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ("population",))
    task = network_task("digits")
    problem = task.pose(jax.random.key(0))
    learner = optabs.gadam(
        optabs.adam(RATE),
        UNITS_A_DEVICE * devices,
        epochs=LEARNING,
        batch_size=problem.batch_size,
        sample=spread_like,
        mesh=mesh,
    )
    result = learner.run(
        jax.random.key(0),
        problem.init_fn,
        problem.loss_fn,
        problem.data,
        problem.validation,
        generations=generations,
        progress=False,
    )
    state, train, held_out = result.state, problem.data, problem.validation
    put = learner.plan.layout.replicated
    train, held_out = put(train), put(held_out)

    def learn(state: GadamState, data: Any) -> Any:
        return learner.learn(state, problem.loss_fn, data)

    def evolve(state: GadamState, data: Any, held_out: Any) -> Any:
        return learner.evolve(state, problem.loss_fn, data, held_out)

    learning = _received(learn, state, train)
    evolution = _received(evolve, state, train, held_out)
    population = size_of(state.params) + size_of(state.opt_state)
    return {
        "units": UNITS_A_DEVICE * devices,
        "devices": devices,
        "processes": jax.process_count(),
        "best": [float(row.min()) for row in result.history["trial_losses"]],
        "learning_receives": learning,
        "evolution_receives": evolution,
        "share": evolution / population,
    }


def _received(function: Callable[..., Any], *arguments: Any) -> int:
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return sum(received(text or "").values())


if __name__ == "__main__":
    typer.run(spread)
