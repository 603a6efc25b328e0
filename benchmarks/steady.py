"""What was tried to steady ABS: every rule, beside the parents under the same cures.

A rule takes a rate (a number or a schedule) and returns an optimizer; each is composed from
the package's parts. All have one rate, and the test data are never looked at.
"""

import functools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optabs
from benchmarks.lab.records import Record, Records, as_floats
from benchmarks.lab.report import Table, mean_and_spread
from benchmarks.lab.study import Study, command_of
from benchmarks.lab.tasks import Split, in_epochs, perceptron
from benchmarks.lab.training import Arm, Task, cosine

Rule = Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]

RATE, DECAY = 1e-3, 1e-4
BATCH = 128
PHASES = 3  # what is learned changes at each third of the steps
LAST = 10  # epochs over which accuracy and swing are taken, or the last phase
GRADIENT_SCALES = (100.0, 1.0, 0.01)

# What was done to each parent. max: the denominator's largest value so far. rising: one that
# never falls. peak: the largest size so far, with no mean. bounded: no entry of the step
# above the rate. corrected: for the mean's bias, as Adam's always are.
CURES = {
    "adam": ("", "bounded", "max", "max, bounded", "rising", "rising, bounded"),
    "adam_abs": (
        "", "half rate", "calibrated", "bounded", "b2=b1=0.9", "b1=b2=0.95", "b2=0.968", "max",
        "max, bounded", "max, calibrated", "max, b2=0.99", "rising", "rising, bounded",
        "rising, calibrated", "rising, b2=0.99", "peak",
    ),
    "rmsprop": (
        "", "corrected", "corrected, bounded", "corrected, max", "corrected, max, bounded",
        "rising", "rising, bounded",
    ),
    "rmsprop_abs": (
        "", "bounded", "max", "corrected", "corrected, calibrated", "corrected, bounded",
        "corrected, max", "corrected, max, bounded", "corrected, max, calibrated", "rising",
        "rising, bounded", "rising, calibrated", "peak",
    ),
}  # fmt: skip
# calibrated: E|g| = sqrt(2/pi) * root mean square for a Gaussian gradient.
SCALES = {"half rate": 0.5, "calibrated": (2 / jnp.pi) ** 0.5}
DECAYS = {
    "b2=b1=0.9": (0.9, 0.9), "b1=b2=0.95": (0.95, 0.95), "b2=0.968": (0.9, 0.968),
    "b2=0.99": (0.9, 0.99),
}  # fmt: skip


def _rule(parent: str, cures: Sequence[str]) -> Rule:
    adam, absolute = parent.startswith("adam"), parent.endswith("_abs")
    decays = [DECAYS[cure] for cure in cures if cure in DECAYS]
    b1, b2 = decays[0] if decays else (0.9, 0.999 if adam else 0.99)
    numerator = optabs.ema(b1, bias_correction=True) if adam else optax.identity()
    if "rising" in cures:
        size = (optabs.rising_abs if absolute else optabs.rising_rms)(b2)
    elif "peak" in cures:
        size = optax.chain(optabs.mean_abs(0.0), optabs.running_max())
    else:
        mean = optabs.mean_abs if absolute else optabs.rms
        size = mean(b2, bias_correction=adam or "corrected" in cures)
    return lambda rate: optax.chain(
        optabs.scale_by_ratio(
            numerator, optax.chain(size, optabs.running_max()) if "max" in cures else size
        ),
        optax.clip(1.0) if "bounded" in cures else optax.identity(),
        optax.scale(math.prod(SCALES.get(cure, 1.0) for cure in cures)),
        optax.scale_by_learning_rate(rate),
    )


RULES: dict[str, Rule] = {
    ", ".join(filter(None, (parent, tried))): _rule(parent, tried.split(", "))
    for parent, cures in CURES.items()
    for tried in cures
}


class Batch(NamedTuple):
    """Images with their labels, and in which of the PHASES they are seen."""

    inputs: jax.Array  # float32 [n, ...]
    labels: jax.Array  # int32 [n]
    phase: jax.Array  # int32 []


