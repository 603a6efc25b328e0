"""The OptimABS experiment: the paper's tables 2 and 3 and its figure 1."""

import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import optax
import typer

import optabs
from benchmarks import report, store
from benchmarks.arguments import choice_of, names_of, numbers_of, positive
from benchmarks.data import Dataset, load
from benchmarks.runs import SCHEDULES, Device, Job, run_all, together_by_default, trainer_of

RESULTS = pathlib.Path("runs/optimabs")
SHARE_OF_SWING = 0.25  # the swing is taken over the last quarter of the epochs


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
    "rmsprop_max": Entry("RMSProp, running maximum", lambda rate, _: _rmsprop_max(rate)),
    "amsgrad": Entry("AMSGrad", lambda rate, _: _amsgrad(rate)),
}
DEFAULT = "rmsprop,rmsprop_abs,rmsprop_abs_steady,adam,adamw,adam_abs,adam_abs_steady"


def _rmsprop_max(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    size = optax.chain(optabs.rms(0.99, bias_correction=True), optabs.running_max())
    return optax.chain(
        optabs.scale_by_ratio(optax.identity(), size), optax.scale_by_learning_rate(rate)
    )


def _amsgrad(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    size = optax.chain(optabs.rms(0.999, bias_correction=True), optabs.running_max())
    return optax.chain(
        optabs.scale_by_ratio(optabs.ema(0.9, bias_correction=True), size),
        optax.scale_by_learning_rate(rate),
    )


def optimabs(
    dataset: Annotated[str, typer.Option(help="digits, mnist, fashion_mnist or cifar10")] = (
        "digits"
    ),
    data: Annotated[
        pathlib.Path | None,
        typer.Option(help="folder of original files, or .npz of arrays; default: download"),
    ] = None,
    batch_size: Annotated[
        str, typer.Option(help="one or more, separated by commas [default: 64; 64,128,256]")
    ] = "",
    epochs: Annotated[int, typer.Option(help="[default: 60 for digits, else 200]")] = 0,
    seeds: Annotated[int, typer.Option(help="runs of each optimizer")] = 5,
    optimizers: Annotated[str, typer.Option(help=f"any of {', '.join(ENTRIES)}")] = DEFAULT,
    learning_rate: Annotated[float, typer.Option()] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="coupled, but for AdamW")] = 1e-4,
    schedule: Annotated[str, typer.Option(help="constant or cosine")] = "constant",
    time_rounds: Annotated[
        int, typer.Option(help="epochs timed per optimizer, in turns; 0 for none")
    ] = 5,
    together: Annotated[
        bool | None,
        typer.Option(help="train the seeds in one program [default: on accelerators]"),
    ] = None,
    out: Annotated[pathlib.Path, typer.Option(help="folder of results")] = RESULTS,
) -> None:
    """Runs the OptimABS experiment and prints the paper's tables 2 and 3 beside figure 1.

    Finished runs are kept in the output folder; the same call goes on where it was
    interrupted.
    """
    names = names_of(optimizers, "optimizers", ENTRIES)
    choice_of(schedule, "schedule", SCHEDULES)
    positive(seeds, "seeds")
    small = dataset == "digits"
    batch_sizes = numbers_of(batch_size or ("64" if small else "64,128,256"), "batch-size")
    epochs = positive(epochs or (60 if small else 200), "epochs")
    if time_rounds < 0:
        raise typer.BadParameter(f"time-rounds is {time_rounds}; pass 0 or more.")
    jobs = {
        (name, size): _job(name, size, epochs, schedule, learning_rate, weight_decay)
        for size in batch_sizes
        for name in names
    }
    store.prepare_folder(out)
    loaded = load(dataset, data)
    for size in batch_sizes:
        if size > len(loaded.train_labels):
            raise typer.BadParameter(
                f"batch-size is {size}, but {dataset} has {len(loaded.train_labels)} training "
                "images; pass a smaller one."
            )
    if time_rounds:
        _measure_times(jobs, loaded, out, time_rounds)
    if together is None:
        together = together_by_default()
    everyone = list(range(seeds))
    run_all(jobs.values(), everyone, loaded, out, see_test_set=True, together=together)
    _report(jobs, everyone, dataset, out)


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
    job.optimizer(batch_size)  # a bad rate or decay fails here, before any data is read
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


