"""The time of an epoch through `optabs.fit` against a loop written by hand."""

import functools
import pathlib
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
import typer
from flax import nnx
from rich.progress import track

import optabs
from benchmarks import store
from benchmarks.lab import report, timing
from benchmarks.lab.arguments import fits, names_of, numbers_of, positive
from benchmarks.lab.data import Dataset, load
from benchmarks.lab.models import MLP
from benchmarks.training import HIDDEN, MODEL

RESULTS = pathlib.Path("runs/fit_time")
RATE = 1e-3
MODELS: dict[str, tuple[int, ...]] = {"logistic": (), MODEL: HIDDEN}
FIT, HAND = "optabs.fit", "by hand"

Epochs = Callable[[int], tuple[Any, float]]  # how many -> parameters, loss of the last


def fit_time(
    models: Annotated[str, typer.Option(help=f"any of {', '.join(MODELS)}")] = ",".join(
        MODELS
    ),
    batch_sizes: Annotated[
        str, typer.Option(help="one or more, separated by commas; the whole set is added")
    ] = "16,64,256",
    epochs: Annotated[
        int, typer.Option(help="of each timed run; 10 times as many, full-batch")
    ] = 100,
    rounds: Annotated[int, typer.Option(help="runs of each contender, in turns")] = 9,
    out: Annotated[pathlib.Path, typer.Option(help="folder of results")] = RESULTS,
) -> None:
    """Times training on digits through optabs.fit and through a hand-written lax.scan.

    The loop by hand is one compiled epoch, called once per epoch. Both train with Adam,
    shuffle anew, train on the last short batch, and end with the same parameters.
    """
    chosen = names_of(models, "models", MODELS)
    sizes = numbers_of(batch_sizes, "batch-sizes")
    positive(epochs, "epochs")
    positive(rounds, "rounds")
    store.prepare_folder(out)
    data = load("digits")
    for number in sizes:
        fits(number, "digits", len(data.train_labels))
    environment = store.environment()
    rows = []
    everything: list[int | None] = [*sizes, None]
    settings = [(model, size) for model in chosen for size in everything]
    for model, size in track(settings, description="fit_time"):
        count = epochs if size else 10 * epochs
        results = compare(data, MODELS[model], size, count, rounds)
        config = {"model": model, "batch_size": size, "epochs": count, "rounds": rounds}
        record = {"config": config, "results": results, "environment": environment}
        store.write_json(out / "runs" / f"{model}-b{size or 'all'}.json", record)
        rows.append(_row(model, size, count, results))
    table = report.Table(
        "Milliseconds per epoch of digits (median of runs in turns, Adam)",
        ["model", "batch", "epochs in a run", FIT, HAND, "ratio [quartiles]", "difference"],
        rows,
    )
    table.show()
    store.write_bytes(out / "fit_time.md", table.markdown().encode())
    typer.echo(f"table: {out / 'fit_time.md'}")


def compare(
    data: Dataset, hidden: tuple[int, ...], size: int | None, epochs: int, rounds: int
) -> dict[str, Any]:
    """Seconds of both, after a run to warm up, and how far their parameters are apart."""
    arrays = jax.device_put((data.train_images, data.train_labels))
    model = MLP((data.train_images[0].size, *hidden, data.classes), rngs=nnx.Rngs(0))
    graph, params = nnx.split(model)

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        images, labels = batch
        logits = nnx.merge(graph, params)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    optimizer = optabs.adam(RATE)
    runs: dict[str, Epochs] = {
        FIT: _through_fit(loss_fn, params, optimizer, arrays, size),
        HAND: _by_hand(loss_fn, params, optimizer, arrays, size),
    }
    ours, theirs = (run(epochs)[0] for run in runs.values())
    distance = optax.tree.max(jax.tree.map(lambda a, b: jnp.abs(a - b), ours, theirs))
    clocks = {
        name: functools.partial(timing.seconds_of, functools.partial(run, epochs))
        for name, run in runs.items()
    }
    seconds = timing.in_turns(clocks, rounds, float("inf"))
    return {
        "seconds": seconds,
        "ratio": timing.ratio(seconds[FIT], seconds[HAND])._asdict(),
        "largest_difference": float(distance),
    }


def _through_fit(
    loss_fn: Any, params: Any, optimizer: Any, arrays: Any, size: int | None
) -> Epochs:
    def run(epochs: int) -> tuple[Any, float]:
        result = optabs.fit(
            loss_fn, params, optimizer, arrays, batch_size=size, epochs=epochs, progress=False
        )
        return result.params, float(result.history["loss"][-1])

    return run


def _by_hand(
    loss_fn: Any, params: Any, optimizer: Any, arrays: Any, size: int | None
) -> Epochs:
    count = len(arrays[1])
    key = jax.random.key(0)

    def step(carry: Any, batch: Any) -> tuple[Any, jax.Array]:
        params, state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(carry: Any, number: int, images: jax.Array, labels: jax.Array) -> Any:
        if size is None:
            return step(carry, (images, labels))
        order = jax.random.permutation(jax.random.fold_in(key, number), count)
        full = count // size * size
        batches = order[:full].reshape(-1, size)
        carry, losses = jax.lax.scan(
            lambda carry, rows: step(carry, (images[rows], labels[rows])), carry, batches
        )
        if full < count:
            rows = order[full:]
            carry, last = step(carry, (images[rows], labels[rows]))
            losses = jnp.append(losses, last)
        return carry, losses.mean()

    def run(epochs: int) -> tuple[Any, float]:
        start = jax.tree.map(jnp.copy, params)
        carry, loss = (start, optimizer.init(start)), jnp.nan
        for number in range(epochs):
            carry, loss = epoch(carry, number, *arrays)
        return carry[0], float(loss)

    return run


def _row(model: str, size: int | None, epochs: int, results: dict[str, Any]) -> list[str]:
    times = [f"{1e3 * timing.median(results['seconds'][n]) / epochs:.3f}" for n in (FIT, HAND)]
    return [
        model,
        str(size or "all"),
        str(epochs),
        *times,
        str(timing.Spread(**results["ratio"])),
        f"{results['largest_difference']:.1e}",
    ]