def decayed(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """With coupled weight decay."""
    return optax.chain(optax.add_decayed_weights(DECAY), optimizer)


def _scaled(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """With gradients, and the weights' decay in them, of another scale in each phase."""

    def update(updates: Any, state: Any, params: Any, *, batch: Batch, **_: Any) -> Any:
        scale = jnp.array(GRADIENT_SCALES)[batch.phase]
        return jax.tree.map(lambda leaf: scale * leaf, updates), state

    scaling = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    return decayed(optax.chain(scaling, optimizer))


def _drifting(task: Task, permuted: bool) -> Task:
    """A task in phases; `permuted`: of another fixed order of the pixels in each.

    Which phase it is goes through the statistics, so that the validation data are those of
    the phase, too.
    """
    pixels = int(np.prod(task.train.inputs.shape[1:]))
    random = np.random.default_rng(0)
    places = np.stack([np.arange(pixels)] + [random.permutation(pixels) for _ in range(2)])

    def init(key: jax.Array) -> tuple[Any, Any]:
        params, statistics = task.init(key)
        return params, (statistics, jnp.int32(0))

    def feed(key: jax.Array, steps: int) -> Any:
        return task.feed(key, steps), jnp.arange(steps) * PHASES // steps

    def batch(train: Split, item: Any) -> Batch:
        rows, phase = item
        split = task.batch(train, rows)
        return Batch(split.inputs, split.labels, phase)

    def seen(inputs: jax.Array, phase: jax.Array) -> jax.Array:
        if not permuted:
            return inputs
        return inputs.reshape(len(inputs), -1)[:, jnp.asarray(places)[phase]]

    def loss_fn(params: Any, statistics: Any, batch: Batch) -> tuple[jax.Array, Any]:
        split = Split(seen(batch.inputs, batch.phase), batch.labels)
        loss, own = task.loss_fn(params, statistics[0], split)
        return loss, (own, batch.phase)

    def evaluate(params: Any, statistics: Any, data: Split) -> tuple[jax.Array, jax.Array]:
        own, phase = statistics
        return task.evaluate(params, own, Split(seen(data.inputs, phase), data.labels))

    return task._replace(init=init, feed=feed, batch=batch, loss_fn=loss_fn, evaluate=evaluate)


def _task(dataset: str, drift: str, source: pathlib.Path | None) -> Task:
    epochs = 15 if drift else 30
    task = in_epochs(perceptron(dataset, source), BATCH, epochs)._replace(wrap=decayed)
    if not drift:
        return task
    task = _drifting(task._replace(title=f"{task.title}, {drift}"), drift == "permuted")
    return task._replace(wrap=_scaled) if drift == "scaled" else task


def sections(records: Records) -> list[Table | str]:
    """A table for each task and setting, a row a rule."""
    found: list[Table | str] = []
    for task, setting in dict.fromkeys((each.key.task, each.key.setting) for each in records):
        runs = {rule: records.select(task=task, setting=setting, arm=rule) for rule in RULES}
        first = next(own for own in runs.values() if own)
        epochs = len(first[0].result["curves"]["loss"])
        last = max(1, epochs // PHASES) if "-" in task else min(epochs, LAST)
        title = (
            f"{first[0].config['title']}, {setting}, {epochs} epochs: validation accuracy in "
            f"percent and its swing over the last {last} epochs (mean ± standard deviation of "
            f"{len(first)} seeds), loss of the last epoch"
        )
        rows = [[rule, *_cells(own, last)] for rule, own in runs.items() if own]
        found.append(Table(title, ["rule", "accuracy", "swing", "training loss"], rows))
    return found


def _cells(runs: Sequence[Record], last: int) -> list[str]:
    curves = [run.result["curves"] for run in runs]
    tails = 100 * as_floats([each["validation_accuracy"][-last:] for each in curves])
    loss = np.mean([each["loss"][-1] for each in curves])
    accuracy, swing = list(tails.mean(1)), list(tails.std(1))
    return [mean_and_spread(accuracy), mean_and_spread(swing, 3), f"{loss:.4f}"]


TASKS: dict[str, Callable[[pathlib.Path | None], Task]] = {
    f"{dataset}-{drift}" if drift else dataset: functools.partial(_task, dataset, drift)
    for dataset in ("digits", "mnist")
    for drift in ("", "permuted", "scaled")
}
STUDY = Study(
    name="steady",
    doc="Trains every rule that was tried to steady ABS, under a constant rate and a cosine.",
    tasks=TASKS,
    arms={name: Arm(name, rule) for name, rule in RULES.items()},
    need_images=[name for name in TASKS if name.startswith("mnist")],
    module=__name__,
    rate=RATE,
    settings={
        "constant rate": lambda task: task,
        "cosine decay": lambda task: task._replace(schedule=cosine),
    },
    test=False,
    sections=sections,
)
command = command_of(STUDY)
