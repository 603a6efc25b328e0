"""Silence under jax's debug flags: no NaN and no infinity, not even as a sentinel."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from cases import Case
from trees import filled, gradients, params, run, trained

from checks.registry import check


def _with_empty(tree: Any) -> Any:
    return {"empty": trained(jnp.zeros((4, 0))), **tree}


def _gradients() -> Iterator[list[Any]]:
    first, second = map(_with_empty, gradients(2))
    zero = filled(first, 0.0)
    yield [first, second, zero, zero]
    yield [zero, zero, first]


def _decays_of_zero(case: Case) -> dict[str, float]:
    """The end of a decay's range, where its logarithm is infinite."""
    return {name: 0.0 for name in ("decay", "b1", "b2") if name in case.numbers}


@check()
def check_debug_flags_stay_silent(case: Case) -> None:
    """Op by op, where every intermediate result is looked at."""
    position = _with_empty(params())
    with jax.debug_nans(True), jax.debug_infs(True):
        for grads in _gradients():
            run(case, case.make_eager(), position, grads)
        run(case, case.make_eager(**_decays_of_zero(case)), position, grads[:1])


@check()
def check_debug_flags_stay_silent_under_jit(case: Case) -> None:
    optimizer = case.make()
    position = _with_empty(params())
    update = jax.jit(optimizer.update)
    with jax.debug_nans(True), jax.debug_infs(True):
        for grads in _gradients():
            state = jax.jit(optimizer.init)(position)
            for gradient in grads:
                _, state = update(gradient, state, position, **case.extra)