def _report(
    jobs: dict[tuple[str, int], Job],
    seeds: list[int],
    dataset: str,
    folder: pathlib.Path,
) -> None:
    """Prints and writes the tables and the figure from the records."""
    sizes = list(dict.fromkeys(size for _, size in jobs))
    names = list(dict.fromkeys(name for name, _ in jobs))
    first = next(iter(jobs.values()))
    setting = f"{dataset}-e{first.epochs}-{first.schedule}"
    runs = {
        key: [store.read_json(job.path(folder, dataset, seed)) for seed in seeds]
        for key, job in jobs.items()
    }
    tables = [
        _accuracy_table(runs, names, sizes, f"Test accuracy in percent, {setting}"),
        _swing_table(runs, names, sizes),
    ]
    times = {
        key: store.read_json(path)["results"]
        for key, job in jobs.items()
        if (path := _times_path(job, dataset, folder)).exists()
    }
    if len(times) == len(jobs):
        tables.insert(0, _time_table(times, names, sizes))
    panels = [
        (
            f"batch {size}",
            [
                report.Curve(
                    ENTRIES[name].label,
                    100 * report.as_array(runs[name, size], "validation_accuracy"),
                )
                for name in names
            ],
        )
        for size in sizes
    ]
    figure = report.curves_figure(
        panels,
        ylabel="validation accuracy in percent",
        title=f"{dataset}: mean of {len(seeds)} seeds, band from lowest to highest",
    )
    for table in tables:
        table.show()
    text = "\n".join(table.markdown() for table in tables)
    store.write_bytes(folder / f"{setting}.md", text.encode())
    report.save_figure(figure, folder / f"{setting}.png")
    typer.echo(f"tables: {folder / setting}.md\nfigure: {folder / setting}.png and .svg")


_Runs = dict[tuple[str, int], list[dict[str, Any]]]


def _accuracy_table(
    runs: _Runs, names: list[str], sizes: list[int], title: str
) -> report.Table:
    rows = []
    for name in names:
        scores = {
            size: 100 * report.as_array(runs[name, size], "test_accuracy") for size in sizes
        }
        cells = [report.mean_and_spread(list(scores[size])) for size in sizes]
        mean = statistics.fmean(float(score.mean()) for score in scores.values())
        rows.append([ENTRIES[name].label, *cells, f"{mean:.2f}"])
    return report.Table(
        f"{title} (mean ± standard deviation over seeds)",
        ["optimizer", *map(str, sizes), "mean"],
        rows,
    )


def _swing_table(runs: _Runs, names: list[str], sizes: list[int]) -> report.Table:
    rows = []
    for name in names:
        cells = []
        for size in sizes:
            curves = 100 * report.as_array(runs[name, size], "validation_accuracy")
            tail = curves[:, -max(1, round(SHARE_OF_SWING * curves.shape[1])) :]
            cells.append(report.mean_and_spread(list(tail.std(axis=1)), 3))
        rows.append([ENTRIES[name].label, *cells])
    return report.Table(
        "Swing: standard deviation of validation accuracy over the last quarter of the "
        "epochs, in points",
        ["optimizer", *map(str, sizes)],
        rows,
    )


def _time_table(
    times: dict[tuple[str, int], dict[str, Any]], names: list[str], sizes: list[int]
) -> report.Table:
    rows = []
    for name in names:
        medians = [float(np.median(times[name, size]["epoch_seconds"])) for size in sizes]
        state = times[name, sizes[0]]
        per_parameter = state["state_bytes"] / state["parameters"]
        rows.append(
            [
                ENTRIES[name].label,
                *(f"{median:.4f}" for median in medians),
                f"{statistics.fmean(medians):.4f}",
                f"{per_parameter:.2f}",
            ]
        )
    return report.Table(
        "Seconds per epoch (median, one seed alone, optimizers in turns)",
        ["optimizer", *map(str, sizes), "mean", "state bytes per parameter"],
        rows,
    )
