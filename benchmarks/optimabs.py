"""The OptimABS experiment: the paper's tables 2 and 3 and its figure 1."""

import pathlib
import time
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import optax
import typer

import optabs
from benchmarks import store
from benchmarks.lab.arguments import (
    ArgumentError,
    DataOption,
    DatasetOption,
    choice_of,
    fits,
    names_of,
    numbers_of,
    positive,
)
from benchmarks.lab.data import Dataset, load
from benchmarks.optimabs_report import show
from benchmarks.runs import SCHEDULES, Device, Job, run_all, together_by_default, trainer_of
from benchmarks.steady_rules import RULES

RESULTS = pathlib.Path("runs/optimabs")


class Entry(NamedTuple):
    """One row of the experiment."""

    label: str
    make: Callable[[optax.ScalarOrSchedule, float], optax.GradientTransformation]
    decoupled: bool = False


# The paper's hyper-parameters; RMSprop's decay, which it does not print, is read as 0.99.
ENTRIES: dict[str, Entry] = {
    "rmsprop": Entry("RMSProp", lambda rate, _: optabs.rmsprop(rate, 0.99)),
    "rmsprop_abs": Entry("RMSPropABS", lambda rate, _: optabs.rmsprop_abs(rate, 0.99)),
    "rmsprop_abs_steady": Entry(
        "RMSPropABS, steady", lambda rate, _: optabs.rmsprop_abs(rate, 0.99, steady=True)
    ),
    "adam": Entry("Adam", lambda rate, _: optabs.adam(rate)),
    "adamw": Entry(
        "AdamW", lambda rate, decay: optabs.adamw(rate, weight_decay=decay), decoupled=True
    ),
    "adam_abs": Entry("AdamABS", lambda rate, _: optabs.adam_abs(rate)),
    "adam_abs_steady": Entry(
        "AdamABS, steady", lambda rate, _: optabs.adam_abs(rate, steady=True)
    ),
    "rmsprop_steady": Entry(
        "RMSProp, steady", lambda rate, _: optabs.rmsprop(rate, 0.99, steady=True)
    ),
    "adam_steady": Entry("Adam, steady", lambda rate, _: optabs.adam(rate, steady=True)),
    "rmsprop_max": Entry(
        "RMSProp, running maximum", lambda rate, _: RULES["rmsprop, corrected, max"](rate)
    ),
    "amsgrad": Entry("AMSGrad", lambda rate, _: RULES["adam, max"](rate)),
}
DEFAULT = "rmsprop,rmsprop_abs,rmsprop_abs_steady,adam,adamw,adam_abs,adam_abs_steady"


