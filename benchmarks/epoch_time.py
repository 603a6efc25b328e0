"""The time of a training epoch against PyTorch's, for the same model and optimizer."""

import functools
import pathlib
from collections.abc import Callable
from typing import Annotated, Any

import jax
import numpy as np
import typer
from rich.progress import track

import optabs
from benchmarks import store, torch_peer
from benchmarks.lab import report, timing
from benchmarks.lab.arguments import ArgumentError, DataOption, names_of, numbers_of, positive
from benchmarks.lab.data import Dataset, load
from benchmarks.runs import Device
from benchmarks.training import MODEL, make_trainer

RESULTS = pathlib.Path("runs/epoch_time")
RATE = 1e-3
OURS = "jax, optabs.adam"


def epoch_time(
    data: DataOption = None,
    batch_sizes: Annotated[
        str, typer.Option(help="one or more, separated by commas")
    ] = "64,128,256",
    variants: Annotated[
        str, typer.Option(help=f"of torch's Adam: {', '.join(torch_peer.VARIANTS)}")
    ] = ",".join(torch_peer.VARIANTS),
    runs: Annotated[int, typer.Option(help="epochs timed of each contender, in turns")] = 5,
    out: Annotated[pathlib.Path, typer.Option(help="folder of results")] = RESULTS,
) -> None:
    """Times an epoch of MNIST (MLP 784-256-128-10, Adam) in JAX and in PyTorch.

    Both hold the data on the device, start from the same weights, shuffle anew and score
    the validation set after each epoch.
    """
    sizes = numbers_of(batch_sizes, "batch-sizes")
    kinds = names_of(variants, "variants", torch_peer.VARIANTS)
    positive(runs, "runs")
    store.prepare_folder(out)
    device = torch_peer.device_like(jax.default_backend())
    torch_peer.load_torch()  # a missing package is said before the data are read
    dataset = load("mnist", data)
    if max(sizes) > len(dataset.train_labels):
        raise ArgumentError(
            f"batch-sizes is {batch_sizes!r}, but there are {len(dataset.train_labels)} "
            "training images; pass smaller ones."
        )
    environment = store.environment()
    results = {}
    for size in track(sizes, description="epoch_time"):
        found = results[size] = compare(dataset, size, kinds, runs, device)
        config = {
            "dataset": dataset.name,
            "model": MODEL,
            "learning_rate": RATE,
            "batch_size": size,
            "variants": kinds,
            "runs": runs,
            "device": device,
        }
        record = {"config": config, "results": found, "environment": environment}
        store.write_json(out / "runs" / f"b{size}.json", record)
        jax.clear_caches()
    table = _table(results, kinds)
    table.show()
    store.write_bytes(out / "epoch_time.md", table.markdown().encode())
    typer.echo(f"table: {out / 'epoch_time.md'}")


def compare(
    dataset: Dataset, batch_size: int, kinds: list[str], runs: int, device: str
) -> dict[str, Any]:
    """Times epochs of JAX and of each kind of torch's Adam in turns, after one to warm up."""
    on_device = Device.put(dataset)
    trainer = make_trainer(
        optabs.adam(RATE),
        input_size=on_device.input_size,
        classes=dataset.classes,
        batch_size=batch_size,
    )
    learner = trainer.start(0)
    layers = [
        (np.asarray(layer["kernel"]), np.asarray(layer["bias"]))
        for _, layer in sorted(learner.params["layers"].items())
    ]

    def ours() -> tuple[float, float]:
        nonlocal learner
        learner, result = trainer.epoch(learner, on_device.train, on_device.validation)
        jax.block_until_ready(learner)
        return float(result.loss), float(result.validation_accuracy)

    train = (_flat(dataset.train_images), dataset.train_labels)
    validation = (_flat(dataset.validation_images), dataset.validation_labels)
    epochs: dict[str, Callable[[], tuple[float, float]]] = {OURS: ours}
    for kind in kinds:
        epochs[f"torch, {kind}"] = torch_peer.make_epoch(
            layers,
            train,
            validation,
            batch_size=batch_size,
            learning_rate=RATE,
            variant=kind,
            device=device,
        )
    first = {name: epoch() for name, epoch in epochs.items()}
    clocks = {
        name: functools.partial(timing.seconds_of, epoch) for name, epoch in epochs.items()
    }
    seconds = timing.in_turns(clocks, runs, float("inf"))
    return {
        "epoch_seconds": seconds,
        "median_seconds": {name: timing.median(values) for name, values in seconds.items()},
        "ratio": {
            name: timing.ratio(values, seconds[OURS])._asdict()
            for name, values in seconds.items()
            if name != OURS
        },
        # Alike if the contenders do the same work.
        "first_epoch": {
            name: {"loss": loss, "validation_accuracy": accuracy}
            for name, (loss, accuracy) in first.items()
        },
    }


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def _table(results: dict[int, dict[str, Any]], kinds: list[str]) -> report.Table:
    rows = []
    for size, found in results.items():
        for name in (OURS, *(f"torch, {kind}" for kind in kinds)):
            values = found["epoch_seconds"][name]
            first = found["first_epoch"][name]
            ratio = timing.Spread(**found["ratio"][name]) if name != OURS else None
            rows.append(
                [
                    name,
                    str(size),
                    f"{timing.median(values):.3f}",
                    f"{min(values):.3f} to {max(values):.3f}",
                    f"{ratio.median:.2f}" if ratio else "1",
                    f"{first['loss']:.3f}",
                    f"{100 * first['validation_accuracy']:.1f}",
                ]
            )
    return report.Table(
        "Seconds per epoch of MNIST, contenders in turns; loss and accuracy (%) of the first",
        ["", "batch", "median", "interval", "over jax", "loss", "accuracy"],
        rows,
    )
