"""The controls: which optimizer each check has to reject, and how faults are put in."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
import pytest
from cases import CASES, Case

import optabs

SOUND = next(case for case in CASES if case.name == "momentum")


class Control(NamedTuple):
    case: Case
    raises: type[BaseException]


CONTROLS: dict[str, Control] = {}
NOT_RAISED = pytest.fail.Exception  # by pytest.raises inside of a check

_Factory = Callable[..., optax.GradientTransformationExtraArgs]


def factory_for(
    *checks: str, raises: type[BaseException] = AssertionError, **row: Any
) -> Callable[[_Factory], _Factory]:
    """The decorated factory (learning_rate, decay) is what these checks must reject."""

    def register(factory: _Factory) -> _Factory:
        case = dataclasses.replace(SOUND, name=factory.__name__, factory=factory, **row)
        for check in checks:
            assert check not in CONTROLS, check
            CONTROLS[check] = Control(case, raises)
        return factory

    return register


def fault_for(
    *checks: str, raises: type[BaseException] = AssertionError, **row: Any
) -> Callable[[Callable[[Any], Any]], _Factory]:
    """The decorated function puts the fault into a sound optimizer."""

    def register(spoil: Callable[[Any], Any]) -> _Factory:
        def factory(
            learning_rate: optax.ScalarOrSchedule, decay: float = 0.9
        ) -> optax.GradientTransformationExtraArgs:
            return spoil(optabs.momentum(learning_rate, decay))

        factory.__name__ = spoil.__name__
        return factory_for(*checks, raises=raises, **row)(factory)

    return register


def emitting(inner: Any, change: Callable[[Any], Any]) -> Any:
    """inner, its tree of updates changed."""

    def update(grads, state, params=None, **extra):
        updates, state = inner.update(grads, state, params, **extra)
        return change(updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def each(inner: Any, change: Callable[[Any], Any]) -> Any:
    """inner, every leaf of its updates changed."""
    return emitting(inner, lambda updates: jax.tree.map(change, updates))


def keeping(inner: Any, change: Callable[[Any], Any]) -> Any:
    """inner, its state changed after every update."""

    def update(grads, state, params=None, **extra):
        updates, state = inner.update(grads, state, params, **extra)
        return updates, change(state)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def starting(inner: Any, start: Callable[[Any, Any], Any]) -> Any:
    """inner with start(params, state) for its first state."""
    return optax.GradientTransformationExtraArgs(
        lambda params: start(params, inner.init(params)), inner.update
    )


def beside(inner: Any, start: Callable[[Any], Any], change: Callable[[Any], Any]) -> Any:
    """inner with one more state, start(params), changed at every update."""

    def update(grads, state, params=None, **extra):
        updates, held = inner.update(grads, state[0], params, **extra)
        return updates, (held, change(state[1]))

    return optax.GradientTransformationExtraArgs(
        lambda params: (inner.init(params), start(params)), update
    )
