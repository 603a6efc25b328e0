"""The paper's experiment: a ResNet on CIFAR-10, DAO-E against each of its experts alone."""

import functools
import math
import pathlib
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer
from tqdm import tqdm

import optabs
from benchmarks import store
from benchmarks.dao_e.arms import EXPERTS, FORMS, Form
from benchmarks.dao_e.images import augment, load_images
from benchmarks.dao_e.paper_report import show
from benchmarks.dao_e.resnet import MODELS, Program, make_program, resnet
from benchmarks.lab.arguments import ArgumentError, choice_of, fits, positive
from benchmarks.lab.data import require
from benchmarks.runs import DIGITS_KEPT, SCHEDULES, Device, kept_in
from optabs.training.checkpoints import Checkpoints

SAVE_EVERY = 30.0  # seconds
PIECES = 10  # of an epoch, over each of which the weights are averaged
WEIGHT_DIGITS = 4

OPTIMIZERS = (*EXPERTS, *FORMS)


class Regime(NamedTuple):
    """How the network is trained, apart from the optimizer."""

    schedule: str
    augmented: bool


REGIMES = {"a": Regime("constant", False), "b": Regime("cosine", True)}


class Run(NamedTuple):
    """One training: an optimizer and a seed under a setting."""

    dataset: str
    model: str
    regime: str
    optimizer: str
    seed: int
    learning_rate: float
    epochs: int
    batch_size: int
    subset: int
    bfloat16: bool

    def config(self) -> dict[str, Any]:
        """What distinguishes the run, as it is written into its record."""
        mixture = FORMS.get(self.optimizer)
        return self._asdict() | {
            "architecture": MODELS[self.model]._asdict(),
            "mixture": None if mixture is None else mixture.config(),
        }

    def path(self, folder: pathlib.Path) -> pathlib.Path:
        """Where the record is kept; both regimes of a setting share a folder."""
        images = f"n{self.subset}" if self.subset else "all"
        setting = (
            f"{self.dataset}-{self.model}-{images}-b{self.batch_size}-e{self.epochs}"
            f"-r{self.learning_rate:g}{'-bfloat16' if self.bfloat16 else ''}"
        )
        return folder / "runs" / setting / f"{self.regime}-{self.optimizer}-s{self.seed}.json"

    def rate(self, examples: int) -> optax.ScalarOrSchedule:
        """The rate of the optimizer and of every expert; in regime b it ends at 0."""
        steps = examples // self.batch_size * self.epochs
        return SCHEDULES[REGIMES[self.regime].schedule](self.learning_rate, steps)

    def program(self, data: Device, classes: int) -> Program:
        """The compiled functions, the same for every seed."""
        return make_program(
            resnet(
                MODELS[self.model],
                channels=data.train.images.shape[-1],
                classes=classes,
                bfloat16=self.bfloat16,
            ),
            optimizer_of(self.optimizer, self.rate(data.train.labels.shape[0])),
            batch_size=self.batch_size,
            augment=augment if REGIMES[self.regime].augmented else None,
            show=functools.partial(shown_of, FORMS.get(self.optimizer)),
        )


