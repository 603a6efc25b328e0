"""Whether optimizers train as well with their moments in few bits, rates under a cosine."""

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import optax

import optabs
from benchmarks.lab.models import Architecture, resnet
from benchmarks.lab.records import Records
from benchmarks.lab.report import Bar, Table, errors_above, grid, measured
from benchmarks.lab.study import Grid, Study, command_of
from benchmarks.lab.tasks import classification, image_splits, perceptron, transformer
from benchmarks.lab.timing import STATES
from benchmarks.lab.training import Arm, Task, cosine

CHANNELS = (32, 64, 128)  # of the residual network's stages
MIN_SIZE = 256  # of an encoded leaf: these networks are small
JUDGED, WANTED_ERRORS, WANTED_BYTES = "adam_abs_8bit", 1.0, 2.2


def _narrow(make: Callable[[Any], optax.GradientTransformation], form: str) -> Arm:
    label = f"{make.__name__}, {form}"
    return Arm(
        label, lambda rate: optabs.narrow_state(make(rate), STATES[form], min_size=MIN_SIZE)
    )


ARMS = {
    "adam": Arm("adam", optabs.adam),
    "adam_8bit": _narrow(optabs.adam, "8bit"),
    "adam_bfloat16": _narrow(optabs.adam, "bfloat16"),
    "adam_abs": Arm("adam_abs", optabs.adam_abs),
    "adam_abs_8bit": _narrow(optabs.adam_abs, "8bit"),
    "adam_abs_bfloat16": _narrow(optabs.adam_abs, "bfloat16"),
}
NARROW = [arm for arm in ARMS if arm.endswith(("8bit", "bfloat16"))]


def _residual(source: pathlib.Path | None) -> Task:
    net = resnet(Architecture(CHANNELS, 1, stem_stride=2), channels=3, classes=10)
    return classification(
        f"ResNet-8 of {'-'.join(map(str, CHANNELS))} channels, cifar10 at 16 x 16",
        net, image_splits("cifar10", source, half=True),
        steps=600, batch_size=64, by_steps=True,
    )  # fmt: skip


TASKS: Mapping[str, Callable[[pathlib.Path | None], Task]] = {
    "mnist": lambda source: perceptron("mnist", source),
    "fashion": lambda source: perceptron("fashion_mnist", source),
    "cifar10": _residual,
    "transformer": lambda source: transformer(
        128, 2, "character transformer of width 128, Python's help"
    ),
}


def errors_of(records: Records, task: str, arm: str) -> float:
    """A validation loss above float32's in standard errors; NaN where one was not trained."""
    arms = (arm, arm.rpartition("_")[0])
    own, full = (measured(records, "validation_loss", task=task, arm=each) for each in arms)
    return errors_above(own, full) if len(own) and len(full) else math.nan


def sections(records: Records) -> list[Table | str]:
    """A table a task, and one of what each narrow form loses."""

    def cell(task: str, arm: str) -> str:
        errors = errors_of(records, task, arm)
        return "-" if math.isnan(errors) else f"{errors:+.1f}"

    title = "Validation loss above the float32 form's, in standard errors of the difference"
    tasks = {task: task for task in TASKS if records.select(task=task)}
    lost = grid(title, "task", tasks, {ARMS[arm].label: arm for arm in NARROW}, cell)
    return [*STUDY.tables(records), lost]


def bars(records: Records) -> list[Bar]:
    """AdamABS in 8 bits: as good as in float32, in little more than a quarter of the bytes."""
    found = []
    for task in TASKS:
        errors, name = errors_of(records, task, JUDGED), f"{task}: {ARMS[JUDGED].label}"
        if math.isnan(errors):
            continue
        (tuning,) = records.select(kind="tuning", task=task, arm=JUDGED)
        size = tuning.result["bytes"]
        found += [
            Bar(f"{name}, standard errors above float32", f"at most {WANTED_ERRORS:g}",
                f"{errors:+.1f}", errors <= WANTED_ERRORS),
            Bar(f"{name}, bytes a parameter", f"at most {WANTED_BYTES}", f"{size:.2f}",
                size <= WANTED_BYTES),
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