def optimabs(
    dataset: DatasetOption = "digits",
    data: DataOption = None,
    batch_size: Annotated[
        str,
        typer.Option(help="one or more, separated by commas; 64 for digits, else 64,128,256"),
    ] = "",
    epochs: Annotated[
        int, typer.Option(help="60 for digits, else 200", show_default=False)
    ] = 0,
    seeds: Annotated[
        str, typer.Option(help="runs of each optimizer; one number, or one per batch size")
    ] = "5",
    optimizers: Annotated[str, typer.Option(help=f"any of {', '.join(ENTRIES)}")] = DEFAULT,
    learning_rate: Annotated[float, typer.Option()] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="coupled, but for AdamW")] = 1e-4,
    schedule: Annotated[str, typer.Option(help="constant or cosine")] = "constant",
    time_rounds: Annotated[
        int, typer.Option(help="epochs timed per optimizer, in turns; 0 for none")
    ] = 5,
    together: Annotated[
        bool | None,
        typer.Option(help="train the seeds in one program; yes on accelerators, else no"),
    ] = None,
    out: Annotated[pathlib.Path, typer.Option(help="folder of results")] = RESULTS,
) -> None:
    """Runs the OptimABS experiment and prints the paper's tables 2 and 3 beside figure 1.

    Finished runs are kept in the output folder; the same call goes on where it was
    interrupted.
    """
    names = names_of(optimizers, "optimizers", ENTRIES)
    choice_of(schedule, "schedule", SCHEDULES)
    small = dataset == "digits"
    batch_sizes = numbers_of(batch_size or ("64" if small else "64,128,256"), "batch-size")
    counts = numbers_of(seeds, "seeds")
    if len(counts) not in (1, len(batch_sizes)):
        raise ArgumentError(
            f"seeds is {seeds!r}; pass one number, or one for each of the "
            f"{len(batch_sizes)} batch sizes."
        )
    runs_of = dict(zip(batch_sizes, counts * len(batch_sizes), strict=False))
    epochs = positive(epochs or (60 if small else 200), "epochs")
    if time_rounds < 0:
        raise ArgumentError(f"time-rounds is {time_rounds}; pass 0 or more.")
    jobs = {
        (name, size): _job(name, size, epochs, schedule, learning_rate, weight_decay)
        for size in batch_sizes
        for name in names
    }
    store.prepare_folder(out)
    loaded = load(dataset, data)
    for size in batch_sizes:
        fits(size, dataset, len(loaded.train_labels))
    if time_rounds:
        _measure_times(jobs, loaded, out, time_rounds)
    if together is None:
        together = together_by_default()
    everyone = [(job, range(runs_of[size])) for (_, size), job in jobs.items()]
    run_all(everyone, loaded, out, see_test_set=True, together=together)
    runs = {
        key: [store.read_json(job.path(out, dataset, seed)) for seed in seeds_of]
        for key, (job, seeds_of) in zip(jobs, everyone, strict=True)
    }
    times = {
        key: store.read_json(path)["results"]
        for key, job in jobs.items()
        if (path := _times_path(job, dataset, out)).exists()
    }
    labels = {name: ENTRIES[name].label for name in names}
    show(f"{dataset}-e{epochs}-{schedule}", runs, times, labels, out)


def _job(
    name: str, batch_size: int, epochs: int, schedule: str, rate: float, decay: float
) -> Job:
    entry = ENTRIES[name]
    job = Job(
        name=name,
        make=lambda rate: entry.make(rate, decay),
        batch_size=batch_size,
        epochs=epochs,
        schedule=schedule,
        learning_rate=rate,
        weight_decay=decay,
        decoupled=entry.decoupled,
    )
    try:
        job.optimizer(batch_size)
    except ValueError as error:  # before any data is read
        raise ArgumentError(str(error)) from None
    return job


def _times_path(job: Job, dataset: str, folder: pathlib.Path) -> pathlib.Path:
    return job.path(folder, dataset, 0).parent / f"{job.name}-time.json"


def _measure_times(
    jobs: dict[tuple[str, int], Job], dataset: Dataset, folder: pathlib.Path, rounds: int
) -> None:
    """Times an epoch of each optimizer alone, one seed, in turns, after a warm-up epoch."""
    for size in dict.fromkeys(size for _, size in jobs):
        group = [job for (_, of), job in jobs.items() if of == size]
        configs = [job.config(dataset.name, 0) | {"rounds": rounds} for job in group]
        paths = [_times_path(job, dataset.name, folder) for job in group]
        # A ratio of times means something within one interleaved session only.
        if all(map(store.finished, paths, configs)):
            continue
        device = Device.put(dataset)
        trainers = [trainer_of(job, device, dataset.classes) for job in group]
        learners = [trainer.start(0) for trainer in trainers]
        seconds: list[list[float]] = [[] for _ in group]
        for _ in range(rounds + 1):
            for index, trainer in enumerate(trainers):
                started = time.perf_counter()
                learners[index], _ = jax.block_until_ready(
                    trainer.epoch(learners[index], device.train, device.validation)
                )
                seconds[index].append(time.perf_counter() - started)
        for index, path in enumerate(paths):
            results = {
                "epoch_seconds": [round(value, 6) for value in seconds[index][1:]],
                "state_bytes": _bytes(learners[index].opt_state),
                "parameters": sum(p.size for p in jax.tree.leaves(learners[index].params)),
            }
            record = {"config": configs[index], "results": results}
            store.write_json(path, record | {"environment": store.environment()})


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
