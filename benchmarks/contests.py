"""What each optimizer's step is timed against."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import optax

import optabs
from benchmarks.steady import RULES

RATE = 1e-3
FULL = "float32"
STATES: Mapping[str, Mapping[str, str]] = {  # of both moments
    "8bit": {"mu": "int8", "nu": "uint8"},
    "bfloat16": {"mu": "bfloat16", "nu": "bfloat16"},
    "float16": {"mu": "float16", "nu": "float16"},
}

Maker = Callable[[], optax.GradientTransformation]


class Contest(NamedTuple):
    """An optimizer and what it is compared with."""

    ours: Maker
    rivals: Mapping[str, Maker]  # optax's optimizer first
    same_rule: bool = True  # as the first rival


def _adagrad() -> optax.GradientTransformation:
    return optabs.adagrad(RATE, eps=0.0, eps_root=1e-7)  # where optax.adagrad has its eps


# Each optax optimizer with the arguments that make it the same rule.
_PARENTS: dict[str, Maker] = {
    "sgd": lambda: optax.sgd(RATE),
    "momentum": lambda: optax.sgd(0.1 * RATE, momentum=0.9),
    "nag": lambda: optax.sgd(0.1 * RATE, momentum=0.9, nesterov=True),
    "adagrad": lambda: optax.adagrad(RATE, initial_accumulator_value=0.0),
    "rmsprop": lambda: optax.rmsprop(RATE, eps_in_sqrt=False),
    "adadelta": lambda: optax.adadelta(RATE),
    "adam": lambda: optax.adam(RATE),
    "adamw": lambda: optax.adamw(RATE),
    "nadam": lambda: optax.nadam(RATE),
    "amsgrad": lambda: optax.amsgrad(RATE),
}
_OURS: dict[str, Maker] = {
    "sgd": lambda: optabs.sgd(RATE),
    "momentum": lambda: optabs.momentum(RATE),
    "nag": lambda: optabs.nag(RATE),
    "adagrad": _adagrad,
    "rmsprop": lambda: optabs.rmsprop(RATE),
    "adadelta": lambda: optabs.adadelta(RATE),
    "adam": lambda: optabs.adam(RATE),
    "adamw": lambda: optabs.adamw(RATE),
    "nadam": lambda: optabs.nadam(RATE),
    "amsgrad": lambda: RULES["adam, max"](RATE),
}
_ABSOLUTE: dict[str, tuple[str, Maker]] = {
    "adagrad_abs": ("adagrad", lambda: optabs.adagrad_abs(RATE)),
    "rmsprop_abs": ("rmsprop", lambda: optabs.rmsprop_abs(RATE)),
    "adadelta_abs": ("adadelta", lambda: optabs.adadelta_abs(RATE)),
    "adam_abs": ("adam", lambda: optabs.adam_abs(RATE)),
    "adam_abs_steady": ("adam", lambda: optabs.adam_abs(RATE, steady=True)),
    "adamw_abs": ("adamw", lambda: optabs.adamw_abs(RATE)),
    "nadam_abs": ("nadam", lambda: optabs.nadam_abs(RATE)),
}
CONTESTS: dict[str, Contest] = {
    # optax.nadam corrects its average one step ahead; see optabs.nadam.
    name: Contest(ours, {f"optax.{name}": _PARENTS[name]}, same_rule=name != "nadam")
    for name, ours in _OURS.items()
} | {
    name: Contest(
        ours,
        {f"optax.{parent}": _PARENTS[parent], f"optabs.{parent}": _OURS[parent]},
        same_rule=False,
    )
    for name, (parent, ours) in _ABSOLUTE.items()
}


def contests_of(state: str) -> Mapping[str, Contest]:
    """The contests of all optimizers, or of their narrow forms with float32 a rival."""
    if state == FULL:
        return CONTESTS
    return {f"{name}_{state}": _narrow(name, state) for name in CONTESTS}


def _narrow(name: str, state: str) -> Contest:
    contest = CONTESTS[name]

    def ours() -> optax.GradientTransformation:
        return optabs.narrow_state(contest.ours(), STATES[state])

    rivals = {**contest.rivals, f"optabs.{name}": contest.ours}
    return Contest(ours, rivals, same_rule=False)
