"""Whether optimizers train as well with their moments in few bits, or their parameters."""

import itertools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax
import optax.contrib

import optabs
from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.models import Architecture, resnet
from benchmarks.lab.records import Records
from benchmarks.lab.report import Bar, Table, errors_above, grid, measured
from benchmarks.lab.study import Grid, Study, command_of
from benchmarks.lab.tasks import classification, image_splits, perceptron, transformer
from benchmarks.lab.timing import STATES
from benchmarks.lab.training import Arm, Task, cosine
from benchmarks.timing.steps import ADAMW8, adamw8

CHANNELS = (32, 64, 128)  # of the residual network's stages
MIN_SIZE = 256  # of an encoded leaf: these networks are small
SPIKE, SPIKED = 100, 100.0  # the step of one gradient so many times its size
JUDGED, WANTED_ERRORS, WANTED_BYTES = "adam_abs_8bit", 1.0, 2.2
CORRECTED, UNCORRECTED, WANTED_WORSE = "adam_params", "adam_bfloat16_params", 2.0


def _narrow(make: Callable[[Any], optax.GradientTransformation], form: str) -> Arm:
    label = f"{make.__name__}, {form}"
    return Arm(
        label, lambda rate: optabs.narrow_state(make(rate), STATES[form], min_size=MIN_SIZE)
    )


def _corrected(label: str, make: Callable[[Any], optax.GradientTransformation]) -> Arm:
    def evaluated(state: Any, params: Any) -> Any:
        return optabs.exact_params(params, state)

    return Arm(
        label, lambda rate: optabs.narrow_params(make(rate)), evaluated=evaluated, halves=True
    )


def _widened(state: Any, params: Any) -> Any:
    return optax.tree.cast(params, jnp.float32)


def _adamw8(rate: Any) -> optax.GradientTransformation:
    try:
        return adamw8(rate, weight_decay=0.0, min_size=MIN_SIZE)
    except ImportError as error:
        raise ArgumentError(f"rollfast is missing ({error}); install it.") from None


ARMS = {
    "adam": Arm("adam", optabs.adam),
    "adam_8bit": _narrow(optabs.adam, "8bit"),
    "adam_bfloat16": _narrow(optabs.adam, "bfloat16"),
    CORRECTED: _corrected("adam, narrow_params", optabs.adam),
    "adam_params_8bit": _corrected(
        "adam, 8bit, narrow_params", _narrow(optabs.adam, "8bit").make
    ),
    UNCORRECTED: Arm(
        "adam, bfloat16 parameters", optabs.adam, evaluated=_widened, halves=True
    ),
    "adam_abs": Arm("adam_abs", optabs.adam_abs),
    "adam_abs_8bit": _narrow(optabs.adam_abs, "8bit"),
    "adam_abs_bfloat16": _narrow(optabs.adam_abs, "bfloat16"),
    "muon": Arm("muon", optax.contrib.muon),
    "muon_8bit": _narrow(optax.contrib.muon, "8bit"),
    "adamw8": Arm(ADAMW8, _adamw8),
}
FULL = {  # each arm's form in float32
    arm: full for full in ("adam", "adam_abs", "muon") for arm in ARMS if arm.startswith(full)
}


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


def _spiked(task: Task) -> Task:
    """The task under the cosine, with one gradient that is far too large."""

    def scale(count: Any) -> Any:
        return jnp.where(count == SPIKE, SPIKED, 1.0)

    def wrap(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        return optax.chain(optax.scale_by_schedule(scale), optimizer)

    return task._replace(schedule=cosine, wrap=wrap)


SETTINGS: Mapping[str, Callable[[Task], Task]] = {
    "": lambda task: task._replace(schedule=cosine),
    f"gradient {SPIKE} {SPIKED:g} times as large": _spiked,
}


def errors_of(records: Records, task: str, arm: str, setting: str) -> float:
    """A validation loss above float32's in standard errors; NaN where one was not trained."""
    own, full = (
        measured(records, "validation_loss", task=task, arm=each, setting=setting)
        for each in (arm, FULL[arm])
    )
    return errors_above(own, full) if len(own) and len(full) else math.nan


def sections(records: Records) -> list[Table | str]:
    """A table a task and setting, and one of what each narrow form loses."""

    def cell(row: tuple[str, str], arm: str) -> str:
        errors = errors_of(records, row[0], arm, row[1])
        return "-" if math.isnan(errors) else f"{errors:+.1f}"

    title = "Validation loss above the float32 form's, in standard errors of the difference"
    rows = {
        ", ".join(filter(None, row)): row
        for row in itertools.product(TASKS, SETTINGS)
        if records.select(task=row[0], setting=row[1])
    }
    narrow = [arm for arm in ARMS if FULL[arm] != arm and records.select(arm=arm)]
    lost = grid(title, "task", rows, {ARMS[arm].label: arm for arm in narrow}, cell)
    return [*STUDY.tables(records), lost]


def bars(records: Records) -> list[Bar]:
    """8 bits of AdamABS and corrected parameters as good as float32; uncorrected ones not."""
    found = []
    for task, setting in itertools.product(TASKS, SETTINGS):
        where = ", ".join(filter(None, (task, setting)))
        for arm in (JUDGED, CORRECTED, UNCORRECTED):
            errors = errors_of(records, task, arm, setting)
            if math.isnan(errors):
                continue
            wanted, met = f"at most {WANTED_ERRORS:g}", errors <= WANTED_ERRORS
            if arm == UNCORRECTED:  # else what corrects them has no case
                wanted, met = f"above {WANTED_WORSE:g}", errors > WANTED_WORSE
            name = f"{where}: {ARMS[arm].label}"
            title = f"{name}, standard errors above float32"
            found.append(Bar(title, wanted, f"{errors:+.1f}", met))
            if arm == JUDGED and not setting:
                (tuning,) = records.select(kind="tuning", task=task, arm=arm, setting=setting)
                size = tuning.result["bytes"]
                found.append(
                    Bar(f"{name}, bytes a parameter", f"at most {WANTED_BYTES}",
                        f"{size:.2f}", size <= WANTED_BYTES)
                )  # fmt: skip
    return found


STUDY = Study(
    name="narrow",
    doc="Trains Adam, AdamABS and Muon, wide and narrow, each at its best rate.",
    tasks=TASKS,
    arms=ARMS,
    peers=("adamw8",),
    bars=bars,
    grid=Grid(-7, -3),
    need_images=("mnist", "fashion", "cifar10"),
    module=__name__,
    settings=SETTINGS,
    sections=sections,
)
command = command_of(STUDY)
