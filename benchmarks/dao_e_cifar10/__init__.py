"""DAO-E's published experiment: a ResNet on CIFAR-10, the mixture beside its experts."""

import functools
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import typer

import optabs
from benchmarks.dao_e.study import EXPERTS, FORMS
from benchmarks.dao_e_cifar10.report import AUGMENTED, CONSTANT, LEARNED, OPTIMIZERS, write
from benchmarks.lab.arguments import (
    ArgumentError,
    DataOption,
    DatasetOption,
    OutOption,
    ReportOption,
    choice_of,
    fits,
    names_of,
    positive,
)
from benchmarks.lab.images import augment, standardised
from benchmarks.lab.models import RESNETS, in_pieces, resnet
from benchmarks.lab.records import Key, Records, prepare_folder
from benchmarks.lab.study import Unit, run_units
from benchmarks.lab.tasks import Split, classification, shuffled
from benchmarks.lab.training import (
    Arm,
    Task,
    constant,
    cosine,
    curves_of,
    measures_of,
    program_of,
)
from optabs.ensemble.experts import DEFAULT
from optabs.training.batches import take


class Plan(NamedTuple):
    """What is asked for, apart from optimizers and seeds."""

    dataset: str = "cifar10"
    model: str = "resnet18"
    learning_rate: float = 1e-3  # of all
    epochs: int = 100
    batch_size: int = 128
    subset: int = 0  # training images; 0: all
    bfloat16: bool = False  # activations
    augmented: bool = False
    source: pathlib.Path | None = None

    def config(self) -> dict[str, Any]:
        """What distinguishes a run, as it is written into its record."""
        kept = self._asdict() | {"architecture": RESNETS[self.model]._asdict()}
        del kept["augmented"], kept["source"]
        return kept

    @property
    def name(self) -> str:
        """Of the task; both regimes of a setting share it."""
        images = f"n{self.subset}" if self.subset else "all"
        return (
            f"{self.dataset}-{self.model}-{images}-b{self.batch_size}-e{self.epochs}"
            f"-r{self.learning_rate:g}{'-bfloat16' if self.bfloat16 else ''}"
        )


@functools.cache
def task_of(plan: Plan) -> Task:
    """The training of the network; a point of its curves is an epoch."""
    data = standardised(plan.dataset, plan.source, plan.subset)
    examples, channels = len(data.train_labels), data.train_images.shape[-1]
    fits(plan.batch_size, plan.dataset, examples)
    net = resnet(
        RESNETS[plan.model], channels=channels, classes=data.classes, bfloat16=plan.bfloat16
    )

    def feed(key: jax.Array, steps: int) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(jax.random.fold_in(key, 1), steps)
        return keys, shuffled(key, steps, examples, plan.batch_size)

    def batch(train: Split, item: tuple[jax.Array, jax.Array]) -> Split:
        key, rows = item
        images, labels = take(train, rows)
        return Split(augment(key, images) if plan.augmented else images, labels)

    splits = [
        Split(jnp.asarray(images), jnp.asarray(labels))
        for images, labels in (
            (data.train_images, data.train_labels),
            (data.validation_images, data.validation_labels),
            (data.test_images, data.test_labels),
        )
    ]
    return classification(
        f"{plan.model} on {plan.dataset}, {plan.epochs} epochs", in_pieces(net),
        (splits[0], splits[1], splits[2]),
        steps=examples // plan.batch_size * plan.epochs, batch_size=plan.batch_size,
        feed=feed, batch=batch, schedule=cosine if plan.augmented else constant,
        points=plan.epochs, scored=True, by_steps=True,
    )  # fmt: skip


def arm_of(name: str) -> Arm:
    """An expert alone, or a mixture of all of them at one rate."""
    if name in EXPERTS:
        return Arm(EXPERTS[name], DEFAULT[name])
    form = FORMS[name]

    def watch(state: Any) -> Mapping[str, jax.Array]:
        shown = form.watch(state)
        if form.controller.per_leaf and name in LEARNED:
            for expert, tree in optabs.mixing_weights(state, per_leaf=True).items():
                for path, weight in jax.tree_util.tree_leaves_with_path(tree):
                    leaf = "/".join(str(part.key) for part in path)
                    shown[f"{expert}/{leaf}"] = weight
        return shown

    return Arm(form.label, lambda rate: form.make(None, rate), watch)


def units(plan: Plan, optimizers: Sequence[str], seeds: int) -> list[Unit]:
    """One for each optimizer: its runs."""
    regime = AUGMENTED if plan.augmented else CONSTANT
    made = []
    for name in optimizers:
        options = FORMS[name].config() if name in FORMS else None
        config = {"label": OPTIMIZERS[name], **plan.config(), "options": options}
        keys = [Key(plan.name, name, regime, seed=seed) for seed in range(seeds)]
        made.append(Unit(tuple(keys), config, functools.partial(_trained, plan, name)))
    return made


def _trained(
    plan: Plan, name: str, missing: Sequence[Key], done: Any
) -> Iterator[tuple[Key, dict[str, Any]]]:
    task = task_of(plan)
    program = program_of(task, arm_of(name), test=True)
    for key in missing:
        assert key.seed is not None
        outcome = program(plan.learning_rate, key.seed)
        yield key, measures_of(outcome) | {"curves": curves_of(outcome, task.points)}


def command(
    dataset: DatasetOption = "cifar10",
    model: Annotated[str, typer.Option(help=", ".join(RESNETS))] = "resnet18",
    augmented: Annotated[
        bool, typer.Option("--augmented", help="crop, flip and a cosine rate to 0")
    ] = False,
    optimizers: Annotated[
        str, typer.Option(help=f"some of {', '.join(OPTIMIZERS)}")
    ] = "sgd,adam,rmsprop,lion,dao_e",
    learning_rate: Annotated[float, typer.Option(help="of all")] = 1e-3,
    epochs: Annotated[int, typer.Option(help="of each run")] = 100,
    batch_size: Annotated[int, typer.Option(help="of each step")] = 128,
    seeds: Annotated[int, typer.Option(help="runs of each optimizer")] = 1,
    subset: Annotated[int, typer.Option(help="training images; 0: all")] = 0,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="activations")] = False,
    data: DataOption = None,
    only_report: ReportOption = False,
    out: OutOption = None,
) -> None:
    """A ResNet on CIFAR-10 at one rate for all: the mixture beside each of its experts."""
    choice_of(model, "model", RESNETS)
    names = names_of(optimizers, "optimizers", OPTIMIZERS)
    for name, count in {"epochs": epochs, "batch-size": batch_size, "seeds": seeds}.items():
        positive(count, name)
    if not 0 < learning_rate < math.inf:
        raise ArgumentError(f"learning-rate is {learning_rate:g}; pass a number above 0.")
    if subset < 0:
        raise ArgumentError(f"subset is {subset}; pass a whole number, or 0 for all images.")
    plan = Plan(
        dataset, model, learning_rate, epochs, batch_size, subset, bfloat16, augmented, data
    )
    records = Records(prepare_folder(out or pathlib.Path("runs/dao_e_cifar10")))
    if not only_report:
        run_units(units(plan, names, seeds), records)
    write(records)
