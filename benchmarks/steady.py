"""What was tried to steady ABS: every rule, beside the parents under the same cures.

A rule takes a rate (a number or a schedule) and returns an optimizer; each is composed from
the package's parts. All have one rate, and the test data are never looked at.
"""

import functools
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
# E|g| = sqrt(2/pi) * root mean square for a Gaussian gradient.
GAUSSIAN = (jnp.pi / 2) ** 0.5


def peak_abs() -> optax.GradientTransformationExtraArgs:
    """The largest size so far, with no mean."""
    return optax.chain(optabs.mean_abs(0.0), optabs.running_max())


def _rule(
    numerator: optax.GradientTransformation,
    *denominator: optax.GradientTransformation,
    bound: float | None = None,
    scale: float = 1.0,
) -> Rule:
    size = optax.chain(*denominator)
    clip = optax.identity() if bound is None else optax.clip(bound)
    return lambda rate: optax.chain(
        optabs.scale_by_ratio(numerator, size),
        clip,
        optax.scale(scale),
        optax.scale_by_learning_rate(rate),
    )


def _adam_rules() -> dict[str, Rule]:
    def mean(b2: float = 0.999) -> optax.GradientTransformationExtraArgs:
        return optabs.mean_abs(b2, bias_correction=True)

    m = optabs.ema(0.9, bias_correction=True)
    rms = optabs.rms(0.999, bias_correction=True)
    top = optabs.running_max()
    return {
        "adam": _rule(m, rms),
        "adam, bounded": _rule(m, rms, bound=1.0),
        "adam, max": _rule(m, rms, top),
        "adam, max, bounded": _rule(m, rms, top, bound=1.0),
        "adam, rising": _rule(m, optabs.rising_rms(0.999)),
        "adam, rising, bounded": _rule(m, optabs.rising_rms(0.999), bound=1.0),
        "adam_abs": _rule(m, mean()),
        "adam_abs, half rate": _rule(m, mean(), scale=0.5),
        "adam_abs, calibrated": _rule(m, mean(), scale=1 / GAUSSIAN),
        "adam_abs, bounded": _rule(m, mean(), bound=1.0),
        "adam_abs, b2=b1=0.9": _rule(m, mean(0.9)),
        "adam_abs, b1=b2=0.95": _rule(optabs.ema(0.95, bias_correction=True), mean(0.95)),
        "adam_abs, b2=0.968": _rule(m, mean(0.968)),
        "adam_abs, max": _rule(m, mean(), top),
        "adam_abs, max, bounded": _rule(m, mean(), top, bound=1.0),
        "adam_abs, max, calibrated": _rule(m, mean(), top, scale=1 / GAUSSIAN),
        "adam_abs, max, b2=0.99": _rule(m, mean(0.99), top),
        "adam_abs, rising": _rule(m, optabs.rising_abs(0.999)),
        "adam_abs, rising, bounded": _rule(m, optabs.rising_abs(0.999), bound=1.0),
        "adam_abs, rising, calibrated": _rule(m, optabs.rising_abs(0.999), scale=1 / GAUSSIAN),
        "adam_abs, rising, b2=0.99": _rule(m, optabs.rising_abs(0.99)),
        "adam_abs, peak": _rule(m, peak_abs()),
    }


def _rmsprop_rules() -> dict[str, Rule]:
    g = optax.identity()
    rms = optabs.rms(0.99, bias_correction=True)
    mean = optabs.mean_abs(0.99, bias_correction=True)
    top = optabs.running_max()
    return {
        "rmsprop": _rule(g, optabs.rms(0.99)),
        "rmsprop, corrected": _rule(g, rms),
        "rmsprop, corrected, bounded": _rule(g, rms, bound=1.0),
        "rmsprop, corrected, max": _rule(g, rms, top),
        "rmsprop, corrected, max, bounded": _rule(g, rms, top, bound=1.0),
        "rmsprop, rising": _rule(g, optabs.rising_rms(0.99)),
        "rmsprop, rising, bounded": _rule(g, optabs.rising_rms(0.99), bound=1.0),
        "rmsprop_abs": _rule(g, optabs.mean_abs(0.99)),
        "rmsprop_abs, bounded": _rule(g, optabs.mean_abs(0.99), bound=1.0),
        "rmsprop_abs, max": _rule(g, optabs.mean_abs(0.99), top),
        "rmsprop_abs, corrected": _rule(g, mean),
        "rmsprop_abs, corrected, calibrated": _rule(g, mean, scale=1 / GAUSSIAN),
        "rmsprop_abs, corrected, bounded": _rule(g, mean, bound=1.0),
        "rmsprop_abs, corrected, max": _rule(g, mean, top),
        "rmsprop_abs, corrected, max, bounded": _rule(g, mean, top, bound=1.0),
        "rmsprop_abs, corrected, max, calibrated": _rule(g, mean, top, scale=1 / GAUSSIAN),
        "rmsprop_abs, rising": _rule(g, optabs.rising_abs(0.99)),
        "rmsprop_abs, rising, bounded": _rule(g, optabs.rising_abs(0.99), bound=1.0),
        "rmsprop_abs, rising, calibrated": _rule(
            g, optabs.rising_abs(0.99), scale=1 / GAUSSIAN
        ),
        "rmsprop_abs, peak": _rule(g, peak_abs()),
    }


RULES: dict[str, Rule] = _adam_rules() | _rmsprop_rules()


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
    downloads=True,
    test=False,
    sections=sections,
)
command = command_of(STUDY)
