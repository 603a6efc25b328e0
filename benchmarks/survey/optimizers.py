"""The optimizers that the survey study compares, by the file of optabs that has them."""

from collections.abc import Callable
from typing import NamedTuple

import optax

import optabs


class Entry(NamedTuple):
    """One row of the study."""

    label: str
    family: str
    make: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]
    decays: bool = False  # its rate follows a cosine to 0 over the steps

    def optimizer(
        self, learning_rate: optax.ScalarOrSchedule, steps: int
    ) -> optax.GradientTransformation:
        """The optimizer for a run of so many steps; the rate may be traced."""
        if self.decays:
            return self.make(optax.cosine_decay_schedule(learning_rate, steps))
        return self.make(learning_rate)


_FAMILIES = {
    "momentum": ("sgd", "momentum", "nag"),
    "adaptive": ("adagrad", "rmsprop", "adadelta"),
    "adam": ("adam", "adamw", "nadam"),
    "absolute": ("adagrad_abs", "rmsprop_abs", "adadelta_abs"),
    "adam_absolute": ("adam_abs", "adamw_abs", "nadam_abs"),
}
ENTRIES: dict[str, Entry] = {
    name: Entry(name, family, getattr(optabs, name))
    for family, names in _FAMILIES.items()
    for name in names
} | {
    "rmsprop_abs_steady": Entry(
        "rmsprop_abs, steady", "absolute", lambda rate: optabs.rmsprop_abs(rate, steady=True)
    ),
    "adam_abs_steady": Entry(
        "adam_abs, steady", "adam_absolute", lambda rate: optabs.adam_abs(rate, steady=True)
    ),
}
# Only where the gradients are noisy, for the question of adjusting the rate.
DECAYING: dict[str, Entry] = {
    f"{name}_cosine": Entry(
        f"{name}, cosine", ENTRIES[name].family, ENTRIES[name].make, decays=True
    )
    for name in ("sgd", "momentum", "adam", "adam_abs")
}
FAMILIES: dict[str, list[str]] = {
    family: [name for name, entry in ENTRIES.items() if entry.family == family]
    for family in _FAMILIES
}
