"""The range of every hyperparameter, checked where a transformation is built.

Only Python and NumPy numbers are read: a JAX array may be traced, and reading it
would force a transfer or a second compilation.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

_Problem = str | None


def _number(value: Any) -> float | None:
    """`value` as a float where it can be read here, else None."""
    if isinstance(value, bool | np.bool_ | str):
        raise TypeError
    if isinstance(value, jax.Array) or hasattr(value, "aval"):
        return None
    return float(value)


def _within(low: float, high: float, wanted: str) -> Callable[[Any], _Problem]:
    """A rule that accepts low <= value < high."""

    def rule(value: Any) -> _Problem:
        try:
            number = _number(value)
        except (TypeError, ValueError):
            return f"is {value!r}, a {type(value).__name__}; pass {wanted}"
        if number is None or low <= number < high:
            return None
        return f"is {value!r}; pass {wanted}"

    return rule


def _rate(value: Any) -> _Problem:
    wanted = "a finite number that is 0 or more, or a schedule (step -> rate)"
    return None if callable(value) else _within(0.0, math.inf, wanted)(value)


def _mask(value: Any) -> _Problem:
    # inject_hyperparams replaces a callable mask by what it returns for a step
    # number, and optax.masked would then silently broadcast that bool.
    if isinstance(value, bool | np.bool_ | int | float | str | jax.Array | np.ndarray):
        return (
            f"is {value!r}; pass None, a pytree of bools shaped like the parameters, or a "
            "function (params -> such a pytree), named in static_args under inject_hyperparams"
        )
    return None


_decay = _within(0.0, 1.0, "a number in [0, 1)")
_share = _within(0.0, math.nextafter(1.0, 2.0), "a number in [0, 1]")
_nonnegative = _within(0.0, math.inf, "a finite number that is 0 or more")
_positive = _within(math.ulp(0.0), math.inf, "a finite number above 0")


def _whole(value: Any) -> _Problem:
    wanted = "a whole number from 1 to 2**31 - 1"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return None if 1 <= value < 2**31 else f"is {value!r}; pass {wanted}"
    return f"is {value!r}, a {type(value).__name__}; pass {wanted}"


def _optional(rule: Callable[[Any], _Problem]) -> Callable[[Any], _Problem]:
    return lambda value: None if value is None else rule(value)


def _concrete(rule: Callable[[Any], _Problem]) -> Callable[[Any], _Problem]:
    """A rule that reads JAX arrays too, for what is only used where nothing is traced."""
    return lambda value: rule(value.item() if isinstance(value, jax.Array) else value)


_RULES: dict[str, Callable[[Any], _Problem]] = {
    "learning_rate": _rate,
    "decay": _decay,
    "b1": _decay,
    "b2": _decay,
    "eps": _nonnegative,
    "eps_root": _nonnegative,
    "weight_decay": _nonnegative,
    "max_ratio": _optional(_positive),
    "mask": _mask,
    "epochs": _whole,
    "generations": _whole,
    "population_size": _whole,
    "chunk_size": _optional(_whole),
    "batch_size": _optional(_whole),
    "validation_batch_size": _optional(_whole),
    "mutation_rate": _share,
    "pressure": _nonnegative,
    "max_steps": _optional(_whole),
    "tolerance": _concrete(_nonnegative),
    "params_tolerance": _concrete(_nonnegative),
    "checkpoint_seconds": _concrete(_nonnegative),
    "stddev": _nonnegative,
    "delta": _positive,
    "cap": _optional(_positive),
    "floor": _decay,
    "rate": _optional(_nonnegative),
    "rate_floor": _share,
    "feature_rate": _nonnegative,
    "multiplier_rate": _optional(_nonnegative),
    "shrink": _share,
    "shorten": _share,
}


def check(**hyperparameters: Any) -> None:
    """Raises ValueError for the first hyperparameter that is out of its range.

    The message is one sentence: the argument, what was given, and what to pass.
    """
    for name, value in hyperparameters.items():
        problem = _RULES[name](value)
        if problem is not None:
            raise ValueError(f"{name} {problem}.")
