"""Trains what has not been trained yet, and keeps each run as soon as it is finished."""

import contextlib
import functools
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from tqdm import tqdm

from benchmarks import store
from benchmarks.lab.data import Dataset
from benchmarks.training import MODEL, Outcome, Split, Trainer, make_trainer, train

DIGITS_KEPT = 6

Schedule = Callable[[float, int], optax.ScalarOrSchedule]
SCHEDULES: dict[str, Schedule] = {
    "constant": lambda rate, steps: rate,
    "cosine": lambda rate, steps: optax.cosine_decay_schedule(rate, steps),
}


class Interrupted(Exception):
    """Ctrl-C between or inside runs; what was finished is kept."""


@contextlib.contextmanager
def kept_in(folder: pathlib.Path, finished: str = "records") -> Iterator[None]:
    """Makes Ctrl-C an Interrupted that says where what is finished is kept."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"Stopped; finished {finished} are kept in {str(folder)!r}, and the same call "
            "goes on from there."
        ) from None


class Job(NamedTuple):
    """One optimizer under one setting, for some seeds."""

    name: str
    make: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]
    batch_size: int
    epochs: int
    schedule: str
    learning_rate: float
    weight_decay: float
    decoupled: bool  # the optimizer decays weights itself

    def config(self, dataset: str, seed: int) -> dict[str, Any]:
        """What distinguishes a run, as it is written into its record."""
        return {
            "dataset": dataset,
            "model": MODEL,
            "optimizer": self.name,
            "batch_size": self.batch_size,
            "epochs": self.epochs,
            "schedule": self.schedule,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "decoupled_decay": self.decoupled,
            "seed": seed,
        }

    def path(self, folder: pathlib.Path, dataset: str, seed: int) -> pathlib.Path:
        """Where the record of a run is kept."""
        slug = re.sub(r"[^a-z0-9_.=]+", "-", self.name.lower())
        setting = f"{dataset}-b{self.batch_size}-e{self.epochs}-{self.schedule}"
        return folder / "runs" / setting / f"{slug}-s{seed}.json"

    def optimizer(self, examples: int) -> optax.GradientTransformation:
        """The optimizer with its schedule, behind coupled decay where it has no own."""
        steps = examples // self.batch_size * self.epochs
        rule = self.make(SCHEDULES[self.schedule](self.learning_rate, steps))
        if self.decoupled or self.weight_decay == 0:
            return rule
        return optax.chain(optax.add_decayed_weights(self.weight_decay), rule)


class Device(NamedTuple):
    """A data set on the device."""

    train: Split
    validation: Split
    test: Split

    @classmethod
    def put(cls, data: Dataset) -> "Device":
        """Copies the three sets of a data set to the default device."""
        return cls(
            Split(*jax.device_put((data.train_images, data.train_labels))),
            Split(*jax.device_put((data.validation_images, data.validation_labels))),
            Split(*jax.device_put((data.test_images, data.test_labels))),
        )

    @property
    def input_size(self) -> int:
        """Numbers per image."""
        return int(np.prod(self.train.images.shape[1:]))


DataOf = Callable[[Device, int], tuple[Split, Split]]


def trainer_of(job: Job, data: Device, classes: int, *, together: bool = False) -> Trainer:
    """The compiled programs of a job."""
    return make_trainer(
        job.optimizer(data.train.labels.shape[0]),
        input_size=data.input_size,
        classes=classes,
        batch_size=job.batch_size,
        together=together,
    )


def run_all(
    jobs: Iterable[tuple[Job, Sequence[int]]],
    dataset: Dataset,
    folder: pathlib.Path,
    *,
    see_test_set: bool,
    together: bool,
    data_of: DataOf | None = None,
) -> None:
    """Trains every job and seed that has no record yet, and writes one record each.

    Args:
      jobs: what to train, each with its seeds.
      dataset: the data.
      folder: where the records go, below `runs`.
      see_test_set: whether the last parameters are scored on the test set, once.
      together: train a job's seeds in one program (faster on accelerators), else one
        after the other.
      data_of: from the data on the device and the number of an epoch to the training and
        validation set of that epoch; None for the same ones throughout.
    """
    todo = []
    for job, seeds in jobs:
        missing = [
            seed
            for seed in seeds
            if not store.finished(
                job.path(folder, dataset.name, seed), job.config(dataset.name, seed)
            )
        ]
        if missing:
            todo.append((job, missing))
    if not todo:
        return
    data = Device.put(dataset)
    total = sum(job.epochs * (1 if together else len(missing)) for job, missing in todo)
    bar = tqdm(total=total, unit="epoch", dynamic_ncols=True, disable=None)
    with kept_in(folder, "runs"), bar:
        for job, missing in todo:
            trainer = trainer_of(job, data, dataset.classes, together=together)
            show = functools.partial(_show, bar, job)
            for group in [missing] if together else [[seed] for seed in missing]:
                outcome, seconds = _timed(trainer, group, job, data, data_of, together, show)
                scores = trainer.accuracy(outcome.params, data.test) if see_test_set else None
                _keep(job, group, outcome, scores, seconds, dataset.name, folder)
            jax.clear_caches()


def together_by_default() -> bool:
    """Whether the seeds of a job train faster in one program.

    Measured: on 2 CPU cores, 5 seeds together take 0.35 s a seed and epoch, one after the
    other 0.34 s.
    """
    return jax.default_backend() != "cpu"


def _show(bar: tqdm, job: Job, accuracy: float) -> None:
    bar.set_postfix_str(f"{job.name} b{job.batch_size} {100 * accuracy:.2f} %")
    bar.update()


def _timed(
    trainer: Trainer,
    seeds: list[int],
    job: Job,
    data: Device,
    data_of: DataOf | None,
    together: bool,
    show: Callable[[float], None],
) -> tuple[Outcome, float]:
    """Trains some seeds of a job; seconds are per seed."""
    started = time.perf_counter()
    outcome = train(
        trainer,
        np.asarray(seeds) if together else seeds[0],
        job.epochs,
        lambda number: data_of(data, number) if data_of else (data.train, data.validation),
        show,
    )
    return outcome, (time.perf_counter() - started) / len(seeds)


def _keep(
    job: Job,
    seeds: list[int],
    outcome: Outcome,
    scores: jax.Array | None,
    seconds: float,
    dataset: str,
    folder: pathlib.Path,
) -> None:
    """Writes one record per seed."""
    losses = outcome.loss.reshape(job.epochs, -1)
    accuracies = outcome.validation_accuracy.reshape(job.epochs, -1)
    for index, seed in enumerate(seeds):
        results: dict[str, Any] = {
            "loss": _rounded(losses[:, index]),
            "validation_accuracy": _rounded(accuracies[:, index]),
            "seconds": round(seconds, 2),
        }
        if scores is not None:
            results["test_accuracy"] = _rounded(np.asarray(scores).reshape(-1))[index]
        record = {
            "config": job.config(dataset, seed),
            "results": results,
            "environment": store.environment(),
        }
        store.write_json(job.path(folder, dataset, seed), record)


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), DIGITS_KEPT) for value in values]