def optimizer_of(
    name: str, rate: optax.ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
    """An expert alone, or a mixture of all of them at one rate."""
    if name in EXPERTS:
        return optax.with_extra_args_support(EXPERTS[name].make(rate))
    experts = {expert: entry.make for expert, entry in EXPERTS.items()}
    return optabs.dao_e(rate, experts, **FORMS[name]._asdict())


def shown_of(mixture: Form | None, state: Any) -> dict[str, Any]:
    """What is kept of a mixture's state after a step: weights and multiplier."""
    if mixture is None:
        return {}
    shown: dict[str, Any] = {
        "mixing": optabs.mixing_weights(state),
        "multiplier": jnp.exp(optax.tree.get(state, "log_multiplier")),
    }
    if mixture.controller.per_leaf and mixture.controller.rate is not None:
        shown["leaf_mixing"] = optabs.mixing_weights(state, per_leaf=True)
    return shown


def run_paper(
    *,
    dataset: str,
    model: str,
    data: pathlib.Path | None,
    regime: str,
    optimizers: Sequence[str],
    learning_rate: float,
    epochs: int,
    batch_size: int,
    seeds: int,
    subset: int,
    bfloat16: bool,
    minutes: float,
    out: pathlib.Path,
) -> None:
    """Trains what has no record yet, and reports every finished run of the setting.

    Args:
      dataset: its name.
      model: one of MODELS.
      data: where the data set is, as `load_images` takes it.
      regime: "a": constant rate, images as they are; "b": crop, flip and a cosine rate to 0.
      optimizers: some of OPTIMIZERS.
      learning_rate: the one rate of all.
      epochs: of each run.
      batch_size: of each step.
      seeds: runs of each optimizer.
      subset: training images to use; 0 for all.
      bfloat16: whether activations are of that type.
      minutes: no epoch begins after so many, but each call makes one; 0 for no limit.
      out: folder of records, checkpoints and the report.

    Raises:
      ArgumentError: an argument cannot be used.
      DataError: the data set cannot be read, or orbax is not installed.
      StoreError: the folder, or what is in it, cannot be used.
    """
    choice_of(model, "model", MODELS)
    choice_of(regime, "regime", REGIMES)
    for name in optimizers:
        choice_of(name, "optimizers", OPTIMIZERS)
    for name, count in {"epochs": epochs, "batch-size": batch_size, "seeds": seeds}.items():
        positive(count, name)
    if not 0 < learning_rate < math.inf:
        raise ArgumentError(f"learning-rate is {learning_rate:g}; pass a number above 0.")
    if subset < 0:
        raise ArgumentError(f"subset is {subset}; pass a whole number, or 0 for all images.")
    if not minutes >= 0:
        raise ArgumentError(f"minutes is {minutes:g}; pass a number, or 0 for no limit.")
    require("orbax.checkpoint", "training")
    setting = (learning_rate, epochs, batch_size, subset, bfloat16)
    runs = [
        Run(dataset, model, regime, name, seed, *setting)
        for seed in range(seeds)
        for name in dict.fromkeys(optimizers)
    ]
    store.prepare_folder(out)
    todo = [run for run in runs if not store.finished(run.path(out), run.config())]
    if todo:
        device, classes = load_images(dataset, data, subset)
        fits(batch_size, dataset, device.train.labels.shape[0])
        deadline = time.perf_counter() + (60 * minutes or math.inf)
        _train_all(todo, device, classes, out, deadline)
    show(runs[0].path(out).parent, out)


def extend(
    history: dict[str, Any], shown: Mapping[str, Any], accuracy: float, seconds: float
) -> None:
    """Adds an epoch to the history of a run.

    Args:
      history: by measure, a list with an entry per epoch; of a mixture also the weights by
        expert, with an entry per tenth of an epoch, and by expert and leaf.
      shown: what each step showed, stacked.
      accuracy: on the validation set, after the epoch.
      seconds: that it took.
    """

    def add(
        target: dict[str, Any], name: str, values: Iterable[float], digits: int = DIGITS_KEPT
    ) -> None:
        target.setdefault(name, []).extend(round(float(value), digits) for value in values)

    steps = len(shown["loss"])
    pieces = np.array_split(np.arange(steps), min(PIECES, steps))
    add(history, "loss", [shown["loss"].mean(dtype=np.float64)])
    add(history, "validation_accuracy", [accuracy])
    add(history, "seconds", [seconds], 3)
    if "multiplier" in shown:
        add(history, "multiplier", [shown["multiplier"].mean(dtype=np.float64)])
    for expert, weights in shown.get("mixing", {}).items():
        means = [weights[piece].mean() for piece in pieces]
        add(history.setdefault("mixing", {}), expert, means, WEIGHT_DIGITS)
    for expert, tree in shown.get("leaf_mixing", {}).items():
        leaves = history.setdefault("leaf_mixing", {}).setdefault(expert, {})
        for path, weights in jax.tree_util.tree_leaves_with_path(tree):
            name = "/".join(str(part.key) for part in path)
            add(leaves, name, [weights.mean()], WEIGHT_DIGITS)


def _train_all(
    todo: list[Run], data: Device, classes: int, out: pathlib.Path, deadline: float
) -> None:
    """Makes the missing records, or as many of them as fit into the time."""
    programs: dict[str, Program] = {}
    with kept_in(out, "runs and checkpoints"):
        for done, run in enumerate(todo):
            if run.optimizer not in programs:
                programs[run.optimizer] = run.program(data, classes)
            later = (len(todo) - done - 1) * run.epochs
            late = done > 0 and time.perf_counter() > deadline
            if late or not _train(run, programs[run.optimizer], data, out, deadline, later):
                typer.echo(
                    f"Out of time: {len(todo) - done} of {len(todo)} runs are not finished; "
                    "the same call goes on from here."
                )
                return


def _train(
    run: Run, program: Program, data: Device, out: pathlib.Path, deadline: float, later: int
) -> bool:
    """Trains a run to its end and its record, or until the deadline and to a checkpoint."""
    path = run.path(out)
    folder = out / "checkpoints" / path.parent.name / path.stem
    checkpoints = Checkpoints(folder, run.config())
    learner = program.start(run.seed)
    history: dict[str, Any] = {}
    try:
        learner, history = checkpoints.restore(learner) or (learner, history)
    except ValueError as error:
        raise store.StoreError(f"{error}") from None
    first = len(history.get("loss", ()))
    key = jax.random.fold_in(jax.random.key(run.seed), run.epochs)
    saved = time.perf_counter()
    for epoch in tqdm(
        range(first, run.epochs), desc=path.stem, unit="epoch", disable=None, leave=False
    ):
        started = time.perf_counter()
        learner, shown = program.epoch(learner, jax.random.fold_in(key, epoch), data.train)
        accuracy = program.accuracy(learner, data.validation)
        ended = time.perf_counter()
        extend(history, jax.device_get(shown), accuracy, ended - started)
        left = run.epochs - epoch - 1
        # The first epoch of a program holds its compilation.
        if epoch == first + 1:
            minutes = (ended - started) / 60
            tqdm.write(
                f"{path.stem}: {60 * minutes:.2f} s an epoch; {left * minutes:.1f} min to the "
                f"end of this run, about {(left + later) * minutes:.1f} min to the end of all."
            )
        late = ended > deadline
        if left and (late or ended - saved > SAVE_EVERY):
            checkpoints.save(epoch + 1, learner, history)
            saved = time.perf_counter()
        if left and late:
            return False
    test_accuracy = round(program.accuracy(learner, data.test), DIGITS_KEPT)
    record = {
        "config": run.config(),
        "results": history | {"test_accuracy": test_accuracy},
        "environment": store.environment(),
    }
    store.write_json(path, record)
    shutil.rmtree(folder, ignore_errors=True)
    tqdm.write(f"{path.stem}: test accuracy {100 * test_accuracy:.2f} %.")
    return True
