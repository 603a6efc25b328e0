"""What the study compares: single experts, mixtures of them and neighbours, on which tasks."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

import optabs
from benchmarks.lab import tasks
from benchmarks.lab.models import Architecture, Convnet, Network, in_pieces, network, resnet
from benchmarks.lab.tasks import Split
from benchmarks.lab.training import Arm, Task, cosine, warmed_up
from optabs.mixture import controller as control
from optabs.mixture.experts import DEFAULT
from optabs.mixture.state import Storage, diagnostics
from optabs.training.batches import take

MOMENTUM = 0.9  # of the expert SGD on the task "momentum"
DECAY = 1e-4  # of the weights on the task "decay", in every step, after the update
CHANGE = 0.5  # share of the steps after which labels get noisy, or a class appears
NOISY_LABELS = 0.4  # share of the labels that are then drawn at random
NEW_CLASS = 9
BRIGHTNESS = 1.0  # added to all pixels at the end, from 0 at the start
# Images of the networks that are slow: for validation, at every point, and for the test.
HELD_OUT = (1000, 5000)


class Draw(NamedTuple):
    """What a step draws; with replacement, as no order of epochs fits a set that grows."""

    progress: jax.Array  # float32 []: share of the steps that are done
    places: jax.Array  # float32 [batch], in [0, 1): rows as shares of the training set
    noise: jax.Array  # float32 [batch], in [0, 1)
    labels: jax.Array  # int32 [batch]: what a noisy label becomes


def _draws(key: jax.Array, steps: int) -> Draw:
    keys, shape = jax.random.split(key, 3), (steps, 32)
    return Draw(
        jnp.arange(steps) / steps,
        jax.random.uniform(keys[0], shape),
        jax.random.uniform(keys[1], shape),
        jax.random.randint(keys[2], shape, 0, 10),
    )


def _drawn(train: Split, draw: Draw, count: Any) -> Split:
    return take(train, jnp.minimum((draw.places * count).astype(jnp.int32), count - 1))


def noisy_labels(train: Split, draw: Draw) -> Split:
    """Some labels are random from halfway on."""
    batch = _drawn(train, draw, len(train.labels))
    noisy = (draw.progress >= CHANGE) & (draw.noise < NOISY_LABELS)
    return batch._replace(labels=jnp.where(noisy, draw.labels, batch.labels))


def new_class(train: Split, draw: Draw) -> Split:
    """A class appears halfway; the training set has its images last."""
    known = (train.labels != NEW_CLASS).sum()
    return _drawn(train, draw, jnp.where(draw.progress >= CHANGE, len(train.labels), known))


def brighter(train: Split, draw: Draw) -> Split:
    """All pixels brighten step by step."""
    batch = _drawn(train, draw, len(train.labels))
    return batch._replace(inputs=batch.inputs + BRIGHTNESS * draw.progress)


def _drifting(batch: Callable[[Split, Draw], Split], title: str) -> Task:
    """Digits that change; held-out data are those of the end: clean, all classes, bright."""
    train, validation, test = tasks.digits_splits()
    if batch is new_class:
        train = take(train, jnp.argsort(train.labels == NEW_CLASS, stable=True))
    if batch is brighter:
        validation, test = (
            each._replace(inputs=each.inputs + BRIGHTNESS) for each in (validation, test)
        )
    return tasks.classification(
        f"MLP 64-32-10, digits: {title}", tasks.mlp(64, 32, 10),
        (train, validation, test),
        steps=2000, batch_size=32, feed=_draws, batch=batch, scope="drift",
    )  # fmt: skip


def _images(name: str, title: str, net: Network, splits: tasks.Splits, steps: int) -> Task:
    """A convolutional network that took no part in any choice, scored on fewer images."""
    train, validation, test = splits
    validation, test = (
        Split(split.inputs[:count], split.labels[:count])
        for split, count in zip((validation, test), HELD_OUT, strict=True)
    )
    return tasks.classification(
        f"{title}, {name.replace('_', ' ')}", in_pieces(net), (train, validation, test),
        steps=steps, batch_size=32, by_steps=True, scope="new",
    )  # fmt: skip


# Made when they are wanted: most read data.
TASKS: dict[str, Callable[[pathlib.Path | None], Task]] = {
    "quadratic": lambda source: tasks.quadratic(),
    "logistic": lambda source: tasks.breast_cancer(in_turns=True),
    "softmax": lambda source: tasks.digits(tasks.mlp(64, 10), "softmax regression"),
    "autoencoder": lambda source: tasks.autoencoder(),
    "mnist": lambda source: tasks.small_images("mnist", source),
    "fashion": lambda source: tasks.small_images("fashion_mnist", source),
    "convnet": lambda source: tasks.digits(
        network(lambda rngs: Convnet((8, 16), 10, rngs=rngs)), "convnet with batch norm",
        steps=600,
    ),
    "decay": lambda source: tasks.small_images(
        "fashion_mnist", source, also=", cosine rates, weight decay",
        schedule=cosine,
        wrap=lambda inner: optax.chain(inner, optax.add_decayed_weights(-DECAY)),
    ),
    "momentum": lambda source: tasks.digits(
        tasks.mlp(64, 32, 10), "MLP 64-32-10, SGD with momentum 0.9", steps=2000
    ),
    "long": lambda source: tasks.digits(
        tasks.mlp(64, 32, 10), "MLP 64-32-10, 10,000 steps", steps=10_000, scope="few"
    ),
    "transformer": lambda source: tasks.transformer(),
    "cnn": lambda source: _images(
        "fashion_mnist", "convnet of 16-32 channels with batch norm",
        network(lambda rngs: Convnet((16, 32), 10, rngs=rngs)),
        tasks.image_splits("fashion_mnist", source), 700,
    ),
    "gpt": lambda source: tasks.transformer(
        144, 4, "character transformer of four blocks of width 144, Python's help", 4,
        steps=240, scope="new",
    ),
    "resnet8": lambda source: _images(
        "cifar10", "ResNet-8 at 16 x 16",
        resnet(Architecture((16, 32, 64), 1, stem_stride=2), channels=3, classes=10),
        tasks.image_splits("cifar10", source, half=True), 1200,
    ),
    "noisy_labels": lambda source: _drifting(
        noisy_labels, "40% of the labels random from 50% of the steps on"
    ),
    "new_class": lambda source: _drifting(new_class, "class 9 appears after 50% of the steps"),
    "brighter": lambda source: _drifting(brighter, "brightness rises throughout"),
}  # fmt: skip
NEED_IMAGES = ("mnist", "fashion", "decay", "cnn", "resnet8")

CONSTANTS = {  # of the rule
    name: value for name, value in vars(control).items() if isinstance(value, int | float)
}
EXPERTS = {"sgd": "SGD", "adam": "Adam", "rmsprop": "RMSProp", "lion": "Lion"}  # labels


class Form(NamedTuple):
    """How the experts are mixed: what `optabs.dao_e` is given, after a label."""

    label: str
    controller: optabs.Controller
    features: tuple[optabs.features.Feature, ...] = ()
    previous: Storage = "thinned"
    experts: tuple[str, ...] = tuple(EXPERTS)
    frozen: Mapping[str, Any] | None = None
    """What a record says in place of all settings, of a form that stays as it is, so that
    its runs stay valid when the controller gets settings that do not concern it."""

    def config(self) -> dict[str, Any]:
        """As it is written into a record: another rule has other constants."""
        if self.frozen is None:
            settings = self.controller._asdict() | {"constants": CONSTANTS}
        else:
            settings = dict(self.frozen)
        names = [function.__name__ for function, _ in self.features]
        return settings | {"features": names, "previous": self.previous}


def watch(state: Any) -> dict[str, jax.Array]:
    """Weights, means over leaves, and the step multiplier."""
    found = diagnostics(state)
    return found.weights | {"multiplier": found.multiplier}


_rule = optabs.Controller()
FORMS: dict[str, Form] = {
    "uniform": Form(
        "uniform weights", optabs.Controller.uniform(), previous="bfloat16",
        frozen={"controller": "uniform"},
    ),
    "capped_uniform": Form("uniform, cap and multiplier", _rule._replace(rate=None)),
    "steered_adam": Form("steered Adam", _rule._replace(rate=None), experts=("adam",)),
    "published": Form(
        "DAO-E as published", optabs.Controller.paper(), optabs.features.ALL, "bfloat16",
        frozen={"controller": "paper"},
    ),
    "dao_e": Form("DAO-E", _rule),
}  # fmt: skip
# DAO-E with a part taken away, or with one more. A candidate is one more line.
ABLATIONS: dict[str, Form] = {
    "features": Form("DAO-E with features", _rule, optabs.features.ALL),
    "no_cap": Form("without cap", _rule._replace(cap=None)),
    "no_multiplier": Form("without multiplier", _rule._replace(multiplier_rate=None)),
    "last_update": Form("the last update alone", _rule._replace(gamma=0.0)),
    "no_floor": Form("without floor", _rule._replace(floor=0.0)),
    "no_decay": Form("without decay", _rule._replace(decay=0.0)),
    "bfloat16": Form("whole traces in bfloat16", _rule, previous="bfloat16"),
    "float32": Form("whole traces in float32", _rule, previous="float32"),
}
MIXTURES = FORMS | ABLATIONS
NADAMW, FREE, PRODIGY = "nadamw", "schedule_free_adamw", "prodigy"
NEIGHBOURS = {NADAMW: "NadamW", FREE: "schedule-free AdamW", PRODIGY: "Prodigy"}
# What only has records: dao_e had this rule up to commit 1abad39.
RETIRED = {"today": "DAO-E by the last update"}
LABELS = EXPERTS | {name: form.label for name, form in MIXTURES.items()} | RETIRED | NEIGHBOURS
FINALISTS = tuple(name for name in LABELS if name not in ABLATIONS)
TUNED = (*EXPERTS, FREE)  # whose best rate is looked for on each task
UNSCHEDULED = (FREE, NADAMW)  # which bring what stands in for a schedule, and their decay

# Which arms train on a task, by its scope. The new tasks, with the arms that matter, and
# those that drift choose nothing.
SCOPES = {
    "all": tuple(LABELS),
    "few": FINALISTS,
    "new": (*EXPERTS, "capped_uniform", "today", "dao_e", NADAMW),
    "drift": (*EXPERTS, "uniform", "dao_e", "features"),
}
CHOOSING = ("all", "few")


def rated_by(arm: str) -> tuple[str, ...]:
    """The experts, or what else, whose rates an arm takes."""
    if arm in MIXTURES:
        return MIXTURES[arm].experts
    # Of the setting's rates the neighbours see what Adam sees of its own, or none.
    return {FREE: ("adam",), PRODIGY: ()}.get(arm, (arm,))


def arm_on(task: str, arm: str, steps: int = 2) -> Arm:
    """An arm as a task of so many steps has it; it is made from a dict of rates, by expert."""
    label, experts = LABELS[arm], dict(DEFAULT)
    if task == "momentum":
        experts["sgd"] = functools.partial(optax.sgd, momentum=MOMENTUM)
    if arm in MIXTURES:
        form = MIXTURES[arm]
        given = {name: getattr(form, name) for name in ("controller", "features", "previous")}
        mixed = functools.partial(optabs.dao_e, **given)
        return Arm(
            label,
            lambda rates: mixed(experts={name: experts[name](rates[name]) for name in rates}),
            watch,
        )
    if arm == FREE:
        averaged, free = contrib.schedule_free_eval_params, contrib.schedule_free_adamw
        decay = DECAY if task == "decay" else 0.0
        return Arm(
            label,
            lambda rates: free(rates["adam"], weight_decay=decay / rates["adam"]),
            evaluated=averaged,
        )
    if arm == PRODIGY:
        return Arm(label, lambda rates: contrib.prodigy(rates["factor"]))
    if arm == NADAMW:
        return Arm(
            label,
            lambda rates: optax.nadamw(
                warmed_up(rates[NADAMW], steps), b2=rates["b2"], weight_decay=rates["decay"]
            ),
        )
    return Arm(label, lambda rates: experts[arm](rates[arm]))


SAME, TOO_LARGE, TOO_SMALL = 1e-3, 30.0, 0.1
SETTINGS: dict[str, str] = {
    "tuned": "every expert at its own best rate",
    "same": f"{SAME:g} for all",
    "SGD right": f"SGD at its best, the others at {TOO_LARGE:g} times theirs",
    "Adam right": f"Adam at its best, the others at {TOO_LARGE:g} times theirs",
    "small": f"all at {TOO_SMALL:g} of their best",
}
DRIFT_SETTINGS = ("tuned", "same")


def rates_in(setting: str, best: Mapping[str, float]) -> dict[str, float]:
    """The rates of a setting, from the best ones; of NadamW, too, the rate alone differs."""
    right = {"SGD right": "sgd", "Adam right": "adam"}.get(setting)

    def rate_of(name: str, rate: float) -> float:
        if name in ("decay", "b2") or name == right:
            return rate
        if setting == "same":
            return SAME
        factor = TOO_LARGE if right else TOO_SMALL if setting == "small" else 1.0
        return float(f"{factor * rate:.3g}")

    return {name: rate_of(name, rate) for name, rate in best.items()}
