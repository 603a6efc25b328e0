"""Whether optimizers train as well with their moments in few bits, rates under a cosine."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import optax

import optabs
from benchmarks.lab.models import Architecture, resnet
from benchmarks.lab.records import Records
from benchmarks.lab.report import Bar, Table, errors_above, measured
from benchmarks.lab.study import Grid, Study, command_of
from benchmarks.lab.tasks import classification, image_splits, needed, perceptron, transformer
from benchmarks.lab.timing import FULL, STATES
from benchmarks.lab.training import Arm, Task, cosine

CHANNELS = (32, 64, 128)  # of the residual network's stages
MIN_SIZE = 256  # of an encoded leaf: these networks are small
JUDGED, WANTED_ERRORS, WANTED_BYTES = ("adam_abs", "8bit"), 1.0, 2.2

OPTIMIZERS: Mapping[str, Callable[[Any], optax.GradientTransformation]] = {
    "adam": optabs.adam,
    "adam_abs": optabs.adam_abs,
}
FORMS = (FULL, "8bit", "bfloat16")  # of an optimizer's state


def stored(name: str, form: str, rate: Any) -> optax.GradientTransformation:
    """An optimizer with its state in a form."""
    optimizer = OPTIMIZERS[name](rate)
    if form == FULL:
        return optimizer
    return optabs.narrow_state(optimizer, STATES[form], min_size=MIN_SIZE)


ARMS = {
    name if form == FULL else f"{name}_{form}": Arm(
        name if form == FULL else f"{name}, {form}", functools.partial(stored, name, form)
    )
    for name in OPTIMIZERS
    for form in FORMS
}


def _residual(source: pathlib.Path | None) -> Task:
    net = resnet(Architecture(CHANNELS, 1, stem_stride=2), channels=3, classes=10)
    return classification(
        f"ResNet-8 of {'-'.join(map(str, CHANNELS))} channels, cifar10 at 16 x 16",
        net, image_splits("cifar10", needed("cifar10", source), half=True),
        steps=600, batch_size=64, by_steps=True,
    )  # fmt: skip


TASKS: Mapping[str, Callable[[pathlib.Path | None], Task]] = {
    "mnist": lambda source: perceptron("mnist", needed("mnist", source)),
    "fashion": lambda source: perceptron("fashion_mnist", needed("fashion_mnist", source)),
    "cifar10": _residual,
    "transformer": lambda source: transformer(
        128, 2, "character transformer of width 128, Python's help"
    ),
}


def errors_of(records: Records, task: str, name: str, form: str) -> float | None:
    """How far a form's validation loss is above that of float32, in standard errors."""
    arms = (f"{name}_{form}", name)
    own, full = (measured(records, "validation_loss", task=task, arm=arm) for arm in arms)
    return errors_above(own, full) if len(own) and len(full) else None


def sections(records: Records) -> list[Table | str]:
    """A table a task, and one of what each narrow form loses."""
    narrow = [(name, form) for name in OPTIMIZERS for form in FORMS if form != FULL]
    rows = []
    for task in TASKS:
        errors = [errors_of(records, task, *each) for each in narrow]
        if any(each is not None for each in errors):
            rows.append([task, *("-" if each is None else f"{each:+.1f}" for each in errors)])
    title = "Validation loss above the float32 form's, in standard errors of the difference"
    return [*STUDY.tables(records), Table(title, ["task", *map(", ".join, narrow)], rows)]


def bars(records: Records) -> list[Bar]:
    """AdamABS in 8 bits: as good as in float32, in little more than a quarter of the bytes."""
    found = []
    for task in TASKS:
        errors = errors_of(records, task, *JUDGED)
        if errors is None:
            continue
        (tuning,) = records.select(kind="tuning", task=task, arm="_".join(JUDGED))
        size, name = tuning.result["bytes"], f"{task}: {', '.join(JUDGED)}"
        found += [
            Bar(
                f"{name}, standard errors above float32", f"at most {WANTED_ERRORS:g}",
                f"{errors:+.1f}", errors <= WANTED_ERRORS,
            ),
            Bar(
                f"{name}, bytes a parameter", f"at most {WANTED_BYTES}",
                f"{size:.2f}", size <= WANTED_BYTES,
            ),
        ]  # fmt: skip
    return found


STUDY = Study(
    name="narrow",
    doc="Trains Adam and AdamABS with float32 and with narrow states, each at its best rate.",
    tasks=TASKS,
    arms=ARMS,
    bars=bars,
    grid=Grid(-7, -3),
    need_images=("mnist", "fashion", "cifar10"),
    module=__name__,
    settings={"": lambda task: task._replace(schedule=cosine)},
    sections=sections,
)
command = command_of(STUDY)
