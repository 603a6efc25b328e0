"""What was tried to steady ABS: every rule of `steady_rules`, chosen on validation data."""

import pathlib
from typing import Annotated

import numpy as np
import optax
import typer

from benchmarks import store
from benchmarks.lab import report
from benchmarks.lab.arguments import (
    DataOption,
    DatasetOption,
    choice_of,
    fits,
    names_of,
    positive,
)
from benchmarks.lab.data import Dataset, load
from benchmarks.runs import SCHEDULES, Device, Job, run_all, together_by_default
from benchmarks.steady_rules import RULES
from benchmarks.training import Split

RESULTS = pathlib.Path("runs/steady")
PHASES = 3  # a shifting task changes at each third of the epochs
LAST = 10  # epochs over which accuracy and swing are taken, or the last phase
GRADIENT_SCALES = (100.0, 1.0, 0.01)
TASKS = ("stationary", "permuted", "scaled")


def steady(
    dataset: DatasetOption = "digits",
    data: DataOption = None,
    task: Annotated[
        str,
        typer.Option(
            help="stationary; permuted: other pixels every third of the epochs; scaled: "
            "gradients 100 times smaller every third"
        ),
    ] = "stationary",
    batch_size: Annotated[int, typer.Option()] = 128,
    epochs: Annotated[int, typer.Option()] = 30,
    seeds: Annotated[int, typer.Option(help="runs of each rule")] = 5,
    schedules: Annotated[str, typer.Option(help="constant, cosine or both")] = (
        "constant,cosine"
    ),
    rules: Annotated[str, typer.Option(help="all, or some, separated by semicolons")] = "",
    learning_rate: Annotated[float, typer.Option()] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="coupled")] = 1e-4,
    out: Annotated[pathlib.Path, typer.Option(help="folder of results")] = RESULTS,
) -> None:
    """Trains every rule that was tried to steady ABS, and its parents under the same cures.

    The test set is never read. Finished runs are kept; the same call goes on where it was
    interrupted.
    """
    names = names_of(rules or ";".join(RULES), "rules", RULES, separator=";")
    wanted = names_of(schedules, "schedules", SCHEDULES)
    choice_of(task, "task", TASKS)
    positive(batch_size, "batch-size")
    positive(epochs, "epochs")
    everyone = list(range(positive(seeds, "seeds")))
    store.prepare_folder(out)
    loaded = load(dataset, data)
    fits(batch_size, dataset, len(loaded.train_labels))
    steps = len(loaded.train_labels) // batch_size * epochs
    jobs = [
        Job(
            name=name,
            make=_Scaled(name, steps) if task == "scaled" else RULES[name],
            batch_size=batch_size,
            epochs=epochs,
            schedule=schedule,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            decoupled=False,
        )
        for schedule in wanted
        for name in names
    ]
    named = loaded if task == "stationary" else loaded._replace(name=f"{dataset}-{task}")
    run_all(
        [(job, everyone) for job in jobs],
        named,
        out,
        see_test_set=False,
        together=together_by_default(),
        data_of=_Permuted(named, epochs) if task == "permuted" else None,
    )
    last = min(epochs, LAST) if task == "stationary" else max(1, epochs // PHASES)
    _report(jobs, everyone, named.name, last, out)


class _Scaled:
    """A rule whose gradients are scaled, by another number in each phase."""

    def __init__(self, name: str, steps: int) -> None:
        self.rule = RULES[name]
        bounds = {steps * phase // PHASES: 0.01 for phase in range(1, PHASES)}
        self.scale = optax.piecewise_constant_schedule(GRADIENT_SCALES[0], bounds)

    def __call__(self, rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        return optax.chain(optax.scale_by_schedule(self.scale), self.rule(rate))


class _Permuted:
    """Another fixed order of the pixels in each phase; the first phase keeps theirs."""

    def __init__(self, data: Dataset, epochs: int) -> None:
        pixels = int(np.prod(data.train_images.shape[1:]))
        random = np.random.default_rng(0)
        self.orders = [np.arange(pixels)] + [random.permutation(pixels) for _ in range(2)]
        self.epochs = epochs

    def __call__(self, device: Device, number: int) -> tuple[Split, Split]:
        order = self.orders[number * PHASES // self.epochs]

        def permuted(split: Split) -> Split:
            flat = split.images.reshape(len(split.images), -1)
            return Split(flat[:, order].reshape(split.images.shape), split.labels)

        return permuted(device.train), permuted(device.validation)


def _report(
    jobs: list[Job], seeds: list[int], dataset: str, last: int, folder: pathlib.Path
) -> None:
    first = jobs[0]
    rows = []
    for job in jobs:
        runs = [store.read_json(job.path(folder, dataset, seed)) for seed in seeds]
        tail = 100 * report.as_array(runs, "validation_accuracy")[:, -last:]
        losses = report.as_array(runs, "loss")[:, -1]
        rows.append(
            [
                f"{job.name}",
                job.schedule,
                report.mean_and_spread(list(tail.mean(axis=1))),
                report.mean_and_spread(list(tail.std(axis=1)), 3),
                f"{losses.mean():.4f}",
            ]
        )
    table = report.Table(
        f"{dataset}, batch {first.batch_size}, {first.epochs} epochs: validation accuracy in "
        f"percent and its swing over the last {last} epochs (mean ± standard deviation of "
        f"{len(seeds)} seeds), loss of the last epoch",
        ["rule", "schedule", "accuracy", "swing", "training loss"],
        rows,
    )
    table.show()
    schedules = "-".join(dict.fromkeys(job.schedule for job in jobs))
    path = folder / f"{dataset}-b{first.batch_size}-e{first.epochs}-{schedules}.md"
    store.write_bytes(path, table.markdown().encode())
    typer.echo(f"table: {path}")
